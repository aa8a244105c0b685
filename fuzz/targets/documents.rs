#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sandpail_proxy::fuzzing::fuzz_documents(data));
