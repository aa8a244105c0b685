//! Keys as Amazon's own tools find them.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_config::BehaviorVersion;
use aws_config::meta::region::ProvideRegion;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use sandpail_spec::{Credentials, SecretKey};
use tokio::sync::Mutex;

use super::CredentialProvider;
use crate::{StoreError, StoreResult};

/// Keys are renewed this long before they expire.
const EARLY: Duration = Duration::from_secs(5 * 60);
/// After a renewal that failed while the old keys are still good.
const PAUSE: Duration = Duration::from_secs(15);

/// Environment, profile (static, SSO, process, role), web identity, container and instance, in that order; renewed
/// before they expire.
pub struct AwsChain {
    profile: Option<String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    provider: Option<SharedCredentialsProvider>,
    found: Option<Found>,
}

#[derive(Clone)]
struct Found {
    credentials: Arc<Credentials>,
    expires: Option<SystemTime>,
    /// When to look again.
    renew: Option<SystemTime>,
}

impl fmt::Debug for AwsChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsChain").field("profile", &self.profile).finish_non_exhaustive()
    }
}

impl AwsChain {
    /// With the profile of that name and nothing else; without one, the whole chain, which knows `AWS_PROFILE`. Nothing
    /// is looked for yet.
    pub fn new(profile: Option<String>) -> Self {
        Self { profile, state: Mutex::default() }
    }

    async fn provider(&self) -> StoreResult<SharedCredentialsProvider> {
        let client = Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        if let Some(profile) = &self.profile {
            // The whole chain would prefer keys of the environment to a profile that was asked for.
            let config = ProviderConfig::without_region().with_http_client(client);
            let region = ProfileFileRegionProvider::builder().configure(&config).profile_name(profile).build();
            let region = region.region().await;
            let config = config.with_region(region);
            let provider = ProfileFileCredentialsProvider::builder().configure(&config).profile_name(profile).build();
            return Ok(SharedCredentialsProvider::new(provider));
        }
        let config = aws_config::defaults(BehaviorVersion::latest()).http_client(client).load().await;
        config.credentials_provider().ok_or_else(|| self.none("no source of credentials"))
    }

    fn none(&self, cause: &str) -> StoreError {
        let profile = self.profile.as_ref().map_or_else(String::new, |profile| format!(" with profile {profile:?}"));
        let message = format!(
            "no AWS credentials found{profile}: {cause}. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or sign in with the AWS tools"
        );
        StoreError::Credentials { message }
    }

    async fn look(&self, state: &mut State) -> StoreResult<Found> {
        let provider = match &state.provider {
            Some(provider) => provider.clone(),
            None => state.provider.insert(self.provider().await?).clone(),
        };
        let found = provider.provide_credentials().await.map_err(|error| {
            if let (CredentialsError::CredentialsNotLoaded(_), Some(_)) = (&error, &self.profile) {
                return self.none("the AWS shared files have no such profile, or it has no keys");
            }
            let mut cause = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(error) = source {
                cause = format!("{cause}: {error}");
                source = error.source();
            }
            self.none(super::error::clean(&cause).trim_end_matches('.'))
        })?;
        let expires = found.expiry();
        Ok(Found {
            credentials: Arc::new(Credentials {
                access_key_id: found.access_key_id().to_owned(),
                secret_access_key: SecretKey::new(found.secret_access_key()),
                session_token: found.session_token().map(SecretKey::new),
            }),
            expires,
            renew: expires.map(|expires| expires.checked_sub(EARLY).unwrap_or(expires)),
        })
    }
}

#[async_trait]
impl CredentialProvider for AwsChain {
    async fn get(&self) -> StoreResult<Arc<Credentials>> {
        let mut state = self.state.lock().await;
        let now = SystemTime::now();
        if let Some(found) = &state.found
            && found.renew.is_none_or(|renew| now < renew)
        {
            return Ok(Arc::clone(&found.credentials));
        }
        match self.look(&mut state).await {
            Ok(found) => {
                let credentials = Arc::clone(&found.credentials);
                state.found = Some(found);
                Ok(credentials)
            }
            Err(error) => match &mut state.found {
                Some(found) if found.expires.is_none_or(|expires| now < expires) => {
                    tracing::warn!(%error, "credentials could not be renewed; the old ones still hold");
                    found.renew = Some(now + PAUSE);
                    Ok(Arc::clone(&found.credentials))
                }
                _ => Err(error),
            },
        }
    }

    async fn refused(&self) -> bool {
        let mut state = self.state.lock().await;
        // A provider of its own may have remembered them too.
        state.provider = None;
        state.found.take().is_some()
    }
}
