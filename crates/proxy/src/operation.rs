//! Which operation a request is: a closed table. What is not in it is refused.

use http::Method;

use crate::query::Query;
use crate::{Action, Denied};

/// Parts of S3 that mounts do not offer, by the parameter that asks for them.
const REFUSED: [&str; 40] = [
    "accelerate",
    "acl",
    "analytics",
    "append",
    "cors",
    "delete-marker",
    "encryption",
    "intelligent-tiering",
    "inventory",
    "legal-hold",
    "lifecycle",
    "logging",
    "metadata",
    "metadataConfiguration",
    "metadataTable",
    "metrics",
    "notification",
    "object-lock",
    "ownershipControls",
    "policy",
    "policyStatus",
    "publicAccessBlock",
    "renameObject",
    "replication",
    "requestPayment",
    "restore",
    "retention",
    "select",
    "select-type",
    "session",
    "tagging",
    "torrent",
    "versionId",
    "version-id-marker",
    "versioning",
    "versions",
    "website",
    "billing",
    "compose",
    "generation",
];

const RESPONSE: [&str; 7] = [
    "partNumber",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
];

/// Names the operation, and refuses parameters that it does not have. `x-id` is taken out.
pub(crate) fn name(method: &Method, has_key: bool, query: &mut Query, is_copy: bool) -> Result<Action, Denied> {
    if let Some(name) = REFUSED.iter().find(|name| query.get(name).is_some()) {
        return Err(Denied::Operation(name));
    }
    let action = if has_key { of_object(method, query, is_copy)? } else { of_bucket(method, query)? };
    if is_copy && !matches!(action, Action::CopyObject | Action::UploadPartCopy) {
        return Err(Denied::Invalid("x-amz-copy-source does not fit the operation"));
    }
    // The SDK for JavaScript says the operation's name once more.
    if query.take("x-id").is_some_and(|name| name != action.name()) {
        return Err(Denied::Invalid("x-id is not the operation's name"));
    }
    let known = parameters(action);
    if query.pairs().iter().any(|(name, _)| !known.contains(&&**name)) {
        return Err(Denied::Unknown("a parameter of the query is not known for this operation"));
    }
    for flag in ["attributes", "delete", "location", "uploads"] {
        if query.get(flag).is_some_and(|value| !value.is_empty()) {
            return Err(Denied::Invalid("a subresource has a value"));
        }
    }
    Ok(action)
}

fn of_bucket(method: &Method, query: &Query) -> Result<Action, Denied> {
    let has = |name| query.get(name).is_some();
    match *method {
        Method::GET if has("location") => Ok(Action::GetBucketLocation),
        Method::GET if has("uploads") => Ok(Action::ListMultipartUploads),
        Method::GET => match query.get("list-type") {
            None => Ok(Action::ListObjects),
            Some("2") => Ok(Action::ListObjectsV2),
            Some(_) => Err(Denied::Invalid("list-type must be 2")),
        },
        Method::HEAD => Ok(Action::HeadBucket),
        Method::POST if has("delete") => Ok(Action::DeleteObjects),
        Method::POST => Err(Denied::Operation("uploading by form")),
        Method::PUT => Err(Denied::Operation("CreateBucket")),
        Method::DELETE => Err(Denied::Operation("DeleteBucket")),
        _ => Err(Denied::Method("buckets do not take this method")),
    }
}

fn of_object(method: &Method, query: &Query, is_copy: bool) -> Result<Action, Denied> {
    let has = |name| query.get(name).is_some();
    match *method {
        Method::GET if has("uploadId") => Ok(Action::ListParts),
        Method::GET if has("attributes") => Ok(Action::GetObjectAttributes),
        Method::GET => Ok(Action::GetObject),
        Method::HEAD => Ok(Action::HeadObject),
        Method::PUT if has("uploadId") != has("partNumber") => {
            Err(Denied::Invalid("partNumber and uploadId go together"))
        }
        Method::PUT if has("uploadId") && is_copy => Ok(Action::UploadPartCopy),
        Method::PUT if has("uploadId") => Ok(Action::UploadPart),
        Method::PUT if is_copy => Ok(Action::CopyObject),
        Method::PUT => Ok(Action::PutObject),
        Method::POST if has("uploads") => Ok(Action::CreateMultipartUpload),
        Method::POST if has("uploadId") => Ok(Action::CompleteMultipartUpload),
        Method::POST => Err(Denied::Method("objects do not take POST")),
        Method::DELETE if has("uploadId") => Ok(Action::AbortMultipartUpload),
        Method::DELETE => Ok(Action::DeleteObject),
        _ => Err(Denied::Method("objects do not take this method")),
    }
}

