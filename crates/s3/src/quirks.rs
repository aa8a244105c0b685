//! Where providers differ, as data.

use sandpail_spec::{Endpoint, Provider};

use crate::checksum::ChecksumKind;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Where the region of a signature comes from if nobody names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultRegion {
    /// Always this one.
    Fixed(&'static str),
    /// The label of the host behind `s3.`, else this one.
    FromHost(&'static str),
    /// The first label of the host, else this one.
    FirstLabel(&'static str),
}

/// What one provider does and does not do. The values are the provider's documented ones; a probe may know better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quirks {
    /// Whose.
    pub provider: Provider,
    /// The bucket stands in the path unless asked otherwise.
    pub path_style: bool,
    /// The region to sign for.
    pub region: DefaultRegion,
    /// The checksum that uploads carry.
    pub checksum: ChecksumKind,
    /// `If-Match` and `If-None-Match` on PUT and CompleteMultipartUpload are obeyed.
    pub conditional_put: bool,
    /// `If-Match` and `If-None-Match` on CopyObject are obeyed.
    pub conditional_copy: bool,
    /// `If-Match` on DELETE is obeyed.
    pub conditional_delete: bool,
    /// UploadPartCopy of any range works.
    pub part_copy: bool,
    /// Parts but the last must have one length.
    pub equal_parts: bool,
    /// `encoding-type=url` is asked for in listings. (The answer says whether it was obeyed.)
    pub url_encoded_lists: bool,
    /// `x-amz-tagging-directive` is understood.
    pub tagging_directive: bool,
    /// Objects with `Content-Encoding: gzip` come unpacked unless `Accept-Encoding: gzip` is sent.
    pub unpacks_gzip: bool,
    /// Objects whose keys end in `/` keep their user metadata and can be copied.
    pub marker_metadata: bool,
    /// Keys keep their backslashes.
    pub backslashes: bool,
    /// DeleteObjects works.
    pub delete_objects: bool,
    /// Smallest part that is not the last.
    pub part_len_min: u64,
    /// Largest part.
    pub part_len_max: u64,
    /// Most parts.
    pub part_count_max: u32,
    /// Largest PUT.
    pub put_len_max: u64,
    /// Largest CopyObject.
    pub copy_len_max: u64,
}

/// What is most likely to work with an unknown provider.
const GENERIC: Quirks = Quirks {
    provider: Provider::Generic,
    path_style: true,
    region: DefaultRegion::Fixed("us-east-1"),
    // Every S3 verifies Content-MD5 or ignores it; additional checksums are refused by some.
    checksum: ChecksumKind::ContentMd5,
    // An ignored condition loses updates silently, so it is not trusted without a probe.
    conditional_put: false,
    conditional_copy: false,
    conditional_delete: false,
    part_copy: true,
    equal_parts: false,
    url_encoded_lists: true,
    tagging_directive: true,
    unpacks_gzip: false,
    marker_metadata: true,
    backslashes: true,
    delete_objects: true,
    part_len_min: 5 * MIB,
    part_len_max: 5 * GIB,
    part_count_max: 10_000,
    put_len_max: 5 * GIB,
    copy_len_max: 5 * GIB,
};

/// One line per provider: what differs from [`GENERIC`], and who says so.
static TABLE: [Quirks; 11] = [
    // Amazon S3 User Guide: "Virtual hosting of general purpose buckets", "Checking object integrity" (CRC64NVME, the
    // full-object type), "Add preconditions to S3 operations" (PUT, Complete, Copy, DELETE).
    Quirks {
        provider: Provider::S3,
        path_style: false,
        region: DefaultRegion::FromHost("us-east-1"),
        checksum: ChecksumKind::Crc64Nvme,
        conditional_put: true,
        conditional_copy: true,
        conditional_delete: true,
        ..GENERIC
    },
    // Cloudflare R2 docs, "S3 API compatibility": region `auto`, conditional PUT and CopyObject, UploadPartCopy, no
    // tagging; "Multipart upload": equal part sizes, 4.995 GiB at most per part and PUT.
    Quirks {
        provider: Provider::R2,
        region: DefaultRegion::Fixed("auto"),
        conditional_put: true,
        equal_parts: true,
        tagging_directive: false,
        part_len_max: 5 * GIB - 5 * MIB,
        put_len_max: 5 * GIB - 5 * MIB,
        copy_len_max: 5 * GIB - 5 * MIB,
        ..GENERIC
    },
    // Google Cloud Storage XML API: no UploadPartCopy, no ETag conditions on writes (generations instead), decompressive
    // transcoding; a server-side copy has no limit of its own but must finish in one request.
    Quirks {
        provider: Provider::Gcs,
        region: DefaultRegion::Fixed("auto"),
        part_copy: false,
        tagging_directive: false,
        unpacks_gzip: true,
        ..GENERIC
    },
    // MinIO docs, "S3 API compatibility"; conditional PUT since RELEASE.2022, path style unless MINIO_DOMAIN is set.
    Quirks { provider: Provider::Minio, conditional_put: true, ..GENERIC },
    // Backblaze "S3-compatible API": region in the host, no tagging; part copy works.
    Quirks {
        provider: Provider::B2,
        path_style: false,
        region: DefaultRegion::FromHost("us-west-004"),
        tagging_directive: false,
        ..GENERIC
    },
    // Wasabi "S3 API reference": region in the host.
    Quirks { provider: Provider::Wasabi, path_style: false, region: DefaultRegion::FromHost("us-east-1"), ..GENERIC },
    // Ceph "RADOS gateway S3 API": path style, and listings ignore encoding-type in older releases.
    Quirks { provider: Provider::Ceph, url_encoded_lists: false, ..GENERIC },
    // DigitalOcean "Spaces API": region is the first label of the host; listings without encoding.
    Quirks {
        provider: Provider::DigitalOcean,
        path_style: false,
        region: DefaultRegion::FirstLabel("us-east-1"),
        url_encoded_lists: false,
        ..GENERIC
    },
    // SeaweedFS wiki "Amazon S3 API": path style. Encoded listings are asked for: the answer says if they came. Markers
    // and backslashes: seen with 4.48, where a key ending in `/` is a directory of the filer and `\` becomes `/`.
    Quirks { provider: Provider::SeaweedFs, marker_metadata: false, backslashes: false, ..GENERIC },
    // Garage docs "S3 compatibility status": region `garage`, no tagging.
    Quirks { provider: Provider::Garage, region: DefaultRegion::Fixed("garage"), tagging_directive: false, ..GENERIC },
    GENERIC,
];

impl Quirks {
    /// The provider's line of the table.
    pub fn of(provider: Provider) -> &'static Self {
        static FALLBACK: Quirks = GENERIC;
        TABLE.iter().find(|quirks| quirks.provider == provider).unwrap_or(&FALLBACK)
    }

    /// The region to sign for at `endpoint` if nobody names it.
    pub fn region_at(&self, endpoint: &Endpoint) -> String {
        let host = endpoint.host();
        let (found, other) = match self.region {
            DefaultRegion::Fixed(region) => (None, region),
            DefaultRegion::FirstLabel(region) => (host.split('.').next(), region),
            DefaultRegion::FromHost(region) => {
                let mut labels = host.split('.').skip_while(|label| !matches!(*label, "s3" | "s3-fips"));
                labels.next();
                (labels.find(|label| *label != "dualstack"), region)
            }
        };
        // `s3.amazonaws.com` and `s3.wasabisys.com` have the domain where others have the region.
        let plausible =
            |label: &&str| host.parse::<std::net::Ipv4Addr>().is_err() && label.contains(|c: char| c.is_ascii_digit());
        found.filter(plausible).unwrap_or(other).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_provider_has_a_line() {
        let names = "r2 s3 gcs minio b2 wasabi ceph digitalocean seaweedfs garage generic";
        for provider in names.split(' ').map(|name| name.parse::<Provider>().unwrap()) {
            assert_eq!(Quirks::of(provider).provider, provider);
        }
    }

    #[test]
    fn regions() {
        for (provider, url, region) in [
            (Provider::S3, "https://s3.eu-west-1.amazonaws.com", "eu-west-1"),
            (Provider::S3, "https://s3.dualstack.eu-west-1.amazonaws.com", "eu-west-1"),
            (Provider::S3, "https://s3.amazonaws.com", "us-east-1"),
            (Provider::S3, "http://127.0.0.1:9000", "us-east-1"),
            (Provider::B2, "https://s3.us-west-002.backblazeb2.com", "us-west-002"),
            (Provider::DigitalOcean, "https://fra1.digitaloceanspaces.com", "fra1"),
            (Provider::R2, "https://x.r2.cloudflarestorage.com", "auto"),
            (Provider::Generic, "http://localhost:8333", "us-east-1"),
        ] {
            assert_eq!(Quirks::of(provider).region_at(&url.parse().unwrap()), region, "{url}");
        }
    }
}
