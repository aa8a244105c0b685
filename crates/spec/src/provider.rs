//! Who runs a store.

use std::fmt;
use std::str::FromStr;

/// A provider whose dialect is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Provider {
    /// Cloudflare R2
    R2,
    /// Amazon S3
    S3,
    /// Google Cloud Storage, by its XML API with HMAC keys
    Gcs,
    /// MinIO
    Minio,
    /// Backblaze B2
    B2,
    /// Wasabi
    Wasabi,
    /// Ceph RADOS Gateway
    Ceph,
    /// DigitalOcean Spaces
    DigitalOcean,
    /// SeaweedFS
    SeaweedFs,
    /// Garage
    Garage,
    /// Anything else that speaks S3
    #[default]
    Generic,
}

/// A name that no provider has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown provider {name:?}; known are r2, s3, gcs, minio, b2, wasabi, ceph, digitalocean, seaweedfs, garage, generic"
)]
pub struct UnknownProvider {
    /// The refused text.
    pub name: String,
}

const NAMES: [(&str, Provider); 11] = [
    ("r2", Provider::R2),
    ("s3", Provider::S3),
    ("gcs", Provider::Gcs),
    ("minio", Provider::Minio),
    ("b2", Provider::B2),
    ("wasabi", Provider::Wasabi),
    ("ceph", Provider::Ceph),
    ("digitalocean", Provider::DigitalOcean),
    ("seaweedfs", Provider::SeaweedFs),
    ("garage", Provider::Garage),
    ("generic", Provider::Generic),
];

impl Provider {
    /// Finds the provider by the endpoint's host.
    pub fn detect(host: &str) -> Self {
        let host = host.to_ascii_lowercase();
        let ends = |suffix: &str| host.ends_with(suffix);
        if ends(".r2.cloudflarestorage.com") {
            Self::R2
        } else if ends(".amazonaws.com") || ends(".amazonaws.com.cn") {
            Self::S3
        } else if host == "storage.googleapis.com" {
            Self::Gcs
        } else if ends(".backblazeb2.com") {
            Self::B2
        } else if ends(".wasabisys.com") {
            Self::Wasabi
        } else if ends(".digitaloceanspaces.com") {
            Self::DigitalOcean
        } else {
            Self::Generic
        }
    }
}

impl FromStr for Provider {
    type Err = UnknownProvider;

    fn from_str(name: &str) -> Result<Self, UnknownProvider> {
        let found = NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, provider)| *provider).ok_or_else(|| UnknownProvider { name: name.to_owned() })
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(_, provider)| provider == self).map_or("generic", |(name, _)| name);
        f.write_str(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_host_and_by_name() {
        assert_eq!(Provider::detect("abc.r2.cloudflarestorage.com"), Provider::R2);
        assert_eq!(Provider::detect("s3.us-west-2.amazonaws.com"), Provider::S3);
        assert_eq!(Provider::detect("storage.googleapis.com"), Provider::Gcs);
        assert_eq!(Provider::detect("127.0.0.1"), Provider::Generic);
        for (name, provider) in NAMES {
            assert_eq!(name.parse::<Provider>().unwrap(), provider);
            assert_eq!(provider.to_string(), name);
        }
        assert!("s4".parse::<Provider>().is_err());
    }
}
