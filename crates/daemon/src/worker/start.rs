//! Starting the process behind a mount, and hearing what became of it.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context;
use zeroize::Zeroizing;

use super::keeper::Kept;
use super::{Plan, hand_over};

/// Variables that a worker gets. Only these: a new one of Amazon's may hold a key, and keys come over the socket.
const VARIABLES: [&str; 23] = [
    "PATH",
    "HOME",
    "LANG",
    "TZ",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "XDG_STATE_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_STS_REGIONAL_ENDPOINTS",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
    "AWS_METADATA_SERVICE_TIMEOUT",
    "AWS_METADATA_SERVICE_NUM_ATTEMPTS",
];
/// Amazon's variables that name files; a worker runs in another directory.
const FILE_VARIABLES: [&str; 4] = [
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];

/// What a worker's environment says of a variable of ours.
fn passed_on(name: &str, value: OsString) -> Option<OsString> {
    if value.is_empty() {
        return None;
    }
    if FILE_VARIABLES.contains(&name) {
        return std::path::absolute(value).ok().map(PathBuf::into_os_string);
    }
    VARIABLES.contains(&name).then_some(value)
}

/// This program's own file, also after it was replaced by a newer one.
///
/// # Errors
/// When the kernel does not say.
pub fn own_program() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("cannot find this program's own file")?;
    Ok(match path.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(newer) => PathBuf::from(newer),
        None => path,
    })
}

/// The command that starts a worker (by [`ARGUMENT`](super::ARGUMENT), or its [keeper](super::keeper)), and the socket that its plan must be
/// [sent](hand_plan) over. Its standard output is a pipe.
///
/// # Errors
/// When there is no socket to be had.
pub fn command(program: &std::path::Path, argument: &str) -> anyhow::Result<(Command, UnixStream)> {
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket")?;
    let mut command = Command::new(program);
    command.arg(argument).env_clear().current_dir("/");
    command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::piped()).stderr(Stdio::null());
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        let value = passed_on(name.to_str()?, value)?;
        Some((name, value))
    });
    command.envs(variables);
    Ok((command, ours))
}

/// What a worker gets besides its plan.
#[derive(Clone, Copy, Debug)]
pub enum Given<'a> {
    /// Nothing: it mounts itself.
    Nothing,
    /// A device that nobody has served.
    Device(&'a OwnedFd),
    /// A mount whose process was killed.
    Mount(&'a Kept),
}

/// Hands a worker its plan, and what it shall serve.
///
/// # Errors
/// When it is not taken: the worker has ended.
pub fn hand_plan(socket: &UnixStream, plan: &Plan, given: Given<'_>) -> anyhow::Result<()> {
    let text = Zeroizing::new(serde_json::to_string(plan)?);
    let sent = match given {
        Given::Nothing => hand_over::send(socket, text.as_bytes(), &[]),
        Given::Device(device) => hand_over::send(socket, text.as_bytes(), &[device.as_fd()]),
        Given::Mount(kept) => kept.send_to_next(socket, text.as_bytes()),
    };
    sent.context("cannot hand the plan to the mount's process")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_in_a_workers_environment() {
        let passed = |name: &str| passed_on(name, "some/value".into()).map(|value| value.into_string().unwrap());
        for name in [
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AWS_SECRET_KEY",
            "AWS_ACCESS_KEY",
            "AWS_BEARER_TOKEN_BEDROCK",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN",
            "R2_SECRET_ACCESS_KEY",
            "SANDPAIL_API_KEY",
            "MY_KEY",
        ] {
            assert_eq!(passed(name), None, "{name}");
        }
        assert_eq!(passed("AWS_PROFILE").as_deref(), Some("some/value"));
        assert!(passed("AWS_CONFIG_FILE").unwrap().starts_with('/'));
    }
}
