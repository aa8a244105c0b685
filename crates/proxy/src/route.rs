//! A mount, as the proxy knows it.

use std::sync::Arc;

use sandpail_spec::{Endpoint, KeyPrefix};
use tokio_util::sync::CancellationToken;

use crate::memory::RouteMemory;
use crate::target::plain_host;
use crate::{Guest, Upstream};

/// What may be done with a mount's objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only reading and listing.
    ReadOnly,
    /// Everything that the proxy lets through.
    ReadWrite,
}

/// What is opened to a sandbox.
#[derive(Clone, Debug)]
pub struct RouteSpec {
    /// The mount's id, random: `[a-z0-9]`, fit for a host name's label.
    pub id: String,
    /// The binding's name, if it is one: reached by `r2.internal/<binding>`.
    pub binding: Option<String>,
    /// The bucket's real name.
    pub bucket: String,
    /// Only keys below it.
    pub prefix: KeyPrefix,
    /// What may be done.
    pub access: Access,
    /// The real endpoint, whose host is intercepted; none for an embedded bucket, and for bindings.
    pub endpoint: Option<Endpoint>,
    /// Takes requests without a signature (the operator's wish).
    pub allow_unsigned: bool,
}

/// A mount that is open to a sandbox.
#[derive(Debug)]
pub struct Route {
    spec: RouteSpec,
    upstream: Arc<dyn Upstream>,
    revoked: CancellationToken,
    memory: RouteMemory,
    /// The endpoint's host, as hosts are compared.
    endpoint_host: Option<String>,
}

impl Route {
    pub(crate) fn new(spec: RouteSpec, upstream: Arc<dyn Upstream>) -> Self {
        let endpoint_host = spec.endpoint.as_ref().map(|endpoint| plain_host(endpoint.host()));
        Self { spec, upstream, revoked: CancellationToken::new(), memory: RouteMemory::default(), endpoint_host }
    }

    /// The host of [`RouteSpec::endpoint`], lower-case.
    pub(crate) fn endpoint_host(&self) -> Option<&str> {
        self.endpoint_host.as_deref()
    }

    /// What it opens.
    pub fn spec(&self) -> &RouteSpec {
        &self.spec
    }

    /// The bucket behind it.
    pub fn upstream(&self) -> &Arc<dyn Upstream> {
        &self.upstream
    }

    pub(crate) fn memory(&self) -> &RouteMemory {
        &self.memory
    }

    /// Resolves when the mount is gone: requests under way must end.
    pub fn revoked(&self) -> &CancellationToken {
        &self.revoked
    }
}

/// Keeps a route open; dropping it revokes it.
#[derive(Debug)]
pub struct OpenRoute {
    guest: Arc<Guest>,
    route: Arc<Route>,
}

impl OpenRoute {
    pub(crate) fn new(guest: Arc<Guest>, route: Arc<Route>) -> Self {
        Self { guest, route }
    }

    /// The route.
    pub fn route(&self) -> &Arc<Route> {
        &self.route
    }
}

impl Drop for OpenRoute {
    fn drop(&mut self) {
        self.guest.close(&self.route);
        self.route.revoked.cancel();
    }
}
