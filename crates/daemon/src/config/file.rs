//! `sandpail.toml` and the variables that win over it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandpail_sandbox::{Limits, RootFs, SandboxSpec};
use sandpail_spec::{SecretKey, parse_bytes, parse_duration};
use serde::Deserialize;

use super::bindings::{self, RawBinding, SecretRef};
use super::egress::RawEgress;
use super::told;
use super::{Config, ConfigError, LogFormat, MountDefaults, Secrets};

/// The file that is looked for.
const FILE_NAME: &str = "sandpail.toml";
/// What a cache may take if only its directory is given, in bytes.
const CACHE_SIZE: u64 = 10 << 30;

/// Bytes: a number, or a text such as `512MiB`.
#[derive(Clone, Copy, Debug)]
struct Size(u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number of bytes, or a text such as \"512MiB\"")]
        enum Form {
            Number(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(number) => Ok(Self(number)),
            Form::Text(text) => parse_bytes(&text)
                .map(Self)
                .map_err(|_| serde::de::Error::custom("invalid size: write a number and a unit, such as 512MiB")),
        }
    }
}

/// Where what a file carries is read.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Metadata {
    Auto,
    Posix,
}

/// A time such as `500ms`.
#[derive(Clone, Copy, Debug)]
struct Time(Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // Without the text, which may have come here by mistake: a key, for example.
        parse_duration(&text)
            .map(Self)
            .map_err(|_| serde::de::Error::custom("invalid time: write a number and a unit, such as 500ms"))
    }
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    listen: Option<SocketAddr>,
    state_dir: Option<PathBuf>,
    api_key: Option<String>,
    upload_limit: Option<Size>,
    max_sandboxes: Option<usize>,
    warm_target: Option<usize>,
    rootfs: Option<PathBuf>,
    image: Option<PathBuf>,
    expose: Vec<PathBuf>,
    hidden: Vec<PathBuf>,
    env: std::collections::BTreeMap<String, String>,
    limits: RawLimits,
    cache_dir: Option<PathBuf>,
    cache_size: Option<Size>,
    memory_limit: Option<Size>,
    staging_limit: Option<Size>,
    drain_timeout: Option<Time>,
    sync_interval: Option<Time>,
    restart_mounts: Option<bool>,
    metadata: Option<Metadata>,
    op_timeout: Option<Time>,
    egress: RawEgress,
    slow_request: Option<Time>,
    embedded_listen: Option<SocketAddr>,
    log: Option<String>,
    mount_log: Option<String>,
    log_format: LogFormat,
    wrangler: Option<PathBuf>,
    dev_vars: Option<PathBuf>,
    r2_buckets: Vec<RawBinding>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    memory: Option<Size>,
    pids: Option<u64>,
    cpus: Option<f64>,
    disk: Option<Size>,
    open_files: Option<u64>,
}

/// A policy as TOML writes it; the API has the same under names of its own style.
/// How a variable's text becomes a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As it is.
    Text,
    /// A path, from the working directory.
    Path,
    /// As TOML has it: numbers, lists, tables.
    Toml,
}

/// Every key, and how its variable is read; `limits.memory` is `SANDPAIL_LIMITS_MEMORY`.
const KEYS: [(&str, Form); 37] = [
    ("listen", Form::Text),
    ("state_dir", Form::Path),
    ("api_key", Form::Text),
    ("upload_limit", Form::Text),
    ("max_sandboxes", Form::Toml),
    ("warm_target", Form::Toml),
    ("rootfs", Form::Path),
    ("image", Form::Path),
    ("expose", Form::Toml),
    ("hidden", Form::Toml),
    ("env", Form::Toml),
    ("limits.memory", Form::Text),
    ("limits.pids", Form::Toml),
    ("limits.cpus", Form::Toml),
    ("limits.disk", Form::Text),
    ("limits.open_files", Form::Toml),
    ("cache_dir", Form::Path),
    ("cache_size", Form::Text),
    ("memory_limit", Form::Text),
    ("staging_limit", Form::Text),
    ("drain_timeout", Form::Text),
    ("sync_interval", Form::Text),
    ("restart_mounts", Form::Toml),
    ("metadata", Form::Text),
    ("op_timeout", Form::Text),
    ("egress.enable_internet", Form::Toml),
    ("egress.allowed_hosts", Form::Toml),
    ("egress.denied_hosts", Form::Toml),
    ("egress.outbound_by_host", Form::Toml),
    ("slow_request", Form::Text),
    ("embedded_listen", Form::Text),
    ("log", Form::Text),
    ("mount_log", Form::Text),
    ("log_format", Form::Text),
    ("wrangler", Form::Path),
    ("dev_vars", Form::Path),
    ("r2_buckets", Form::Toml),
];

