//! What a server shows that it can do, by a few objects that are written and removed again.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use sandpail_s3::{Call, ChecksumKind, checksum, list};
use serde::{Deserialize, Serialize};

use super::{HttpStore, bad_header, not_s3};
use crate::{
    Condition, CopySource, ETag, ListRequest, ObjectAttributes, ObjectKey, Part, PutBody, Store, StoreError,
    StoreResult, UploadId,
};

const MIB: usize = 1 << 20;
/// Lengths of the parts of an upload that is not of equal parts.
const PART_LENS: [usize; 3] = [6 * MIB, 5 * MIB, 1000];
/// A key that a listing may get wrong.
const ODD_NAME: &str = "a b+c%41&ü";

/// What a provider was seen to do. Mounts believe it more than the table of [`sandpail_s3::quirks`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is one question to the provider")]
pub struct ProviderProfile {
    /// `If-Match` and `If-None-Match` on PUT are obeyed.
    pub conditional_put: bool,
    /// `If-Match` on DELETE is obeyed.
    pub conditional_delete: bool,
    /// UploadPartCopy of any byte range works.
    pub part_copy: bool,
    /// Parts that are not the last may have lengths of their own.
    pub unequal_parts: bool,
    /// Checksum headers whose wrong value is refused.
    pub checksums: Vec<String>,
    /// `list-type=2` is understood, continuation included. Mounts need it.
    pub list_v2: bool,
    /// `encoding-type=url` is obeyed.
    pub url_encoded_lists: bool,
    /// DeleteObjects works.
    pub delete_objects: bool,
}

impl ProviderProfile {
    /// Whether a wrong checksum of this kind is refused.
    pub fn checks(&self, kind: ChecksumKind) -> bool {
        kind.header().is_some_and(|name| self.checksums.iter().any(|known| known == name))
    }
}

/// One question to a provider.
#[derive(Debug)]
pub struct ProbeStep {
    /// The question.
    pub what: &'static str,
    /// What was seen, in words; an error if the provider cannot do it.
    pub result: Result<String, StoreError>,
}

/// What a first look at the bucket shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstAnswer {
    /// The server's clock minus ours, in seconds, if it says its time.
    pub clock_skew: Option<i64>,
    /// What the server calls itself.
    pub server: Option<String>,
    /// The region that the request was signed for in the end.
    pub region: String,
}

fn step(what: &'static str, seen: Result<bool, StoreError>, yes: &str, no: &str) -> ProbeStep {
    let result = match seen {
        Ok(true) => Ok(yes.to_owned()),
        Ok(false) => Err(StoreError::Unsupported { what: no.to_owned() }),
        Err(error) => Err(error),
    };
    ProbeStep { what, result }
}

