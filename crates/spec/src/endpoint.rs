//! Where a provider answers.

use std::fmt;
use std::str::FromStr;

/// The URL of an S3 service: scheme, host and port. No path, query or user.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    secure: bool,
    host: String,
    port: u16,
}

/// A text that is no URL of an S3 service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid endpoint URL: \"{0}\". Must be a valid HTTP(S) URL.")]
pub struct InvalidEndpoint(pub String);

impl Endpoint {
    /// Takes `http://host`, `https://host:port`, `http://[::1]:9000/`.
    ///
    /// # Errors
    /// [`InvalidEndpoint`] for anything else; a user or password in the URL is left out of its text.
    pub fn new(url: &str) -> Result<Self, InvalidEndpoint> {
        let fail = || {
            // A URL with `user:password@` must not bring the password into a log.
            let shown = match (url.find("://"), url.rfind('@')) {
                (Some(scheme), Some(at)) if at > scheme => format!("{}://...{}", &url[..scheme], &url[at..]),
                _ => url.to_owned(),
            };
            InvalidEndpoint(shown)
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(fail)?;
        let secure = if scheme.eq_ignore_ascii_case("https") {
            true
        } else if scheme.eq_ignore_ascii_case("http") {
            false
        } else {
            return Err(fail());
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
            let (host, port) = rest.split_once(']').ok_or_else(fail)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| fail())?;
            (format!("[{host}]"), port.strip_prefix(':').or_else(|| port.is_empty().then_some("")).ok_or_else(fail)?)
        } else {
            let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
            let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            if host.is_empty() || host.len() > 253 || !host.chars().all(good) || host.starts_with(['.', '-']) {
                return Err(fail());
            }
            (host.to_owned(), port)
        };
        let port = match port {
            "" if authority.ends_with(':') => return Err(fail()),
            "" => {
                if secure {
                    443
                } else {
                    80
                }
            }
            port if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().map_err(|_| fail())?,
            _ => return Err(fail()),
        };
        if port == 0 {
            return Err(fail());
        }
        Ok(Self { secure, host: host.to_ascii_lowercase(), port })
    }

    /// Whether it is `https`.
    pub fn secure(&self) -> bool {
        self.secure
    }

    /// The host; an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, also if the URL left it out.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    /// The value of the `Host` header: with the port unless it is the scheme's own.
    pub fn authority(&self) -> String {
        let own = if self.secure { 443 } else { 80 };
        if self.port == own { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    /// Whether the host is an address and not a name.
    pub fn is_address(&self) -> bool {
        self.host.starts_with('[') || self.host.parse::<std::net::Ipv4Addr>().is_ok()
    }

    /// The same service at another host.
    #[must_use]
    pub fn with_host(&self, host: &str) -> Self {
        Self { host: host.to_ascii_lowercase(), ..self.clone() }
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        Self::new(url)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme(), self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good() {
        for (url, shown, port) in [
            ("http://localhost:8333", "http://localhost:8333", 8333),
            ("https://S3.eu-west-1.amazonaws.com/", "https://s3.eu-west-1.amazonaws.com", 443),
            ("HTTP://127.0.0.1", "http://127.0.0.1", 80),
            ("http://[::1]:9000", "http://[::1]:9000", 9000),
            ("https://host:443", "https://host", 443),
        ] {
            let endpoint = Endpoint::new(url).unwrap();
            assert_eq!((endpoint.to_string().as_str(), endpoint.port()), (shown, port));
        }
    }

    #[test]
    fn bad() {
        for url in [
            "", "localhost", "ftp://host", "http://", "http:///x", "http://host/path", "http://host:", "http://host:0",
            "http://host:70000", "http://a b", "http://host?x", "http://[::1", "http://[x]", "http://-a", "http://h:+1",
        ] {
            let error = Endpoint::new(url).unwrap_err().to_string();
            assert_eq!(error, format!("Invalid endpoint URL: \"{url}\". Must be a valid HTTP(S) URL."));
        }
        let error = Endpoint::new("http://user:hidden@host").unwrap_err().to_string();
        assert!(!error.contains("hidden"), "{error}");
    }
}