fn invalid(place: &str, message: impl std::fmt::Display) -> ConfigError {
    ConfigError::Invalid { place: place.to_owned(), message: message.to_string().trim_end().to_owned() }
}

pub(super) fn load(file: Option<&Path>, variable: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
    let cwd = std::path::absolute(".").map_err(|source| ConfigError::Read { path: ".".into(), source })?;
    let found = match file {
        Some(file) => Some(cwd.join(file)),
        None => Some(cwd.join(FILE_NAME)).filter(|file| file.is_file()),
    };
    let (text, dir, place) = match &found {
        Some(file) => {
            let text =
                std::fs::read_to_string(file).map_err(|source| ConfigError::Read { path: file.clone(), source })?;
            (text, file.parent().unwrap_or(&cwd).to_owned(), file.display().to_string())
        }
        None => (String::new(), cwd.clone(), "the configuration".to_owned()),
    };
    // Once as it is, so that errors name its lines; then with the variables.
    toml::from_str::<Raw>(&text).map_err(|error| invalid(&place, told::toml_error(&error, &text)))?;
    let mut table: toml::Table =
        toml::from_str(&text).map_err(|error| invalid(&place, told::toml_error(&error, &text)))?;
    overlay(&mut table, variable)?;
    let raw = Raw::deserialize(toml::Value::Table(table))
        .map_err(|error| invalid("SANDPAIL_*", told::without_value(error.message())))?;
    config(raw, &dir, &cwd, &place, variable)
}

