//! What a sandbox reaches beside its files: its dummy key, its certificate authority, its policy, and the doors of its mounts.
//!
//! A sandbox starts with none of it running: the daemon's sockets are made inside it when the first mount opens a door, or
//! when a policy lets it out. Key, authority and policy are kept in a file of their own for root alone, so that a restarted
//! daemon serves the same.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use sandpail_proxy::{
    BUNDLE_PATH, BUNDLE_PATHS, Ca, DummyKey, EgressPolicy, Guest, Network, Sockets, TRUST_VARIABLES, Threads,
};
use sandpail_sandbox::{Listeners, NAME_SERVER, Sandbox, SandboxFile, SandboxId};
use sandpail_spec::SecretKey;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::audit::AuditLog;
use crate::sandboxes::{Inner, random_text};
use crate::{Config, DaemonError};

/// Characters of a dummy key's id behind [`KEY_PREFIX`], as many as Amazon's ids have in all.
const KEY_ID_LEN: usize = 14;
/// Says that the key is worth nothing elsewhere.
const KEY_PREFIX: &str = "DUMMY0";
/// Characters of its secret: 200 bits.
const SECRET_LEN: usize = 40;
/// The endpoint that tools inside are given: it takes every bucket that is mounted.
const ENDPOINT: &str = "http://s3.internal";
/// What tools sign for. The proxy takes every region; this one is none of Amazon's, so that boto3 presigns with the fourth
/// version of signatures, which for Amazon's older ones it does only when it is told to.
const REGION: &str = "auto";

/// A sandbox's network.
#[derive(Debug)]
pub(crate) struct SandboxNetwork {
    guest: Arc<Guest>,
    audit: Arc<AuditLog>,
    threads: Arc<Threads>,
    file: PathBuf,
    kept: Mutex<Kept>,
    /// Held while it is opened or its policy is changed.
    running: tokio::sync::Mutex<Option<Network>>,
}

/// What outlives the daemon, in a file for root alone.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    access_key_id: String,
    secret_access_key: Zeroizing<String>,
    authority: Zeroizing<String>,
    /// With `${NAME}` where it names the daemon's secrets.
    egress: serde_json::Value,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

fn failed(what: &str) -> impl FnOnce(&dyn std::fmt::Display) -> DaemonError {
    move |error| DaemonError::State(format!("{what}: {error}"))
}

fn directory(inner: &Inner) -> PathBuf {
    inner.state.join("network")
}

fn file_of(inner: &Inner, id: &SandboxId) -> PathBuf {
    directory(inner).join(format!("{id}.json"))
}

impl SandboxNetwork {
    /// Makes the network of a sandbox that is about to start, and the files that it needs.
    ///
    /// # Errors
    /// [`DaemonError::State`].
    pub(crate) fn new(inner: &Inner, id: &SandboxId) -> Result<(Arc<Self>, Vec<SandboxFile>), DaemonError> {
        let random = |len| random_text(len).map_err(|error| failed("no random bytes")(&error));
        let authority = Ca::generate(id.as_str()).map_err(|error| failed("a sandbox's certificates")(&error))?;
        let bundle = authority.bundle().map_err(|error| failed("the host's certificates")(&error))?;
        let kept = Kept {
            access_key_id: format!("{KEY_PREFIX}{}", random(KEY_ID_LEN)?.to_uppercase()),
            secret_access_key: Zeroizing::new(random(SECRET_LEN)?),
            authority: Zeroizing::new(authority.keep().expose().to_owned()),
            egress: to_json(&inner.config().egress)?,
        };
        let network = Self::from_kept(inner, id, kept);
        network.write()?;
        Ok((Arc::new(network), files(bundle)))
    }

    /// Finds the network of a sandbox of an earlier daemon; none if it never had one.
    pub(crate) fn load(inner: &Inner, id: &SandboxId) -> Option<Arc<Self>> {
        let file = file_of(inner, id);
        let read = std::fs::read(&file).map(Zeroizing::new).map_err(|error| error.to_string());
        match read.and_then(|text| serde_json::from_slice::<Kept>(&text).map_err(|error| error.to_string())) {
            Ok(kept) => Some(Arc::new(Self::from_kept(inner, id, kept))),
            Err(error) => {
                tracing::warn!(sandbox = id.as_str(), error, "a sandbox stays without network");
                None
            }
        }
    }

