//! What `doctor --write-probe` has seen providers do, one file for each endpoint. Mounts read it.

use std::path::PathBuf;

use anyhow::Context;
use sandpail_store::http::ProviderProfile;
use serde::{Deserialize, Serialize};

use super::registry;

/// A file's contents.
#[derive(Serialize, Deserialize)]
struct Stored {
    /// Whom it was seen of.
    endpoint: String,
    #[serde(flatten)]
    profile: ProviderProfile,
}

fn file_of(endpoint: &str) -> anyhow::Result<PathBuf> {
    let host = endpoint.split_once("://").map_or(endpoint, |(_, host)| host);
    let name: String =
        host.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '_' }).collect();
    Ok(registry::state_directory()?.join("providers").join(format!("{name}.json")))
}

/// What was seen of an endpoint; `None` if nobody looked.
pub fn read(endpoint: &str) -> anyhow::Result<Option<ProviderProfile>> {
    // Without a home there is no profile either.
    let Ok(file) = file_of(endpoint) else { return Ok(None) };
    let text = match std::fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    let stored: Stored = serde_json::from_slice(&text).with_context(|| {
        format!(
            "{} is no provider profile; remove it, or make it anew with sandpail doctor --write-probe",
            file.display()
        )
    })?;
    Ok((stored.endpoint == endpoint).then_some(stored.profile))
}

/// Keeps what was seen of an endpoint. Says in which file.
pub fn write(endpoint: &str, profile: ProviderProfile) -> anyhow::Result<PathBuf> {
    let file = file_of(endpoint)?;
    let dir = file.parent().context("no directory")?;
    let context = || format!("cannot write {}", file.display());
    std::fs::create_dir_all(dir).with_context(context)?;
    let text = serde_json::to_string_pretty(&Stored { endpoint: endpoint.to_owned(), profile })?;
    // Mounts that read meanwhile see the old one or the new one.
    let new = tempfile::NamedTempFile::new_in(dir).with_context(context)?;
    std::fs::write(new.path(), text).with_context(context)?;
    new.persist(&file).map_err(|error| error.error).with_context(context)?;
    Ok(file)
}
