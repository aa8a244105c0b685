//! From a mount's source to a store.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use sandpail_spec::{BucketName, Credentials, Endpoint, KeyPrefix, Provider, SecretKey};
use sandpail_store::Store;
use sandpail_store::dir::DirStore;
use sandpail_store::http::{AwsChain, HttpStore, StaticCredentials};
use serde::{Deserialize, Serialize};

use crate::cli::StoreArgs;
use crate::profiles;

/// Where a mount's data is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Source {
    /// An embedded bucket.
    Directory(PathBuf),
    /// A bucket of a server.
    Bucket(String),
}

impl Source {
    /// Reads `BUCKET[/PREFIX]`, `s3://BUCKET/PREFIX` or `dir:PATH`; the prefix comes apart.
    pub(crate) fn parse(text: &str) -> anyhow::Result<(Self, Option<KeyPrefix>)> {
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
pub(crate) fn open_directory(path: &std::path::Path) -> anyhow::Result<Arc<dyn Store>> {
    Ok(Arc::new(DirStore::open(path)?))
}

/// A bucket of a server: how to reach it, keys included. Written to a worker's pipe and nowhere else.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct RemotePlan {
    endpoint: String,
    provider: String,
    region: Option<String>,
    path_style: Option<bool>,
    ca_file: Option<PathBuf>,
    insecure: bool,
    max_connections: usize,
    keys: Keys,
}

/// Who signs.
#[derive(Clone, Serialize, Deserialize)]
enum Keys {
    Nobody,
    These {
        id: String,
        secret: String,
        token: Option<String>,
    },
    /// Found, and renewed, by the process that needs them: a profile, or wherever Amazon's tools would look.
    Aws {
        profile: Option<String>,
    },
}

impl RemotePlan {
    /// Where the server is.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Finds endpoint and keys: arguments first, then the environment.
    pub(crate) fn from_arguments(arguments: &StoreArgs) -> anyhow::Result<Self> {
        let region =
            arguments.region.clone().or_else(|| variable("AWS_REGION")).or_else(|| variable("AWS_DEFAULT_REGION"));
        let endpoint = match &arguments.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => match variable("AWS_ENDPOINT_URL_S3").or_else(|| variable("AWS_ENDPOINT_URL")) {
                Some(url) => url.parse().context("AWS_ENDPOINT_URL")?,
                None => {
                    let region = region.as_deref().unwrap_or("us-east-1");
                    format!("https://s3.{region}.amazonaws.com").parse::<Endpoint>()?
                }
            },
        };
        let provider = arguments.provider.unwrap_or_else(|| Provider::detect(endpoint.host()));
        // A region of the environment is Amazon's; elsewhere only one that was asked for counts.
        let region = if provider == Provider::S3 { region } else { arguments.region.clone() };
        if let Some(file) = arguments.ca_file.as_ref().filter(|file| !file.is_file()) {
            bail!("--ca-file {} does not exist", file.display());
        }
        let path_style = match (arguments.path_style, arguments.virtual_host) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        };
        Ok(Self {
            endpoint: endpoint.to_string(),
            provider: provider.to_string(),
            region,
            path_style,
            ca_file: arguments.ca_file.as_ref().map(std::path::absolute).transpose()?,
            insecure: arguments.insecure,
            max_connections: arguments.max_connections.max(1),
            keys: Keys::find(arguments, provider)?,
        })
    }

    fn builder(&self, bucket: &str) -> anyhow::Result<sandpail_store::http::HttpStoreBuilder> {
        let mut builder = HttpStore::builder(self.endpoint.parse()?, bucket)
            .provider(self.provider.parse()?)
            .insecure(self.insecure)
            .max_connections(self.max_connections);
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
    pub(crate) fn store(&self, bucket: &str) -> anyhow::Result<Arc<dyn Store>> {
        let mut builder = self.builder(bucket)?;
        if let Some(profile) = profiles::read(&self.endpoint)? {
            builder = builder.profile(profile);
        }
        Ok(Arc::new(builder.build()?))
    }

    /// The same without what was seen before, for an examination.
    pub(crate) fn plain_store(&self, bucket: &str) -> anyhow::Result<HttpStore> {
        Ok(self.builder(bucket)?.build()?)
    }

    /// Whose dialect it is.
    pub(crate) fn provider(&self) -> &str {
        &self.provider
    }
}

impl Keys {
    fn find(arguments: &StoreArgs, provider: Provider) -> anyhow::Result<Self> {
        if arguments.anonymous {
            return Ok(Self::Nobody);
        }
        if let Some(profile) = &arguments.profile {
            return Ok(Self::Aws { profile: Some(profile.clone()) });
        }
        if let Some(keys) = Credentials::from_variables(|name| std::env::var(name).ok()) {
            return Ok(Self::These {
                id: keys.access_key_id,
                secret: keys.secret_access_key.expose().to_owned(),
                token: keys.session_token.map(|token| token.expose().to_owned()),
            });
        }
        if let Some(profile) = variable("AWS_PROFILE") {
            return Ok(Self::Aws { profile: Some(profile) });
        }
        // Machines of Amazon's have keys that need no setting up; elsewhere nobody waits for a metadata service.
        if provider == Provider::S3 || ROLE_VARIABLES.iter().any(|name| variable(name).is_some()) {
            return Ok(Self::Aws { profile: None });
        }
        if has_aws_files() {
            return Ok(Self::Aws { profile: Some("default".to_owned()) });
        }
        bail!(
            "No credentials found. Set R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY or AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY environment variables, name a profile with --profile, or use --anonymous for \
             a public bucket."
        );
    }
}

/// Variables that name a role to take on.
const ROLE_VARIABLES: [&str; 3] =
    ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"];

/// Whether Amazon's tools have been set up for this user.
fn has_aws_files() -> bool {
    let files = [("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config")];
    files.into_iter().any(|(name, file)| {
        let usual = || Some(PathBuf::from(variable("HOME")?).join(".aws").join(file));
        variable(name).map(PathBuf::from).or_else(usual).is_some_and(|file| file.is_file())
    })
}

/// A variable of the environment that is not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
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
