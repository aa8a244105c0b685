//! From a `mountBucket` call to what has to be done. Every error of the configuration ends here, before anything exists.

use crate::{
    Binding, BindingName, BucketName, Credentials, Endpoint, InvalidBinding, InvalidBucket, InvalidEndpoint,
    InvalidMountPath, InvalidPathClass, InvalidPrefix, InvalidS3fsOption, KeyPrefix, Keys, MountPath, PathClasses,
    Provider, Remote, S3fsKind, S3fsOptions,
};

/// Options of a mount, in the form that every client writes them; not yet checked against anything.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// URL of the store; with it the mount is an endpoint mount.
    pub endpoint: Option<String>,
    /// The store's dialect, if its host does not tell.
    pub provider: Option<Provider>,
    /// The part of the bucket, begins with `/`.
    pub prefix: Option<String>,
    /// Refuse writes.
    pub read_only: bool,
    /// Keys for this mount.
    pub credentials: Option<Credentials>,
    /// S3 clients inside may reach the bucket through the proxy.
    pub credential_proxy: bool,
    /// Options in the words of s3fs.
    pub s3fs_options: Vec<String>,
    /// Keep a plain directory equal instead of mounting.
    pub local_bucket: bool,
    /// Closing a file does not wait for the bucket.
    pub write_back: bool,
    /// Rules `GLOB=CLASS`, the first that matches counts.
    pub path_classes: Vec<String>,
    /// The preset rules for trees that programs make again, after the others.
    pub agent: bool,
}

/// One `mountBucket` call.
#[derive(Clone, Debug)]
pub struct MountRequest {
    /// Bucket of an endpoint mount, binding of any other.
    pub source: MountSource,
    /// Where in the sandbox, as the client wrote it.
    pub mount_path: String,
    /// The rest.
    pub options: MountOptions,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// A bucket of `options.endpoint`.
    Bucket(String),
    /// A binding of the configuration.
    Binding(String),
}

/// How a bucket is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountMode {
    /// By `options.endpoint`.
    Endpoint,
    /// The same, and S3 clients inside may reach the bucket.
    EndpointProxy,
    /// A binding of the configuration.
    Binding,
    /// A directory that is kept equal with a binding's bucket.
    Local,
}

impl MountMode {
    /// `endpoint`, `endpoint-proxy`, `binding` or `local`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::EndpointProxy => "endpoint-proxy",
            Self::Binding => "binding",
            Self::Local => "local",
        }
    }

    fn s3fs_kind(self) -> S3fsKind {
        match self {
            Self::Endpoint => S3fsKind::Remote,
            Self::EndpointProxy => S3fsKind::CredentialProxy,
            Self::Binding => S3fsKind::Binding,
            Self::Local => S3fsKind::Local,
        }
    }
}

/// Where a bucket is.
#[derive(Clone, Debug)]
pub enum BucketPlace {
    /// A directory of the daemon.
    Embedded,
    /// Behind a server.
    Remote(Remote),
}

/// What has to be done for a mount; nothing in it can be wrong any more but the world.
#[derive(Clone, Debug)]
pub struct MountPlan {
    /// How.
    pub mode: MountMode,
    /// Where in the sandbox.
    pub path: MountPath,
    /// The bucket's name.
    pub bucket: BucketName,
    /// The binding, if it is one.
    pub binding: Option<BindingName>,
    /// Where the bucket is.
    pub place: BucketPlace,
    /// The part of the bucket.
    pub prefix: KeyPrefix,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Closing a file does not wait for the bucket.
    pub write_back: bool,
    /// What holds for some paths instead.
    pub path_classes: PathClasses,
    /// The rest.
    pub s3fs: S3fsOptions,
}

