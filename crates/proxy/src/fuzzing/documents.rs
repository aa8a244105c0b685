//! Documents that clients send.

use sandpail_s3::xml::Element;

use super::world::{World, head};
use crate::target::check_key;
use crate::{Arrival, Decision, decide, documents};

thread_local! {
    static WORLD: World = World::new();
}

/// What is read is written so that it reads the same, and a DeleteObjects that is sent names keys of its mount only.
pub fn fuzz_documents(data: &[u8]) {
    if let Ok(document) = documents::rewrite_completion(data) {
        assert_eq!(documents::rewrite_completion(document.as_bytes()).ok().as_ref(), Some(&document));
        let root = Element::parse(document.as_bytes()).expect("what we write is XML");
        for part in &root.children {
            assert!(part.text_of("ETag").is_some() && part.text_of("PartNumber").is_some());
        }
    }
    let Ok(deletes) = documents::read_deletes(data) else { return };
    assert!((1..=1000).contains(&deletes.keys.len()));
    assert!(deletes.keys.iter().all(|key| check_key(key).is_ok()));
    let again = documents::write_deletes(deletes.keys.iter().map(String::as_str), deletes.is_quiet);
    assert_eq!(documents::read_deletes(again.as_bytes()).as_ref(), Ok(&deletes));
    for host in ["s3.internal", "r2.internal"] {
        for bucket in ["b", "OPEN"] {
            deletes_of(data, host, bucket);
        }
    }
}

fn deletes_of(data: &[u8], host: &str, bucket: &str) {
    let decision = WORLD.with(|world| {
        let parts = head(&format!("POST\n/{bucket}?delete\nhost:{host}\ncontent-length:{}", data.len()))?;
        decide(&parts, &Arrival::default(), &world.guest, world.now).ok()
    });
    let Some(Decision::Forward(mut forward)) = decision else { return };
    let Ok(rewritten) = forward.rewrite_body(data) else { return };
    let sent = documents::read_deletes(&rewritten.body).expect("what we write is good");
    let spec = forward.route.spec();
    assert_eq!(spec.access, crate::Access::ReadWrite);
    for key in &sent.keys {
        assert!(key.starts_with(spec.prefix.as_str()), "{key:?} is outside");
        assert!(forward.view.show(key).is_some());
    }
}
