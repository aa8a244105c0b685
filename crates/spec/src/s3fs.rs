//! Options in the words of s3fs: what they mean here.

use std::time::Duration;

use crate::parse_mode;

/// What the options ask for. `None` means that nothing was said.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct S3fsOptions {
    /// `use_path_request_style`: the bucket's name in the path.
    pub path_style: Option<bool>,
    /// `nomultipart`: every object is one PUT.
    pub no_multipart: bool,
    /// `multipart_size`: length of parts, in bytes.
    pub part_len: Option<u64>,
    /// `stat_cache_expire`, `stat_cache_interval_expire`: how long names and attributes are believed.
    pub metadata_ttl: Option<Duration>,
    /// `uid`: owner, as the sandbox sees it, of what has none.
    pub uid: Option<u32>,
    /// `gid`: group, as the sandbox sees it, of what has none.
    pub gid: Option<u32>,
    /// `umask`: taken away from the modes of what has none. Also `mp_umask`, for directories.
    pub file_umask: Option<u32>,
    /// The same for directories.
    pub dir_umask: Option<u32>,
    /// `no_check_certificate`: anybody may be the server.
    pub insecure: bool,
    /// `parallel_count`: parts of one file that are uploaded at the same time.
    pub parallel_parts: Option<usize>,
    /// `connect_timeout`: how long a connection may take.
    pub connect_timeout: Option<Duration>,
    /// `readwrite_timeout`: how long no byte may move.
    pub stall_timeout: Option<Duration>,
    /// `ro`: no writes.
    pub read_only: bool,
    /// `noexec`: nothing can be executed there.
    pub no_exec: bool,
    /// `endpoint`, `region`: the region to sign for.
    pub region: Option<String>,
}

/// Which options a mount keeps for itself, and what it is called in the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum S3fsKind {
    /// An endpoint mount.
    Remote,
    /// An endpoint mount with `credentialProxy`.
    CredentialProxy,
    /// A binding mount.
    Binding,
    /// A directory that is kept equal.
    Local,
}

impl S3fsKind {
    fn shown(self) -> &'static str {
        match self {
            Self::Remote => "remote",
            Self::CredentialProxy => "credential proxy",
            Self::Binding => "R2 binding",
            Self::Local => "local bucket",
        }
    }

    fn keeps(self, name: &str) -> bool {
        let for_proxy = matches!(name, "ahbe_conf" | "use_path_request_style");
        matches!(name, "passwd_file" | "url") || (for_proxy && self == Self::CredentialProxy)
    }
}

/// An option that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidS3fsOption {
    /// The mount itself decides this one, or nobody knows it.
    #[error("s3fs option \"{name}\" cannot be overridden for {kind} mounts")]
    Kept {
        /// The option's name.
        name: String,
        /// `remote`, `credential proxy`, `R2 binding` or `local bucket`.
        kind: &'static str,
    },
    /// Its value makes no sense.
    #[error("s3fs option \"{name}\" needs {needs}, not {value:?}")]
    Value {
        /// The option's name.
        name: String,
        /// `a number`, `octal digits`, …
        needs: &'static str,
        /// The refused value.
        value: String,
    },
}

/// Accepted, and without effect: what they ask for is always so here, or concerns how s3fs works inside.
pub const WITHOUT_EFFECT: &[&str] = &[
    // Always so: other users of the sandbox may use the mount, which may cover files; names that are not there are
    // remembered; implicit directories show; keys are signed by SigV4; modes are obeyed.
    "allow_other",
    "nonempty",
    "enable_noobj_cache",
    "complement_stat",
    "compat_dir",
    "notsup_compat_dir",
    "sigv4",
    "rw",
    "default_permissions",
    "nodev",
    "nosuid",
    "_netdev",
    "kernel_cache",
    "auto_cache",
    "noatime",
    "relatime",
    // The engine decides these by itself: memory is bounded for the whole, retries end by time, checks are always on.
    "retries",
    "max_stat_cache_size",
    "use_cache",
    "del_cache",
    "check_cache_dir_exist",
    "multireq_max",
    "max_dirty_data",
    "max_thread_count",
    "list_object_max_keys",
    "singlepart_copy_limit",
    "multipart_copy_size",
    "nomixupload",
    "nocopyapi",
    "norenameapi",
    "enable_content_md5",
    "streamupload",
    "ensure_diskfree",
    "tmpdir",
    "use_xattr",
    "stat_cache_size",
    "noobj_cache",
    "instance_name",
    "curldbg",
    "dbglevel",
    "logfile",
    "no_time_stamp_msg",
    "noua",
];

const MIB: u64 = 1 << 20;

impl S3fsOptions {
    /// Reads options, each `name` or `name=value`; one text may hold several, separated by commas.
    ///
    /// # Errors
    /// [`InvalidS3fsOption`] names the first one that cannot be had.
    pub fn parse(options: &[String], kind: S3fsKind) -> Result<Self, InvalidS3fsOption> {
        let mut read = Self::default();
        let texts = options.iter().flat_map(|option| option.split(','));
        for text in texts.map(str::trim).filter(|text| !text.is_empty()) {
            let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
            read.take(name.trim(), value.map(str::trim), kind)?;
        }
        Ok(read)
    }

