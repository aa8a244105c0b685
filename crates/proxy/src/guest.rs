//! One sandbox, as the proxy knows it.

use std::sync::{Arc, PoisonError, RwLock};

use sandpail_s3::sign::KeyOfDay;
use sandpail_spec::SecretKey;

use crate::limits::Limits;
use crate::route::{OpenRoute, Route, RouteSpec};
use crate::signature::Verifier;
use crate::{Audit, Upstream};

/// A key that is worth something in this sandbox only.
#[derive(Clone, Debug)]
pub struct DummyKey {
    /// Access key id.
    pub id: String,
    /// Secret access key.
    pub secret: SecretKey,
}

/// A sandbox: its dummy key and what it may reach. Shared by its listeners; changed while they run.
#[derive(Debug)]
pub struct Guest {
    id: String,
    key: DummyKey,
    derived: KeyOfDay,
    routes: RwLock<Arc<Vec<Arc<Route>>>>,
    audit: Arc<dyn Audit>,
    limits: Limits,
}

impl Guest {
    /// A sandbox that reaches nothing yet.
    pub fn new(id: impl Into<String>, key: DummyKey, audit: Arc<dyn Audit>) -> Self {
        Self {
            id: id.into(),
            key,
            derived: KeyOfDay::default(),
            routes: RwLock::default(),
            audit,
            limits: Limits::default(),
        }
    }

    /// The sandbox's id, for the audit log.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The key that its requests must be signed with.
    pub fn key(&self) -> &DummyKey {
        &self.key
    }

    /// What checks its signatures.
    pub(crate) fn verifier(&self) -> Verifier<'_> {
        Verifier { key: &self.key, derived: &self.derived }
    }

    /// Where requests are told.
    pub fn audit(&self) -> &Arc<dyn Audit> {
        &self.audit
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Opens a bucket to the sandbox, until the guard is dropped: then running requests end, too.
    pub fn open(self: &Arc<Self>, spec: RouteSpec, upstream: Arc<dyn Upstream>) -> OpenRoute {
        let route = Arc::new(Route::new(spec, upstream));
        Arc::make_mut(&mut self.routes.write().unwrap_or_else(PoisonError::into_inner)).push(Arc::clone(&route));
        OpenRoute::new(Arc::clone(self), route)
    }

    /// What is open now.
    pub fn routes(&self) -> Arc<Vec<Arc<Route>>> {
        Arc::clone(&self.routes.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn close(&self, route: &Arc<Route>) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut routes).retain(|open| !Arc::ptr_eq(open, route));
    }
}
