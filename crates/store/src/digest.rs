//! Entity tags computed from bytes, as S3 does.

use md5::{Digest, Md5};

use crate::{ETag, StoreError, StoreResult};

/// The tag of an object that was stored by one PUT: MD5 in hex, fed chunk by chunk.
#[derive(Clone, Default)]
pub(crate) struct TagHasher(Md5);

impl TagHasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> ETag {
        ETag::new(&hex::encode(self.0.finalize()))
    }
}

/// The tag of an object that is stored by one PUT of these bytes, where nothing encrypts it with keys of its own.
pub fn put_tag<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> ETag {
    let mut hasher = TagHasher::default();
    chunks.into_iter().for_each(|chunk| hasher.update(chunk));
    hasher.finish()
}

/// The tag of an object made of parts: MD5 of the parts' MD5s, a dash, the number of parts.
///
/// # Errors
/// [`StoreError::Invalid`] if a part's tag is no MD5, as with some providers and encryptions.
pub fn multipart_tag<'a>(parts: impl IntoIterator<Item = &'a ETag>) -> StoreResult<ETag> {
    let mut all = Md5::new();
    let mut part_count = 0;
    for part in parts {
        let digest = hex::decode(part.as_str())
            .map_err(|_| StoreError::Invalid { message: format!("{part:?} is not the tag of a part") })?;
        all.update(&digest);
        part_count += 1;
    }
    Ok(ETag::new(&format!("{}-{part_count}", hex::encode(all.finalize()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_those_of_s3() {
        let mut hasher = TagHasher::default();
        hasher.update(b"hello");
        let hello = hasher.finish();
        assert_eq!(hello.as_str(), "5d41402abc4b2a76b9719d911017c592");
        assert_eq!(
            multipart_tag([&hello, &hello]).unwrap().as_str(),
            // md5(md5("hello") + md5("hello"))
            "616b22817b80eed9f65c3aa38cd29054-2"
        );
        assert!(multipart_tag([&ETag::new("no hex")]).is_err());
    }
}
