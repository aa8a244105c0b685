//! Which connections are for the sandbox's mounts.

use std::net::IpAddr;

use crate::{Guest, RouteSpec};

/// Whether this name is one that only exists in sandboxes.
pub(super) fn is_internal(name: &str) -> bool {
    let is_below = |name: &str, domain: &str| {
        let label = name.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.'));
        label.is_some_and(|label| !label.is_empty())
    };
    matches!(name, "s3-credential-proxy.internal" | "r2.internal" | "s3.internal")
        || is_below(name, "s3-credential-proxy.internal")
        || is_below(name, "s3.internal")
}

/// Whether this host (a name, or an address as text) is an open mount's endpoint, or a bucket's name below it.
pub(super) fn is_endpoint(guest: &Guest, host: &str) -> bool {
    guest.routes().iter().any(|route| is_endpoint_of(route.spec(), host))
}

/// Whether a connection to this host and port is served as S3.
pub(super) fn is_intercepted(guest: &Guest, host: &str, port: u16) -> bool {
    if is_internal(host) {
        return true;
    }
    // The endpoint's own port, and those that programs use which are given the host alone.
    guest.routes().iter().any(|route| {
        let is_port = matches!(port, 80 | 443) || route.spec().endpoint.as_ref().is_some_and(|it| it.port() == port);
        is_port && is_endpoint_of(route.spec(), host)
    })
}

fn is_endpoint_of(spec: &RouteSpec, host: &str) -> bool {
    let Some(endpoint) = &spec.endpoint else { return false };
    let own = endpoint.host().trim_start_matches('[').trim_end_matches(']');
    if own.parse::<IpAddr>().is_ok() {
        return own == host;
    }
    let own = own.trim_end_matches('.');
    host == own || host.strip_suffix(own).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use sandpail_spec::KeyPrefix;

    use super::*;
    use crate::Access;

    #[test]
    fn internal_names() {
        for name in [
            "s3-credential-proxy.internal",
            "abc123.s3-credential-proxy.internal",
            "r2.internal",
            "s3.internal",
            "my.bucket.s3.internal",
        ] {
            assert!(is_internal(name), "{name}");
        }
        for name in ["internal", "xs3.internal", "x.r2.internal", ".s3.internal", "s3.internal.evil.org", "localhost"] {
            assert!(!is_internal(name), "{name}");
        }
    }

    #[test]
    fn endpoints() {
        let spec = |endpoint: &str| RouteSpec {
            id: "m".to_owned(),
            binding: None,
            bucket: "b".to_owned(),
            prefix: KeyPrefix::parse("/").unwrap(),
            access: Access::ReadOnly,
            endpoint: Some(endpoint.parse().unwrap()),
            allow_unsigned: false,
        };
        let check = |endpoint: &str, host: &str| is_endpoint_of(&spec(endpoint), host);
        assert!(check("https://s3.example.com", "s3.example.com"));
        assert!(check("https://s3.example.com:9000", "bucket.s3.example.com"));
        assert!(check("http://10.1.2.3:9000", "10.1.2.3"));
        assert!(check("http://[2001:db8::1]", "2001:db8::1"));
        for (endpoint, host) in [
            ("https://s3.example.com", "xs3.example.com"),
            ("https://s3.example.com", ".s3.example.com"),
            ("https://s3.example.com", "example.com"),
            ("https://s3.example.com", "s3.example.com.evil.org"),
            ("http://10.1.2.3:9000", "1.10.1.2.3"),
        ] {
            assert!(!check(endpoint, host), "{endpoint} {host}");
        }
    }
}
