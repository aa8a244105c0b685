//! Egress policies, as the document describes them. They are read and checked by the proxy's own type.

use std::collections::BTreeMap;

use utoipa::ToSchema;

/// What a sandbox reaches of the network beside its mounts. Each member may be left out; the default is nothing.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EgressPolicy {
    /// Whether hosts are reached that no list names.
    pub enable_internet: bool,
    /// If not empty: the only hosts that are reached. Names, with `*` for any letters, addresses and ranges such as
    /// `10.0.0.0/8`.
    pub allowed_hosts: Vec<String>,
    /// Hosts that are never reached.
    pub denied_hosts: Vec<String>,
    /// What is added to requests to some hosts, which the sandbox never sees.
    pub outbound_by_host: BTreeMap<String, Outbound>,
}

/// What is added to requests to a host.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Outbound {
    /// Headers and their values; `${NAME}` in a value is a secret of the daemon. Shown as `***`.
    pub headers: BTreeMap<String, String>,
    /// Whether they are sent over plain HTTP, too.
    pub allow_http: bool,
}