/// Why a mount cannot be. The text is the contract's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMount {
    /// The prefix has no `/` in front.
    #[error(transparent)]
    Prefix(#[from] InvalidPrefix),
    /// No binding's name.
    #[error(transparent)]
    BindingName(#[from] InvalidBinding),
    /// Nobody configured this binding.
    #[error(
        "R2 binding \"{name}\" not found in Worker env. Add it as [[r2_buckets]] with binding = \"{name}\" to \
         sandpail.toml, or to r2_buckets of your wrangler configuration, and send the daemon SIGHUP."
    )]
    UnknownBinding {
        /// Its name.
        name: String,
    },
    /// No URL.
    #[error(transparent)]
    Endpoint(#[from] InvalidEndpoint),
    /// No bucket's name.
    #[error(transparent)]
    Bucket(#[from] InvalidBucket),
    /// Bucket and prefix in one word, as s3fs takes them.
    #[error(
        "Bucket name cannot contain ':'. To mount a prefix, use the 'prefix' option:\n  mountBucket('{bucket}', \
         '{path}', {{ ...options, prefix: '{prefix}' }})"
    )]
    BucketWithPrefix {
        /// Before the colon.
        bucket: String,
        /// The mount path of the call.
        path: String,
        /// Behind the colon.
        prefix: String,
    },
    /// No place for a mount.
    #[error(transparent)]
    Path(#[from] InvalidMountPath),
    /// Something is mounted there.
    #[error(
        "Mount path already in use: {path}. Bucket \"{bucket}\" is mounted there; unmount it first, or choose \
         another path."
    )]
    PathInUse {
        /// The path.
        path: String,
        /// What is mounted.
        bucket: String,
    },
    /// Nobody to sign.
    #[error(
        "No credentials found. Set R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY or AWS_ACCESS_KEY_ID and \
         AWS_SECRET_ACCESS_KEY environment variables, or pass explicit credentials in options."
    )]
    NoCredentials,
    /// An option of s3fs.
    #[error(transparent)]
    Option(#[from] InvalidS3fsOption),
    /// `localBucket` of a bucket that is no binding.
    #[error("localBucket works with a binding: leave endpoint out, or leave localBucket out.")]
    LocalEndpoint,
    /// A rule for paths.
    #[error(transparent)]
    PathClass(#[from] InvalidPathClass),
    /// Rules for a plain directory.
    #[error("pathClasses and agent work with a mount: leave them out, or leave localBucket out.")]
    LocalClasses,
}

/// The class of a refused mount, as clients test it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountClass {
    /// `InvalidMountConfigError`
    InvalidConfig,
    /// `MissingCredentialsError`
    MissingCredentials,
}

impl InvalidMount {
    /// Its class.
    pub fn class(&self) -> MountClass {
        match self {
            Self::NoCredentials => MountClass::MissingCredentials,
            Self::Prefix(_)
            | Self::BindingName(_)
            | Self::UnknownBinding { .. }
            | Self::Endpoint(_)
            | Self::Bucket(_)
            | Self::BucketWithPrefix { .. }
            | Self::Path(_)
            | Self::PathInUse { .. }
            | Self::Option(_)
            | Self::LocalEndpoint
            | Self::PathClass(_)
            | Self::LocalClasses => MountClass::InvalidConfig,
        }
    }
}

/// What a plan depends on besides the call.
pub trait Surroundings {
    /// A configured secret, or a variable of the daemon's environment.
    fn secret(&self, name: &str) -> Option<String>;

    /// A binding of the configuration.
    ///
    /// # Errors
    /// [`InvalidMount::NoCredentials`] if its keys are nowhere to be found.
    fn binding(&self, name: &BindingName) -> Result<Option<Binding>, InvalidMount>;

    /// The bucket that is mounted at a path of this sandbox.
    fn mounted_at(&self, path: &MountPath) -> Option<String>;
}

/// Checks a call in the contract's order and says what has to be done.
///
/// # Errors
/// [`InvalidMount`] for the first thing that is wrong.
pub fn plan(request: &MountRequest, around: &dyn Surroundings) -> Result<MountPlan, InvalidMount> {
    let prefix = KeyPrefix::parse(request.options.prefix.as_deref().unwrap_or("/"))?;
    match &request.options.endpoint {
        Some(endpoint) => endpoint_plan(request, endpoint, prefix, around),
        None => binding_plan(request, prefix, around),
    }
}