fn overlay(table: &mut toml::Table, variable: &dyn Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
    for (key, form) in KEYS {
        let name = format!("SANDPAIL_{}", key.replace('.', "_").to_uppercase());
        let Some(text) = variable(&name).filter(|text| !text.is_empty()) else { continue };
        let value = match form {
            Form::Text => toml::Value::String(text),
            Form::Path => {
                let path = std::path::absolute(&text).map_err(|error| invalid(&name, error))?;
                toml::Value::String(path.to_string_lossy().into_owned())
            }
            Form::Toml => {
                let read: toml::Table = toml::from_str(&format!("value = {text}"))
                    .map_err(|error| invalid(&name, format!("not a TOML value: {}", error.message())))?;
                read.get("value").cloned().ok_or_else(|| invalid(&name, "not a TOML value"))?
            }
        };
        let mut one = toml::Table::new();
        let target = match key.split_once('.') {
            Some((section, key)) => {
                let mut inner = toml::Table::new();
                inner.insert(key.to_owned(), value.clone());
                one.insert(section.to_owned(), toml::Value::Table(inner));
                let section = table.entry(section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
                section.as_table_mut().map(|section| (section, key))
            }
            None => {
                one.insert(key.to_owned(), value.clone());
                Some((&mut *table, key))
            }
        };
        // By itself, so that the error names the variable.
        Raw::deserialize(toml::Value::Table(one))
            .map_err(|error| invalid(&name, told::without_value(error.message())))?;
        if let Some((target, key)) = target {
            target.insert(key.to_owned(), value);
        }
    }
    Ok(())
}

fn config(
    raw: Raw,
    dir: &Path,
    cwd: &Path,
    place: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, ConfigError> {
    let dev_vars = match &raw.dev_vars {
        Some(file) => dir.join(file),
        None => [dir, cwd].map(|dir| dir.join(".dev.vars")).into_iter().find(|file| file.is_file()).unwrap_or_default(),
    };
    let credentials_dir = variable("CREDENTIALS_DIRECTORY").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let secrets = Secrets::read(&dev_vars, credentials_dir)?;
    let wrangler = match &raw.wrangler {
        Some(file) => Some(dir.join(file)),
        None => [dir, cwd].into_iter().find_map(bindings::find_wrangler),
    };
    let mut all = wrangler.map(|file| bindings::read_wrangler(&file)).transpose()?.unwrap_or_default();
    all.extend(bindings::checked(raw.r2_buckets, dir, place)?);
    let api_key = match raw.api_key {
        None => None,
        Some(text) => {
            let key = SecretRef::parse(&text, dir).resolve(&secrets).filter(|key| !key.expose().is_empty());
            Some(key.ok_or_else(|| invalid(place, "api_key: the secret that it names is not there"))?)
        }
    };
    let rootfs = match (raw.rootfs, raw.image) {
        (Some(_), Some(_)) => return Err(invalid(place, "give rootfs or image, not both")),
        (Some(path), None) => RootFs::Directory(dir.join(path)),
        (None, Some(path)) => RootFs::Image(dir.join(path)),
        (None, None) => RootFs::Host,
    };
    let usual = MountDefaults::default();
    let mounts = MountDefaults {
        cache: raw.cache_dir.map(|path| (dir.join(path), raw.cache_size.map_or(CACHE_SIZE, |size| size.0))),
        memory_limit: raw.memory_limit.map_or(usual.memory_limit, |size| size.0),
        staging_limit: raw.staging_limit.map(|size| size.0),
        drain_timeout: raw.drain_timeout.map_or(usual.drain_timeout, |time| time.0),
        sync_interval: raw.sync_interval.map_or(usual.sync_interval, |time| time.0),
        op_timeout: match raw.op_timeout {
            Some(Time(limit)) => Some(limit).filter(|limit| !limit.is_zero()),
            None => usual.op_timeout,
        },
        survive: raw.restart_mounts.unwrap_or(usual.survive),
        trusts_listings: raw.metadata.map_or(usual.trusts_listings, |metadata| matches!(metadata, Metadata::Auto)),
        log: raw.mount_log.unwrap_or(usual.log),
    };
    let state_dir = dir.join(raw.state_dir.unwrap_or_else(|| ".sandpail".into()));
    let usual = Config::in_directory(state_dir);
    Ok(Config {
        listen: raw.listen.unwrap_or(usual.listen),
        api_key: api_key.map(|key| SecretKey::new(key.expose())),
        upload_limit: raw.upload_limit.map_or(usual.upload_limit, |size| size.0),
        max_sandboxes: raw.max_sandboxes,
        warm_target: raw.warm_target.unwrap_or(0),
        sandbox: SandboxSpec {
            rootfs,
            limits: Limits {
                memory: raw.limits.memory.map(|size| size.0),
                pids: raw.limits.pids,
                cpus: raw.limits.cpus,
                disk: raw.limits.disk.map(|size| size.0),
                open_files: raw.limits.open_files,
            },
            env: raw.env,
            expose: raw.expose,
            files: Vec::new(),
        },
        hidden: raw.hidden,
        mounts,
        egress: raw.egress.checked(&secrets).map_err(|error| invalid(place, format!("egress: {error}")))?,
        slow_request: raw.slow_request.map_or(usual.slow_request, |time| time.0),
        embedded_listen: raw.embedded_listen,
        log: raw.log.unwrap_or(usual.log.clone()),
        log_format: raw.log_format,
        bindings: all,
        secrets,
        ..usual
    })
}

#[cfg(test)]
mod tests {
    use sandpail_spec::{BindingName, Keys};

    use super::*;

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn new(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in files {
                std::fs::write(dir.path().join(name), text).unwrap();
            }
            Self(dir)
        }

        fn load(&self, variables: &[(&str, &str)]) -> Result<Config, String> {
            let get = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, v)| (*v).to_owned());
            load(Some(&self.0.path().join(FILE_NAME)), &get).map_err(|error| error.to_string())
        }
    }

    const EXAMPLE: &str = r#"
