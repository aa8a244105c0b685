//! From host and path to the mounts that may be meant.
//!
//! | host | path | keys |
//! |---|---|---|
//! | `s3-credential-proxy.internal` | `/<mount id>/<bucket>/<key>` | full |
//! | `<mount id>.s3-credential-proxy.internal` | `/<bucket>/<key>` | full |
//! | `r2.internal` | `/<binding or mount id>/<key>` | below the mount's prefix |
//! | `s3.internal`, and the endpoint of a mount | `/<bucket>/<key>` | full |
//! | `<bucket>.s3.internal`, `<bucket>.<endpoint>` | `/<key>` | full |

use std::borrow::Cow;
use std::sync::Arc;

use http::request::Parts;
use sandpail_spec::Endpoint;

use crate::query::decode;
use crate::{Arrival, Denied, Route, View};

/// The name of Cloudflare's handler.
pub(crate) const PROXY_HOST: &str = "s3-credential-proxy.internal";
/// The name under which bindings are reached.
pub(crate) const R2_HOST: &str = "r2.internal";
/// The default endpoint of the tools inside.
pub(crate) const S3_HOST: &str = "s3.internal";
/// Asks whether the proxy is there.
const SELF_TEST: &str = "/__sandbox_credential_proxy_self_test__";

/// S3's limit, in bytes of UTF-8.
const KEY_LEN_MAX: usize = 1024;

/// A mount that may be meant, and how its keys are shown.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) route: Arc<Route>,
    pub(crate) view: View,
}

impl Candidate {
    /// The key as the bucket knows it.
    pub(crate) fn full_key<'a>(&self, shown: &'a str) -> Cow<'a, str> {
        match &*self.view.hidden_prefix {
            "" => Cow::Borrowed(shown),
            hidden => Cow::Owned(format!("{hidden}{shown}")),
        }
    }
}

/// What a request is about.
#[derive(Debug)]
pub(crate) enum Target {
    /// The proxy itself.
    SelfTest,
    /// All buckets under this host.
    Root { candidates: Vec<Candidate> },
    /// One bucket: at least one mount of it.
    Bucket { candidates: Vec<Candidate>, key: Option<String> },
}

/// Host and port as a client wrote them.
#[derive(Debug)]
struct Authority {
    host: String,
    port: u16,
}

pub(crate) fn plain_host(host: &str) -> String {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

impl Authority {
    fn parse(text: &str, is_tls: bool) -> Result<Self, Denied> {
        const BAD: Denied = Denied::Malformed("the Host header is not a host and a port");
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
                (host, port.parse::<u16>().ok().filter(|_| is_number).ok_or(BAD)?)
            }
            _ => (text, if is_tls { 443 } else { 80 }),
        };
        let is_host = !host.is_empty()
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'[' | b']' | b':'));
        if is_host { Ok(Self { host: plain_host(host), port }) } else { Err(BAD) }
    }
}

/// The one Host header; an absolute URL must name the same.
pub(crate) fn host_of(parts: &Parts) -> Result<&str, Denied> {
    let mut hosts = parts.headers.get_all(http::header::HOST).iter();
    let host = hosts.next().ok_or(Denied::Malformed("there is no Host header"))?;
    if hosts.next().is_some() {
        return Err(Denied::Malformed("the Host header is given twice"));
    }
    let host = host.to_str().map_err(|_| Denied::Malformed("the Host header is not a host and a port"))?;
    match parts.uri.authority() {
        Some(authority) if !authority.as_str().eq_ignore_ascii_case(host) => {
            Err(Denied::Malformed("the URL names another host than the Host header"))
        }
        _ => Ok(host),
    }
}

