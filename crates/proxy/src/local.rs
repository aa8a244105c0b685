//! Answers that ask no bucket.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use sandpail_s3::xml::escape;

use crate::documents::NAMESPACE;
use crate::target::Candidate;
use crate::{Action, LocalAnswer, Route};

fn answer(route: Option<Arc<Route>>, operation: &'static str, content_type: &'static str, body: String) -> LocalAnswer {
    let mut response = Response::new(Bytes::from(body));
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    LocalAnswer { route, operation, response }
}

pub(crate) fn self_test() -> LocalAnswer {
    answer(None, "SelfTest", "text/plain", "OK".into())
}

/// The names of the buckets that are open.
pub(crate) fn list_buckets(candidates: &[Candidate]) -> LocalAnswer {
    let mut names: Vec<&str> = candidates.iter().map(|candidate| candidate.view.bucket.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let mut body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListAllMyBucketsResult xmlns=\"{NAMESPACE}\">\
         <Owner><ID>sandbox</ID><DisplayName>sandbox</DisplayName></Owner><Buckets>"
    );
    for name in names {
        // When a bucket was made is the operator's affair, but parsers want a date.
        body.push_str(&format!(
            "<Bucket><Name>{}</Name><CreationDate>1970-01-01T00:00:00.000Z</CreationDate></Bucket>",
            escape(name)
        ));
    }
    body.push_str("</Buckets></ListAllMyBucketsResult>");
    answer(None, Action::ListBuckets.name(), "application/xml", body)
}

fn region_headers(route: &Route, headers: &mut HeaderMap) {
    if let Ok(region) = HeaderValue::from_str(&route.upstream().region()) {
        headers.insert("x-amz-bucket-region", region);
    }
}

/// The bucket is there: the mount was probed when it was made.
pub(crate) fn head_bucket(candidate: &Candidate) -> LocalAnswer {
    let route = &candidate.route;
    let mut answer = answer(Some(Arc::clone(route)), Action::HeadBucket.name(), "application/xml", String::new());
    region_headers(route, answer.response.headers_mut());
    answer
}

pub(crate) fn location(candidate: &Candidate) -> LocalAnswer {
    let route = &candidate.route;
    let region = route.upstream().region();
    // Amazon's oldest region has no name here.
    let shown = if region == "us-east-1" { "" } else { region.as_str() };
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<LocationConstraint xmlns=\"{NAMESPACE}\">{}</LocationConstraint>",
        escape(shown)
    );
    answer(Some(Arc::clone(route)), Action::GetBucketLocation.name(), "application/xml", body)
}