/// The parameters that an operation has.
fn parameters(action: Action) -> &'static [&'static str] {
    match action {
        Action::ListBuckets => &["max-buckets"],
        Action::GetBucketLocation => &["location"],
        Action::ListObjects => &["prefix", "delimiter", "marker", "max-keys", "encoding-type"],
        Action::ListObjectsV2 => &[
            "list-type",
            "prefix",
            "delimiter",
            "start-after",
            "continuation-token",
            "max-keys",
            "encoding-type",
            "fetch-owner",
        ],
        Action::ListMultipartUploads => {
            &["uploads", "prefix", "delimiter", "key-marker", "upload-id-marker", "max-uploads", "encoding-type"]
        }
        Action::ListParts => &["uploadId", "max-parts", "part-number-marker"],
        Action::HeadObject | Action::GetObject => &RESPONSE,
        Action::GetObjectAttributes => &["attributes"],
        Action::DeleteObjects => &["delete"],
        Action::CreateMultipartUpload => &["uploads"],
        Action::UploadPart | Action::UploadPartCopy => &["partNumber", "uploadId"],
        Action::CompleteMultipartUpload | Action::AbortMultipartUpload => &["uploadId"],
        Action::HeadBucket | Action::PutObject | Action::CopyObject | Action::DeleteObject => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: &str, has_key: bool, query: &str, expected: Result<Action, &str>) {
        let mut query = Query::parse(Some(query)).unwrap();
        let got = name(&method.parse().unwrap(), has_key, &mut query, false);
        assert_eq!(got.as_ref().map_err(Denied::rule).copied(), expected, "{method} {query:?}: {got:?}");
    }

    #[test]
    fn what_is_in_the_table() {
        check("GET", false, "", Ok(Action::ListObjects));
        check("GET", false, "list-type=2&prefix=a", Ok(Action::ListObjectsV2));
        check("GET", false, "location", Ok(Action::GetBucketLocation));
        check("GET", false, "location=", Ok(Action::GetBucketLocation));
        check("GET", false, "uploads", Ok(Action::ListMultipartUploads));
        check("HEAD", false, "", Ok(Action::HeadBucket));
        check("POST", false, "delete", Ok(Action::DeleteObjects));
        check("POST", false, "delete&x-id=DeleteObjects", Ok(Action::DeleteObjects));
        check("GET", true, "x-id=GetObject", Ok(Action::GetObject));
        check("GET", true, "response-content-type=a&partNumber=1", Ok(Action::GetObject));
        check("GET", true, "attributes", Ok(Action::GetObjectAttributes));
        check("GET", true, "uploadId=u", Ok(Action::ListParts));
        check("PUT", true, "x-id=PutObject", Ok(Action::PutObject));
        check("PUT", true, "partNumber=1&uploadId=u", Ok(Action::UploadPart));
        check("POST", true, "uploads", Ok(Action::CreateMultipartUpload));
        check("POST", true, "uploadId=u", Ok(Action::CompleteMultipartUpload));
        check("DELETE", true, "uploadId=u", Ok(Action::AbortMultipartUpload));
        check("DELETE", true, "", Ok(Action::DeleteObject));
    }

    #[test]
    fn what_is_not() {
        for name in REFUSED {
            for method in ["GET", "PUT", "POST", "DELETE", "HEAD"] {
                check(method, true, name, Err("operation"));
                check(method, false, name, Err("operation"));
            }
        }
        check("PUT", false, "", Err("operation"));
        check("DELETE", false, "", Err("operation"));
        check("POST", false, "", Err("operation"));
        check("POST", true, "", Err("method"));
        check("PATCH", true, "", Err("method"));
        check("OPTIONS", false, "", Err("method"));
        check("GET", true, "ACL", Err("unknown"));
        check("GET", true, "%61cl", Err("operation"));
        check("GET", true, "foo=bar", Err("unknown"));
        check("GET", true, "uploads", Err("unknown"));
        check("GET", false, "list-type=2&uploads", Err("unknown"));
        check("GET", false, "list-type=2&location", Err("unknown"));
        check("GET", false, "list-type=1", Err("invalid"));
        check("PUT", true, "partNumber=1", Err("invalid"));
        check("PUT", true, "uploadId=1", Err("invalid"));
        check("GET", true, "x-id=PutObject", Err("invalid"));
        check("GET", true, "x-id=", Err("invalid"));
        check("POST", false, "delete=1", Err("invalid"));
        check("DELETE", false, "delete", Err("operation"));
        check("POST", true, "delete", Err("method"));
        check("POST", true, "uploads&uploadId=u", Err("unknown"));
    }
}
