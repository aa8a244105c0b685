//! Bindings: `[[r2_buckets]]` of `sandpail.toml`, and `r2_buckets` of a `wrangler` file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sandpail_spec::{
    Binding, BindingName, BucketName, Credentials, Endpoint, InvalidMount, Keys, Provider, Remote, SecretKey,
};
use serde::Deserialize;

use super::told;
use super::{ConfigError, Secrets};

/// A binding as it is configured: its keys are named, not held.
#[derive(Clone, Debug)]
pub struct BindingConfig {
    /// Its name.
    pub name: BindingName,
    /// The bucket's name.
    pub bucket: BucketName,
    /// Where the bucket is; `None`: an embedded bucket.
    pub remote: Option<RemoteConfig>,
}

/// A server as it is configured.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Its dialect.
    pub provider: Provider,
    /// The region to sign for.
    pub region: Option<String>,
    /// Whether the bucket's name stands in the path.
    pub path_style: Option<bool>,
    /// Where the keys are.
    pub keys: KeySource,
}

/// Where keys are.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// Each by itself.
    Named {
        /// The key's public name, or where it is.
        id: SecretRef,
        /// The key.
        secret: SecretRef,
        /// For temporary keys.
        token: Option<SecretRef>,
    },
    /// A profile of the AWS shared files.
    Profile(String),
    /// As for an endpoint mount: the `AWS_*` pair, else the `R2_*` pair.
    Detected,
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretRef {
    /// `env:NAME`: among the secrets.
    Named(String),
    /// `file:PATH`: the file's text, without the last line's end.
    File(PathBuf),
    /// The value itself; only for what is no secret.
    Plain(String),
}

impl SecretRef {
    /// Reads `env:NAME`, `file:PATH` (from `dir` if relative), else the value itself.
    pub fn parse(text: &str, dir: &Path) -> Self {
        if let Some(name) = text.strip_prefix("env:") {
            Self::Named(name.to_owned())
        } else if let Some(path) = text.strip_prefix("file:") {
            Self::File(dir.join(path))
        } else {
            Self::Plain(text.to_owned())
        }
    }

    /// The secret itself; `None`, with a line in the log, if it is not there.
    pub fn resolve(&self, secrets: &Secrets) -> Option<SecretKey> {
        match self {
            Self::Named(name) => {
                let found = secrets.get(name);
                if found.is_none() {
                    tracing::warn!(name, "a configured secret is not set");
                }
                found
            }
            Self::File(path) => match std::fs::read_to_string(path) {
                Ok(text) => Some(SecretKey::new(text.trim_end_matches(['\n', '\r']))),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a configured secret cannot be read");
                    None
                }
            },
            Self::Plain(value) => Some(SecretKey::new(value.clone())),
        }
    }
}

impl BindingConfig {
    /// The binding with its keys.
    ///
    /// # Errors
    /// [`InvalidMount::NoCredentials`].
    pub fn resolve(&self, secrets: &Secrets) -> Result<Binding, InvalidMount> {
        let remote = match &self.remote {
            None => None,
            Some(remote) => Some(Remote {
                endpoint: remote.endpoint.clone(),
                provider: remote.provider,
                region: remote.region.clone(),
                path_style: remote.path_style,
                keys: remote.keys.resolve(secrets).ok_or(InvalidMount::NoCredentials)?,
            }),
        };
        Ok(Binding { name: self.name.clone(), bucket: self.bucket.clone(), remote })
    }
}

impl KeySource {
    fn resolve(&self, secrets: &Secrets) -> Option<Keys> {
        match self {
            Self::Named { id, secret, token } => Some(Keys::These(Credentials {
                access_key_id: id.resolve(secrets)?.expose().to_owned(),
                secret_access_key: secret.resolve(secrets)?,
                session_token: token.as_ref().map(|token| token.resolve(secrets)).transpose_none()?,
            })),
            Self::Profile(name) => Some(Keys::Profile(name.clone())),
            Self::Detected => {
                let get = |name: &str| secrets.get(name).map(|secret| secret.expose().to_owned());
                Credentials::from_variables(get).map(Keys::These)
            }
        }
    }
}

/// An option that, if it was asked for, must be there.
trait TransposeNone<T> {
    fn transpose_none(self) -> Option<Option<T>>;
}

impl<T> TransposeNone<T> for Option<Option<T>> {
    fn transpose_none(self) -> Option<Option<T>> {
        match self {
            None => Some(None),
            Some(None) => None,
            Some(found) => Some(found),
        }
    }
}

/// `[[r2_buckets]]` of `sandpail.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBinding {
    binding: String,
    bucket_name: Option<String>,
    endpoint: Option<String>,
    provider: Option<String>,
    region: Option<String>,
    path_style: Option<bool>,
    credentials: Option<RawCredentials>,
    // Wrangler's, so that a section can be copied as it is.
    #[serde(rename = "preview_bucket_name")]
    _preview_bucket_name: Option<String>,
    #[serde(rename = "jurisdiction")]
    _jurisdiction: Option<String>,
    #[serde(rename = "remote")]
    _remote: Option<bool>,
    #[serde(rename = "experimental_remote")]
    _experimental_remote: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCredentials {
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
    session_token: Option<String>,
    profile: Option<String>,
}

