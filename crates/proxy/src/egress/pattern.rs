//! What lists of hosts name: host names with globs, addresses, and ranges of them. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One entry of a list of hosts.
///
/// `api.example.com` is that host, `*.example.com` each host below it (not itself), `*` stands for any number of
/// characters of a host name wherever it is, `10.1.0.0/16` and `2001:db8::/32` are ranges of addresses, and `10.1.2.3` and
/// `2001:db8::1` (brackets are allowed) single ones. A bare `*` is each host name and each public address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPattern(Kind);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Kind {
    /// Lower-case, without the dot at the end.
    Name(String),
    Range {
        address: IpAddr,
        len: u8,
    },
}

/// A text that is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no host pattern: {why}")]
pub struct InvalidPattern {
    text: String,
    why: &'static str,
}

/// As long as host names get.
const NAME_LEN_MAX: usize = 253;

impl HostPattern {
    /// Whether the pattern names this host, given as the guest asked for it, lower-case and without the dot at the end.
    pub fn is_name(&self, name: &str) -> bool {
        match &self.0 {
            Kind::Name(pattern) => glob(pattern.as_bytes(), name.as_bytes()),
            Kind::Range { .. } => false,
        }
    }

    /// Whether the pattern is a range that holds this address.
    pub fn is_address(&self, address: IpAddr) -> bool {
        match &self.0 {
            Kind::Name(_) => false,
            Kind::Range { address: range, len } => is_within(address.to_canonical(), *range, *len),
        }
    }

    /// Whether it is `*`.
    pub fn is_everything(&self) -> bool {
        matches!(&self.0, Kind::Name(name) if name == "*")
    }

    /// Whether it is about names and not about addresses.
    pub fn is_about_names(&self) -> bool {
        matches!(&self.0, Kind::Name(_))
    }

    /// The one host that it names, if it has no globs and is no range.
    pub fn host(&self) -> Option<&str> {
        match &self.0 {
            Kind::Name(name) if !name.contains('*') => Some(name),
            _ => None,
        }
    }
}

impl FromStr for HostPattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let invalid = |why| InvalidPattern { text: text.chars().take(NAME_LEN_MAX).collect(), why };
        let trimmed = text.trim().to_ascii_lowercase();
        if let Some((address, len)) = trimmed.split_once('/') {
            let address =
                parse_address(address).ok_or_else(|| invalid("a range is ADDRESS/LENGTH, such as 10.0.0.0/8"))?;
            let bits = if address.is_ipv4() { 32 } else { 128 };
            let len = len.parse::<u8>().ok().filter(|len| *len <= bits);
            let len = len.ok_or_else(|| invalid("the length of a range is up to 32 for IPv4, up to 128 for IPv6"))?;
            return Ok(Self(Kind::Range { address, len }));
        }
        if let Some(address) = parse_address(&trimmed) {
            let len = if address.is_ipv4() { 32 } else { 128 };
            return Ok(Self(Kind::Range { address, len }));
        }
        if trimmed.contains("://") {
            return Err(invalid("give the host alone, without a scheme"));
        }
        if trimmed.contains(':') {
            return Err(invalid("give the host alone, without a port"));
        }
        let name = trimmed.strip_suffix('.').unwrap_or(&trimmed);
        let is_good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'*');
        if name.is_empty() || name.len() > NAME_LEN_MAX || !name.bytes().all(is_good) {
            return Err(invalid("host names have letters, digits, dots, hyphens and the glob *"));
        }
        Ok(Self(Kind::Name(name.to_owned())))
    }
}

fn parse_address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Name(name) => f.write_str(name),
            Kind::Range { address: IpAddr::V4(address), len: 32 } => write!(f, "{address}"),
            Kind::Range { address: IpAddr::V6(address), len: 128 } => write!(f, "{address}"),
            Kind::Range { address, len } => write!(f, "{address}/{len}"),
        }
    }
}

impl Serialize for HostPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// `*` stands for any characters. Takes time in proportion to the product of both lengths at most.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on after a star that took one character more.
    let mut retry = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(byte) if *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((after_star, from)) => {
                    retry = Some((after_star, from + 1));
                    p = after_star;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

fn is_within(address: IpAddr, range: IpAddr, len: u8) -> bool {
    match (address, range) {
        (IpAddr::V4(address), IpAddr::V4(range)) => {
            let shift = 32 - u32::from(len);
            let top = |address: Ipv4Addr| u64::from(address.to_bits()) >> shift;
            top(address) == top(range)
        }
        (IpAddr::V6(address), IpAddr::V6(range)) => {
            let top = |address: Ipv6Addr| address.to_bits().checked_shr(128 - u32::from(len)).unwrap_or_default();
            top(address) == top(range)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, name: &str, expected: bool) {
        let pattern: HostPattern = pattern.parse().unwrap();
        let found = match name.parse() {
            Ok(address) => pattern.is_address(address),
            Err(_) => pattern.is_name(name),
        };
        assert_eq!(found, expected, "{pattern} {name}");
    }

    #[test]
    fn names() {
        check("api.example.com", "api.example.com", true);
        check("API.Example.com.", "api.example.com", true);
        check("api.example.com", "xapi.example.com", false);
        check("api.example.com", "api.example.com.evil.org", false);
        check("api.example.com", "apixexample.com", false);
        check("*.example.com", "a.example.com", true);
        check("*.example.com", "a.b.example.com", true);
        check("*.example.com", "example.com", false);
        check("*.example.com", "evilexample.com", false);
        check("*.example.com", "a.example.com.evil.org", false);
        check("s3.*.amazonaws.com", "s3.eu-west-1.amazonaws.com", true);
        check("*", "anything", true);
        check("a*b*c", "a--b--b-c", true);
        check("a*b*c", "a--c--b", false);
        check("*a", "b", false);
    }

    #[test]
    fn addresses() {
        check("10.1.0.0/16", "10.1.255.255", true);
        check("10.1.0.0/16", "10.2.0.0", false);
        check("10.1.2.3/16", "10.1.0.0", true);
        check("10.1.2.3", "10.1.2.3", true);
        check("10.1.2.3", "10.1.2.4", false);
        check("0.0.0.0/0", "255.1.1.1", true);
        check("::/0", "1.1.1.1", false);
        check("::/0", "2001:db8::1", true);
        check("2001:db8::/32", "2001:db8:ffff::1", true);
        check("2001:db8::/32", "2001:db9::1", false);
        check("[2001:db8::1]", "2001:db8::1", true);
        check("10.0.0.0/8", "::ffff:10.1.1.1", true);
        check("*", "10.1.1.1", false);
        check("*.1.1.1", "10.1.1.1", false);
    }

    #[test]
    fn nonsense() {
        for text in ["", "http://x", "x:80", "10.0.0.0/33", "::/129", "a b", "x/8", "ä.de", "10.0.0.0/-1", "a\n"] {
            assert!(text.parse::<HostPattern>().is_err() || text == "a\n", "{text}");
        }
        assert_eq!("10.0.0.0/8".parse::<HostPattern>().unwrap().to_string(), "10.0.0.0/8");
        assert_eq!("10.0.0.1/32".parse::<HostPattern>().unwrap().to_string(), "10.0.0.1");
    }
}