fn binding_plan(
    request: &MountRequest,
    prefix: KeyPrefix,
    around: &dyn Surroundings,
) -> Result<MountPlan, InvalidMount> {
    let options = &request.options;
    let (MountSource::Binding(name) | MountSource::Bucket(name)) = &request.source;
    let name = BindingName::parse(name)?;
    let found = around.binding(&name);
    if let Ok(None) = found {
        return Err(InvalidMount::UnknownBinding { name: name.as_str().to_owned() });
    }
    let path = free_path(request, around)?;
    let binding = found?.ok_or_else(|| InvalidMount::UnknownBinding { name: name.as_str().to_owned() })?;
    let mode = if options.local_bucket { MountMode::Local } else { MountMode::Binding };
    let s3fs = S3fsOptions::parse(&options.s3fs_options, mode.s3fs_kind())?;
    let path_classes = PathClasses::parse(&options.path_classes, options.agent)?;
    if mode == MountMode::Local && !path_classes.is_empty() {
        return Err(InvalidMount::LocalClasses);
    }
    Ok(MountPlan {
        mode,
        path,
        bucket: binding.bucket,
        binding: Some(name),
        place: binding.remote.map_or(BucketPlace::Embedded, |remote| BucketPlace::Remote(with_options(remote, &s3fs))),
        prefix,
        read_only: options.read_only || s3fs.read_only,
        write_back: options.write_back,
        path_classes,
        s3fs,
    })
}

fn endpoint_plan(
    request: &MountRequest,
    endpoint: &str,
    prefix: KeyPrefix,
    around: &dyn Surroundings,
) -> Result<MountPlan, InvalidMount> {
    let options = &request.options;
    if options.local_bucket {
        return Err(InvalidMount::LocalEndpoint);
    }
    let endpoint: Endpoint = endpoint.parse()?;
    let (MountSource::Bucket(bucket) | MountSource::Binding(bucket)) = &request.source;
    if let Some((name, prefix)) = bucket.split_once(':') {
        return Err(InvalidMount::BucketWithPrefix {
            bucket: name.to_owned(),
            path: request.mount_path.clone(),
            prefix: prefix.to_owned(),
        });
    }
    let bucket = BucketName::parse(bucket)?;
    let path = free_path(request, around)?;
    let credentials = match &options.credentials {
        Some(credentials) => credentials.clone(),
        None => Credentials::from_variables(|name| around.secret(name)).ok_or(InvalidMount::NoCredentials)?,
    };
    let mode = if options.credential_proxy { MountMode::EndpointProxy } else { MountMode::Endpoint };
    let s3fs = S3fsOptions::parse(&options.s3fs_options, mode.s3fs_kind())?;
    let path_classes = PathClasses::parse(&options.path_classes, options.agent)?;
    let remote = Remote {
        provider: options.provider.unwrap_or_else(|| Provider::detect(endpoint.host())),
        endpoint,
        region: None,
        path_style: None,
        keys: Keys::These(credentials),
    };
    Ok(MountPlan {
        mode,
        path,
        bucket,
        binding: None,
        place: BucketPlace::Remote(with_options(remote, &s3fs)),
        prefix,
        read_only: options.read_only || s3fs.read_only,
        write_back: options.write_back,
        path_classes,
        s3fs,
    })
}

fn free_path(request: &MountRequest, around: &dyn Surroundings) -> Result<MountPath, InvalidMount> {
    let path = MountPath::parse(&request.mount_path)?;
    match around.mounted_at(&path) {
        Some(bucket) => Err(InvalidMount::PathInUse { path: path.as_str().to_owned(), bucket }),
        None => Ok(path),
    }
}

