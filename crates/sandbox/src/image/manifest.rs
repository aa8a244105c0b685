//! Which layers make the image, and what its configuration says.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Fault;
use super::source::{Source, sha256};

/// Indexes may name indexes; more than a few levels are a loop.
const INDEX_DEPTH_MAX: usize = 4;

/// Images have at most 127 layers where they are run.
const LAYER_COUNT_MAX: usize = 1024;

/// The image that was found.
#[derive(Debug)]
pub(super) struct Found {
    /// The digest of its configuration, which names all its layers, in hexadecimal.
    pub(super) id: String,
    pub(super) config: Config,
    /// From the lowest to the highest.
    pub(super) layers: Vec<Layer>,
}

/// One layer.
#[derive(Debug)]
pub(super) struct Layer {
    /// Its file in the source.
    pub(super) name: String,
    /// SHA-256 of that file, if the manifest says.
    pub(super) blob: Option<Sha256Digest>,
    /// SHA-256 of the tar in it.
    pub(super) diff: Sha256Digest,
}

/// A digest `sha256:<hex>`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sha256Digest(String);

impl Sha256Digest {
    fn parse(text: &str) -> Result<Self, Fault> {
        match text.strip_prefix("sha256:") {
            Some(hex) if is_sha256(hex) => Ok(Self(hex.to_owned())),
            _ => Err(Fault::new(format!("{text:?} is no sha256 digest"))),
        }
    }

    pub(super) fn hex(&self) -> &str {
        &self.0
    }

    fn blob(&self) -> String {
        format!("blobs/sha256/{}", self.0)
    }
}

fn is_sha256(hex: &str) -> bool {
    hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
}

#[derive(Clone, Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// The part of a configuration that matters here.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    pub(super) config: Option<RunConfig>,
    rootfs: RootFs,
}

/// How its commands run.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RunConfig {
    pub(super) env: Option<Vec<String>>,
    pub(super) working_dir: Option<String>,
    pub(super) user: Option<String>,
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) cmd: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Finds the image for this machine.
pub(super) fn find(source: &Source) -> Result<Found, Fault> {
    // `docker save` writes both; its own file names the layers that are really there.
    if source.has("manifest.json") {
        find_saved(source)
    } else if source.has("index.json") {
        find_layout(source)
    } else {
        Err(Fault::new(
            "it has neither index.json nor manifest.json; give an OCI image layout or a file from `docker save`",
        ))
    }
}

fn find_saved(source: &Source) -> Result<Found, Fault> {
    let images: Vec<Saved> = parse("manifest.json", &source.document("manifest.json")?)?;
    let [image] = images.as_slice() else {
        let tags: Vec<_> = images.iter().flat_map(|image| image.repo_tags.clone().unwrap_or_default()).collect();
        let count = images.len();
        return Err(Fault::new(format!("it has {count} images ({}); save one image to a file", tags.join(", "))));
    };
    let document = source.document(&image.config)?;
    let id = sha256(&document);
    // The file is called after its digest, `<hex>.json` or `blobs/sha256/<hex>`.
    let name = image.config.rsplit('/').next().unwrap_or_default();
    let name = name.strip_suffix(".json").unwrap_or(name);
    if is_sha256(name) && name != id {
        return Err(wrong_digest(&image.config));
    }
    let config = parse(&image.config, &document)?;
    let names = image.layers.iter().map(|name| (name.clone(), None)).collect();
    complete(id, config, names)
}

fn find_layout(source: &Source) -> Result<Found, Fault> {
    let mut document = source.document("index.json")?;
    let mut name = "index.json".to_owned();
    for _ in 0..INDEX_DEPTH_MAX {
        let index: Index = parse(&name, &document)?;
        let chosen = choose(&index.manifests)?;
        let digest = Sha256Digest::parse(&chosen.digest)?;
        name = digest.blob();
        document = verified(source, &digest)?;
        if !is_index(&chosen, &document) {
            return find_in_manifest(source, &name, &document);
        }
    }
    Err(Fault::new("its indexes name one another without end"))
}

fn is_index(descriptor: &Descriptor, document: &[u8]) -> bool {
    match descriptor.media_type.as_str() {
        "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json" => true,
        "" => serde_json::from_slice::<Index>(document).is_ok(),
        _ => false,
    }
}

/// The entry for Linux on this architecture.
fn choose(manifests: &[Descriptor]) -> Result<Descriptor, Fault> {
    let fits = |descriptor: &&Descriptor| {
        // Without a platform the configuration says it.
        descriptor.platform.as_ref().is_none_or(|platform| platform.os == "linux" && platform.architecture == arch())
    };
    let mut fitting: Vec<&Descriptor> = manifests.iter().filter(fits).collect();
    // One image may have several tags.
    fitting.sort_by(|a, b| a.digest.cmp(&b.digest));
    fitting.dedup_by(|a, b| a.digest == b.digest);
    match fitting.as_slice() {
        [one] => Ok((*one).clone()),
        [] => {
            let there: Vec<_> = manifests
                .iter()
                .filter_map(|descriptor| descriptor.platform.as_ref())
                .map(|platform| format!("{}/{}", platform.os, platform.architecture))
                .collect();
            Err(Fault::new(format!("it has no image for linux/{}, only: {}", arch(), there.join(", "))))
        }
        several => Err(Fault::new(format!(
            "it has {} images for linux/{}; copy one of them to a layout of its own",
            several.len(),
            arch()
        ))),
    }
}

fn find_in_manifest(source: &Source, name: &str, document: &[u8]) -> Result<Found, Fault> {
    let manifest: Manifest = parse(name, document)?;
    let digest = Sha256Digest::parse(&manifest.config.digest)?;
    let config = parse(&digest.blob(), &verified(source, &digest)?)?;
    let names = manifest
        .layers
        .iter()
        .map(|layer| Sha256Digest::parse(&layer.digest).map(|digest| (digest.blob(), Some(digest))))
        .collect::<Result<_, _>>()?;
    complete(digest.0, config, names)
}

fn complete(id: String, config: Config, names: Vec<(String, Option<Sha256Digest>)>) -> Result<Found, Fault> {
    if (!config.os.is_empty() && config.os != "linux")
        || (!config.architecture.is_empty() && config.architecture != arch())
    {
        return Err(Fault::new(format!("it is for {}/{}, not linux/{}", config.os, config.architecture, arch())));
    }
    let diffs = &config.rootfs.diff_ids;
    if diffs.len() != names.len() || names.is_empty() || names.len() > LAYER_COUNT_MAX {
        let (layers, diffs) = (names.len(), diffs.len());
        return Err(Fault::new(format!("its manifest has {layers} layers, its configuration {diffs}: it is no image")));
    }
    let layers = names
        .into_iter()
        .zip(diffs)
        .map(|((name, blob), diff)| Ok(Layer { name, blob, diff: Sha256Digest::parse(diff)? }))
        .collect::<Result<_, Fault>>()?;
    Ok(Found { id, config, layers })
}

fn verified(source: &Source, digest: &Sha256Digest) -> Result<Vec<u8>, Fault> {
    let name = digest.blob();
    let document = source.document(&name)?;
    if sha256(&document) == digest.hex() { Ok(document) } else { Err(wrong_digest(&name)) }
}

pub(super) fn wrong_digest(name: &str) -> Fault {
    Fault::new(format!("{name} does not have the digest that it should: it is damaged; save or copy the image again"))
}

fn parse<T: DeserializeOwned>(name: &str, document: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(document).map_err(|error| Fault::new(format!("{name} is not what it should be: {error}")))
}

/// This machine's architecture, as images call it.
pub(super) fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}
