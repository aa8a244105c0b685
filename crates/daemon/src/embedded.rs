//! Embedded buckets for any S3 client: served at an address of this machine, with a key that is made once.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sandpail_s3d::{KeyPair, Server, ServerOptions};
use sandpail_spec::{BucketPlace, S3fsOptions};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::DaemonError;
use crate::mounts::open_store;
use crate::sandboxes::{Inner, random_text};

/// Letters of a new secret key: 160 bits.
const SECRET_LEN: usize = 32;
const ID_LEN: usize = 16;

/// The endpoint of embedded buckets.
#[derive(Debug)]
pub(crate) struct Embedded {
    server: Server,
    keys_file: PathBuf,
}

/// The file that holds the key, for root alone.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Keys {
    access_key_id: String,
    secret_access_key: String,
}

impl Embedded {
    /// Serves the embedded buckets of the configuration, if it says where.
    pub(crate) async fn start(inner: &Inner) -> Result<Option<Self>, DaemonError> {
        let Some(listen) = inner.config().embedded_listen else { return Ok(None) };
        let keys_file = inner.state.join("embedded-keys.json");
        let failed = |what: &str, error: &dyn std::fmt::Display| DaemonError::State(format!("{what}: {error}"));
        let shown = format!("the key of the embedded buckets in {}", keys_file.display());
        let keys = read_or_make(&keys_file).map_err(|error| failed(&shown, &error))?;
        let options = ServerOptions::new(KeyPair::new(keys.access_key_id, keys.secret_access_key))
            .spool_directory(inner.state.join("buckets"));
        let server = Server::bind(listen, options)
            .await
            .map_err(|error| failed(&format!("cannot serve embedded buckets on {listen}"), &error))?;
        let embedded = Self { server, keys_file };
        embedded.add_buckets(inner)?;
        Ok(Some(embedded))
    }

    /// Serves the buckets that the configuration has now; those that it had stay.
    pub(crate) fn add_buckets(&self, inner: &Inner) -> Result<(), DaemonError> {
        for binding in inner.config().bindings.values().filter(|binding| binding.remote.is_none()) {
            let bucket = binding.bucket.as_str();
            let store = open_store(inner, bucket, &BucketPlace::Embedded, &S3fsOptions::default());
            self.server.add_bucket(bucket, store.map_err(DaemonError::Bucket)?);
        }
        Ok(())
    }

    pub(crate) fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    pub(crate) fn keys_file(&self) -> &Path {
        &self.keys_file
    }
}

fn read_or_make(file: &Path) -> anyhow::Result<Keys> {
    match std::fs::read(file) {
        Ok(text) => return Ok(serde_json::from_slice(&Zeroizing::new(text))?),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        Err(_) => {}
    }
    let keys = Keys { access_key_id: random_text(ID_LEN)?.to_uppercase(), secret_access_key: random_text(SECRET_LEN)? };
    let mut new = std::fs::File::options().write(true).create_new(true).mode(0o600).open(file)?;
    new.write_all(&Zeroizing::new(serde_json::to_vec(&keys)?))?;
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_key_is_made_once_and_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys.json");
        let made = read_or_make(&file).unwrap();
        assert_eq!((made.access_key_id.len(), made.secret_access_key.len()), (ID_LEN, SECRET_LEN));
        assert_eq!(read_or_make(&file).unwrap().secret_access_key, made.secret_access_key);
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        std::fs::write(&file, "{").unwrap();
        assert!(read_or_make(&file).is_err());
    }
}
