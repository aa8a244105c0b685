//! Is it inside the mount? Makes the [`Permit`], and nothing else does.

use http::{HeaderMap, HeaderValue};
use sandpail_s3::address::encode_key;

use crate::query::{Query, decode};
use crate::route::Access;
use crate::target::{Candidate, check_dots, check_key};
use crate::token::Seal;
use crate::{Action, Denied, Permit};

/// S3's limits.
const PART_NUMBER_MAX: u32 = 10_000;
const PAGE_LEN_MAX: u32 = 1000;
const UPLOAD_ID_LEN_MAX: usize = 4096;

/// What was permitted, and by which mount.
#[derive(Debug)]
pub(crate) struct Scoped {
    pub(crate) permit: Permit,
    pub(crate) candidate: Candidate,
    /// The mounts among which the keys of a body decide (DeleteObjects).
    pub(crate) alternatives: Vec<Candidate>,
    /// What a list's answer is written by.
    pub(crate) list: Option<List>,
}

/// A list as it was asked for, in the client's words, and where it may look.
#[derive(Clone, Debug)]
pub(crate) struct List {
    /// The prefix that is sent: the client's or the mount's, whichever is longer.
    pub(crate) prefix: String,
    pub(crate) delimiter: Option<String>,
    /// `marker`, `start-after` or `key-marker`.
    pub(crate) marker: Option<String>,
    /// `continuation-token` or `upload-id-marker`.
    pub(crate) token: Option<String>,
    pub(crate) page_len: u32,
    pub(crate) is_encoded: bool,
    pub(crate) seal: Seal,
}

/// Checks an operation against the mounts that may be meant.
pub(crate) fn check(
    action: Action,
    key: Option<&str>,
    query: &Query,
    copy_source: Option<&HeaderValue>,
    candidates: Vec<Candidate>,
    seal: impl Fn(&Candidate) -> Seal,
) -> Result<Scoped, Denied> {
    let covers = |candidate: &Candidate| match key {
        Some(key) => covers(candidate, &candidate.full_key(key)),
        None => true,
    };
    let (inside, outside): (Vec<Candidate>, Vec<Candidate>) = candidates.into_iter().partition(covers);
    if inside.is_empty() {
        let is_above = |key: &str| outside.iter().any(|candidate| is_above(candidate, &candidate.full_key(key)));
        let is_look = action == Action::HeadObject && key.is_some_and(is_above);
        return Err(if is_look { Denied::Above } else { Denied::Outside("the key") });
    }
    let able: Vec<Candidate> = inside.into_iter().filter(|candidate| is_able(candidate, action)).collect();
    if able.is_empty() {
        return Err(Denied::ReadOnly);
    }
    let mut scoped = match key {
        Some(key) => of_key(action, key, query, copy_source, able)?,
        None if is_list(action) => of_list(action, query, able, seal)?,
        None => of_bucket(action, able)?,
    };
    scoped.permit.action = action;
    Ok(scoped)
}

pub(crate) fn covers(candidate: &Candidate, full_key: &str) -> bool {
    full_key.starts_with(candidate.route.spec().prefix.as_str())
}

