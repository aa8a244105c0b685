//! Where a page of a listing begins and how a store's own continuation tokens are spelled.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::{ListPage, ListRequest, ListedObject, StoreError, StoreResult};

/// Most entries of a page.
const PAGE_LEN_MAX: usize = 1000;

/// The bounds of one page: which keys, from where, how many.
pub(crate) struct Cursor {
    pub(crate) prefix: String,
    pub(crate) delimited: bool,
    /// Keys of the page are not smaller than this.
    pub(crate) lower: Vec<u8>,
    pub(crate) limit: usize,
}

impl Cursor {
    pub(crate) fn new(request: &ListRequest) -> StoreResult<Self> {
        let mut lower = request.prefix.clone().into_bytes();
        if let Some(after) = &request.start_after {
            lower = lower.max(just_after(after));
        }
        if let Some(token) = &request.continuation {
            lower = lower.max(bound_of_token(token)?);
        }
        let limit = match usize::from(request.max_keys) {
            0 => PAGE_LEN_MAX,
            limit => limit.min(PAGE_LEN_MAX),
        };
        Ok(Self { prefix: request.prefix.clone(), delimited: request.delimited, lower, limit })
    }
}

/// The smallest key behind `key`. Keys hold no NUL.
fn just_after(key: &str) -> Vec<u8> {
    let mut bound = key.as_bytes().to_vec();
    bound.push(0);
    bound
}

/// The smallest key behind all that begin with `prefix`, which ends in `/`.
pub(crate) fn just_after_prefix(prefix: &str) -> Vec<u8> {
    let mut bound = prefix.as_bytes().to_vec();
    if let Some(last) = bound.last_mut() {
        debug_assert_eq!(*last, b'/');
        *last += 1;
    }
    bound
}

fn bound_of_token(token: &str) -> StoreResult<Vec<u8>> {
    let invalid = || StoreError::Invalid { message: format!("continuation token {token:?} is not one of this store") };
    let plain = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
    let plain = String::from_utf8(plain).map_err(|_| invalid())?;
    match plain.split_at_checked(1) {
        Some(("k", key)) => Ok(just_after(key)),
        Some(("p", prefix)) if prefix.ends_with('/') => Ok(just_after_prefix(prefix)),
        _ => Err(invalid()),
    }
}

/// Fills one page and knows when it is full.
pub(crate) struct PageBuilder {
    page: ListPage,
    limit: usize,
    last: String,
}

impl PageBuilder {
    pub(crate) fn new(limit: usize) -> Self {
        Self { page: ListPage::default(), limit, last: String::new() }
    }

    /// Whether there is no room: the next entry that exists calls [`PageBuilder::more`] instead.
    pub(crate) fn is_full(&self) -> bool {
        self.page.objects.len() + self.page.prefixes.len() >= self.limit
    }

    pub(crate) fn object(&mut self, object: ListedObject) {
        self.last = format!("k{}", object.key);
        self.page.objects.push(object);
    }

    pub(crate) fn prefix(&mut self, prefix: String) {
        self.last = format!("p{prefix}");
        self.page.prefixes.push(prefix);
    }

    /// The page, followed by at least one more entry.
    pub(crate) fn more(mut self) -> ListPage {
        self.page.next = Some(URL_SAFE_NO_PAD.encode(&self.last));
        self.page
    }

    /// The last page.
    pub(crate) fn done(self) -> ListPage {
        self.page
    }
}

/// A token that continues behind `entry`: a key, or a rolled-up prefix if it ends in `/` and `is_prefix`.
///
/// For servers that speak ListObjects version 1, whose marker is the last entry itself.
pub fn token_after(entry: &str, is_prefix: bool) -> String {
    let kind = if is_prefix && entry.ends_with('/') { "p" } else { "k" };
    URL_SAFE_NO_PAD.encode(format!("{kind}{entry}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(request: ListRequest, lower: &[u8]) {
        assert_eq!(Cursor::new(&request).unwrap().lower, lower, "{request:?}");
    }

    #[test]
    fn a_page_begins_behind_prefix_start_and_token() {
        let request = ListRequest { prefix: "b/".into(), ..ListRequest::default() };
        check(request.clone(), b"b/");
        check(ListRequest { start_after: Some("a".into()), ..request.clone() }, b"b/");
        check(ListRequest { start_after: Some("b/c".into()), ..request.clone() }, b"b/c\0");
        check(ListRequest { continuation: Some(token_after("b/c", false)), ..request.clone() }, b"b/c\0");
        check(ListRequest { continuation: Some(token_after("b/c/", true)), ..request }, b"b/c0");
    }

    #[test]
    fn a_foreign_token_is_refused() {
        for token in ["%%%", "AAAA", "", "x"] {
            let request = ListRequest { continuation: Some(token.into()), ..ListRequest::default() };
            assert!(matches!(Cursor::new(&request), Err(StoreError::Invalid { .. })), "{token}");
        }
    }
}
