//! Which checksum an upload carries: the table's, or a cheaper one that the server has shown to check.
//!
//! MD5 takes more CPU than all else of an upload together; CRC32C takes next to none, but a server that does not know
//! it may ignore it, and then nothing is checked. A server that does know it repeats it in its answer.
//!
//! ```text
//! Unknown (both are sent) ──► Known (CRC32C alone)
//!     └──── no echo, or a refusal ──────┴──► Ignored (MD5 alone)
//! ```
//!
//! What comes back is compared, too: the checksum of an answer with the one that was sent, and the tag with the MD5, once the
//! server has shown that its tags are MD5s.
//!
//! A server that is known by its name to check it goes to Known before the first upload: a large file begins with
//! several parts at once, all of which would be summed up twice. It is held to its echo like any other.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use sandpail_s3::ChecksumKind;

use super::error::Failure;
use super::send::Reply;
use crate::StoreError;

/// Servers (as they say in `Server`) whose present versions check CRC32C and repeat it.
const CHECKING: [&str; 1] = ["SeaweedFS"];

const UNKNOWN: u8 = 0;
const KNOWN: u8 = 1;
const IGNORED: u8 = 2;

/// What is known about a server's checksums.
#[derive(Debug)]
pub(super) struct Sums {
    table: ChecksumKind,
    /// `None` where the table has the last word.
    learnt: Option<AtomicU8>,
    /// The tag of something that was stored was its MD5.
    has_md5_tags: AtomicBool,
}

/// A checksum that went with an upload.
pub(super) type Sent = (ChecksumKind, String);

impl Sums {
    /// What the table says; with `learns` only until the server has answered. Only MD5 can be bettered.
    pub(super) fn new(table: ChecksumKind, learns: bool) -> Self {
        let learns = learns && table == ChecksumKind::ContentMd5;
        Self { table, learnt: learns.then(|| AtomicU8::new(UNKNOWN)), has_md5_tags: AtomicBool::new(false) }
    }

    /// A probe has seen whether a wrong CRC32C is refused.
    pub(super) fn was_probed(&mut self, checks: bool) {
        if self.table == ChecksumKind::ContentMd5 {
            self.learnt = Some(AtomicU8::new(if checks { KNOWN } else { IGNORED }));
        }
    }