    fn take(&mut self, name: &str, value: Option<&str>, kind: S3fsKind) -> Result<(), InvalidS3fsOption> {
        let refuse = || InvalidS3fsOption::Kept { name: name.to_owned(), kind: kind.shown() };
        if kind.keeps(name) {
            return Err(refuse());
        }
        let bad = |needs| InvalidS3fsOption::Value {
            name: name.to_owned(),
            needs,
            value: value.unwrap_or_default().to_owned(),
        };
        let number = || value.and_then(|value| value.parse::<u32>().ok()).ok_or_else(|| bad("a number"));
        let seconds = || number().map(|seconds| Some(Duration::from_secs(seconds.into())));
        let mode = || value.and_then(|value| parse_mode(value).ok()).ok_or_else(|| bad("octal digits"));
        let text = || value.filter(|value| !value.is_empty()).map(str::to_owned).ok_or_else(|| bad("a value"));
        match name {
            "use_path_request_style" => self.path_style = Some(true),
            "nomultipart" => self.no_multipart = true,
            // In MB, as s3fs has it; S3 takes parts of 5 MiB to 5 GiB.
            "multipart_size" => {
                let mib = number()?;
                if !(5..=5120).contains(&mib) {
                    return Err(bad("a number from 5 to 5120 (MB)"));
                }
                self.part_len = Some(u64::from(mib) * MIB);
            }
            "stat_cache_expire" | "stat_cache_interval_expire" => self.metadata_ttl = seconds()?,
            "uid" => self.uid = Some(number()?),
            "gid" => self.gid = Some(number()?),
            "umask" => {
                let umask = mode()?;
                self.file_umask = Some(umask);
                self.dir_umask = Some(self.dir_umask.unwrap_or(0) | umask);
            }
            "mp_umask" => self.dir_umask = Some(self.dir_umask.unwrap_or(0) | mode()?),
            "no_check_certificate" | "ssl_verify_hostname" => {
                self.insecure |= name == "no_check_certificate" || value == Some("0");
            }
            "parallel_count" | "parallel_upload" => {
                let count = number()?;
                if !(1..=64).contains(&count) {
                    return Err(bad("a number from 1 to 64"));
                }
                self.parallel_parts = usize::try_from(count).ok();
            }
            "connect_timeout" => self.connect_timeout = seconds()?,
            "readwrite_timeout" => self.stall_timeout = seconds()?,
            "ro" => self.read_only = true,
            "noexec" => self.no_exec = true,
            "endpoint" | "region" => self.region = Some(text()?),
            _ if WITHOUT_EFFECT.contains(&name) => {}
            _ => return Err(refuse()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str], kind: S3fsKind) -> Result<S3fsOptions, String> {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        S3fsOptions::parse(&options, kind).map_err(|error| error.to_string())
    }

    #[test]
    fn what_they_mean() {
        let options = [
            "use_path_request_style,nomultipart",
            "multipart_size=16",
            "stat_cache_expire=60",
            "uid=1000",
            "gid=100",
            "umask=0022",
            "mp_umask=0007",
            "no_check_certificate",
            "parallel_count=8",
            "connect_timeout=3",
            "readwrite_timeout=9",
            "ro",
            "endpoint=eu-west-1",
            "enable_noobj_cache",
        ];
        let expected = S3fsOptions {
            path_style: Some(true),
            no_multipart: true,
            part_len: Some(16 * MIB),
            metadata_ttl: Some(Duration::from_secs(60)),
            uid: Some(1000),
            gid: Some(100),
            file_umask: Some(0o022),
            dir_umask: Some(0o027),
            insecure: true,
            parallel_parts: Some(8),
            connect_timeout: Some(Duration::from_secs(3)),
            stall_timeout: Some(Duration::from_secs(9)),
            read_only: true,
            no_exec: false,
            region: Some("eu-west-1".to_owned()),
        };
        assert_eq!(parse(&options, S3fsKind::Remote), Ok(expected));
        for name in WITHOUT_EFFECT {
            assert_eq!(parse(&[name, &format!("{name}=1")], S3fsKind::Binding), Ok(S3fsOptions::default()), "{name}");
        }
    }

    #[test]
    fn refused_by_name() {
        for (option, kind, shown) in [
            ("passwd_file=/x", S3fsKind::Remote, "remote"),
            ("url=http://x", S3fsKind::Binding, "R2 binding"),
            ("ahbe_conf=/x", S3fsKind::CredentialProxy, "credential proxy"),
            ("use_path_request_style", S3fsKind::CredentialProxy, "credential proxy"),
            ("frobnicate=1", S3fsKind::Remote, "remote"),
        ] {
            let name = option.split('=').next().unwrap();
            let expected = format!("s3fs option \"{name}\" cannot be overridden for {shown} mounts");
            assert_eq!(parse(&["nomultipart", option], kind), Err(expected));
        }
        for option in ["uid=root", "umask=9", "multipart_size=4", "multipart_size", "parallel_count=0", "endpoint"] {
            let text = parse(&[option], S3fsKind::Remote).unwrap_err();
            assert!(
                text.starts_with(&format!("s3fs option \"{}\" needs ", option.split('=').next().unwrap())),
                "{text}"
            );
        }
    }
}