/// Finds the mounts that may be meant.
pub(crate) fn find(parts: &Parts, arrival: &Arrival, routes: &[Arc<Route>]) -> Result<Target, Denied> {
    let authority = Authority::parse(host_of(parts)?, arrival.is_tls)?;
    if !arrival.host.is_empty() && plain_host(&arrival.host) != authority.host {
        return Err(Denied::Malformed("the Host header names another host than the one connected to"));
    }
    let path = parts.uri.path();
    let Some(rest) = path.strip_prefix('/') else {
        return Err(Denied::Malformed("the path must begin with a /"));
    };
    let host = authority.host.as_str();
    let is_internal = [PROXY_HOST, R2_HOST, S3_HOST].contains(&host);
    if is_internal && path == SELF_TEST && parts.method == http::Method::GET {
        return Ok(Target::SelfTest);
    }
    if host == PROXY_HOST {
        let (id, rest) = split(rest)?;
        return in_path(&mount(routes, &id)?, rest.unwrap_or_default());
    }
    if let Some(id) = host.strip_suffix(PROXY_HOST).and_then(|rest| rest.strip_suffix('.')) {
        return in_path(&mount(routes, id)?, rest);
    }
    if host == R2_HOST {
        return in_binding(routes, rest);
    }
    if host == S3_HOST {
        return in_path(routes, rest);
    }
    if let Some(bucket) = host.strip_suffix(S3_HOST).and_then(|rest| rest.strip_suffix('.')) {
        return in_host(routes, bucket, rest);
    }
    at_endpoint(routes, &authority, arrival, rest)
}

/// The mount of that id; one of another sandbox does not exist here.
fn mount(routes: &[Arc<Route>], id: &str) -> Result<[Arc<Route>; 1], Denied> {
    routes.iter().find(|route| route.spec().id == id).map(|route| [Arc::clone(route)]).ok_or(Denied::NoRoute)
}

/// The real endpoint of mounts, path style or with the bucket in the host.
fn at_endpoint(routes: &[Arc<Route>], authority: &Authority, arrival: &Arrival, rest: &str) -> Result<Target, Denied> {
    let host = authority.host.as_str();
    let with = |fits: &dyn Fn(&str) -> bool| -> Vec<Arc<Route>> {
        let is_named = |route: &&Arc<Route>| route.endpoint_host().is_some_and(fits);
        let is_exact = |route: &Arc<Route>| route.spec().endpoint.as_ref().map(Endpoint::port) == Some(authority.port);
        let mut named: Vec<_> = routes.iter().filter(is_named).cloned().collect();
        // Servers of one host are told apart by their ports; on the usual ports any of them may be meant.
        let is_usual = authority.port == if arrival.is_tls { 443 } else { 80 };
        if !is_usual || named.iter().any(is_exact) {
            named.retain(is_exact);
        }
        named
    };
    let by_path = with(&|known| known == host);
    if !by_path.is_empty() {
        return in_path(&by_path, rest);
    }
    // The bucket may hold dots itself, so each mount is asked with its own name.
    let is_of_bucket = |route: &Route, known: &str| {
        host.strip_suffix(known).and_then(|rest| rest.strip_suffix('.')) == Some(&*route.spec().bucket)
    };
    let by_host: Vec<_> = with(&|known| host.ends_with(known));
    let by_host: Vec<_> = by_host
        .into_iter()
        .filter(|route| route.endpoint_host().is_some_and(|known| is_of_bucket(route, known)))
        .collect();
    match by_host.first().map(|route| route.spec().bucket.clone()) {
        Some(bucket) => in_host(&by_host, &bucket, rest),
        None => Err(Denied::NoRoute),
    }
}

/// Splits a raw path at its first `/` and decodes what stands before it.
fn split(rest: &str) -> Result<(String, Option<&str>), Denied> {
    let (first, rest) = rest.split_once('/').map_or((rest, None), |(first, rest)| (first, Some(rest)));
    Ok((decode(first, "the path is not percent-encoded UTF-8")?, rest))
}

fn full_view(bucket: &str) -> View {
    View { bucket: bucket.to_owned(), hidden_prefix: String::new() }
}

fn is_named(route: &Route, name: &str) -> bool {
    route.spec().bucket == name || route.spec().binding.as_deref() == Some(name)
}

