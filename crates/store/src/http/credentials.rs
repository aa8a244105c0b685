//! Where keys come from.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use sandpail_spec::Credentials;

use crate::StoreResult;

/// Gives the keys that sign requests. Asked before every request, so it should remember what it knows.
#[async_trait]
pub trait CredentialProvider: fmt::Debug + Send + Sync + 'static {
    /// The keys to sign with now.
    ///
    /// # Errors
    /// [`StoreError::Credentials`](crate::StoreError::Credentials) that says where it looked.
    async fn get(&self) -> StoreResult<Arc<Credentials>>;

    /// Hears that the keys were refused as expired: the next [`get`](Self::get) should read them anew. Says whether
    /// that can help.
    async fn refused(&self) -> bool {
        false
    }
}

/// Keys that stay the same.
#[derive(Debug)]
pub struct StaticCredentials(Arc<Credentials>);

impl StaticCredentials {
    /// Always gives `credentials`.
    pub fn new(credentials: Credentials) -> Self {
        Self(Arc::new(credentials))
    }
}

#[async_trait]
impl CredentialProvider for StaticCredentials {
    async fn get(&self) -> StoreResult<Arc<Credentials>> {
        Ok(Arc::clone(&self.0))
    }
}

/// Takes keys from variables: the `AWS_*` pair (with `AWS_SESSION_TOKEN`), else the `R2_*` pair, each only if complete.
pub fn environment(variables: impl Fn(&str) -> Option<String>) -> Option<StaticCredentials> {
    Credentials::from_variables(variables).map(StaticCredentials::new)
}
