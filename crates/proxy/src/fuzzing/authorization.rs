//! Signatures: what was signed is what is taken, and nothing else is.

use std::collections::BTreeMap;

use http::request::Parts;

use super::world::{Text, World, head, write};
use crate::Denied;
use crate::query::{Query, decode};
use crate::signature::verify;

thread_local! {
    static WORLD: World = World::new();
}

/// A number of edits (place and byte), and a request that is signed by the sandbox's key and then edited, its signature
/// too.
///
/// Without edits the signature is good. With some, a request that is taken for signed says what was signed.
pub fn fuzz_authorization(data: &[u8]) {
    run(data);
}

/// Whether it is taken for signed; none if it cannot be read.
pub(super) fn run(data: &[u8]) -> Option<bool> {
    let (&count, rest) = data.split_first()?;
    let (edits, text) = rest.split_at_checked(3 * usize::from(count % 8))?;
    let text = Text::parse(text)?;
    WORLD.with(|world| {
        if !text.flags.is_signed() {
            // The bytes as they are: nobody can make a signature without the key.
            let is_signed = matches!(check(&text.parts, world), Ok(Ok(true)));
            assert!(!is_signed, "a signature was made without the key");
            return Some(false);
        }
        // Who says things about a signature in the query may say something else than is signed.
        let query = text.parts.uri.query().unwrap_or_default().to_ascii_lowercase();
        let is_plain = !["x-amz-", "x-goog-", "%"].iter().any(|word| query.contains(word));
        let original = text.sign(world.now)?;
        if edits.is_empty() && is_plain {
            let outcome = check(&original, world);
            let is_good = !matches!(outcome, Ok(Err(Denied::Signature("the signature is not by this sandbox's key"))));
            assert!(is_good, "a good signature is refused: {original:?}");
        }
        let mut bytes = write(&original);
        for edit in edits.chunks_exact(3) {
            let at = usize::from(u16::from_be_bytes([edit[0], edit[1]])) % bytes.len().max(1);
            bytes[at] = edit[2];
        }
        let edited = std::str::from_utf8(&bytes).ok().and_then(head)?;
        let is_signed = matches!(check(&edited, world), Ok(Ok(true)));
        if is_signed {
            assert_eq!(meaning(&edited, &original), meaning(&original, &original), "{edited:?}");
        }
        Some(is_signed)
    })
}

/// Whether it is taken for signed; the outer error is one of the query, which is read before.
fn check(parts: &Parts, world: &World) -> Result<Result<bool, Denied>, Denied> {
    let query = Query::parse(parts.uri.query())?;
    Ok(verify(parts, query, world.guest.verifier(), world.now).map(|signed| signed.is_signed))
}

type Meaning = (String, Option<String>, Vec<(String, String)>, BTreeMap<String, Vec<String>>);

/// What must not change: method, path, query, and the headers that `original` signed, and all that S3 calls its own.
fn meaning(parts: &Parts, original: &Parts) -> Meaning {
    let path = decode(parts.uri.path(), "").ok();
    let mut query = Query::parse(parts.uri.query()).unwrap_or_default().pairs().to_vec();
    query.retain(|(name, _)| name != "X-Amz-Signature" && name != "X-Goog-Signature");
    query.sort();
    let authorization = original.headers.get("authorization").and_then(|value| value.to_str().ok());
    let in_header = authorization.and_then(|text| text.split_once("SignedHeaders=")).map(|(_, rest)| rest);
    let names = in_header.and_then(|rest| rest.split(',').next()).unwrap_or("host");
    let is_own = |name: &str| name.starts_with("x-amz-") || name.starts_with("x-goog-");
    let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in &parts.headers {
        if names.split(';').any(|signed| signed == name.as_str()) || is_own(name.as_str()) {
            let value = String::from_utf8_lossy(value.as_bytes());
            let words: Vec<&str> = value.split(' ').filter(|word| !word.is_empty()).collect();
            headers.entry(name.to_string()).or_default().push(words.join(" "));
        }
    }
    // Two headers of one name are signed as one that holds both.
    let joined = headers.into_iter().map(|(name, values)| (name, vec![values.join(",")])).collect();
    (parts.method.to_string(), path, query, joined)
}
