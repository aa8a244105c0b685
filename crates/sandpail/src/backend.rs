//! From a mount's source to a store.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use sandpail_spec::{BucketName, Credentials, Endpoint, KeyPrefix, Provider, SecretKey};
use sandpail_store::Store;
use sandpail_store::dir::DirStore;
use sandpail_store::http::{HttpStore, StaticCredentials};
use serde::{Deserialize, Serialize};

use crate::cli::{DoctorArgs, StoreArgs};

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
    These { id: String, secret: String, token: Option<String> },
}

impl RemotePlan {
    /// Where the server is.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Finds endpoint and keys: arguments first, then the environment.
    pub(crate) fn from_arguments(arguments: &StoreArgs) -> anyhow::Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
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
            keys: Keys::find(arguments)?,
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
        if let Keys::These { id, secret, token } = &self.keys {
            builder = builder.credentials(Arc::new(StaticCredentials::new(Credentials {
                access_key_id: id.clone(),
                secret_access_key: SecretKey::new(secret.clone()),
                session_token: token.clone().map(SecretKey::new),
            })));
        }
        Ok(builder)
    }

    /// Makes the store of a bucket; nothing is sent yet.
    pub(crate) fn store(&self, bucket: &str) -> anyhow::Result<Arc<dyn Store>> {
        Ok(Arc::new(self.builder(bucket)?.build()?))
    }
}

impl Keys {
    fn find(arguments: &StoreArgs) -> anyhow::Result<Self> {
        if arguments.anonymous {
            return Ok(Self::Nobody);
        }
        let of_environment = || Credentials::from_variables(|name| std::env::var(name).ok());
        let found = match &arguments.profile {
            Some(profile) => profile_keys(profile)?,
            None => match of_environment() {
                Some(keys) => Some(keys),
                None => profile_keys(&std::env::var("AWS_PROFILE").unwrap_or_else(|_| "default".to_owned()))?,
            },
        };
        let Some(keys) = found else {
            bail!(
                "No credentials found. Set R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY or AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY environment variables, name a profile with --profile, or use --anonymous for \
                 a public bucket."
            );
        };
        Ok(Self::These {
            id: keys.access_key_id,
            secret: keys.secret_access_key.expose().to_owned(),
            token: keys.session_token.map(|token| token.expose().to_owned()),
        })
    }
}

/// The static keys of a profile in the AWS shared files.
fn profile_keys(profile: &str) -> anyhow::Result<Option<Credentials>> {
    let file = match std::env::var_os("AWS_SHARED_CREDENTIALS_FILE") {
        Some(file) => PathBuf::from(file),
        None => match std::env::var_os("HOME") {
            Some(home) => PathBuf::from(home).join(".aws/credentials"),
            None => return Ok(None),
        },
    };
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    let mut is_ours = false;
    let (mut id, mut secret, mut token) = (None, None, None);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            is_ours = name.trim() == profile;
        } else if is_ours && let Some((name, value)) = line.split_once('=') {
            let value = value.trim().to_owned();
            match name.trim() {
                "aws_access_key_id" => id = Some(value),
                "aws_secret_access_key" => secret = Some(value),
                "aws_session_token" => token = Some(value),
                _ => {}
            }
        }
    }
    Ok(id.zip(secret).map(|(id, secret)| Credentials {
        access_key_id: id,
        secret_access_key: SecretKey::new(secret),
        session_token: token.map(SecretKey::new),
    }))
}

/// One step of a bucket's examination.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) what: &'static str,
    pub(crate) result: Result<String, String>,
    pub(crate) is_optional: bool,
}

