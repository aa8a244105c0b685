//! From a request's head to what is done with it. Pure: no I/O, and the clock is an argument.
//!
//! ```text
//! head ─► target ─► signature ─► operation ─► scope ─► Permit + headers ─► Decision::Forward
//!            └─ self test, ListBuckets, HeadBucket, GetBucketLocation ─► Decision::Local
//! ```

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Response};

use crate::{BodyCheck, Denied, Guest, Payload, Permit, Route};

/// How a connection reached the proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// The name that the connection was made to, lower-case, without port; empty if it is not known.
    pub host: String,
    /// Whether it came over TLS (ended by the proxy).
    pub is_tls: bool,
    /// The port that it was made to.
    pub port: u16,
}

/// What is done with a request.
#[derive(Debug)]
pub enum Decision {
    /// It is answered here.
    Local(LocalAnswer),
    /// It is sent to the bucket.
    Forward(Box<Forward>),
}

/// An answer that asks no bucket.
#[derive(Debug)]
pub struct LocalAnswer {
    /// The mount that was meant, if it is one.
    pub route: Option<Arc<Route>>,
    /// S3's name of the operation, for the audit record; `SelfTest` for the self test.
    pub operation: &'static str,
    /// The answer; its body is to be left out for HEAD.
    pub response: Response<Bytes>,
}

/// A request that may be sent to the bucket.
#[derive(Debug)]
pub struct Forward {
    /// The mount.
    pub route: Arc<Route>,
    /// What was permitted.
    pub permit: Permit,
    /// The method to send.
    pub method: Method,
    /// The headers to send: a closed list, with names and values of our own making where S3 defines them (also
    /// `x-amz-copy-source`). No address, length, hash, date or signature.
    pub headers: HeaderMap,
    /// What was said of the body.
    pub payload: Payload,
    /// What to do with the body.
    pub body: BodyRule,
    /// How keys are shown.
    pub view: View,
    /// `true` if the answer's body of a 2xx status is a document that [`Forward::rewrite_answer`] must write anew (it
    /// is at most some MiB then); else it streams.
    pub answer_is_document: bool,
    /// The provider may work for minutes before it answers.
    pub is_slow: bool,
}

/// What to do with a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyRule {
    /// There is none: nothing is read, and length 0 is sent.
    Empty,
    /// It streams through a [`crate::BodyCheck`] of this many decoded bytes. If `len` is 0, the check must be finished
    /// before the request is sent.
    Stream {
        /// Decoded bytes.
        len: u64,
    },
    /// It is a document: read wholly through a [`crate::BodyCheck`], then [`Forward::rewrite_body`] makes what is sent.
    Document {
        /// Which.
        document: Document,
        /// Decoded bytes; at most some MiB.
        len: u64,
    },
}

/// Documents that come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    /// Of DeleteObjects.
    Deletes,
    /// Of CompleteMultipartUpload.
    Completion,
}

/// How a mount's keys are shown to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The bucket's name as the client knows it: the real name, or the binding's.
    pub bucket: String,
    /// What keys are shown without: the mount's prefix at `r2.internal`, else empty.
    pub hidden_prefix: String,
}

impl Forward {
    /// What the request's body must pass through.
    pub fn body_check(&self) -> BodyCheck {
        let len = match self.body {
            BodyRule::Empty => 0,
            BodyRule::Stream { len } | BodyRule::Document { len, .. } => len,
        };
        BodyCheck::new(&self.payload, len)
    }
}

impl View {
    /// The key as the client sees it; none if it is not to be seen.
    pub fn show<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&*self.hidden_prefix)
    }
}

/// Decides about a request by its head.
///
/// # Errors
/// [`Denied`]: nothing may be sent; [`crate::ErrorAnswer`] makes the answer.
pub fn decide(_parts: &Parts, _arrival: &Arrival, _guest: &Guest, _now: SystemTime) -> Result<Decision, Denied> {
    unimplemented!()
}
