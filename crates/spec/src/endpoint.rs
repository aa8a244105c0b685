//! Where a store listens.

use std::fmt;
use std::str::FromStr;

/// An `http://` or `https://` URL without a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    is_tls: bool,
    host: String,
    port: Option<u16>,
}

/// A text that is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid endpoint URL: \"{url}\". Must be a valid HTTP(S) URL.")]
pub struct InvalidEndpoint {
    /// The refused text, without what could be a password.
    pub url: String,
}

impl Endpoint {
    /// Whether it is `https`.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Host name or address; IPv6 in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(if self.is_tls { 443 } else { 80 })
    }

    /// What the `Host` header says: the port only if it is not the usual one.
    pub fn authority(&self) -> String {
        match self.port {
            Some(port) if port != (if self.is_tls { 443 } else { 80 }) => format!("{}:{port}", self.host),
            _ => self.host.clone(),
        }
    }

    /// The same place under another host name.
    #[must_use]
    pub fn with_host(&self, host: &str) -> Self {
        Self { host: host.to_owned(), ..self.clone() }
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(url: &str) -> Result<Self, InvalidEndpoint> {
        let shown = match url.rsplit_once('@') {
            Some((_, rest)) => format!("…@{rest}"),
            None => url.to_owned(),
        };
        let invalid = || InvalidEndpoint { url: shown.clone() };
        let (scheme, rest) = url.trim().split_once("://").ok_or_else(invalid)?;
        let is_tls = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(invalid()),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                let port = port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(invalid)?;
                (host, Some(port))
            }
            _ => (authority, None),
        };
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = match inner {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            }
        };
        if !is_host {
            return Err(invalid());
        }
        Ok(Self { is_tls, host: host.to_ascii_lowercase(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.is_tls { "https" } else { "http" }, self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_ones() {
        for (url, shown) in [
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
            ("https://S3.Example.com/", "https://s3.example.com"),
            ("https://s3.example.com:443", "https://s3.example.com"),
            ("http://[::1]:8080", "http://[::1]:8080"),
        ] {
            assert_eq!(url.parse::<Endpoint>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn bad_ones() {
        for url in ["", "s3.example.com", "ftp://x", "http://", "http://a b", "http://x:99999", "http://x/path"] {
            assert!(url.parse::<Endpoint>().is_err(), "{url}");
        }
        let error = "http://user:secret@host".parse::<Endpoint>().unwrap_err();
        assert!(!error.to_string().contains("secret"));
    }
}