/// Examines a bucket step by step, up to the first that fails.
pub(crate) fn probe(bucket: &str, arguments: &DoctorArgs) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut step = |what, result: anyhow::Result<String>, is_optional| {
        let is_ok = result.is_ok();
        steps.push(Step { what, result: result.map_err(|error| format!("{error:#}")), is_optional });
        is_ok
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            step("threads", Err(error.into()), false);
            return steps;
        }
    };
    let plan = match RemotePlan::from_arguments(&arguments.store) {
        Ok(plan) => plan,
        Err(error) => {
            step("credentials", Err(error), false);
            return steps;
        }
    };
    step("provider", Ok(format!("{} at {}", plan.provider, plan.endpoint)), false);
    let Ok(endpoint) = plan.endpoint.parse::<Endpoint>() else { return steps };
    let address = (endpoint.host().trim_matches(['[', ']']).to_owned(), endpoint.port());
    let resolved = std::net::ToSocketAddrs::to_socket_addrs(&address)
        .map(Iterator::collect::<Vec<_>>)
        .with_context(|| format!("cannot resolve {}", endpoint.host()));
    let first = resolved.as_ref().ok().and_then(|all| all.first().copied());
    if !step("resolve", resolved.map(|all| format!("{} has {} address(es)", endpoint.host(), all.len())), false) {
        return steps;
    }
    if let Some(first) = first {
        let connected = std::net::TcpStream::connect_timeout(&first, std::time::Duration::from_secs(10));
        let connected =
            connected.map(|_| format!("{first} answers")).with_context(|| format!("cannot connect to {first}"));
        if !step("connect", connected, false) {
            return steps;
        }
    }
    let store = match plan.store(bucket) {
        Ok(store) => store,
        Err(error) => {
            step("bucket", Err(error), false);
            return steps;
        }
    };
    let listed = runtime.block_on(store.check_bucket());
    let listed = listed.map(|()| format!("{bucket} can be listed with these keys")).map_err(anyhow::Error::from);
    if !step("sign and list", listed, false) || !arguments.write_probe {
        return steps;
    }
    for (what, result) in runtime.block_on(write_probe(&*store)) {
        step(what, result, true);
    }
    steps
}

/// Writes, copies and deletes a few small objects under a name of its own.
async fn write_probe(store: &dyn Store) -> Vec<(&'static str, anyhow::Result<String>)> {
    use sandpail_store::{Condition, CopySource, ETag, ObjectAttributes, ObjectKey, PutBody, StoreError};
    let name = format!(".sandpail-probe-{}", std::process::id());
    let Ok(key) = ObjectKey::new(&name) else { return Vec::new() };
    let attributes = ObjectAttributes::default();
    let body = || PutBody::from(bytes::Bytes::from_static(b"sandpail probe"));
    let mut found: Vec<(&'static str, anyhow::Result<String>)> = Vec::new();
    let put = store.put(&key, body(), &attributes, &Condition::Always).await;
    let is_written = put.is_ok();
    found.push(("write", put.map(|_| "objects can be written".to_owned()).map_err(Into::into)));
    if !is_written {
        return found;
    }
    let absent = store.put(&key, body(), &attributes, &Condition::Absent).await;
    let matching = store.put(&key, body(), &attributes, &Condition::Matches(ETag::new("0"))).await;
    let obeys = |result: &Result<_, StoreError>| matches!(result, Err(StoreError::Precondition { .. }));
    found.push((
        "conditional writes",
        match (obeys(&absent), obeys(&matching)) {
            (true, true) => {
                Ok("If-Match and If-None-Match are obeyed: --on-conflict fail and keep-both are safe".to_owned())
            }
            _ => Err(anyhow::anyhow!("not obeyed: --on-conflict cannot see changes by others")),
        },
    ));
    let source = CopySource { key: key.clone(), etag: None };
    let copied = match store.create_multipart(&key, &attributes).await {
        Ok(id) => {
            let copied = store.upload_part_copy(&key, &id, 1, &source, 0..4).await;
            if let Err(error) = store.abort_multipart(&key, &id).await {
                found.push(("abort upload", Err(error.into())));
            }
            copied.map(drop)
        }
        Err(error) => Err(error),
    };
    let copied = copied.map(|()| "works: edits of large objects upload only what changed".to_owned());
    found.push(("part copy", copied.map_err(Into::into)));
    let deleted = store.delete(&key, None).await;
    found.push(("delete", deleted.map(|()| "works".to_owned()).map_err(Into::into)));
    found
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
