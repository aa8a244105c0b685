//! File operations, done by the agent inside.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{Sandbox, null, pipe_from_us, pipe_to_us};
use crate::SandboxError;
use crate::agent::Agent;
use crate::control::{Control, Outcome};
use crate::start::system;
use crate::wire::{Order, Program, Start};

impl Sandbox {
    /// Starts an agent, good for one operation.
    pub(super) async fn agent(&self) -> Result<Agent, SandboxError> {
        const WHAT: &str = "pipes of the file agent";
        let (stdin, theirs_in) = pipe_from_us(None).map_err(system(WHAT))?;
        let (stdout, theirs_out) = pipe_to_us(None).map_err(system(WHAT))?;
        let order = Start {
            id: 0,
            program: Program::Agent,
            cwd: "/".into(),
            env: Vec::new(),
            timeout_ms: None,
            is_kept: false,
        };
        let control = self.inner.control.clone();
        let started = control.start(order, vec![theirs_in, theirs_out, null().map_err(system(WHAT))?]).await?;
        Ok(Agent::new(stdin, stdout, EndOnDrop { control, id: started.id, outcome: Some(started.outcome) }))
    }
}

/// How long an agent may take to clean up after its caller has gone away.
const CLEAN_UP_TIME_MAX: Duration = Duration::from_secs(10);

/// Ends an agent that hangs in a file system.
struct EndOnDrop {
    control: Control,
    id: u64,
    outcome: Option<oneshot::Receiver<Outcome>>,
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        let (control, id) = (self.control.clone(), self.id);
        if let (Some(outcome), Ok(runtime)) = (self.outcome.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                if tokio::time::timeout(CLEAN_UP_TIME_MAX, outcome).await.is_err() {
                    // If the sandbox has ended, so has the agent.
                    let _result = control.order(&Order::Kill { id }).await;
                }
            });
        }
    }
}