/// Whether the key is a directory, or its marker, above the mount's own.
fn is_above(candidate: &Candidate, full_key: &str) -> bool {
    let prefix = candidate.route.spec().prefix.as_str();
    let directory = full_key.strip_suffix('/').unwrap_or(full_key);
    prefix.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

fn is_able(candidate: &Candidate, action: Action) -> bool {
    !action.is_write() || candidate.route.spec().access == Access::ReadWrite
}

fn is_list(action: Action) -> bool {
    matches!(action, Action::ListObjects | Action::ListObjectsV2 | Action::ListMultipartUploads)
}

fn prefix_len(candidate: &Candidate) -> usize {
    candidate.route.spec().prefix.as_str().len()
}

/// The mount that says most about where it is; of equal ones the first.
fn narrowest(candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.into_iter().rev().max_by_key(prefix_len)
}

fn widest(candidates: &[Candidate]) -> Option<Candidate> {
    candidates.iter().min_by_key(|candidate| prefix_len(candidate)).cloned()
}

fn permit(action: Action) -> Permit {
    Permit { action, key: None, query: Vec::new(), copy_source: None, upload_id: None }
}

fn of_bucket(action: Action, able: Vec<Candidate>) -> Result<Scoped, Denied> {
    let candidate = widest(&able).ok_or(Denied::NoRoute)?;
    let mut permit = permit(action);
    if action == Action::DeleteObjects {
        permit.query.push(("delete".into(), String::new()));
    }
    Ok(Scoped { permit, candidate, alternatives: able, list: None })
}

fn of_key(
    action: Action,
    key: &str,
    query: &Query,
    copy_source: Option<&HeaderValue>,
    able: Vec<Candidate>,
) -> Result<Scoped, Denied> {
    let source = copy_source.map(parse_copy_source).transpose()?;
    let mut able = able;
    if let Some((bucket, source)) = &source {
        // A copy stays within one mount.
        able.retain(|candidate| is_bucket(candidate, bucket) && covers(candidate, &candidate.full_key(source)));
    }
    let candidate = narrowest(able).ok_or(Denied::Outside("the copy source"))?;
    let mut permit = permit(action);
    let full_key = candidate.full_key(key);
    check_key(&full_key)?;
    permit.key = Some(full_key.into_owned());
    permit.copy_source = source.map(|(_, source)| candidate.full_key(&source).into_owned());
    let mut send = |name: &str, value: String| permit.query.push((name.to_owned(), value));
    match action {
        Action::CreateMultipartUpload => send("uploads", String::new()),
        Action::GetObjectAttributes => send("attributes", String::new()),
        _ => {}
    }
    for (name, value) in query.pairs() {
        match name.as_str() {
            "partNumber" => {
                let number = number(value).filter(|number| (1..=PART_NUMBER_MAX).contains(number));
                send(name, number.ok_or(Denied::Invalid("partNumber must be 1 to 10000"))?.to_string());
            }
            "uploadId" => {
                check_upload_id(value)?;
                send(name, value.clone());
            }
            "max-parts" => send(name, page_len(value)?.to_string()),
            "part-number-marker" => {
                let marker = number(value).filter(|number| *number <= PART_NUMBER_MAX);
                send(name, marker.ok_or(Denied::Invalid("part-number-marker must be 0 to 10000"))?.to_string());
            }
            _ if name.starts_with("response-") => {
                if value.chars().any(char::is_control) {
                    return Err(Denied::Invalid("a response- parameter holds a control character"));
                }
                send(name, value.clone());
            }
            _ => {}
        }
    }
    permit.upload_id = query.get("uploadId").map(str::to_owned);
    Ok(Scoped { permit, candidate, alternatives: Vec::new(), list: None })
}

/// Narrows a list to the mount.
fn of_list(
    action: Action,
    query: &Query,
    able: Vec<Candidate>,
    seal: impl Fn(&Candidate) -> Seal,
) -> Result<Scoped, Denied> {
    let asked = query.get("prefix").unwrap_or_default();
    let full = |candidate: &Candidate| candidate.full_key(asked);
    // A list inside a mount belongs to the narrowest such; a wider one shows the widest mount below it.
    let within: Vec<_> = able.iter().filter(|candidate| covers(candidate, &full(candidate))).cloned().collect();
    let below: Vec<_> = able
        .into_iter()
        .filter(|candidate| candidate.route.spec().prefix.as_str().starts_with(&*full(candidate)))
        .collect();
    let candidate = narrowest(within).or_else(|| widest(&below)).ok_or(Denied::Outside("the list's prefix"))?;
    let mount_prefix = candidate.route.spec().prefix.as_str();
    let asked = full(&candidate);
    let prefix = if asked.len() > mount_prefix.len() { asked.into_owned() } else { mount_prefix.to_owned() };
    check_text(&prefix)?;
    // The last part may be the beginning of a name, such as `.git`.
    check_dots(prefix.rsplit_once('/').map_or("", |(parts, _)| parts))?;
    let some = |name: &str| query.get(name).filter(|value| !value.is_empty()).map(str::to_owned);
    let is_encoded = match query.get("encoding-type") {
        None => false,
        Some("url") => true,
        Some(_) => return Err(Denied::Invalid("encoding-type must be url")),
    };
    let seal = seal(&candidate);
    let delimiter = some("delimiter");
    let (marker_name, token_name, len_name) = match action {
        Action::ListObjects => ("marker", "", "max-keys"),
        Action::ListObjectsV2 => ("start-after", "continuation-token", "max-keys"),
        _ => ("key-marker", "upload-id-marker", "max-uploads"),
    };
    let marker = some(marker_name);
    let token = query.get(token_name).map(str::to_owned);
    let page_len = query.get(len_name).map_or(Ok(PAGE_LEN_MAX), page_len)?;
    let mut permit = permit(action);
    let mut send = |name: &str, value: &str| permit.query.push((name.to_owned(), value.to_owned()));
    match action {
        Action::ListObjectsV2 => send("list-type", "2"),
        Action::ListMultipartUploads => send("uploads", ""),
        _ => {}
    }
    // Keys with characters that XML cannot hold come through only so; the answer is written as the client asked.
    send("encoding-type", "url");
    send("prefix", &prefix);
    if let Some(delimiter) = &delimiter {
        check_text(delimiter)?;
        send("delimiter", delimiter);
    }
    if let Some(marker) = &marker {
        check_text(marker)?;
        send(marker_name, &candidate.full_key(marker));
    }
    match (action, &token) {
        (Action::ListObjectsV2, Some(token)) => {
            let token = seal.open(&prefix, delimiter.as_deref(), token);
            send(token_name, token.ok_or(Denied::Invalid("the continuation token is not of this list"))?);
        }
        // It says something only behind a key.
        (_, Some(token)) if marker.is_some() && !token.is_empty() => {
            check_upload_id(token)?;
            send(token_name, token);
        }
        _ => {}
    }
    if query.get(len_name).is_some() {
        send(len_name, &page_len.to_string());
    }
    let list = List { prefix, delimiter, marker, token, page_len, is_encoded, seal };
    Ok(Scoped { permit, candidate, alternatives: Vec::new(), list: Some(list) })
}

/// Ids are the store's own words, but some stores keep uploads in directories of these names: none may lead elsewhere.
fn check_upload_id(id: &str) -> Result<(), Denied> {
    let is_id = (1..=UPLOAD_ID_LEN_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    if is_id && check_dots(id).is_ok() { Ok(()) } else { Err(Denied::Upload) }
}

fn check_text(text: &str) -> Result<(), Denied> {
    // A key's limit, and a mount's prefix before it.
    if text.len() > 2048 { Err(Denied::TooLarge("a parameter of the list is longer than a key")) } else { Ok(()) }
}

fn number(text: &str) -> Option<u32> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

fn page_len(text: &str) -> Result<u32, Denied> {
    let len = number(text).filter(|len| i32::try_from(*len).is_ok());
    Ok(len.ok_or(Denied::Invalid("the length of a page must be a number"))?.min(PAGE_LEN_MAX))
}

fn is_bucket(candidate: &Candidate, name: &str) -> bool {
    // By the name that the request itself used; the bucket's real name will do as well where full keys are shown.
    let spec = candidate.route.spec();
    candidate.view.bucket == name || (candidate.view.hidden_prefix.is_empty() && spec.bucket == name)
}

/// Reads `/bucket/key` or `bucket/key`, encoded.
fn parse_copy_source(value: &HeaderValue) -> Result<(String, String), Denied> {
    const BAD_SOURCE: &str = "x-amz-copy-source is not a bucket and a key, percent-encoded";
    const BAD: Denied = Denied::Invalid(BAD_SOURCE);
    let text = value.to_str().map_err(|_| BAD)?;
    if text.contains('?') {
        return Err(Denied::Operation("copying of a version"));
    }
    let text = text.strip_prefix('/').unwrap_or(text);
    let whole;
    // Some clients encode the first `/`, too.
    let (bucket, key) = match text.split_once('/') {
        Some((bucket, key)) => (decode(bucket, BAD_SOURCE)?, decode(key, BAD_SOURCE)?),
        None => {
            whole = decode(text, BAD_SOURCE)?;
            let whole = whole.strip_prefix('/').unwrap_or(&whole);
            let (bucket, key) = whole.split_once('/').ok_or(BAD)?;
            (bucket.to_owned(), key.to_owned())
        }
    };
    if bucket.is_empty() || key.is_empty() {
        return Err(BAD);
    }
    check_key(&key)?;
    Ok((bucket, key))
}

/// Puts the copy's source, written anew, among the headers to send.
pub(crate) fn copy_source_header(bucket: &str, key: &str, headers: &mut HeaderMap) -> Result<(), Denied> {
    let text = format!("{}/{}", encode_key(bucket), encode_key(key));
    let value = HeaderValue::from_str(&text).map_err(|_| Denied::Invalid("the copy source does not fit a header"))?;
    headers.insert("x-amz-copy-source", value);
    Ok(())
}
