//! Mounts.

use sandpail_daemon::{MountInfo, MountOptions, MountRequest, MountSource, ProxyCounts};
use sandpail_spec::{Credentials as SpecCredentials, PathClass, Provider, SecretKey};
use serde_json::Value;
use utoipa::ToSchema;

use super::{Members, invalid, optional_flag, present};
use crate::error::ApiError;

/// A bucket to mount: `bucket` with `options.endpoint`, or `binding`.
#[derive(Clone, Debug, Default, ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct MountBucketRequest {
    /// The bucket of an endpoint mount.
    #[schema(nullable = false)]
    pub bucket: Option<String>,
    /// A binding of the daemon's configuration.
    #[schema(nullable = false)]
    pub binding: Option<String>,
    /// Where in the sandbox, absolute.
    pub mount_path: String,
    /// The rest; may be `{}`.
    #[schema(inline = false)]
    pub options: MountBucketOptions,
}

/// Options of a mount.
#[derive(Clone, Debug, Default, ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct MountBucketOptions {
    /// URL of the store.
    #[schema(nullable = false)]
    pub endpoint: Option<String>,
    /// The store's dialect, if its host does not tell: `r2`, `s3`, `gcs`.
    #[schema(nullable = false)]
    pub provider: Option<String>,
    /// The part of the bucket to show, begins with `/`.
    #[schema(nullable = false)]
    pub prefix: Option<String>,
    /// Refuse writes.
    #[schema(nullable = false)]
    pub read_only: Option<bool>,
    /// Keys of this mount; the daemon's own if they are missing. They stay outside the sandbox.
    #[schema(nullable = false)]
    pub credentials: Option<Credentials>,
    /// S3 clients in the sandbox may reach the bucket through the proxy.
    #[schema(nullable = false)]
    pub credential_proxy: Option<bool>,
    /// Options in the words of s3fs.
    #[schema(rename = "s3fsOptions", nullable = false)]
    pub s3fs_options: Option<Vec<String>>,
    /// Closing a file returns when it is on the daemon's disk; it goes to the bucket within seconds.
    #[schema(nullable = false)]
    pub write_back: Option<bool>,
    /// When files of some paths are stored; the first rule that matches counts.
    #[schema(nullable = false)]
    pub path_classes: Option<Vec<PathRule>>,
    /// Rules for trees that programs make, after `pathClasses`: `.git` is `write-back`; `node_modules`, `target`,
    /// `__pycache__` and `.venv` are `local`.
    #[schema(nullable = false)]
    pub agent: Option<bool>,
    /// With `binding`: keep a plain directory equal to the bucket instead of mounting.
    #[schema(nullable = false)]
    pub local_bucket: Option<bool>,
}

/// When files are stored whose path below the mount matches a glob.
#[derive(Clone, Debug, Default, ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct PathRule {
    /// `*`, `**`, `?`, `[a-z]`, `{a,b}`; covers what is below. With `/` at its end it matches directories only.
    pub glob: String,
    /// `durable` (close waits for the bucket), `write-back` (close waits for the host's disk) or `local` (never stored).
    pub class: String,
}

/// An access key.
#[derive(Clone, Debug, Default, ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct Credentials {
    /// The key's public name.
    pub access_key_id: String,
    /// The key.
    #[schema(format = Password, write_only)]
    pub secret_access_key: String,
    /// For temporary keys.
    #[schema(format = Password, write_only, nullable = false)]
    pub session_token: Option<String>,
}

impl MountBucketRequest {
    /// Checks the form, in the contract's order. `null` is a value here, as it is for the clients.
    pub(crate) fn parse(members: &Members) -> Result<MountRequest, ApiError> {
        let bucket = match members.get("bucket") {
            None => None,
            Some(Value::String(bucket)) if !bucket.is_empty() => Some(bucket.clone()),
            Some(_) => return Err(invalid("bucket must be a non-empty string")),
        };
        let mount_path = mount_path(members)?;
        let Some(Value::Object(options)) = members.get("options") else {
            return Err(invalid("options must be an object"));
        };
        let endpoint = match options.get("endpoint") {
            None => None,
            Some(Value::String(endpoint)) => Some(endpoint.clone()),
            Some(_) => return Err(invalid("options.endpoint must be a string when provided")),
        };
        let binding = match members.get("binding") {
            None => None,
            Some(Value::String(binding)) if binding.is_empty() => {
                return Err(invalid("binding must be a non-empty string when provided"));
            }
            Some(Value::String(binding)) => Some(binding.clone()),
            Some(_) => return Err(invalid("binding must be a string when provided")),
        };
        if binding.is_some() && endpoint.is_some() {
            return Err(invalid("Provide either binding or options.endpoint, not both"));
        }
        let mut parsed = parse_options(options)?;
        let source = match (&endpoint, bucket, binding) {
            (Some(_), Some(bucket), _) => MountSource::Bucket(bucket),
            (Some(_), None, _) => return Err(invalid("bucket must be a non-empty string for remote mounts")),
            (None, _, Some(binding)) => MountSource::Binding(binding),
            (None, _, None) => return Err(invalid("binding must be a non-empty string for R2 binding mounts")),
        };
        parse_own_options(options, &mut parsed)?;
        if parsed.local_bucket && endpoint.is_some() {
            return Err(invalid("options.localBucket needs a binding, not options.endpoint"));
        }
        parsed.endpoint = endpoint;
        Ok(MountRequest { source, mount_path, options: parsed })
    }
}