    /// An answer named its server.
    pub(super) fn met(&self, server: &str) {
        if let Some(learnt) = self.learnt.as_ref().filter(|_| CHECKING.iter().any(|name| server.starts_with(name))) {
            let _ = learnt.compare_exchange(UNKNOWN, KNOWN, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// What the next upload carries.
    pub(super) fn kinds(&self) -> &[ChecksumKind] {
        match self.learnt.as_ref().map(|learnt| learnt.load(Ordering::Relaxed)) {
            Some(UNKNOWN) => &[ChecksumKind::ContentMd5, ChecksumKind::Crc32c],
            Some(KNOWN) => &[ChecksumKind::Crc32c],
            _ => std::slice::from_ref(&self.table),
        }
    }

    /// Whether a download may ask for the object's checksum: servers that keep none may take the question amiss.
    pub(super) fn are_kept(&self) -> bool {
        self.kinds().iter().any(|kind| kind.algorithm().is_some())
    }

    /// What an answer says of the bytes that the server has, if that is not what was sent.
    pub(super) fn difference(&self, sent: &[Sent], reply: &Reply) -> Option<String> {
        for (kind, ours) in sent {
            let Some(name) = kind.header() else { continue };
            // A sum of sums is of parts.
            let theirs = reply.header(name).map(str::trim).filter(|theirs| !theirs.is_empty() && !theirs.contains('-'));
            if let Some(theirs) = theirs.filter(|theirs| theirs != ours) {
                return Some(format!("{name} {theirs}, not {ours}"));
            }
            if *kind == ChecksumKind::ContentMd5
                && let Some(tag) = md5_tag(reply)
            {
                let md5 = hex::encode(STANDARD.decode(ours).unwrap_or_default());
                if tag == md5 {
                    self.has_md5_tags.store(true, Ordering::Relaxed);
                } else if self.has_md5_tags.load(Ordering::Relaxed) {
                    return Some(format!("tag {tag}, not {md5}"));
                }
            }
        }
        None
    }

    /// Learns from an answer to an upload of `kinds`, the last of which was `sum`. Says whether the body was checked.
    pub(super) fn answered(&self, kinds: &[ChecksumKind], sum: Option<&str>, reply: &Reply) -> bool {
        let (Some(learnt), Some(ChecksumKind::Crc32c)) = (&self.learnt, kinds.last()) else { return true };
        let is_known = ChecksumKind::Crc32c.header().and_then(|name| reply.header(name)) == sum;
        if is_known {
            // Not over what another answer has shown meanwhile.
            let _ = learnt.compare_exchange(UNKNOWN, KNOWN, Ordering::Relaxed, Ordering::Relaxed);
        } else {
            learnt.store(IGNORED, Ordering::Relaxed);
        }
        is_known || kinds.len() > 1
    }

    /// Learns from a refusal. Says whether another try may do better.
    pub(super) fn refused(&self, kinds: &[ChecksumKind], failure: &Failure) -> bool {
        let (Some(learnt), Some(ChecksumKind::Crc32c)) = (&self.learnt, kinds.last()) else { return false };
        let may_be_it = match failure.error {
            StoreError::Unsupported { .. } | StoreError::Integrity { .. } => true,
            // Other codes name another cause, such as a body that is too long.
            StoreError::Invalid { .. } => matches!(failure.code.as_str(), "InvalidRequest" | "InvalidArgument"),
            _ => false,
        };
        // What may have been done must not be done again: a condition would then see our own write.
        if !may_be_it || failure.maybe_done {
            return false;
        }
        learnt.store(IGNORED, Ordering::Relaxed);
        true
    }
}

/// The tag of an answer if it may be an MD5: nothing else is as long, and what is encrypted with other keys than the server's
/// own has another.
fn md5_tag(reply: &Reply) -> Option<String> {
    let encryption = reply.header("x-amz-server-side-encryption").is_none_or(|kind| kind == "AES256");
    let is_plain = encryption && reply.header("x-amz-server-side-encryption-customer-algorithm").is_none();
    let tag = reply.header("etag")?.trim().trim_matches('"').to_ascii_lowercase();
    (is_plain && tag.len() == 32 && tag.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(tag)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, StatusCode};

    use super::super::send::ReplyBody;
    use super::*;

    fn reply(echo: Option<&'static str>) -> Reply {
        let mut headers = HeaderMap::new();
        if let Some(echo) = echo {
            headers.insert("x-amz-checksum-crc32c", HeaderValue::from_static(echo));
        }
        Reply { status: StatusCode::OK, headers, body: ReplyBody::Whole(bytes::Bytes::new()) }
    }

    fn learning() -> Sums {
        Sums::new(ChecksumKind::ContentMd5, true)
    }

    #[test]
    fn a_server_that_repeats_the_sum_gets_it_alone() {
        let sums = learning();
        assert_eq!(sums.kinds(), [ChecksumKind::ContentMd5, ChecksumKind::Crc32c]);
        assert!(sums.answered(sums.kinds(), Some("abc="), &reply(Some("abc="))));
        assert_eq!(sums.kinds(), [ChecksumKind::Crc32c]);
    }

    #[test]
    fn a_server_that_ignores_the_sum_gets_md5() {
        for echo in [None, Some("other")] {
            let sums = learning();
            // MD5 was sent besides, so these bytes were checked.
            assert!(sums.answered(sums.kinds(), Some("abc="), &reply(echo)));
            assert_eq!(sums.kinds(), [ChecksumKind::ContentMd5], "{echo:?}");
        }
    }

    #[test]
    fn a_server_that_forgets_is_no_longer_trusted() {
        let sums = learning();
        assert!(sums.answered(sums.kinds(), Some("abc="), &reply(Some("abc="))));
        assert!(!sums.answered(sums.kinds(), Some("abc="), &reply(None)));
        assert_eq!(sums.kinds(), [ChecksumKind::ContentMd5]);
        // An answer that comes late brings the trust not back.
        assert!(sums.answered(&[ChecksumKind::Crc32c], Some("abc="), &reply(Some("abc="))));
        assert_eq!(sums.kinds(), [ChecksumKind::ContentMd5]);
    }

    #[test]
    fn a_server_known_by_name_is_still_held_to_its_echo() {
        let sums = learning();
        sums.met("nginx");
        assert_eq!(sums.kinds().len(), 2);
        sums.met("SeaweedFS 9.99");
        assert_eq!(sums.kinds(), [ChecksumKind::Crc32c]);
        assert!(!sums.answered(sums.kinds(), Some("abc="), &reply(None)), "nobody checked: once more");
        sums.met("SeaweedFS 9.99");
        assert_eq!(sums.kinds(), [ChecksumKind::ContentMd5]);
    }

    #[test]
    fn a_refusal_ends_in_md5() {
        let refusal = |maybe_done| Failure {
            maybe_done,
            ..Failure::lasting(StoreError::Unsupported { what: "checksums".into() })
        };
        let sums = learning();
        assert!(!sums.refused(sums.kinds(), &refusal(true)));
        assert!(sums.refused(sums.kinds(), &refusal(false)));
        assert_eq!(sums.kinds(), [ChecksumKind::ContentMd5]);
        assert!(!sums.refused(sums.kinds(), &refusal(false)), "and no further");
    }

    #[test]
    fn the_table_has_the_last_word() {
        for kind in [ChecksumKind::Crc64Nvme, ChecksumKind::Crc32c, ChecksumKind::None] {
            let sums = Sums::new(kind, true);
            assert!(sums.answered(sums.kinds(), None, &reply(None)));
            assert_eq!(sums.kinds(), [kind]);
        }
    }
}
