//! What reads bytes that others wrote, one function for each, for a fuzzer to call. They must not panic, and each says
//! what must hold whatever the bytes are. `fuzz/` runs them by coverage, the tests here by chance.

mod authorization;
mod chunked;
mod decide;
mod documents;
mod framing;
mod lists;
mod world;

pub use authorization::fuzz_authorization;
pub use chunked::fuzz_chunked;
pub use decide::fuzz_decide;
pub use documents::fuzz_documents;
pub use framing::fuzz_framing;
pub use lists::fuzz_lists;

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
        // How it comes: unsigned, signed, presigned.
        let flags = prop_oneof![Just('@'), Just('A'), Just('I')];
        (flags, start, proptest::collection::vec(word, 0..12))
            .prop_map(|(flags, start, words)| format!("{flags}\n{start}{}", words.concat()))
    }

    proptest! {
        #[test]
        fn any_bytes(data in proptest::collection::vec(any::<u8>(), 0..500)) {
            fuzz_framing(&data);
            fuzz_chunked(&data);
            fuzz_documents(&data);
            fuzz_decide(&data);
            fuzz_authorization(&data);
            fuzz_lists(&data);
        }

        #[test]
        fn pieces_of_requests(text in words()) {
            fuzz_decide(text.as_bytes());
        }

        #[test]
        fn tampered_requests(text in words(), edits in proptest::collection::vec(any::<[u8; 3]>(), 0..4)) {
            let mut data = vec![u8::try_from(edits.len()).unwrap()];
            data.extend(edits.into_iter().flatten());
            data.extend_from_slice(text.as_bytes());
            fuzz_authorization(&data);
        }

        #[test]
        fn framed_bodies(style in 0..16_u8, program in proptest::collection::vec(0..0x80_u8, 0..60)) {
            let data = [&[style | 4, 3, 0][..], &program].concat();
            fuzz_chunked(&data);
        }
    }
}