/// A refusal of what must be refused.
fn is_refused<T>(result: StoreResult<T>) -> StoreResult<bool> {
    match result {
        Ok(_) => Ok(false),
        Err(StoreError::Precondition { .. }) => Ok(true),
        // Some answer 501 to conditions that they do not know, which loses nothing either.
        Err(StoreError::Unsupported { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn object_key(key: String) -> StoreResult<ObjectKey> {
    ObjectKey::new(key).map_err(|error| StoreError::Invalid { message: error.to_string() })
}

impl HttpStore {
    /// Lists one key, and says what the answer tells about the server.
    ///
    /// # Errors
    /// As [`Store::check_bucket`].
    pub async fn first_answer(&self) -> StoreResult<FirstAnswer> {
        let call = Call::list("", false, None, None, 1);
        let reply = self.ask(&call).await.map_err(|failure| failure.error)?;
        list::parse_objects(reply.bytes()).map_err(not_s3(&call))?;
        let date = reply.header("date").and_then(sandpail_s3::time::parse_http);
        let seconds = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            i64::try_from(since).unwrap_or(i64::MAX)
        };
        Ok(FirstAnswer {
            clock_skew: date.map(|date| seconds(date) - seconds(SystemTime::now())),
            server: reply.header("server").map(super::error::clean),
            region: self.shared.target().signer.region().to_owned(),
        })
    }

    /// Connects, with TLS where the endpoint has it, and closes again.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`] that says what is wrong with the connection or the certificate.
    pub async fn check_connection(&self) -> StoreResult<()> {
        // Any answer will do: this asks for nothing and signs nothing.
        let request = self.shared.bare_request()?;
        let answering = self.shared.client.request(request);
        match tokio::time::timeout(Duration::from_secs(15), answering).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.shared.broken(&error).error),
            Err(_) => Err(self.shared.unreachable("no answer within 15 s".to_owned())),
        }
    }

    /// Finds out what the provider can do: writes some 12 MiB under keys that begin with `prefix`, and removes them.
    /// What cannot be found out counts as not there.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for a prefix that leaves no room for names.
    pub async fn probe(&self, prefix: &str) -> StoreResult<(ProviderProfile, Vec<ProbeStep>)> {
        let mut steps = Vec::new();
        let mut note = |step: ProbeStep| {
            let is_there = step.result.is_ok();
            steps.push(step);
            is_there
        };
        let key = |name: &str| object_key(format!("{prefix}{name}"));
        let (condition, parts_key, copy_key, sum) = (key("condition")?, key("parts")?, key("copy")?, key("sum")?);
        let (odd, first, second) = (key(ODD_NAME)?, key("d1")?, key("d2")?);
        let conditions = self.probe_conditional_put(&condition).await;
        let conditional_put = note(step(
            "conditional writes",
            conditions,
            "If-Match and If-None-Match are obeyed: --on-conflict fail and keep-both are safe",
            "If-Match or If-None-Match on PUT: --on-conflict can only look before it writes",
        ));
        let deletes = self.probe_conditional_delete(&condition).await;
        let conditional_delete = note(step("conditional deletes", deletes, "If-Match is obeyed", "If-Match on DELETE"));
        let parts = self.probe_unequal_parts(&parts_key).await;
        let unequal_parts = note(step(
            "unequal parts",
            parts,
            "parts may have lengths of their own",
            "parts of unequal length: edits of large files upload more",
        ));
        let copy = self.probe_part_copy(&parts_key, &copy_key).await;
        let part_copy = note(step(
            "part copy",
            copy,
            "UploadPartCopy takes any range: edits of large files upload only what changed",
            "UploadPartCopy: an edit of a large file uploads it whole",
        ));
        let mut checksums = Vec::new();
        for kind in [ChecksumKind::Crc64Nvme, ChecksumKind::Crc32c, ChecksumKind::ContentMd5] {
            let Some(name) = kind.header() else { continue };
            if let Ok(true) = self.probe_checksum(&sum, kind, name).await {
                checksums.push(name.to_owned());
            }
        }
        note(ProbeStep {
            what: "checksums",
            result: if checksums.is_empty() {
                Err(StoreError::Unsupported { what: "checksums of uploads: damage on the way is not noticed".into() })
            } else {
                Ok(format!("a wrong one is refused: {}", checksums.join(", ")))
            },
        });
        let list_v2 = note(step(
            "list version 2",
            self.probe_list(prefix, &odd).await,
            "works, page by page",
            "ListObjectsV2, which mounts need",
        ));
        let url_encoded_lists = note(step(
            "encoded listings",
            self.probe_url_encoding(prefix, &odd).await,
            "encoding-type=url is obeyed",
            "encoding-type=url: keys with control characters cannot be listed",
        ));
        let delete_objects = note(step(
            "batch deletes",
            self.probe_delete_objects(&first, &second).await,
            "DeleteObjects works",
            "DeleteObjects: keys are removed one by one",
        ));
        note(ProbeStep { what: "clean up", result: self.remove_below(prefix).await });
        let profile = ProviderProfile {
            conditional_put,
            conditional_delete,
            part_copy,
            unequal_parts,
            checksums,
            list_v2,
            url_encoded_lists,
            delete_objects,
        };
        Ok((profile, steps))
    }

    async fn put_small(&self, key: &ObjectKey, condition: &Condition) -> StoreResult<ETag> {
        let body = PutBody::from(Bytes::from_static(b"sandpail probe"));
        Ok(self.put(key, body, &ObjectAttributes::default(), condition).await?.etag)
    }

    async fn probe_conditional_put(&self, key: &ObjectKey) -> StoreResult<bool> {
        let etag = self.put_small(key, &Condition::Always).await?;
        let wrong = Condition::Matches(ETag::new("00000000000000000000000000000000"));
        let all_refused = is_refused(self.put_small(key, &Condition::Absent).await)?
            && is_refused(self.put_small(key, &wrong).await)?;
        // One that holds must be let through.
        Ok(all_refused && self.put_small(key, &Condition::Matches(etag)).await.is_ok())
    }

    async fn probe_conditional_delete(&self, key: &ObjectKey) -> StoreResult<bool> {
        self.put_small(key, &Condition::Always).await?;
        let call = Call::delete(key.as_str()).if_match("00000000000000000000000000000000");
        is_refused(self.ask(&call).await.map_err(|failure| failure.error))
    }

    async fn probe_unequal_parts(&self, key: &ObjectKey) -> StoreResult<bool> {
        let id = self.create_multipart(key, &ObjectAttributes::default()).await?;
        let upload = async {
            let mut parts = Vec::new();
            for (len, number) in PART_LENS.into_iter().zip(1..) {
                let body = PutBody::from(Bytes::from(vec![b'x'; len]));
                parts.push(self.upload_part(key, &id, number, body).await?);
            }
            self.complete_multipart(key, &id, &parts, &Condition::Always).await
        };
        let stored = upload.await;
        if stored.is_err() {
            self.give_up(key, &id).await;
        }
        match stored {
            Ok(_) => Ok(self.head(key).await?.size == PART_LENS.iter().sum::<usize>() as u64),
            Err(StoreError::Invalid { .. } | StoreError::Unsupported { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn probe_part_copy(&self, from: &ObjectKey, to: &ObjectKey) -> StoreResult<bool> {
        if matches!(self.head(from).await, Err(StoreError::NotFound { .. })) {
            let body = PutBody::from(Bytes::from(vec![b'1'; PART_LENS[0]]));
            self.put(from, body, &ObjectAttributes::default(), &Condition::Always).await?;
        }
        let id = self.create_multipart(to, &ObjectAttributes::default()).await?;
        let (start, end) = (1, 5 * MIB as u64 + 4);
        let upload = async {
            let source = CopySource { key: from.clone(), etag: None };
            // What a profile or table says is put aside: this is the question.
            let copied = self.copy_part(to, &id, 1, &source, start..end).await?;
            let last: Part = self.upload_part(to, &id, 2, PutBody::from(Bytes::from_static(b"end"))).await?;
            self.complete_multipart(to, &id, &[copied, last], &Condition::Always).await
        };
        let stored = upload.await;
        if stored.is_err() {
            self.give_up(to, &id).await;
        }
        match stored {
            Ok(_) => Ok(self.head(to).await?.size == end - start + 3),
            Err(StoreError::Invalid { .. } | StoreError::Unsupported { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn give_up(&self, key: &ObjectKey, id: &UploadId) {
        if let Err(error) = self.abort_multipart(key, id).await {
            tracing::warn!(?key, %error, "an upload of the probe is left unfinished");
        }
    }

    /// Whether a wrong checksum is refused.
    async fn probe_checksum(&self, key: &ObjectKey, kind: ChecksumKind, name: &str) -> StoreResult<bool> {
        let wrong = checksum::of(kind, b"something else").unwrap_or_default();
        let call = Call::put(key.as_str()).header(name, &wrong).map_err(bad_header)?;
        let body = PutBody::from(Bytes::from_static(b"sandpail probe"));
        // One try: damage is worth another one elsewhere, not here.
        match self.shared.exchange(&call, Some(&body), false, Duration::ZERO).await {
            Ok(_) => Ok(false),
            Err(failure) => match failure.error {
                StoreError::Integrity { .. } => Ok(true),
                _ => Ok(false),
            },
        }
    }

    async fn probe_list(&self, prefix: &str, odd: &ObjectKey) -> StoreResult<bool> {
        self.put_small(odd, &Condition::Always).await?;
        let mut request = ListRequest { prefix: prefix.to_owned(), max_keys: 1, ..ListRequest::default() };
        let mut keys = Vec::new();
        loop {
            let page = self.list(&request).await?;
            if page.objects.len() > 1 || page.objects.first().is_some_and(|object| keys.contains(&object.key)) {
                return Ok(false);
            }
            keys.extend(page.objects.into_iter().map(|object| object.key));
            match page.next {
                Some(next) => request.continuation = Some(next),
                None => break,
            }
        }
        Ok(keys.len() > 1 && keys.iter().any(|key| key == odd.as_str()))
    }

    async fn probe_url_encoding(&self, prefix: &str, odd: &ObjectKey) -> StoreResult<bool> {
        let call = Call::list(prefix, false, None, None, 1000).url_encoded();
        let reply = self.ask(&call).await.map_err(|failure| failure.error)?;
        let page = list::parse_objects(reply.bytes()).map_err(not_s3(&call))?;
        let has_said = reply.bytes().windows(14).any(|window| window == b"<EncodingType>");
        Ok(has_said && page.objects.iter().any(|object| object.key == odd.as_str()))
    }

    async fn probe_delete_objects(&self, a: &ObjectKey, b: &ObjectKey) -> StoreResult<bool> {
        self.put_small(a, &Condition::Always).await?;
        self.put_small(b, &Condition::Always).await?;
        let mut failed = Vec::new();
        match self.delete_batch(&[a, b], &mut failed).await {
            Ok(()) => Ok(failed.is_empty() && matches!(self.head(a).await, Err(StoreError::NotFound { .. }))),
            Err(failure) => match failure.error {
                StoreError::Unsupported { .. } | StoreError::Invalid { .. } => Ok(false),
                error => Err(error),
            },
        }
    }

    async fn remove_below(&self, prefix: &str) -> StoreResult<String> {
        let request = ListRequest { prefix: prefix.to_owned(), ..ListRequest::default() };
        let mut count = 0;
        for object in self.list(&request).await?.objects {
            self.delete(&object_key(object.key)?, None).await?;
            count += 1;
        }
        // Stores made of directories (SeaweedFS) keep the empty one.
        self.delete(&object_key(prefix.to_owned())?, None).await?;
        Ok(format!("{count} probe objects removed"))
    }
}