/// `/<bucket>/<key>`
fn in_path(routes: &[Arc<Route>], rest: &str) -> Result<Target, Denied> {
    let (bucket, key) = split(rest)?;
    if bucket.is_empty() && key.is_none() {
        let shown = |route: &Arc<Route>| Candidate { route: Arc::clone(route), view: full_view(&route.spec().bucket) };
        return Ok(Target::Root { candidates: routes.iter().map(shown).collect() });
    }
    in_host(routes, &bucket, key.unwrap_or_default())
}

/// `/<key>` of a bucket that is known.
fn in_host(routes: &[Arc<Route>], bucket: &str, key: &str) -> Result<Target, Denied> {
    let named = routes.iter().filter(|route| is_named(route, bucket));
    let candidates = named.map(|route| Candidate { route: Arc::clone(route), view: full_view(bucket) }).collect();
    of_bucket(candidates, key)
}

/// `/<binding>/<key>`, keys below the mount's prefix.
fn in_binding(routes: &[Arc<Route>], rest: &str) -> Result<Target, Denied> {
    let (name, key) = split(rest)?;
    let candidate = |route: &Arc<Route>, bucket: &str| Candidate {
        route: Arc::clone(route),
        view: View { bucket: bucket.to_owned(), hidden_prefix: route.spec().prefix.as_str().to_owned() },
    };
    if name.is_empty() && key.is_none() {
        let bound = routes.iter().filter_map(|route| Some(candidate(route, route.spec().binding.as_deref()?)));
        return Ok(Target::Root { candidates: bound.collect() });
    }
    let is_meant = |route: &&Arc<Route>| route.spec().binding.as_deref() == Some(&*name) || route.spec().id == name;
    // A binding may be mounted twice, with two prefixes: keys that are relative do not tell them apart, so the newer
    // mount is meant; each can be named by its id.
    let candidates = routes.iter().rev().filter(is_meant).map(|route| candidate(route, &name)).collect();
    of_bucket(candidates, key.unwrap_or_default())
}

fn of_bucket(candidates: Vec<Candidate>, raw_key: &str) -> Result<Target, Denied> {
    if candidates.is_empty() {
        return Err(Denied::NoRoute);
    }
    let key = decode(raw_key, "the path is not percent-encoded UTF-8")?;
    check_key(&key)?;
    Ok(Target::Bucket { candidates, key: Some(key).filter(|key| !key.is_empty()) })
}

/// Refuses what some stores would not take as a mere name.
pub(crate) fn check_key(key: &str) -> Result<(), Denied> {
    if key.len() > KEY_LEN_MAX {
        return Err(Denied::TooLarge("the key is longer than 1024 bytes"));
    }
    if key.contains('\0') {
        return Err(Denied::Invalid("the key holds a NUL"));
    }
    check_dots(key)
}

const DOTS: Denied = Denied::Invalid("a part of the key is . or ..");

/// `.` and `..` are ordinary names to S3, but no client needs them and some stores resolve them; some decode them once
/// more, some take `\` for `/`.
pub(crate) fn check_dots(key: &str) -> Result<(), Denied> {
    if !key.contains('%') {
        // Most keys: looked at as they are.
        let is_dots = key.split(['/', '\\']).any(|part| matches!(part, "." | ".."));
        return if is_dots { Err(DOTS) } else { Ok(()) };
    }
    let is_dots = |part: &str| match part.len() {
        0 | 7.. => false,
        _ => matches!(&*part.to_ascii_lowercase().replace("%2e", "."), "." | ".."),
    };
    let escapes = |part: &str| {
        // `%2f` and `%5c` would become separators if a store decoded twice.
        let lower = part.to_ascii_lowercase();
        lower.contains('%') && lower.replace("%2f", "/").replace("%5c", "/").split('/').any(is_dots)
    };
    if key.split(['/', '\\']).any(|part| is_dots(part) || escapes(part)) {
        return Err(DOTS);
    }
    Ok(())
}