fn mount_path(members: &Members) -> Result<String, ApiError> {
    match members.get("mountPath") {
        Some(Value::String(path)) if path.starts_with('/') => Ok(path.clone()),
        Some(Value::String(path)) if !path.is_empty() => {
            Err(invalid("mountPath must be an absolute path (start with /)"))
        }
        _ => Err(invalid("mountPath must be a non-empty string")),
    }
}

fn parse_options(options: &Members) -> Result<MountOptions, ApiError> {
    let s3fs_options = match options.get("s3fsOptions") {
        None => Vec::new(),
        Some(value) => {
            texts(value).ok_or_else(|| invalid("options.s3fsOptions must be an array of strings when provided"))?
        }
    };
    let read_only = flag(options, "readOnly")?;
    let prefix = match options.get("prefix") {
        None => None,
        Some(Value::String(prefix)) => Some(prefix.clone()),
        Some(_) => return Err(invalid("options.prefix must be a string when provided")),
    };
    let credential_proxy = flag(options, "credentialProxy")?;
    let credentials = options.get("credentials").map(credentials).transpose()?;
    Ok(MountOptions { prefix, read_only, credentials, credential_proxy, s3fs_options, ..MountOptions::default() })
}

fn parse_own_options(options: &Members, parsed: &mut MountOptions) -> Result<(), ApiError> {
    parsed.provider = match present(options, "provider") {
        None => None,
        Some(Value::String(name)) => {
            Some(name.parse::<Provider>().map_err(|unknown| invalid(format!("options.provider: {unknown}")))?)
        }
        Some(_) => return Err(invalid("options.provider must be a string when provided")),
    };
    parsed.write_back = match present(options, "writeBack") {
        None => false,
        Some(Value::Bool(on)) => *on,
        Some(_) => return Err(invalid("options.writeBack must be a boolean when provided")),
    };
    parsed.path_classes = match present(options, "pathClasses") {
        None => Vec::new(),
        Some(Value::Array(rules)) => rules.iter().map(path_rule).collect::<Result<_, _>>()?,
        Some(_) => return Err(invalid("options.pathClasses must be an array of { glob, class } when provided")),
    };
    parsed.agent = match present(options, "agent") {
        None => false,
        Some(Value::Bool(on)) => *on,
        Some(_) => return Err(invalid("options.agent must be a boolean when provided")),
    };
    parsed.local_bucket = match present(options, "localBucket") {
        None => false,
        Some(Value::Bool(on)) => *on,
        Some(_) => return Err(invalid("options.localBucket must be a boolean when provided")),
    };
    Ok(())
}

/// One rule, as the command line writes it.
fn path_rule(rule: &Value) -> Result<String, ApiError> {
    let member = |name: &str| rule.get(name).and_then(Value::as_str);
    let (Some(glob), Some(class)) = (member("glob"), member("class")) else {
        return Err(invalid("options.pathClasses must be an array of { glob, class } when provided"));
    };
    let class: PathClass = class.parse().map_err(|unknown| invalid(format!("options.pathClasses: {unknown}")))?;
    Ok(format!("{glob}={}", class.as_str()))
}

fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(ToOwned::to_owned)).collect()
}

fn flag(options: &Members, name: &str) -> Result<bool, ApiError> {
    match options.get(name) {
        None => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(_) => Err(invalid(format!("options.{name} must be a boolean when provided"))),
    }
}