    fn from_kept(inner: &Inner, id: &SandboxId, kept: Kept) -> Self {
        let key = DummyKey {
            id: kept.access_key_id.clone(),
            secret: SecretKey::new(kept.secret_access_key.as_str().to_owned()),
        };
        let audit = Arc::new(AuditLog::new(id.clone(), inner.events.clone(), inner.config().slow_request));
        let guest = Arc::new(Guest::new(id.as_str(), key, Arc::clone(&audit) as Arc<dyn sandpail_proxy::Audit>));
        let threads = Arc::clone(&inner.threads);
        Self {
            guest,
            audit,
            threads,
            file: file_of(inner, id),
            kept: Mutex::new(kept),
            running: tokio::sync::Mutex::default(),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> Result<(), DaemonError> {
        let text = serde_json::to_vec(&*self.kept()).map(Zeroizing::new);
        let written = text.map_err(std::io::Error::from).and_then(|text| replace(&self.file, &text));
        written.map_err(|error| failed(&format!("cannot write {}", self.file.display()))(&error))
    }

    /// What mounts open their doors at.
    pub(crate) fn guest(&self) -> &Arc<Guest> {
        &self.guest
    }

    /// Counts and tells requests.
    pub(crate) fn audit(&self) -> &AuditLog {
        &self.audit
    }

    /// Whether the policy lets the sandbox out at all.
    pub(crate) fn lets_out(&self) -> bool {
        lets_out(&self.kept().egress)
    }

    /// Makes the daemon's sockets inside the sandbox and serves them, unless that is done.
    ///
    /// # Errors
    /// [`DaemonError`] says what cannot be made.
    pub(crate) async fn open(&self, config: &Config, sandbox: &Sandbox) -> Result<(), DaemonError> {
        let mut running = self.running.lock().await;
        if running.is_some() {
            return Ok(());
        }
        let (authority, egress) = {
            let kept = self.kept();
            (SecretKey::new(kept.authority.as_str().to_owned()), kept.egress.clone())
        };
        let authority = Ca::load(&authority).map_err(|error| failed("a sandbox's certificates")(&error))?;
        // A secret that was taken from the daemon since is no reason to close the doors of the mounts, too.
        let policy = resolved(&egress, config).unwrap_or_else(|error| {
            tracing::warn!(sandbox = sandbox.id().as_str(), %error, "the sandbox is let out nowhere");
            EgressPolicy::default()
        });
        let Listeners { connections, names } = sandbox.open_network().await?;
        let started = {
            let _there = self.threads.next().enter();
            Network::start(Arc::clone(&self.guest), Sockets { connections, names }, policy, authority)
        };
        *running = Some(started.map_err(|error| failed("a sandbox's network")(&error))?);
        sandbox.set_environment(self.environment())?;
        Ok(())
    }

    /// What tools inside need to reach the mounts: nothing of it is worth anything elsewhere.
    fn environment(&self) -> BTreeMap<String, String> {
        let key = self.guest.key();
        let tools = [
            ("AWS_ACCESS_KEY_ID", key.id.as_str()),
            ("AWS_SECRET_ACCESS_KEY", key.secret.expose()),
            ("AWS_REGION", REGION),
            ("AWS_DEFAULT_REGION", REGION),
            ("AWS_ENDPOINT_URL_S3", ENDPOINT),
            // For arrow-rs and what is built on it; buckets in the host name work, too.
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "false"),
            // Nobody answers there, and asking takes seconds.
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ];
        let trust = TRUST_VARIABLES.iter().map(|name| (*name, BUNDLE_PATH));
        tools.into_iter().chain(trust).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// The policy, as it may be shown: without values of headers.
    ///
    /// # Errors
    /// [`DaemonError::State`].
    pub(crate) fn shown_policy(&self) -> Result<serde_json::Value, DaemonError> {
        let policy = read(&self.kept().egress)?;
        serde_json::to_value(policy.shown()).map_err(|error| failed("a policy")(&error))
    }

    /// Changes the policy from now on, for living connections, too.
    ///
    /// # Errors
    /// [`DaemonError::Egress`] names what is wrong with it; the old one stays then.
    pub(crate) async fn set_policy(
        &self,
        config: &Config,
        sandbox: &Sandbox,
        policy: serde_json::Value,
    ) -> Result<(), DaemonError> {
        let policy = read(&policy)?;
        let egress = to_json(&policy)?;
        let resolved = resolved(&egress, config)?;
        {
            let running = self.running.lock().await;
            let before = std::mem::replace(&mut self.kept().egress, egress);
            // First what is kept: a policy that holds is one that can be seen, and that outlives this daemon.
            let changed = self.write().and_then(|()| match &*running {
                Some(network) => network.set_policy(resolved).map_err(|error| DaemonError::Egress(error.to_string())),
                None => Ok(()),
            });
            if let Err(error) = changed {
                self.kept().egress = before;
                return Err(error);
            }
        }
        if self.lets_out() { self.open(config, sandbox).await } else { Ok(()) }
    }

    /// Closes everything: the sandbox has ended.
    pub(crate) async fn close(&self) {
        self.running.lock().await.take();
        match std::fs::remove_file(&self.file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(file = %self.file.display(), %error, "the keys of a sandbox that is gone");
            }
            _ => {}
        }
    }
}

/// Removes what is kept of sandboxes that are not known any more.
pub(crate) fn prune(inner: &Inner) {
    for file in std::fs::read_dir(directory(inner)).into_iter().flatten().flatten() {
        let path = file.path();
        let id = path.file_stem().and_then(|name| name.to_str()).and_then(|name| SandboxId::parse(name).ok());
        if id.is_none_or(|id| inner.slot(&id).is_none())
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::debug!(file = %path.display(), %error, "an old file stays");
        }
    }
}

