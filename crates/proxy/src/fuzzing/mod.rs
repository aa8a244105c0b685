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
    use std::collections::BTreeSet;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    /// The seeds that the fuzzer begins with.
    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
        let seeds: Vec<_> =
            directory.read_dir().unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect();
        assert!(seeds.len() > 4, "{target}");
        seeds
    }

    /// What is refused at the door proves nothing: the seeds must lead to all that is behind it.
    #[test]
    fn seeds_lead_everywhere() {
        let done: BTreeSet<_> = seeds("decide").iter().filter_map(|seed| decide::run(seed)).collect();
        let all = "AbortMultipartUpload CompleteMultipartUpload CopyObject CreateMultipartUpload DeleteObject \
                   DeleteObjects GetBucketLocation GetObject GetObjectAttributes HeadBucket HeadObject ListBuckets \
                   ListMultipartUploads ListObjects ListObjectsV2 ListParts PutObject SelfTest UploadPart \
                   UploadPartCopy";
        assert_eq!(done.into_iter().collect::<Vec<_>>().join(" "), all);
        let answered: BTreeSet<_> = seeds("lists").iter().filter_map(|seed| lists::run(seed)).collect();
        assert_eq!(answered.len(), lists::ASKED.len());
        let signed: Vec<_> = seeds("authorization").iter().map(|seed| authorization::run(seed)).collect();
        assert!(signed.contains(&Some(true)) && signed.contains(&Some(false)));
        assert!(seeds("chunked").iter().filter(|seed| chunked::run(seed)).count() > 4);
        assert!(seeds("documents").iter().filter(|seed| documents::run(seed)).count() > 4);
        assert!(seeds("framing").iter().map(|seed| framing::run(seed)).sum::<usize>() > 4);
    }

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

    #[test]
    fn hyper_takes_as_many_trailers_as_pass() {
        for count in [1, 100, 101, 129] {
            let text = format!(
                "\x7fPUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{}\r\n",
                "a: b\r\n".repeat(count)
            );
            assert_eq!(framing::run(text.as_bytes()), usize::from(count <= 100), "{count}");
        }
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
