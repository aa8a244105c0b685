//! Whose S3 it is.

use std::fmt;
use std::str::FromStr;

/// A provider of S3 storage, as far as their dialects differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Provider {
    /// Cloudflare R2.
    R2,
    /// Amazon S3.
    S3,
    /// Google Cloud Storage, through its XML interface.
    Gcs,
    /// MinIO.
    Minio,
    /// Backblaze B2.
    B2,
    /// Wasabi.
    Wasabi,
    /// Ceph's RADOS gateway.
    Ceph,
    /// DigitalOcean Spaces.
    DigitalOcean,
    /// SeaweedFS.
    SeaweedFs,
    /// Garage.
    Garage,
    /// Anything else that speaks S3.
    #[default]
    Generic,
}

/// A name that is no provider's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Unknown provider: \"{0}\". Use one of r2, s3, gcs, minio, b2, wasabi, ceph, digitalocean, seaweedfs, garage, generic."
)]
pub struct UnknownProvider(pub String);

impl Provider {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::R2,
        Self::S3,
        Self::Gcs,
        Self::Minio,
        Self::B2,
        Self::Wasabi,
        Self::Ceph,
        Self::DigitalOcean,
        Self::SeaweedFs,
        Self::Garage,
        Self::Generic,
    ];

    /// The name that options use.
    pub fn name(self) -> &'static str {
        match self {
            Self::R2 => "r2",
            Self::S3 => "s3",
            Self::Gcs => "gcs",
            Self::Minio => "minio",
            Self::B2 => "b2",
            Self::Wasabi => "wasabi",
            Self::Ceph => "ceph",
            Self::DigitalOcean => "digitalocean",
            Self::SeaweedFs => "seaweedfs",
            Self::Garage => "garage",
            Self::Generic => "generic",
        }
    }

    /// Tells the provider from the host of its endpoint; [`Provider::Generic`] if it does not show.
    pub fn detect(host: &str) -> Self {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let under = |domain: &str| host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
        if under("r2.cloudflarestorage.com") {
            Self::R2
        } else if under("amazonaws.com") || under("amazonaws.com.cn") {
            Self::S3
        } else if host == "storage.googleapis.com" || under("storage.googleapis.com") {
            Self::Gcs
        } else if under("backblazeb2.com") {
            Self::B2
        } else if under("wasabisys.com") {
            Self::Wasabi
        } else if under("digitaloceanspaces.com") {
            Self::DigitalOcean
        } else {
            Self::Generic
        }
    }
}

impl FromStr for Provider {
    type Err = UnknownProvider;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let lower = name.to_ascii_lowercase();
        let lower = match lower.as_str() {
            "aws" => "s3",
            "cloudflare" => "r2",
            "google" => "gcs",
            "do" | "spaces" => "digitalocean",
            "weed" => "seaweedfs",
            "other" => "generic",
            other => other,
        };
        Self::ALL.into_iter().find(|provider| provider.name() == lower).ok_or_else(|| UnknownProvider(name.into()))
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for provider in Provider::ALL {
            assert_eq!(provider.name().parse(), Ok(provider));
        }
        assert_eq!("R2".parse(), Ok(Provider::R2));
        assert!("azure".parse::<Provider>().unwrap_err().to_string().contains("\"azure\""));
    }

    #[test]
    fn detection() {
        for (host, provider) in [
            ("abc.r2.cloudflarestorage.com", Provider::R2),
            ("abc.eu.r2.cloudflarestorage.com", Provider::R2),
            ("s3.eu-west-1.amazonaws.com", Provider::S3),
            ("storage.googleapis.com", Provider::Gcs),
            ("s3.us-west-004.backblazeb2.com", Provider::B2),
            ("fra1.digitaloceanspaces.com", Provider::DigitalOcean),
            ("evilamazonaws.com", Provider::Generic),
            ("localhost", Provider::Generic),
        ] {
            assert_eq!(Provider::detect(host), provider, "{host}");
        }
    }
}