fn files(bundle: Vec<u8>) -> Vec<SandboxFile> {
    let bundle = Bytes::from(bundle);
    let file = |path: &str, content: Bytes, is_optional| SandboxFile { path: path.into(), content, is_optional };
    let mut files = vec![
        file("/etc/resolv.conf", format!("nameserver {NAME_SERVER}\noptions timeout:5\n").into(), false),
        file(BUNDLE_PATH, bundle.clone(), false),
    ];
    files.extend(BUNDLE_PATHS.iter().map(|path| file(path, bundle.clone(), true)));
    files
}

/// Writes a file for root alone, whole: a reader sees the old one or the new one.
fn replace(file: &Path, text: &[u8]) -> std::io::Result<()> {
    let new = file.with_extension("new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::File::options().write(true).create_new(true).mode(0o600).open(&new)?.write_all(text)?;
    std::fs::rename(&new, file)
}

fn to_json(policy: &EgressPolicy) -> Result<serde_json::Value, DaemonError> {
    serde_json::to_value(policy.kept()).map_err(|error| failed("a policy")(&error))
}

fn read(policy: &serde_json::Value) -> Result<EgressPolicy, DaemonError> {
    let policy = EgressPolicy::deserialize(policy).map_err(|error| DaemonError::Egress(error.to_string()))?;
    policy.check().map_err(|error| DaemonError::Egress(error.to_string()))?;
    Ok(policy)
}

fn lets_out(egress: &serde_json::Value) -> bool {
    read(egress).is_ok_and(|policy| {
        policy.enable_internet || !policy.allowed_hosts.is_empty() || !policy.outbound_by_host.is_empty()
    })
}

/// The policy with the daemon's secrets in place of `${NAME}`.
fn resolved(egress: &serde_json::Value, config: &Config) -> Result<EgressPolicy, DaemonError> {
    config.secrets.fill(read(egress)?).map_err(DaemonError::Egress)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn who_is_let_out() {
        let out = |text: &str| lets_out(&serde_json::from_str(text).unwrap());
        assert!(!out("{}") && !out(r#"{"deniedHosts":["a.example"]}"#));
        assert!(out(r#"{"enableInternet":true}"#) && out(r#"{"allowedHosts":["a.example"]}"#));
    }

    #[test]
    fn a_file_is_replaced_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.json");
        std::fs::write(file.with_extension("new"), "left by a daemon that was killed").unwrap();
        replace(&file, b"one").unwrap();
        replace(&file, b"two").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
