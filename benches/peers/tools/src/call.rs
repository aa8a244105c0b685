//! Names the S3 call of an HTTP/1.1 request from its head, and tells where its body ends. Pure.

use std::collections::BTreeMap;

/// How long the body behind a head is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    Known(u64),
    Chunked,
}

/// What a request's head says.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    /// The name under which it is counted and, at Amazon, billed.
    pub kind: &'static str,
    pub body: Body,
}

/// The length of the head that `bytes` begin with, its empty line included.
pub fn head_len(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// Reads a head. What it does not understand becomes an `other` call without a body: this counts, it does not judge.
pub fn head(bytes: &[u8]) -> Head {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let headers: BTreeMap<String, &str> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim()))
        .collect();
    let body = if headers.get("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        Body::Chunked
    } else {
        Body::Known(headers.get("content-length").and_then(|value| value.parse().ok()).unwrap_or(0))
    };
    Head { kind: kind(method, target, headers.contains_key("x-amz-copy-source")), body }
}

/// The call, for addresses of path style: `/bucket/key?query`.
fn kind(method: &str, target: &str, is_copy: bool) -> &'static str {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let has_key = path.trim_start_matches('/').split_once('/').is_some_and(|(_, key)| !key.is_empty());
    let asks = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    match method {
        "GET" if asks("uploadId") => "LISTPARTS",
        "GET" if asks("uploads") => "LISTUPLOADS",
        "GET" if has_key => "GET",
        "GET" if ["location", "versioning", "acl", "policy"].into_iter().any(asks) => "BUCKET",
        "GET" => "LIST",
        "HEAD" => "HEAD",
        "PUT" if asks("uploadId") && is_copy => "PARTCOPY",
        "PUT" if asks("uploadId") => "PART",
        "PUT" if is_copy => "COPY",
        "PUT" if has_key => "PUT",
        "POST" if asks("uploads") => "CREATE",
        "POST" if asks("uploadId") => "COMPLETE",
        "POST" if asks("delete") => "DELETEMANY",
        "DELETE" if asks("uploadId") => "ABORT",
        "DELETE" => "DELETE",
        _ => "OTHER",
    }
}

/// Finds the end of a chunked body in what comes piece by piece.
#[derive(Debug, Default)]
pub struct Chunks {
    line: Vec<u8>,
    state: ChunkState,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum ChunkState {
    #[default]
    Size,
    Data(u64),
    DataEnd,
    Trailer,
}

impl Chunks {
    /// Takes from `bytes` what belongs to the body: how many, and whether the body has ended.
    pub fn take(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut at = 0;
        while at < bytes.len() {
            if let ChunkState::Data(left) = self.state {
                let count = left.min((bytes.len() - at) as u64);
                at += count as usize;
                self.state = if count == left { ChunkState::DataEnd } else { ChunkState::Data(left - count) };
                continue;
            }
            let byte = bytes[at];
            at += 1;
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(&self.line).trim().to_owned();
            self.line.clear();
            self.state = match self.state {
                ChunkState::Size => {
                    let digits = line.split(';').next().unwrap_or_default();
                    match u64::from_str_radix(digits, 16).unwrap_or(0) {
                        0 => ChunkState::Trailer,
                        len => ChunkState::Data(len),
                    }
                }
                ChunkState::Trailer if line.is_empty() => return (at, true),
                ChunkState::Trailer => ChunkState::Trailer,
                ChunkState::DataEnd | ChunkState::Data(_) => ChunkState::Size,
            };
        }
        (at, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(request: &str, expected: &str) {
        assert_eq!(head(format!("{request} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).kind, expected, "{request}");
    }

    #[test]
    fn calls_are_told_apart() {
        check("GET /bucket/a/b", "GET");
        check("GET /bucket/?list-type=2&prefix=a%2F", "LIST");
        check("GET /bucket?list-type=2", "LIST");
        check("GET /bucket?location", "BUCKET");
        check("GET /bucket?uploads&prefix=a", "LISTUPLOADS");
        check("GET /bucket/a?uploadId=1", "LISTPARTS");
        check("HEAD /bucket/a", "HEAD");
        check("PUT /bucket/a", "PUT");
        check("PUT /bucket/a?partNumber=1&uploadId=2", "PART");
        check("POST /bucket/a?uploads", "CREATE");
        check("POST /bucket/a?uploads=", "CREATE");
        check("POST /bucket/a?uploadId=2", "COMPLETE");
        check("POST /bucket/?delete", "DELETEMANY");
        check("DELETE /bucket/a?uploadId=2", "ABORT");
        check("DELETE /bucket/a", "DELETE");
    }

    #[test]
    fn a_copy_is_a_put_with_a_source() {
        let request =
            "PUT /b/k?partNumber=1&uploadId=2 HTTP/1.1\r\nX-Amz-Copy-Source: /b/o\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(head(request.as_bytes()), Head { kind: "PARTCOPY", body: Body::Known(0) });
    }

    #[test]
    fn a_chunked_body_ends_where_it_says() {
        let body = b"5;ext=1\r\nhello\r\n3\r\nabc\r\n0\r\nx-trailer: 1\r\n\r\nGET /";
        for step in 1..body.len() {
            let mut chunks = Chunks::default();
            let (mut at, mut ended) = (0, false);
            while !ended {
                let (count, end) = chunks.take(&body[at..(at + step).min(body.len())]);
                (at, ended) = (at + count, end);
            }
            assert_eq!(&body[at..], b"GET /", "in steps of {step}");
        }
    }
}
