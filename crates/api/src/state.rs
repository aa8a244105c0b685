//! What every handler gets.

use std::sync::Arc;

use sandpail_daemon::Daemon;
use sandpail_sandbox::{Sandbox, SandboxId};
use sandpail_spec::SecretKey;

use crate::error::{ApiError, Operation};

/// The API's state: cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Api(Arc<Behind>);

#[derive(Debug)]
enum Behind {
    Daemon(Daemon),
    /// No daemon: what needs one answers 503. For tests of everything that is decided before a daemon is asked.
    #[cfg(test)]
    Nothing(Settings),
}

/// The part of the daemon's configuration that the API looks at. Read anew for each request: it can be reloaded.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The key that clients present; `None`: no authentication.
    pub(crate) api_key: Option<SecretKey>,
    /// The most bytes of one uploaded file or archive.
    pub(crate) upload_limit: u64,
}

impl Api {
    pub(crate) fn new(daemon: Daemon) -> Self {
        Self(Arc::new(Behind::Daemon(daemon)))
    }

    #[cfg(test)]
    pub(crate) fn without_daemon(settings: Settings) -> Self {
        Self(Arc::new(Behind::Nothing(settings)))
    }

    pub(crate) fn settings(&self) -> Settings {
        match &*self.0 {
            Behind::Daemon(daemon) => {
                let config = daemon.config();
                Settings { api_key: config.api_key.clone(), upload_limit: config.upload_limit }
            }
            #[cfg(test)]
            Behind::Nothing(settings) => settings.clone(),
        }
    }

    pub(crate) fn daemon(&self) -> Result<&Daemon, ApiError> {
        match &*self.0 {
            Behind::Daemon(daemon) => Ok(daemon),
            #[cfg(test)]
            Behind::Nothing(_) => Err(Operation::Start.failed(sandpail_daemon::DaemonError::Stopping)),
        }
    }

    /// The sandbox of `id`, made if there is none yet.
    pub(crate) async fn sandbox(&self, id: &SandboxId) -> Result<Sandbox, ApiError> {
        self.daemon()?.sandbox(id).await.map_err(|error| Operation::Start.failed(error))
    }
}