fn with_options(remote: Remote, s3fs: &S3fsOptions) -> Remote {
    Remote {
        region: s3fs.region.clone().or(remote.region),
        path_style: s3fs.path_style.or(remote.path_style),
        ..remote
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SecretKey;

    struct World {
        secrets: Vec<(&'static str, &'static str)>,
    }

    impl Surroundings for World {
        fn secret(&self, name: &str) -> Option<String> {
            self.secrets.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        }

        fn binding(&self, name: &BindingName) -> Result<Option<Binding>, InvalidMount> {
            let remote = |keys| Remote {
                endpoint: "https://s3.us-west-2.amazonaws.com".parse().unwrap(),
                provider: Provider::S3,
                region: Some("us-west-2".to_owned()),
                path_style: None,
                keys,
            };
            let bucket = BucketName::parse("my-bucket").unwrap();
            let found = |remote| Ok(Some(Binding { name: name.clone(), bucket: bucket.clone(), remote }));
            match name.as_str() {
                "MY_BUCKET" => found(None),
                "DATASETS" => found(Some(remote(Keys::Profile("data".to_owned())))),
                "KEYLESS" => Err(InvalidMount::NoCredentials),
                _ => Ok(None),
            }
        }

        fn mounted_at(&self, path: &MountPath) -> Option<String> {
            (path.as_str() == "/taken").then(|| "first-bucket".to_owned())
        }
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "s")];

    /// `NAME PATH [option=value …]`; `endpoint` makes it an endpoint mount.
    fn request(call: &str) -> MountRequest {
        let mut words = call.split(' ').map(str::to_owned);
        let name = words.next().unwrap();
        let mount_path = words.next().unwrap();
        let mut options = MountOptions::default();
        for word in words {
            let (option, value) = word.split_once('=').unwrap_or((&word, ""));
            match option {
                "endpoint" => options.endpoint = Some(value.to_owned()),
                "provider" => options.provider = Some(value.parse().unwrap()),
                "prefix" => options.prefix = Some(value.to_owned()),
                "readOnly" => options.read_only = true,
                "local" => options.local_bucket = true,
                "proxy" => options.credential_proxy = true,
                "agent" => options.agent = true,
                "class" => options.path_classes.push(value.to_owned()),
                "s3fs" => options.s3fs_options.push(value.to_owned()),
                "credentials" => {
                    options.credentials = Some(Credentials {
                        access_key_id: value.to_owned(),
                        secret_access_key: SecretKey::new("x"),
                        session_token: None,
                    });
                }
                other => panic!("{other}"),
            }
        }
        let source = if options.endpoint.is_some() { MountSource::Bucket(name) } else { MountSource::Binding(name) };
        MountRequest { source, mount_path, options }
    }

    #[track_caller]
    fn refused(call: &str, secrets: &[(&'static str, &'static str)], text: &str) -> InvalidMount {
        let error = plan(&request(call), &World { secrets: secrets.to_vec() }).unwrap_err();
        assert_eq!(error.to_string(), text, "{call}");
        error
    }

    /// The texts of API.md, section 10; those that go on with advice are compared whole, so that no byte changes unseen.
    #[test]
    fn the_texts_of_the_contract() {
        let e = "endpoint=https://s3.example.com";
        for (call, text) in [
            ("MY_BUCKET /data prefix=data", "Prefix must start with '/': \"data\"".to_owned()),
            (
                "NOPE /data",
                "R2 binding \"NOPE\" not found in Worker env. Add it as [[r2_buckets]] with binding = \"NOPE\" to \
                 sandpail.toml, or to r2_buckets of your wrangler configuration, and send the daemon SIGHUP."
                    .to_owned(),
            ),
            (
                "9LIVES /data",
                "Invalid R2 binding name: \"9LIVES\". Binding names hold letters, digits and underscores, and do not \
                 begin with a digit."
                    .to_owned(),
            ),
            (
                "bucket /data endpoint=nonsense",
                "Invalid endpoint URL: \"nonsense\". Must be a valid HTTP(S) URL.".to_owned(),
            ),
            (
                &format!("My_Bucket /data {e}"),
                "Invalid bucket name: \"My_Bucket\". Bucket names must be 3-63 characters, lowercase alphanumeric, \
                 dots, or hyphens, and cannot start/end with dots or hyphens."
                    .to_owned(),
            ),
            (
                &format!("bucket:/logs /data {e}"),
                "Bucket name cannot contain ':'. To mount a prefix, use the 'prefix' option:\n  \
                 mountBucket('bucket', '/data', { ...options, prefix: '/logs' })"
                    .to_owned(),
            ),
            ("MY_BUCKET data", "Mount path must be absolute (start with /): \"data\"".to_owned()),
            (
                "MY_BUCKET /taken/",
                "Mount path already in use: /taken. Bucket \"first-bucket\" is mounted there; unmount it first, or \
                 choose another path."
                    .to_owned(),
            ),
            (
                "MY_BUCKET /data s3fs=passwd_file=/x",
                "s3fs option \"passwd_file\" cannot be overridden for R2 binding mounts".to_owned(),
            ),
            (
                &format!("bucket /data {e} proxy s3fs=ahbe_conf=/x"),
                "s3fs option \"ahbe_conf\" cannot be overridden for credential proxy mounts".to_owned(),
            ),
            (
                &format!("bucket /data {e} s3fs=frobnicate"),
                "s3fs option \"frobnicate\" cannot be overridden for remote mounts".to_owned(),
            ),
            (
                "MY_BUCKET /data class=target",
                "Invalid path class \"target\": write GLOB=CLASS, such as \"**/target/=local\"".to_owned(),
            ),
            (
                "MY_BUCKET /data local agent",
                "pathClasses and agent work with a mount: leave them out, or leave localBucket out.".to_owned(),
            ),
        ] {
            assert_eq!(refused(call, &KEYS, &text).class(), MountClass::InvalidConfig, "{call}");
        }
        let missing = refused(
            &format!("bucket /data {e}"),
            &[],
            "No credentials found. Set R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY or AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY environment variables, or pass explicit credentials in options.",
        );
        assert_eq!(missing.class(), MountClass::MissingCredentials);
    }

    /// Of two wrong things the one that comes first in API.md, section 8, is told.
    #[test]
    fn the_order_of_checks() {
        for (call, begin) in [
            ("NOPE data prefix=x s3fs=url=x", "Prefix must"),
            ("NOPE data s3fs=url=x", "R2 binding"),
            ("NOPE /data local", "R2 binding"),
            ("MY_BUCKET data s3fs=url=x", "Mount path must"),
            ("MY_BUCKET /taken s3fs=url=x", "Mount path already"),
            ("MY_BUCKET /proc/x s3fs=url=x", "Mount path not allowed"),
            ("KEYLESS data", "Mount path must"),
            ("KEYLESS /data s3fs=url=x", "No credentials found"),
            ("B data prefix=x endpoint=x", "Prefix must"),
            ("B data endpoint=x s3fs=url=x", "Invalid endpoint URL"),
            ("B data endpoint=http://x s3fs=url=x", "Invalid bucket name"),
            ("b:/x data endpoint=http://x s3fs=url=x", "Bucket name cannot contain"),
            ("b data endpoint=http://x s3fs=url=x", "Mount path must"),
            ("b /taken endpoint=http://x s3fs=url=x", "Mount path already"),
            ("b /data endpoint=http://x s3fs=url=x", "No credentials found"),
            ("b /data endpoint=http://x credentials=k s3fs=url=x", "s3fs option \"url\""),
        ] {
            let text = plan(&request(call), &World { secrets: Vec::new() }).unwrap_err().to_string();
            assert!(text.starts_with(begin), "{call}: {text}");
        }
    }

    #[test]
    fn what_is_planned() {
        let planned = |call: &str| plan(&request(call), &World { secrets: KEYS.to_vec() }).unwrap();
        let embedded = planned("MY_BUCKET //data/ prefix=/uploads/ readOnly");
        assert_eq!((embedded.path.as_str(), embedded.prefix.as_str()), ("/data", "uploads/"));
        assert!(matches!(embedded.place, BucketPlace::Embedded) && embedded.read_only);
        assert_eq!((embedded.mode, embedded.bucket.as_str()), (MountMode::Binding, "my-bucket"));
        assert_eq!(planned("MY_BUCKET /data local").mode, MountMode::Local);
        assert!(planned("MY_BUCKET /data s3fs=ro").read_only);
        assert!(planned("MY_BUCKET /data").path_classes.is_empty());
        let classed = planned("MY_BUCKET /data class=x=local agent").path_classes;
        assert_eq!(classed.texts().next(), Some("x=local"));
        assert_eq!(classed.texts().count(), 1 + crate::AGENT_RULES.len());

        let remote = |call: &str| match planned(call).place {
            BucketPlace::Remote(remote) => remote,
            BucketPlace::Embedded => panic!("{call}"),
        };
        assert!(matches!(remote("DATASETS /data").keys, Keys::Profile(name) if name == "data"));
        assert_eq!(remote("DATASETS /data s3fs=region=eu").region.as_deref(), Some("eu"));
        for (call, provider) in [
            ("b /data endpoint=https://x.r2.cloudflarestorage.com", Provider::R2),
            ("b /data endpoint=https://s3.us-west-2.amazonaws.com", Provider::S3),
            ("b /data endpoint=https://storage.googleapis.com", Provider::Gcs),
            ("b /data endpoint=https://example.com", Provider::Generic),
            ("b /data endpoint=https://example.com provider=r2", Provider::R2),
        ] {
            assert_eq!(remote(call).provider, provider, "{call}");
        }
        let explicit = remote("b /data endpoint=http://x credentials=mine");
        assert!(matches!(explicit.keys, Keys::These(keys) if keys.access_key_id == "mine"));
        assert_eq!(planned("b /data endpoint=http://x proxy").mode, MountMode::EndpointProxy);
    }
}
