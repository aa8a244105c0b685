//! From a mount's source to a store.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use sandpail_spec::{BucketName, KeyPrefix};
use sandpail_store::Store;
use sandpail_store::dir::DirStore;
use serde::{Deserialize, Serialize};

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
        if let Some((bucket, prefix)) = bucket.split_once(':') {
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

/// A bucket of a server: how to reach it, keys included.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct RemotePlan {
    endpoint: String,
}

impl RemotePlan {
    pub(crate) fn from_arguments(arguments: &crate::cli::StoreArgs, _part_len: u64) -> anyhow::Result<Self> {
        let endpoint = arguments.endpoint.clone().context("no endpoint: give --endpoint")?;
        Ok(Self { endpoint: endpoint.to_string() })
    }

    pub(crate) async fn connect(&self, bucket: &str) -> anyhow::Result<Arc<dyn Store>> {
        bail!("cannot reach {bucket} at {}", self.endpoint)
    }
}

/// One step of a bucket's examination.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) what: &'static str,
    pub(crate) result: Result<String, String>,
    pub(crate) is_optional: bool,
}

/// Examines a bucket step by step, up to the first that fails.
pub(crate) fn probe(_bucket: &str, _arguments: &crate::cli::DoctorArgs) -> Vec<Step> {
    Vec::new()
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