fn credentials(value: &Value) -> Result<SpecCredentials, ApiError> {
    let member = |name: &str| value.get(name).and_then(Value::as_str);
    let (Some(id), Some(secret)) = (member("accessKeyId"), member("secretAccessKey")) else {
        return Err(invalid("options.credentials must include string accessKeyId and secretAccessKey"));
    };
    let session_token = match value.get("sessionToken") {
        None | Some(Value::Null) => None,
        Some(Value::String(token)) => Some(SecretKey::new(token.clone())),
        Some(_) => return Err(invalid("options.credentials.sessionToken must be a string when provided")),
    };
    Ok(SpecCredentials { access_key_id: id.to_owned(), secret_access_key: SecretKey::new(secret), session_token })
}

/// A mount to end.
#[derive(Clone, Debug, Default, ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct UnmountBucketRequest {
    /// Where it is mounted, absolute.
    pub mount_path: String,
    /// Also when it is in use or cannot be stored; its bytes are kept on the host.
    #[schema(nullable = false)]
    pub force: Option<bool>,
}

impl UnmountBucketRequest {
    /// Checks the form; the path as the client wrote it, and whether it is forced.
    pub(crate) fn parse(members: &Members) -> Result<(String, bool), ApiError> {
        let path = mount_path(members)?;
        if resolves_to_root(&path) {
            return Err(invalid("mountPath must not resolve to / (filesystem root)"));
        }
        Ok((path, optional_flag(members, "force")?))
    }
}

/// A mount whose bytes shall be in the bucket.
#[derive(Clone, Debug, Default, ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct SyncBucketRequest {
    /// Where it is mounted, absolute.
    pub mount_path: String,
}

impl SyncBucketRequest {
    /// Checks the form; the path as the client wrote it.
    pub(crate) fn parse(members: &Members) -> Result<String, ApiError> {
        let path = mount_path(members)?;
        if resolves_to_root(&path) {
            return Err(invalid("mountPath must not resolve to / (filesystem root)"));
        }
        Ok(path)
    }
}

/// A file that is not in the bucket.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
pub struct NotStored {
    /// Its path below the mount.
    pub path: String,
    /// Why not.
    pub reason: String,
}

fn not_stored(files: Vec<(String, String)>) -> Vec<NotStored> {
    files.into_iter().map(|(path, reason)| NotStored { path, reason }).collect()
}

/// What a barrier did.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
pub struct MountSynced {
    /// Whether everything that was written before the call is in the bucket.
    pub ok: bool,
    /// Files that were not in the bucket before, and are now.
    pub stored: u64,
    /// Files that could not be stored; their bytes are kept, and tried again.
    pub failed: Vec<NotStored>,
}

impl From<sandpail_daemon::MountSynced> for MountSynced {
    fn from(synced: sandpail_daemon::MountSynced) -> Self {
        Self { ok: synced.failed.is_empty(), stored: synced.stored, failed: not_stored(synced.failed) }
    }
}

/// A mount is gone.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Unmounted {
    /// Always true.
    pub ok: bool,
    /// With `force`: files that could not be stored. Their bytes are kept on the host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub not_stored: Vec<NotStored>,
}

impl Unmounted {
    /// With what could not be stored.
    pub(crate) fn new(files: Vec<(String, String)>) -> Self {
        Self { ok: true, not_stored: not_stored(files) }
    }
}

fn resolves_to_root(path: &str) -> bool {
    let depth = path.split('/').fold(0_usize, |depth, part| match part {
        "" | "." => depth,
        ".." => depth.saturating_sub(1),
        _ => depth + 1,
    });
    depth == 0
}

/// A mount as it is shown. Never holds a key.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MountEntry {
    /// Its id: random letters and digits, as in `s3-credential-proxy.internal/<mountId>/`.
    pub mount_id: String,
    /// Where in the sandbox.
    pub mount_path: String,
    /// `endpoint`, `endpoint-proxy`, `binding` or `local`.
    pub mode: String,
    /// `serving`, `draining` or `failed`.
    pub state: String,
    /// The bucket's name.
    pub bucket: String,
    /// The binding, if it is one.
    pub binding: Option<String>,
    /// The store, if it is not embedded.
    pub endpoint: Option<String>,
    /// The part of the bucket.
    pub prefix: String,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Files that are not stored yet.
    pub unstored: u64,
    /// What S3 clients inside did with it; none if they cannot reach it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyEntry>,
}

/// What went through a mount's door for S3 clients, since the daemon started.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProxyEntry {
    /// Requests, refused ones too.
    pub requests: u64,
    /// Requests that a rule refused.
    pub refused: u64,
    /// Requests that failed at the store, or on the way.
    pub failed: u64,
    /// Bytes of bodies that the sandbox sent.
    pub bytes_in: u64,
    /// Bytes of bodies that it got.
    pub bytes_out: u64,
}

