//! Uploads on their way in: summed, checked, and kept so that a store can read them twice.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::HeaderMap;
use md5::{Digest, Md5};
use s3s::checksum::ChecksumHasher;
use s3s::crypto::Checksum as _;
use s3s::dto::Checksum;
use s3s::{S3Error, S3Result, TrailingHeaders, s3_error};
use sandpail_store::PutBody;

/// Bodies up to this length stay in memory.
const MEMORY_LEN_MAX: usize = 8 << 20;
/// A spooled body is written to its file in pieces of about this length.
const WRITE_LEN: usize = 1 << 20;

/// The sums that a client announced for its upload, by algorithm.
#[derive(Default)]
pub(crate) struct Announced {
    sums: [Option<String>; 5],
    /// Algorithms whose sum comes behind the body.
    trailing: [bool; 5],
    md5: Option<String>,
}

const ALGORITHMS: [&str; 5] = ["crc32", "crc32c", "crc64nvme", "sha1", "sha256"];

impl Announced {
    /// Reads the headers of a request.
    pub(crate) fn from_headers(headers: &HeaderMap) -> S3Result<Self> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let trailers = text("x-amz-trailer").unwrap_or_default().to_ascii_lowercase();
        let md5 = text("content-md5");
        if let Some(md5) = &md5
            && STANDARD.decode(md5).ok().is_none_or(|digest| digest.len() != 16)
        {
            return Err(s3_error!(InvalidDigest, "The Content-MD5 you specified was invalid."));
        }
        let header_of = |algorithm: &str| format!("x-amz-checksum-{algorithm}");
        Ok(Self {
            sums: ALGORITHMS.map(|algorithm| text(&header_of(algorithm))),
            trailing: ALGORITHMS.map(|algorithm| trailers.split(',').any(|name| name.trim() == header_of(algorithm))),
            md5,
        })
    }
}

/// A body that was taken in whole, and its sums by the algorithms that were announced.
pub(crate) struct Taken {
    pub(crate) body: PutBody,
    pub(crate) sums: Checksum,
}

/// Takes a body in and compares it with what was announced.
///
/// # Errors
/// `BadDigest` if a sum differs; `IncompleteBody` if the body broke off.
pub(crate) async fn take<S, E>(
    stream: Option<S>,
    announced: Announced,
    trailers: Option<TrailingHeaders>,
    spool_directory: &Path,
) -> S3Result<Taken>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: Into<s3s::StdError>,
{
    let wanted = |index: usize| announced.sums[index].is_some() || announced.trailing[index];
    let mut hasher = ChecksumHasher {
        crc32: wanted(0).then(s3s::crypto::Crc32::new),
        crc32c: wanted(1).then(s3s::crypto::Crc32c::new),
        crc64nvme: wanted(2).then(s3s::crypto::Crc64Nvme::new),
        sha1: wanted(3).then(s3s::crypto::Sha1::new),
        sha256: wanted(4).then(s3s::crypto::Sha256::new),
    };
    let mut md5 = announced.md5.is_some().then(Md5::new);
    let mut spool = Spool::new(spool_directory);
    if let Some(mut stream) = stream {
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| broken(error.into()))?;
            hasher.update(&chunk);
            if let Some(md5) = &mut md5 {
                md5.update(&chunk);
            }
            spool.push(chunk).await?;
        }
    }
    let body = spool.finish().await?;
    let sums = hasher.finalize();
    if let (Some(md5), Some(announced)) = (md5, &announced.md5)
        && STANDARD.encode(md5.finalize()) != *announced
    {
        return Err(bad_digest("Content-MD5"));
    }
    let computed = [
        &sums.checksum_crc32,
        &sums.checksum_crc32c,
        &sums.checksum_crc64nvme,
        &sums.checksum_sha1,
        &sums.checksum_sha256,
    ];
    for (index, algorithm) in ALGORITHMS.into_iter().enumerate() {
        let trailing = trailers.as_ref().filter(|_| announced.trailing[index]).and_then(|trailers| {
            trailers.read(|headers| {
                let value = headers.get(format!("x-amz-checksum-{algorithm}"))?;
                Some(value.to_str().ok()?.to_owned())
            })?
        });
        if announced.trailing[index] && trailing.is_none() {
            return Err(s3_error!(InvalidRequest, "The announced trailer did not come."));
        }
        for expected in [&announced.sums[index], &trailing].into_iter().flatten() {
            if Some(expected) != computed[index].as_ref() {
                return Err(bad_digest(algorithm));
            }
        }
    }
    Ok(Taken { body, sums })
}

fn bad_digest(algorithm: &str) -> S3Error {
    s3_error!(BadDigest, "The {} you specified did not match what we received.", algorithm)
}

/// A body that ended early, or whose chunks or announced hash were wrong.
fn broken(error: s3s::StdError) -> S3Error {
    let text = error.to_string();
    let mut refusal = if text.to_ascii_lowercase().contains("mismatch") {
        s3_error!(BadDigest, "The provided x-amz-content-sha256 header does not match what was computed.")
    } else {
        s3_error!(IncompleteBody, "The body could not be read: {}", text)
    };
    refusal.set_source(error);
    refusal
}

/// Keeps a body: in memory while it is small, else in a file without a name.
struct Spool<'a> {
    directory: &'a Path,
    chunks: Vec<Bytes>,
    chunks_len: usize,
    file: Option<File>,
    file_len: u64,
}

impl<'a> Spool<'a> {
    fn new(directory: &'a Path) -> Self {
        Self { directory, chunks: Vec::new(), chunks_len: 0, file: None, file_len: 0 }
    }

    async fn push(&mut self, chunk: Bytes) -> S3Result<()> {
        if chunk.is_empty() {
            return Ok(());
        }
        self.chunks_len += chunk.len();
        self.chunks.push(chunk);
        let room = if self.file.is_some() { WRITE_LEN } else { MEMORY_LEN_MAX };
        if self.chunks_len > room { self.write().await } else { Ok(()) }
    }

    async fn write(&mut self) -> S3Result<()> {
        let chunks = std::mem::take(&mut self.chunks);
        let (file, directory) = (self.file.take(), self.directory.to_owned());
        let written = tokio::task::spawn_blocking(move || {
            let mut file = match file {
                Some(file) => file,
                None => tempfile::tempfile_in(directory)?,
            };
            for chunk in &chunks {
                file.write_all(chunk)?;
            }
            Ok::<_, std::io::Error>(file)
        })
        .await
        .map_err(std::io::Error::other)
        .flatten();
        let file = written.map_err(|error| {
            tracing::error!(%error, directory = %self.directory.display(), "cannot spool an upload");
            crate::convert::io_refusal(error)
        })?;
        self.file = Some(file);
        self.file_len += self.chunks_len as u64;
        self.chunks_len = 0;
        Ok(())
    }

    async fn finish(mut self) -> S3Result<PutBody> {
        if self.file.is_some() && self.chunks_len > 0 {
            self.write().await?;
        }
        Ok(match self.file {
            Some(file) => PutBody::File { file: Arc::new(file), range: 0..self.file_len },
            None => PutBody::Chunks(self.chunks),
        })
    }
}