listen = "127.0.0.1:9999"
state_dir = "state"
upload_limit = "64MiB"
[limits]
memory = "1GiB"
cpus = 1.5
[[r2_buckets]]
binding = "MY_BUCKET"
bucket_name = "my-r2-bucket"
[[r2_buckets]]
binding = "DATASETS"
bucket_name = "datasets"
endpoint = "https://s3.us-west-2.amazonaws.com"
credentials = { access_key_id = "env:DATASETS_ID", secret_access_key = "file:secret" }
"#;

    #[test]
    fn a_whole_file() {
        let dir =
            Dir::new(&[(FILE_NAME, EXAMPLE), ("secret", "s3cret\n"), (".dev.vars", "DATASETS_ID=AKIA\nAPI=key\n")]);
        let config = dir.load(&[("SANDPAIL_MAX_SANDBOXES", "40"), ("SANDPAIL_API_KEY", "env:API")]).unwrap();
        assert_eq!(config.listen.port(), 9999);
        assert_eq!(config.state_dir, dir.0.path().join("state"));
        assert_eq!((config.upload_limit, config.max_sandboxes), (64 << 20, Some(40)));
        assert_eq!((config.sandbox.limits.memory, config.sandbox.limits.cpus), (Some(1 << 30), Some(1.5)));
        assert_eq!(config.api_key.as_ref().unwrap().expose(), "key");
        let binding = |name| config.binding(&BindingName::parse(name).unwrap()).unwrap();
        assert!(binding("MY_BUCKET").unwrap().remote.is_none());
        let Keys::These(keys) = binding("DATASETS").unwrap().remote.unwrap().keys else { panic!() };
        assert_eq!((keys.access_key_id.as_str(), keys.secret_access_key.expose()), ("AKIA", "s3cret"));
        assert!(binding("NOPE").is_none());
        assert!(!format!("{config:?}").contains("s3cret"));
    }

    #[test]
    fn variables_win_and_are_named_in_errors() {
        let dir = Dir::new(&[(FILE_NAME, "listen = \"127.0.0.1:1\"\n[limits]\npids = 10\n")]);
        let config = dir
            .load(&[
                ("SANDPAIL_LISTEN", "[::1]:2"),
                ("SANDPAIL_LIMITS_MEMORY", "64MiB"),
                ("SANDPAIL_R2_BUCKETS", "[{ binding = \"B\", bucket_name = \"bbb\" }]"),
            ])
            .unwrap();
        assert_eq!(config.listen.to_string(), "[::1]:2");
        assert_eq!((config.sandbox.limits.memory, config.sandbox.limits.pids), (Some(64 << 20), Some(10)));
        assert_eq!(config.bindings.len(), 1);
        for (name, value) in
            [("SANDPAIL_LISTEN", "x"), ("SANDPAIL_WARM_TARGET", "many"), ("SANDPAIL_DRAIN_TIMEOUT", "soon")]
        {
            let error = dir.load(&[(name, value)]).unwrap_err();
            assert!(error.starts_with(&format!("{name}: ")), "{error}");
        }
    }

    #[test]
    fn every_key_has_its_variable() {
        for (key, _) in KEYS {
            let text = match key.split_once('.') {
                // No key is a date.
                Some((section, key)) => format!("[{section}]\n{key} = 1979-05-27"),
                None => format!("{key} = 1.25"),
            };
            let error = toml::from_str::<Raw>(&text).unwrap_err().to_string();
            assert!(!error.contains("unknown field"), "{key}: {error}");
        }
        let error = toml::from_str::<Raw>("nonsense = 1").unwrap_err().to_string();
        let known = error.matches('`').count() / 2 - 1;
        // `limits` counts once there and five times here, `egress` four times.
        assert_eq!(known, KEYS.len() - 4 - 3, "{error}");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, parts) in [
            ("listne = 1", &["line 1, column 1", "unknown field `listne`"][..]),
            ("\n[limits]\nram = 1", &["line 3, column 1", "unknown field `ram`"]),
            ("upload_limit = \"1 XB\"", &["line 1", "invalid size"]),
            ("[[r2_buckets]]\nbinding = \"9\"", &["Invalid R2 binding name: \"9\""]),
            ("[[r2_buckets]]\nbinding = \"A\"\nbucket_name = \"A_B\"", &["r2_buckets A", "Invalid bucket name"]),
            ("[[r2_buckets]]\nbinding = \"A\"\nregion = \"x\"", &["region is given without endpoint"]),
            ("[[r2_buckets]]\nbinding = \"A\"\n[[r2_buckets]]\nbinding = \"A\"", &["two bindings of this name"]),
            (
                "[[r2_buckets]]\nbinding = \"A\"\nendpoint = \"http://x\"\n\
                 credentials = { access_key_id = \"a\", secret_access_key = \"hunter2\" }",
                &["a key does not belong into this file"],
            ),
            ("api_key = \"file:not-there\"", &["api_key"]),
        ] {
            let error = Dir::new(&[(FILE_NAME, text)]).load(&[]).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{text}: {error}");
            }
            assert!(error.contains(FILE_NAME) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn no_error_repeats_what_may_be_a_secret() {
        for (text, line) in [
            ("listen = \"127.0.0.1:1\"\napi_key = \"hunter2", "line 2"),
            ("\napi_key = hunter2", "line 2"),
            ("api_key = \"hunter2\" x", "line 1"),
            ("api_key = [\"hunter2\"]", "line 1"),
            ("warm_target = \"hunter2\"", "line 1"),
            ("upload_limit = \"hunter2\"", "line 1"),
            ("drain_timeout = \"hunter2\"", "line 1"),
            ("listen = \"hunter2\"", "line 1"),
            ("log_format = \"hunter2\"", "line 1"),
            ("env = \"hunter2, expected a\"", "line 1"),
            ("[limits]\nmemory = { a = \"hunter2\" }", "line 2"),
        ] {
            // A daemon that is told to read its files anew logs this same error.
            let error = Dir::new(&[(FILE_NAME, text)]).load(&[]).unwrap_err();
            assert!(!error.contains("hunter2") && error.contains(FILE_NAME) && error.contains(line), "{text}: {error}");
        }
        for (file, text) in [
            ("wrangler.toml", "[vars]\nKEY = \"hunter2"),
            ("wrangler.toml", "r2_buckets = \"hunter2\""),
            ("wrangler.jsonc", "{ \"vars\": { \"KEY\": \"hunter2 } }"),
            ("wrangler.jsonc", "{ \"r2_buckets\": \"hunter2\" }"),
        ] {
            let error = Dir::new(&[(FILE_NAME, ""), (file, text)]).load(&[]).unwrap_err();
            assert!(!error.contains("hunter2") && error.contains(file), "{text}: {error}");
        }
        for (name, value) in [
            ("SANDPAIL_WARM_TARGET", "\"hunter2\""),
            ("SANDPAIL_ENV", "{ A = hunter2 }"),
            ("SANDPAIL_UPLOAD_LIMIT", "hunter2"),
            ("SANDPAIL_LISTEN", "hunter2"),
        ] {
            let error = Dir::new(&[(FILE_NAME, "")]).load(&[(name, value)]).unwrap_err();
            assert!(!error.contains("hunter2") && error.contains(name), "{name}: {error}");
        }
    }

    #[test]
    fn wrangler_files() {
        let jsonc = "{ // comment\n \"name\": \"x\", \"r2_buckets\": [ { \"binding\": \"MY_BUCKET\", \
                     \"bucket_name\": \"from-wrangler\", \"preview_bucket_name\": \"p\", \"jurisdiction\": \"eu\", \
                     \"remote\": true, \"anything\": 1 }, { \"binding\": \"SECOND_ONE\" }, ], }";
        let toml = "name = \"x\"\n[[r2_buckets]]\nbinding = \"MY_BUCKET\"\nbucket_name = \"from-wrangler\"\nremote = true\n\
                    [[r2_buckets]]\nbinding = \"SECOND_ONE\"\n";
        for (file, text) in [("wrangler.jsonc", jsonc), ("wrangler.json", jsonc), ("wrangler.toml", toml)] {
            let config = Dir::new(&[(FILE_NAME, ""), (file, text)]).load(&[]).unwrap();
            let buckets: Vec<_> = config.bindings.values().map(|binding| binding.bucket.as_str()).collect();
            assert_eq!(buckets, ["from-wrangler", "second-one"], "{file}");
        }
        // sandpail.toml says where the bucket of a binding is.
        let own =
            "[[r2_buckets]]\nbinding = \"MY_BUCKET\"\nbucket_name = \"own\"\nendpoint = \"http://127.0.0.1:9000\"";
        let config = Dir::new(&[(FILE_NAME, own), ("wrangler.jsonc", jsonc)]).load(&[]).unwrap();
        assert!(config.bindings[&BindingName::parse("MY_BUCKET").unwrap()].remote.is_some());
        assert_eq!(config.bindings.len(), 2);
        let broken = Dir::new(&[(FILE_NAME, ""), ("wrangler.jsonc", "{\n\"r2_buckets\": [")]).load(&[]).unwrap_err();
        assert!(broken.contains("wrangler.jsonc"), "{broken}");
    }

    #[test]
    fn without_a_key_only_loopback() {
        let dir = Dir::new(&[(FILE_NAME, "listen = \"0.0.0.0:8787\"")]);
        let open = dir.load(&[]).unwrap();
        assert!(open.check().unwrap_err().to_string().contains("0.0.0.0:8787"));
        assert!(dir.load(&[("SANDPAIL_API_KEY", "k")]).unwrap().check().is_ok());
        assert!(Dir::new(&[(FILE_NAME, "")]).load(&[]).unwrap().check().is_ok());
    }
}