impl RawBinding {
    fn check(self, dir: &Path) -> Result<BindingConfig, String> {
        let name = BindingName::parse(&self.binding).map_err(|error| error.to_string())?;
        let of = |message: String| format!("r2_buckets {name}: {message}");
        // Wrangler makes a bucket of the binding's name if none is given.
        let bucket = self.bucket_name.unwrap_or_else(|| self.binding.to_lowercase().replace('_', "-"));
        let remote = match &self.endpoint {
            None => {
                let stray = [
                    ("provider", self.provider.is_some()),
                    ("region", self.region.is_some()),
                    ("path_style", self.path_style.is_some()),
                    ("credentials", self.credentials.is_some()),
                ];
                if let Some((key, _)) = stray.into_iter().find(|(_, is_given)| *is_given) {
                    return Err(of(format!("{key} is given without endpoint")));
                }
                None
            }
            Some(endpoint) => {
                let endpoint: Endpoint = endpoint.parse().map_err(|error| of(format!("{error}")))?;
                let provider = match &self.provider {
                    Some(name) => name.parse().map_err(|error| of(format!("{error}")))?,
                    None => Provider::detect(endpoint.host()),
                };
                let keys = self.credentials.map_or(Ok(KeySource::Detected), |keys| keys.check(dir)).map_err(&of)?;
                Some(RemoteConfig { endpoint, provider, region: self.region, path_style: self.path_style, keys })
            }
        };
        let bucket = if remote.is_some() { BucketName::parse_lenient(&bucket) } else { BucketName::parse(&bucket) };
        Ok(BindingConfig { bucket: bucket.map_err(|error| of(error.to_string()))?, name, remote })
    }
}

impl RawCredentials {
    fn check(self, dir: &Path) -> Result<KeySource, String> {
        match self {
            Self { profile: Some(profile), access_key_id: None, secret_access_key: None, session_token: None } => {
                Ok(KeySource::Profile(profile))
            }
            Self { profile: None, access_key_id: Some(id), secret_access_key: Some(secret), session_token } => {
                let hidden = |key: &str, text: &str| match SecretRef::parse(text, dir) {
                    SecretRef::Plain(_) => {
                        Err(format!("{key}: a key does not belong into this file; write \"env:NAME\" or \"file:PATH\""))
                    }
                    found => Ok(found),
                };
                Ok(KeySource::Named {
                    id: SecretRef::parse(&id, dir),
                    secret: hidden("secret_access_key", &secret)?,
                    token: session_token.map(|token| hidden("session_token", &token)).transpose()?,
                })
            }
            _ => Err("credentials are either access_key_id and secret_access_key, or profile".to_owned()),
        }
    }
}

/// Checks the bindings of one file; paths in them are from `dir`.
pub(super) fn checked(
    raw: Vec<RawBinding>,
    dir: &Path,
    place: &str,
) -> Result<BTreeMap<BindingName, BindingConfig>, ConfigError> {
    let mut found = BTreeMap::new();
    for binding in raw {
        let invalid = |message: String| ConfigError::Invalid { place: place.to_owned(), message };
        let binding = binding.check(dir).map_err(invalid)?;
        let name = binding.name.clone();
        if found.insert(name.clone(), binding).is_some() {
            return Err(invalid(format!("r2_buckets {name}: there are two bindings of this name")));
        }
    }
    Ok(found)
}

/// What of a `wrangler` file concerns us. Everything else is somebody else's.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wrangler {
    r2_buckets: Vec<WranglerBinding>,
}

#[derive(Debug, Deserialize)]
struct WranglerBinding {
    binding: String,
    bucket_name: Option<String>,
}

/// The names that wrangler looks for, in its order.
const WRANGLER_FILES: [&str; 3] = ["wrangler.json", "wrangler.jsonc", "wrangler.toml"];

/// The `wrangler` file of a directory.
pub(super) fn find_wrangler(dir: &Path) -> Option<PathBuf> {
    WRANGLER_FILES.into_iter().map(|name| dir.join(name)).find(|file| file.is_file())
}

/// Reads the bindings of a `wrangler` file: all of them are embedded buckets, unless `sandpail.toml` says more.
pub(super) fn read_wrangler(file: &Path) -> Result<BTreeMap<BindingName, BindingConfig>, ConfigError> {
    let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Read { path: file.to_owned(), source })?;
    let place = file.display().to_string();
    let invalid = |message: String| ConfigError::Invalid { place: place.clone(), message };
    let is_toml = file.extension().is_some_and(|extension| extension == "toml");
    let read: Wrangler = if is_toml {
        toml::from_str(&text).map_err(|error| invalid(told::toml_error(&error, &text)))?
    } else {
        jsonc_parser::parse_to_serde_value(&text, &jsonc_parser::ParseOptions::default())
            .map_err(|error| invalid(told::without_value(&error.to_string())))?
    };
    let raw = read.r2_buckets.into_iter().map(|found| RawBinding {
        binding: found.binding,
        bucket_name: found.bucket_name,
        endpoint: None,
        provider: None,
        region: None,
        path_style: None,
        credentials: None,
        _preview_bucket_name: None,
        _jurisdiction: None,
        _remote: None,
        _experimental_remote: None,
    });
    checked(raw.collect(), Path::new("/"), &place)
}
