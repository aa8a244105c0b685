//! From a mount's source to a store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use sandpail_spec::{BucketName, Credentials, KeyPrefix, SecretKey};
use sandpail_store::Store;
use sandpail_store::dir::DirStore;
use sandpail_store::http::{AwsChain, Connections, HttpStore, Relay, StaticCredentials, Timeouts};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::profiles;

/// Where a mount's data is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// An embedded bucket.
    Directory(PathBuf),
    /// A bucket of a server.
    Bucket(String),
}

impl Source {
    /// Reads `BUCKET[/PREFIX]`, `s3://BUCKET/PREFIX` or `dir:PATH`; the prefix comes apart.
    pub fn parse(text: &str) -> anyhow::Result<(Self, Option<KeyPrefix>)> {
        if let Some(path) = text.strip_prefix("dir:").or_else(|| text.strip_prefix("file://")) {
            let path = std::path::absolute(path).with_context(|| format!("invalid directory {path:?}"))?;
            return Ok((Self::Directory(path), None));
        }
        let rest = text.strip_prefix("s3://").unwrap_or(text);
        if let Some((scheme, _)) = rest.split_once("://") {
            bail!("unknown source \"{scheme}://…\"; write BUCKET[/PREFIX], s3://BUCKET/PREFIX or dir:PATH");
        }
        let (bucket, prefix) = match rest.split_once('/') {
            Some((bucket, prefix)) => (bucket, Some(format!("/{prefix}"))),
            None => (rest, None),
        };
        // What s3fs takes: BUCKET:/PREFIX.
        if bucket.contains(':') {
            let (bucket, prefix) = rest.split_once(':').unwrap_or((bucket, ""));
            bail!("Bucket name cannot contain ':'. To mount a prefix, write {bucket}/{}", prefix.trim_matches('/'));
        }
        let bucket = BucketName::parse_lenient(bucket)?;
        let prefix = prefix.map(|prefix| KeyPrefix::parse(&prefix)).transpose()?;
        Ok((Self::Bucket(bucket.as_str().to_owned()), prefix.filter(|prefix| !prefix.as_str().is_empty())))
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
            Self::Bucket(name) => write!(f, "s3://{name}"),
        }
    }
}

/// Opens an embedded bucket that must be there.
pub fn open_directory(path: &std::path::Path) -> anyhow::Result<Arc<dyn Store>> {
    Ok(Arc::new(DirStore::open(path)?))
}

/// A bucket of a server: how to reach it, keys included. Written to a worker's socket and nowhere else.
#[derive(Clone, Serialize, Deserialize)]
pub struct RemotePlan {
    /// URL of the server.
    pub endpoint: String,
    /// Whose dialect it is.
    pub provider: String,
    /// The region to sign for.
    pub region: Option<String>,
    /// Whether the bucket's name stands in the path.
    pub path_style: Option<bool>,
    /// More authorities to trust.
    pub ca_file: Option<PathBuf>,
    /// Trust anybody.
    pub insecure: bool,
    /// Connections at the same time.
    pub max_connections: usize,
    /// How long a connection may take; as usual if `None`.
    pub connect_timeout: Option<Duration>,
    /// How long no byte may move; as usual if `None`.
    pub stall_timeout: Option<Duration>,
    /// Who signs.
    pub keys: Keys,
}

impl std::fmt::Debug for RemotePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemotePlan").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// Who signs.
#[derive(Clone, Serialize, Deserialize)]
pub enum Keys {
    /// Nobody: requests are anonymous.
    Nobody,
    /// These.
    These {
        /// The key's public name.
        id: String,
        /// The key.
        secret: String,
        /// For temporary keys.
        token: Option<String>,
    },
    /// Found, and renewed, by the process that needs them: a profile, or wherever Amazon's tools would look.
    Aws {
        /// The profile's name; the usual chain if `None`.
        profile: Option<String>,
    },
}

impl From<Credentials> for Keys {
    fn from(keys: Credentials) -> Self {
        Self::These {
            id: keys.access_key_id,
            secret: keys.secret_access_key.expose().to_owned(),
            token: keys.session_token.map(|token| token.expose().to_owned()),
        }
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(..)")
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if let Self::These { secret, token, .. } = self {
            secret.zeroize();
            token.zeroize();
        }
    }
}

impl RemotePlan {
    /// Where the server is.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn builder(&self, bucket: &str) -> anyhow::Result<sandpail_store::http::HttpStoreBuilder> {
        let mut builder = HttpStore::builder(self.endpoint.parse()?, bucket)
            .provider(self.provider.parse()?)
            .insecure(self.insecure)
            .max_connections(self.max_connections);
        let mut timeouts = Timeouts::default();
        timeouts.connect = self.connect_timeout.unwrap_or(timeouts.connect);
        timeouts.stall = self.stall_timeout.unwrap_or(timeouts.stall);
        builder = builder.timeouts(timeouts);
        if let Some(region) = &self.region {
            builder = builder.region(region.clone());
        }
        if let Some(path_style) = self.path_style {
            builder = builder.path_style(path_style);
        }
        if let Some(file) = &self.ca_file {
            builder = builder.ca_file(file.clone());
        }
        match &self.keys {
            Keys::Nobody => {}
            Keys::These { id, secret, token } => {
                builder = builder.credentials(Arc::new(StaticCredentials::new(Credentials {
                    access_key_id: id.clone(),
                    secret_access_key: SecretKey::new(secret.clone()),
                    session_token: token.clone().map(SecretKey::new),
                })));
            }
            Keys::Aws { profile } => builder = builder.credentials(Arc::new(AwsChain::new(profile.clone()))),
        }
        Ok(builder)
    }

    /// Makes the store of a bucket, as `doctor` has seen its provider; nothing is sent yet.
    pub fn store(&self, bucket: &str) -> anyhow::Result<Arc<dyn Store>> {
        self.store_watched(bucket, None)
    }

    /// The same, with somebody who is told of each connection.
    pub(super) fn store_watched(
        &self,
        bucket: &str,
        connections: Option<Arc<dyn Connections>>,
    ) -> anyhow::Result<Arc<dyn Store>> {
        let mut builder = self.builder(bucket)?;
        if let Some(connections) = connections {
            builder = builder.watched_by(connections);
        }
        if let Some(profile) = profiles::read(&self.endpoint)? {
            builder = builder.profile(profile);
        }
        Ok(Arc::new(builder.build()?))
    }

    /// What sends single requests of others to a bucket, with these keys; nothing is sent yet.
    pub fn relay(&self, bucket: &str) -> anyhow::Result<Relay> {
        Ok(self.builder(bucket)?.build_relay()?)
    }

    /// The same without what was seen before, for an examination.
    pub fn plain_store(&self, bucket: &str) -> anyhow::Result<HttpStore> {
        Ok(self.builder(bucket)?.build()?)
    }

    /// Whose dialect it is.
    pub fn provider(&self) -> &str {
        &self.provider
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, source: &str, prefix: &str) {
        let (found, found_prefix) = Source::parse(text).unwrap();
        assert_eq!(found.to_string(), source);
        assert_eq!(found_prefix.unwrap_or_default().as_str(), prefix);
    }

    #[test]
    fn sources() {
        check("b", "s3://b", "");
        check("b/a/c", "s3://b", "a/c/");
        check("s3://b/a/", "s3://b", "a/");
        check("s3://b/", "s3://b", "");
        check("dir:/srv/x", "dir:/srv/x", "");
        assert!(Source::parse("gs://b").is_err());
        assert!(Source::parse("b:/prefix").unwrap_err().to_string().contains("b/prefix"));
        assert!(Source::parse("").is_err());
    }
}
