//! Sessions: which there are, and whose turn it is. What they hold is in the sandbox; see [`crate::session`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Sandbox, lock};
use crate::record::SessionRecord;
use crate::start::system;
use crate::{SandboxError, SessionId, SessionSpec, WORKSPACE};

/// Where states are, in the sandbox.
const DIRECTORY: &str = "/run/sandpail/sessions";

impl Sandbox {
    pub(super) fn make_session(&self, spec: SessionSpec) -> Result<SessionId, SandboxError> {
        let id = match spec.id {
            Some(id) => id,
            None => SessionId::parse(&new_name()?).map_err(|error| SandboxError::Host(error.to_string()))?,
        };
        let session =
            SessionRecord { cwd: spec.cwd.unwrap_or_else(|| WORKSPACE.into()), env: spec.env, terminal: None };
        let is_new = self.change_record(|record| {
            let is_new = !record.sessions.contains_key(id.as_str());
            if is_new {
                record.sessions.insert(id.as_str().to_owned(), session);
            }
            is_new
        })?;
        if is_new { Ok(id) } else { Err(SandboxError::SessionExists { id: id.to_string() }) }
    }

    /// A session as it was made; made now if it is not there.
    pub(super) fn session(&self, id: &SessionId) -> Result<SessionRecord, SandboxError> {
        if let Some(found) = self.record().sessions.get(id.as_str()) {
            return Ok(found.clone());
        }
        let new = SessionRecord { cwd: WORKSPACE.into(), env: BTreeMap::new(), terminal: None };
        self.change_record(|record| record.sessions.entry(id.as_str().to_owned()).or_insert(new).clone())
    }

    pub(super) async fn end_session(&self, id: &SessionId) -> Result<(), SandboxError> {
        let ended = self.change_record(|record| record.sessions.remove(id.as_str()))?;
        if ended.is_none() {
            return Err(SandboxError::NoSession { id: id.to_string() });
        }
        if let Some(terminal) = self.inner.terminals.lock().await.remove(id) {
            terminal.end().await;
        }
        let running = lock(&self.inner.running).remove(id);
        if let Some(child) = running {
            self.inner.control.order(&crate::wire::Order::Kill { id: child }).await?;
        }
        lock(&self.inner.turns).remove(id);
        // A later session of this name begins anew.
        for file in [self.session_state(id), self.session_state(id).with_extension("new")] {
            match self.delete(&file, false).await {
                Ok(()) | Err(SandboxError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Where commands of a session take turns.
    pub(super) fn turn(&self, id: &SessionId) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(lock(&self.inner.turns).entry(id.clone()).or_default())
    }

    /// The file in the sandbox that holds a session's state.
    pub(super) fn session_state(&self, id: &SessionId) -> PathBuf {
        Path::new(DIRECTORY).join(format!("{id}.state"))
    }
}

/// 26 random letters and digits.
pub(super) fn new_name() -> Result<String, SandboxError> {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    const LEN: usize = 26;
    let mut random = [0; LEN];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut from| std::io::Read::read_exact(&mut from, &mut random))
        .map_err(system("random bytes"))?;
    Ok(random.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect())
}