impl From<ProxyCounts> for ProxyEntry {
    fn from(counts: ProxyCounts) -> Self {
        let ProxyCounts { requests, refused, failed, bytes_in, bytes_out } = counts;
        Self { requests, refused, failed, bytes_in, bytes_out }
    }
}

impl From<MountInfo> for MountEntry {
    fn from(info: MountInfo) -> Self {
        Self {
            mount_id: info.mount_id,
            mount_path: info.mount_path,
            mode: info.mode.to_owned(),
            state: info.state.to_owned(),
            bucket: info.bucket,
            binding: info.binding,
            endpoint: info.endpoint,
            prefix: info.prefix,
            read_only: info.read_only,
            unstored: info.unstored,
            proxy: info.proxy.map(ProxyEntry::from),
        }
    }
}

/// The mounts of a sandbox.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
pub struct MountList {
    /// In order of their paths.
    pub mounts: Vec<MountEntry>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(body: &Value) -> Result<MountRequest, String> {
        match MountBucketRequest::parse(body.as_object().unwrap()) {
            Ok(request) => Ok(request),
            Err(ApiError::Invalid(text)) => Err(text),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn refused(expected: &str, body: Value) {
        assert_eq!(parse(&body).err().as_deref(), Some(expected), "{body}");
    }

    /// Each body breaks its own rule and all rules after it that can be broken at the same time: the order is tested.
    #[test]
    fn the_form_in_the_order_of_the_contract() {
        let worst = json!({"endpoint": 1, "s3fsOptions": 1, "readOnly": 1, "prefix": 1, "credentialProxy": 1, "credentials": null});
        let one = "bucket must be a non-empty string";
        refused(one, json!({"bucket": ""}));
        refused(one, json!({"bucket": null, "mountPath": "x"}));
        refused(one, json!({"bucket": 1}));
        let two = "mountPath must be a non-empty string";
        for path in [json!(null), json!(""), json!(5)] {
            refused(two, json!({"bucket": "b", "mountPath": path, "options": 1}));
        }
        refused(two, json!({}));
        refused("mountPath must be an absolute path (start with /)", json!({"mountPath": "data", "options": 1}));
        for options in [json!(null), json!([]), json!("x"), json!(1)] {
            refused("options must be an object", json!({"mountPath": "/d", "options": options, "binding": 1}));
        }
        refused("options must be an object", json!({"mountPath": "/d", "binding": "B"}));
        refused(
            "options.endpoint must be a string when provided",
            json!({"mountPath": "/d", "options": worst, "binding": 1}),
        );
        refused(
            "options.endpoint must be a string when provided",
            json!({"mountPath": "/d", "options": {"endpoint": null}, "binding": "B"}),
        );
        let after = |number: usize| {
            let names = ["endpoint", "s3fsOptions", "readOnly", "prefix", "credentialProxy", "credentials"];
            let mut options = worst.as_object().unwrap().clone();
            options.retain(|name, _| names.iter().position(|known| known == name).unwrap() >= number);
            Value::Object(options)
        };
        for binding in [json!(1), json!(null)] {
            refused(
                "binding must be a string when provided",
                json!({"mountPath": "/d", "options": after(1), "binding": binding}),
            );
        }
        refused(
            "binding must be a non-empty string when provided",
            json!({"mountPath": "/d", "options": after(1), "binding": ""}),
        );
        refused(
            "Provide either binding or options.endpoint, not both",
            json!({"mountPath": "/d", "binding": "B", "options": {"endpoint": "", "s3fsOptions": 1}}),
        );
        let with = |number| json!({"mountPath": "/d", "options": after(number)});
        refused("options.s3fsOptions must be an array of strings when provided", with(1));
        refused(
            "options.s3fsOptions must be an array of strings when provided",
            json!({"mountPath": "/d", "options": {"s3fsOptions": ["a", 1]}}),
        );
        refused("options.readOnly must be a boolean when provided", with(2));
        refused("options.prefix must be a string when provided", with(3));
        refused("options.credentialProxy must be a boolean when provided", with(4));
        let thirteen = "options.credentials must include string accessKeyId and secretAccessKey";
        refused(thirteen, with(5));
        for keys in
            [json!([]), json!("x"), json!({"accessKeyId": "a"}), json!({"accessKeyId": "a", "secretAccessKey": 1})]
        {
            refused(thirteen, json!({"mountPath": "/d", "options": {"endpoint": "x", "credentials": keys}}));
        }
        refused(
            "bucket must be a non-empty string for remote mounts",
            json!({"mountPath": "/d", "options": {"endpoint": "https://x"}}),
        );
        let fourteen = "binding must be a non-empty string for R2 binding mounts";
        refused(fourteen, json!({"mountPath": "/d", "options": {}}));
        refused(fourteen, json!({"mountPath": "/d", "bucket": "b", "options": {}}));
    }

    #[test]
    fn own_options_come_last() {
        let body = |options: Value| json!({"mountPath": "/d", "binding": "B", "options": options});
        assert!(parse(&body(json!({"provider": "s4"}))).unwrap_err().starts_with("options.provider: unknown provider"));
        refused("options.provider must be a string when provided", body(json!({"provider": 1})));
        refused("options.localBucket must be a boolean when provided", body(json!({"localBucket": "yes"})));
        refused("options.writeBack must be a boolean when provided", body(json!({"writeBack": 1})));
        refused(
            "options.localBucket needs a binding, not options.endpoint",
            json!({"mountPath": "/d", "bucket": "b", "options": {"endpoint": "https://x", "localBucket": true}}),
        );
        assert!(parse(&body(json!({"localBucket": true}))).unwrap().options.local_bucket);
        assert!(parse(&body(json!({"writeBack": true}))).unwrap().options.write_back);
        let form = "options.pathClasses must be an array of { glob, class } when provided";
        refused(form, body(json!({"pathClasses": {}})));
        refused(form, body(json!({"pathClasses": ["a=local"]})));
        refused(form, body(json!({"pathClasses": [{"glob": 1, "class": "local"}]})));
        refused(
            "options.pathClasses: unknown class \"x=local\"; use durable, write-back or local",
            body(json!({"pathClasses": [{"glob": "a", "class": "x=local"}]})),
        );
        refused("options.agent must be a boolean when provided", body(json!({"agent": "yes"})));
        let rules = json!([{"glob": "**/target/", "class": "local"}, {"glob": "a", "class": "write-back"}]);
        let classed = parse(&body(json!({"pathClasses": rules, "agent": true}))).unwrap().options;
        assert!(classed.agent);
        assert_eq!(classed.path_classes, ["**/target/=local", "a=write-back"]);
    }

    #[test]
    fn a_whole_request_arrives() {
        let request = parse(&json!({
            "bucket": "my-bucket", "mountPath": "/data dir/", "unknown": 1,
            "options": {
                "endpoint": "https://s3.us-west-2.amazonaws.com", "prefix": "/uploads/", "readOnly": true, "provider": "s3",
                "credentials": {"accessKeyId": "id", "secretAccessKey": "hunter2", "sessionToken": "tok"},
                "credentialProxy": true, "s3fsOptions": ["nomultipart"],
            },
        }))
        .unwrap();
        assert_eq!(request.source, MountSource::Bucket("my-bucket".to_owned()));
        assert_eq!(request.mount_path, "/data dir/");
        let options = &request.options;
        assert_eq!(options.endpoint.as_deref(), Some("https://s3.us-west-2.amazonaws.com"));
        assert_eq!(options.prefix.as_deref(), Some("/uploads/"));
        assert_eq!((options.read_only, options.credential_proxy, options.local_bucket), (true, true, false));
        assert_eq!(options.provider, Some(Provider::S3));
        assert_eq!(options.s3fs_options, ["nomultipart"]);
        assert_eq!(options.credentials.as_ref().unwrap().secret_access_key.expose(), "hunter2");
        assert!(!format!("{request:?}").contains("hunter2"), "a key prints");
        let request = parse(&json!({"binding": "MY_BUCKET", "mountPath": "/data", "options": {}})).unwrap();
        assert_eq!(request.source, MountSource::Binding("MY_BUCKET".to_owned()));
        assert!(!request.options.read_only);
    }

    #[test]
    fn unmounts() {
        let of = |body: Value| match UnmountBucketRequest::parse(body.as_object().unwrap()) {
            Ok(parsed) => Ok(parsed),
            Err(ApiError::Invalid(text)) => Err(text),
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(of(json!({"mountPath": "/a b"})), Ok(("/a b".to_owned(), false)));
        assert_eq!(of(json!({"mountPath": "/a", "force": true})), Ok(("/a".to_owned(), true)));
        for root in ["/", "//", "/.", "/..", "/a/..", "/a/../.."] {
            assert_eq!(
                of(json!({"mountPath": root})),
                Err("mountPath must not resolve to / (filesystem root)".to_owned()),
                "{root}"
            );
        }
        assert_eq!(of(json!({})), Err("mountPath must be a non-empty string".to_owned()));
        assert_eq!(of(json!({"mountPath": "a"})), Err("mountPath must be an absolute path (start with /)".to_owned()));
        assert_eq!(of(json!({"mountPath": "/a", "force": 1})), Err("force must be a boolean when provided".to_owned()));
    }
}
