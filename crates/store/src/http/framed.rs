//! A body whose checksum comes behind it: `aws-chunked`, not signed.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body::{Body, Frame};
use sandpail_s3::ChecksumKind;

use super::relay::{BodyError, RelayBody};

/// Stands for the body's hash in the signature.
pub(super) const HASH: &str = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";
/// Length of all chunks but the last. Nothing is held back to fill one.
const CHUNK_LEN: u64 = 1 << 20;

/// Puts the frames of `aws-chunked` around a body, and its trailer behind it.
pub(super) struct Framed {
    body: RelayBody,
    name: HeaderName,
    /// Bytes of the body that did not come yet.
    left: u64,
    /// The same of the chunk.
    chunk_left: u64,
    ready: VecDeque<Bytes>,
    is_finished: bool,
}

/// Length of a checksum as text.
fn sum_len(kind: ChecksumKind) -> Option<u64> {
    match kind {
        ChecksumKind::Crc32 | ChecksumKind::Crc32c => Some(8),
        ChecksumKind::Crc64Nvme => Some(12),
        ChecksumKind::Sha1 => Some(28),
        ChecksumKind::Sha256 => Some(44),
        ChecksumKind::ContentMd5 | ChecksumKind::None => None,
    }
}

/// Length of the frames around `len` bytes and of the bytes themselves.
fn chunks_len(len: u64) -> u64 {
    let frame = |len: u64| format!("{len:x}").len() as u64 + 4;
    let (whole, rest) = (len / CHUNK_LEN, len % CHUNK_LEN);
    len + whole * frame(CHUNK_LEN) + if rest > 0 { frame(rest) } else { 0 }
}

impl Framed {
    /// Frames a body of `len` bytes that ends in trailers with the checksum of `kind`. Gives the length of it all.
    pub(super) fn new(body: RelayBody, len: u64, kind: ChecksumKind) -> Result<(Self, u64), RelayBody> {
        let (Some(name), Some(sum_len)) = (kind.header(), sum_len(kind)) else { return Err(body) };
        let name = HeaderName::from_static(name);
        let wire_len = chunks_len(len) + format!("0\r\n{name}:\r\n\r\n").len() as u64 + sum_len;
        let ready = VecDeque::new();
        Ok((Self { body, name, left: len, chunk_left: 0, ready, is_finished: false }, wire_len))
    }

    /// The headers that say so.
    pub(super) fn describe(&self, headers: &mut HeaderMap) {
        let mut encoding = b"aws-chunked".to_vec();
        for own in headers.get_all(header::CONTENT_ENCODING) {
            encoding.push(b',');
            encoding.extend_from_slice(own.as_bytes());
        }
        if let Ok(encoding) = HeaderValue::from_bytes(&encoding) {
            headers.insert(header::CONTENT_ENCODING, encoding);
        }
        headers.insert("x-amz-decoded-content-length", HeaderValue::from(self.left));
        headers.insert("x-amz-trailer", HeaderValue::from(self.name.clone()));
    }

    fn frame(&mut self, mut data: Bytes) -> Result<(), BodyError> {
        while !data.is_empty() {
            if self.left == 0 {
                return Err("it is longer than was said".into());
            }
            if self.chunk_left == 0 {
                self.chunk_left = self.left.min(CHUNK_LEN);
                self.ready.push_back(format!("{:x}\r\n", self.chunk_left).into());
            }
            let len = usize::try_from(self.chunk_left).map_or(data.len(), |left| left.min(data.len()));
            self.ready.push_back(data.slice(..len));
            data.advance(len);
            self.chunk_left -= len as u64;
            self.left -= len as u64;
            if self.chunk_left == 0 {
                self.ready.push_back(Bytes::from_static(b"\r\n"));
            }
        }
        Ok(())
    }

    fn finish(&mut self, trailers: &HeaderMap) -> Result<(), BodyError> {
        let sum = trailers.get(&self.name).and_then(|sum| sum.to_str().ok()).ok_or("its checksum did not come")?;
        self.ready.push_back(format!("0\r\n{}:{sum}\r\n\r\n", self.name).into());
        self.is_finished = true;
        Ok(())
    }
}

impl Body for Framed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            if let Some(bytes) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if this.is_finished {
                return Poll::Ready(None);
            }
            let result = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.frame(data),
                    Err(frame) => this.finish(frame.trailers_ref().unwrap_or(&HeaderMap::new())),
                },
                Some(Err(error)) => Err(error),
                None => Err("its checksum did not come".into()),
            };
            if let Err(error) = result {
                this.is_finished = true;
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    fn body(len: usize, piece: usize, sum: Option<&'static str>) -> RelayBody {
        let mut frames: Vec<Result<Frame<Bytes>, BodyError>> =
            vec![0_u8; len].chunks(piece).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
        if let Some(sum) = sum {
            let trailers = [(HeaderName::from_static("x-amz-checksum-crc32"), HeaderValue::from_static(sum))];
            frames.push(Ok(Frame::trailers(trailers.into_iter().collect())));
        }
        StreamBody::new(stream::iter(frames)).boxed_unsync()
    }

    async fn framed(len: usize, piece: usize) -> (Vec<u8>, u64) {
        let body = body(len, piece, Some("AAAAAA=="));
        let Ok((framed, wire_len)) = Framed::new(body, len as u64, ChecksumKind::Crc32) else { panic!("a CRC fits") };
        (framed.collect().await.unwrap().to_bytes().to_vec(), wire_len)
    }

    #[tokio::test]
    async fn lengths_are_known_before() {
        let (wire, len) = framed(5, 2).await;
        assert_eq!(wire, b"5\r\n\0\0\0\0\0\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n");
        assert_eq!(len, wire.len() as u64);
        for (body_len, piece) in [(1 << 20, 70_000), ((1 << 20) + 1, 1 << 22), (3_456_789, 123_457), (2 << 20, 4096)] {
            let (wire, len) = framed(body_len, piece).await;
            assert_eq!(len, wire.len() as u64, "{body_len}");
        }
    }

    #[tokio::test]
    async fn without_its_checksum_it_breaks() {
        let Ok((framed, _)) = Framed::new(body(5, 5, None), 5, ChecksumKind::Crc32) else { panic!("a CRC fits") };
        assert!(framed.collect().await.is_err());
        assert!(Framed::new(body(5, 5, None), 5, ChecksumKind::ContentMd5).is_err());
    }
}
