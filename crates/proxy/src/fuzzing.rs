//! What reads a guest's bytes, one function for each, for a fuzzer to call. They must not panic, and say what must
//! hold.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use http::Response;
use sandpail_s3::ChecksumKind;
use sandpail_spec::{KeyPrefix, SecretKey};

use crate::body::{BodyCheck, ChunkSigner, Payload, Streaming};
use crate::framing::{Framing, Step};
use crate::{
    Access, Arrival, Audit, AuditRecord, Body, Decision, DummyKey, Guest, RouteSpec, Upstream, UpstreamError,
    UpstreamRequest, decide, documents,
};

/// The bytes of a connection: what passes is a prefix of what came, whatever the pieces.
pub fn fuzz_framing(data: &[u8]) {
    let Some((&step, input)) = data.split_first() else { return };
    let mut framing = Framing::new();
    let (mut passed, mut waiting) = (0, Vec::new());
    for piece in input.chunks(usize::from(step).max(1)) {
        waiting.extend_from_slice(piece);
        loop {
            match framing.step(&waiting) {
                Ok(Step::Pass(len)) => {
                    assert!(0 < len && len <= waiting.len(), "a step passes what is there");
                    waiting.drain(..len);
                    passed += len;
                }
                Ok(Step::More) => break,
                Err(_) => return,
            }
        }
    }
    assert!(passed + waiting.len() == input.len(), "nothing is lost");
}

/// A body in `aws-chunked`: it comes through whole only if its framing says so.
pub fn fuzz_chunked(data: &[u8]) {
    let [style, step, len, wire @ ..] = data else { return };
    let signer = || ChunkSigner::new([0; 32], "20260101T000000Z".into(), "s".into(), "0".into());
    let streaming = Streaming {
        decoded_len: u64::from(*len),
        trailer: (style & 1 == 1).then_some(ChecksumKind::Crc32),
        has_trailer: style & 1 == 1,
        chunks: (style & 2 == 2).then(signer),
    };
    let mut check = BodyCheck::new(&Payload::Streaming(streaming), u64::from(*len), &[]);
    let mut out = Vec::new();
    for piece in wire.chunks(usize::from(*step).max(1)) {
        if check.push(Bytes::copy_from_slice(piece), &mut out).is_err() {
            break;
        }
    }
    let passed: usize = out.iter().map(Bytes::len).sum();
    assert!(passed < usize::from(*len).max(1), "the last byte waits");
    if let Ok(checked) = check.finish() {
        assert_eq!(passed + checked.last.len(), usize::from(*len));
    }
}

/// Documents.
pub fn fuzz_documents(data: &[u8]) {
    if let Ok(deletes) = documents::read_deletes(data) {
        let again = documents::write_deletes(deletes.keys.iter().map(String::as_str), deletes.is_quiet);
        assert_eq!(documents::read_deletes(again.as_bytes()).ok(), Some(deletes));
    }
    if let Ok(document) = documents::rewrite_completion(data) {
        assert_eq!(documents::rewrite_completion(document.as_bytes()).ok(), Some(document));
    }
}

#[derive(Debug)]
struct Nowhere;

#[async_trait]
impl Upstream for Nowhere {
    async fn send(&self, _: UpstreamRequest) -> Result<Response<Body>, UpstreamError> {
        Err(UpstreamError::Timeout)
    }

    fn region(&self) -> String {
        "us-east-1".into()
    }
}

impl Audit for Nowhere {
    fn record(&self, _: AuditRecord) {}
}

/// A head without a signature, to a mount that takes such: method, URL and headers, a line each. Whatever they say,
/// what is permitted is inside the mount.
pub fn fuzz_decide(data: &[u8]) {
    const PREFIX: &str = "data/";
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.lines();
    let (Some(method), Some(uri)) = (lines.next(), lines.next()) else { return };
    let mut request = http::Request::builder().method(method).uri(uri).header("host", "s3.internal");
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { return };
        request = request.header(name, value);
    }
    let Ok(request) = request.body(()) else { return };
    let key = DummyKey { id: "id".into(), secret: SecretKey::new("secret") };
    let guest = Arc::new(Guest::new("guest", key, Arc::new(Nowhere)));
    let spec = RouteSpec {
        id: "m1".into(),
        binding: None,
        bucket: "b".into(),
        prefix: KeyPrefix::parse(&format!("/{PREFIX}")).unwrap_or_default(),
        access: Access::ReadWrite,
        endpoint: None,
        allow_unsigned: true,
    };
    let _open = guest.open(spec, Arc::new(Nowhere));
    let decision = decide(&request.into_parts().0, &Arrival::default(), &guest, SystemTime::UNIX_EPOCH);
    let Ok(Decision::Forward(forward)) = decision else { return };
    let of_list = forward.permit.query().iter().find(|(name, _)| name == "prefix").map(|(_, prefix)| prefix.as_str());
    for name in [forward.permit.key(), forward.permit.copy_source(), of_list].into_iter().flatten() {
        assert!(name.starts_with(PREFIX), "{name:?} is outside");
        assert!(of_list.is_some() || !name.split('/').any(|part| part == ".."), "{name:?} leads up");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pieces of requests, so that chance finds its way in.
    fn words() -> impl Strategy<Value = String> {
        let word = prop_oneof![
            Just("/b/data/"),
            Just("/b"),
            Just("data/"),
            Just("data"),
            Just("%2e%2e"),
            Just(".."),
            Just("/"),
            Just("%2f"),
            Just("%5c"),
            Just("?"),
            Just("&"),
            Just("="),
            Just("prefix"),
            Just("uploads"),
            Just("uploadId=u"),
            Just("delete"),
            Just("list-type=2"),
            Just("delimiter=/"),
            Just("partNumber=1"),
            Just("\n"),
            Just("x-amz-copy-source:"),
            Just("b/"),
            Just("a"),
            Just("marker=x"),
            Just("x-id=PutObject"),
            Just("content-length:0"),
            Just("%252e"),
            Just("%00"),
        ];
        let start = prop_oneof![
            Just("GET\n/b"),
            Just("PUT\n/b/data/"),
            Just("HEAD\n/b/"),
            Just("POST\n/b"),
            Just("DELETE\n/b/d")
        ];
        (start, proptest::collection::vec(word, 0..12)).prop_map(|(start, words)| format!("{start}{}", words.concat()))
    }

    proptest! {
        #[test]
        fn any_bytes(data in proptest::collection::vec(any::<u8>(), 0..500)) {
            fuzz_framing(&data);
            fuzz_chunked(&data);
            fuzz_documents(&data);
            fuzz_decide(&data);
        }

        #[test]
        fn pieces_of_requests(text in words()) {
            fuzz_decide(text.as_bytes());
        }
    }
}
