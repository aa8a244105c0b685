//! Sandboxes, the pool, tunnels, events.

use sandpail_daemon::{Event, PoolStats, SandboxInfo};
use serde_json::Value;
use utoipa::ToSchema;

use super::{Members, invalid, iso_unsigned};
use crate::error::ApiError;

/// How often the pool is looked after, in milliseconds: it is refilled when a sandbox is taken, and so often besides.
const REFRESH_INTERVAL_MS: u64 = 10_000;

/// A sandbox was made.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
pub struct SandboxCreated {
    /// Its id: 26 random characters of `a-z2-7`.
    pub id: String,
}

/// Whether a sandbox was created and not destroyed.
#[derive(Clone, Copy, Debug, serde::Serialize, ToSchema)]
pub struct Running {
    /// Whether it was.
    pub running: bool,
}

/// A sandbox as it is listed.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxEntry {
    /// Its id.
    pub id: String,
    /// Whether it runs.
    pub running: bool,
    /// ISO 8601.
    pub created_at: String,
    /// How many mounts it has.
    pub mounts: usize,
}

impl From<SandboxInfo> for SandboxEntry {
    fn from(info: SandboxInfo) -> Self {
        Self {
            id: info.id.as_str().to_owned(),
            running: info.running,
            created_at: iso_unsigned(info.created_ms),
            mounts: info.mounts,
        }
    }
}

/// All sandboxes.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
pub struct SandboxList {
    /// In no order that means anything.
    pub sandboxes: Vec<SandboxEntry>,
}

/// Whether all is well.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
pub struct Health {
    /// Whether it is.
    pub ok: bool,
    /// What is not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
}

/// The pool of started sandboxes.
#[derive(Clone, Copy, Debug, serde::Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolInfo {
    /// Started and unused.
    pub warm: usize,
    /// In use.
    pub assigned: usize,
    /// Both.
    pub total: usize,
    /// How it is set.
    pub config: PoolConfig,
    /// The most sandboxes at the same time; `null`: no limit.
    pub max_instances: Option<usize>,
}

/// How the pool is set.
#[derive(Clone, Copy, Debug, serde::Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolConfig {
    /// Wanted number of warm ones.
    pub warm_target: usize,
    /// How often it is looked after, in milliseconds.
    pub refresh_interval: u64,
    /// The most sandboxes at the same time; `null`: no limit.
    pub max_instances: Option<usize>,
    /// How many are started at the same time.
    pub scale_batch_size: usize,
}

impl From<PoolStats> for PoolInfo {
    fn from(stats: PoolStats) -> Self {
        Self {
            warm: stats.warm,
            assigned: stats.assigned,
            total: stats.warm + stats.assigned,
            config: PoolConfig {
                warm_target: stats.warm_target,
                refresh_interval: REFRESH_INTERVAL_MS,
                max_instances: stats.max_instances,
                scale_batch_size: 1,
            },
            max_instances: stats.max_instances,
        }
    }
}

/// A tunnel to open. The body may be missing.
#[derive(Clone, Debug, Default, ToSchema)]
pub struct TunnelRequest {
    /// A DNS label.
    #[schema(nullable = false)]
    pub name: Option<String>,
}

impl TunnelRequest {
    pub(crate) fn check(members: &Members) -> Result<(), ApiError> {
        match members.get("name") {
            None => Ok(()),
            Some(Value::String(name)) if is_dns_label(name) => Ok(()),
            Some(Value::String(_)) => Err(invalid(
                "name must be a valid DNS label: 1-63 lowercase letters, digits or hyphens, no hyphen first or last",
            )),
            Some(_) => Err(invalid("name must be a string when provided")),
        }
    }

    /// The port of a tunnel's path.
    pub(crate) fn check_port(text: &str) -> Result<(), ApiError> {
        /// Where the bridge's own server listens in the container.
        const RESERVED: u16 = 3000;
        let port = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u16>().ok()).flatten();
        if port.is_some_and(|port| port >= 1024 && port != RESERVED) { Ok(()) } else { Err(invalid("Invalid port")) }
    }
}

fn is_dns_label(name: &str) -> bool {
    let is_inner = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=63).contains(&name.len()) && name.bytes().all(is_inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// Something that happened.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventEntry {
    /// ISO 8601.
    pub time: String,
    /// `sandbox.created`, `mount.serving`, …
    pub kind: String,
    /// The sandbox, if it is about one.
    pub sandbox: Option<String>,
    /// The path of the mount, if it is about one.
    pub mount_path: Option<String>,
    /// For people.
    pub detail: String,
}

impl From<Event> for EventEntry {
    fn from(event: Event) -> Self {
        Self {
            time: iso_unsigned(event.time_ms),
            kind: event.kind,
            sandbox: event.sandbox,
            mount_path: event.mount_path,
            detail: event.detail,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports() {
        for good in ["1024", "8080", "65535"] {
            assert!(TunnelRequest::check_port(good).is_ok(), "{good}");
        }
        for bad in ["", "0", "80", "1023", "3000", "65536", "8080x", "-1", "+8080", "8e3"] {
            assert!(TunnelRequest::check_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_tunnels() {
        let of = |body: Value| match TunnelRequest::check(body.as_object().unwrap()) {
            Ok(()) => String::new(),
            Err(ApiError::Invalid(text)) => text,
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(of(json!({})), "");
        assert_eq!(of(json!({"name": "web-1"})), "");
        assert_eq!(of(json!({"name": null})), "name must be a string when provided");
        assert_eq!(of(json!({"name": 1})), "name must be a string when provided");
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", &"a".repeat(64)] {
            assert!(of(json!({"name": bad})).contains("valid DNS label"), "{bad}");
        }
    }

    #[test]
    fn pool() {
        let stats = PoolStats { warm: 1, assigned: 2, warm_target: 3, max_instances: None };
        assert_eq!(
            serde_json::to_value(PoolInfo::from(stats)).unwrap(),
            json!({
                "warm": 1, "assigned": 2, "total": 3, "maxInstances": null,
                "config": {"warmTarget": 3, "refreshInterval": 10000, "maxInstances": null, "scaleBatchSize": 1},
            })
        );
    }
}
