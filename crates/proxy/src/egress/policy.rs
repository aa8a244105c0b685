//! What of the network a sandbox may reach. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::header::{HeaderName, HeaderValue};
use sandpail_spec::SecretKey;
use serde::{Deserialize, Deserializer, Serialize};

use super::pattern::HostPattern;

/// What a sandbox may reach beside its mounts. The default is nothing.
///
/// As JSON: `{ "enableInternet": false, "allowedHosts": [], "deniedHosts": [], "outboundByHost": {} }`, each of which may be
/// left out; other names are refused.
///
/// 1. What `denied_hosts` names is never reached.
/// 2. If `allowed_hosts` is not empty, nothing else is reached, whatever `enable_internet` and `outbound_by_host` say.
/// 3. Else hosts of `outbound_by_host` are reached, and all others if `enable_internet` is set.
///
/// Both lists are asked for the name and again for each address that it has. Never reached are the host itself, loopback,
/// link-local (metadata) and multicast addresses; private addresses only if an address or range in `allowed_hosts` holds
/// them. A connection to an address that no name led to needs an address or range in `allowed_hosts`, or internet without
/// any allowed or denied names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EgressPolicy {
    /// Whether hosts are reached that no list names.
    pub enable_internet: bool,
    /// If not empty: the only hosts that are reached.
    pub allowed_hosts: Vec<HostPattern>,
    /// Hosts that are never reached.
    pub denied_hosts: Vec<HostPattern>,
    /// What is added to requests to some hosts; names only, not addresses. The first pattern in order that fits counts,
    /// exact names before those with globs.
    pub outbound_by_host: BTreeMap<HostName, Outbound>,
}

/// A pattern of names, as key of [`EgressPolicy::outbound_by_host`]. Orders exact names first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostName(HostPattern);

impl HostName {
    /// The pattern.
    pub fn pattern(&self) -> &HostPattern {
        &self.0
    }

    fn rank(&self) -> (bool, String) {
        (self.0.host().is_none(), self.0.to_string())
    }
}

impl Ord for HostName {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for HostName {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pattern = HostPattern::deserialize(deserializer)?;
        if !pattern.is_about_names() {
            return Err(serde::de::Error::custom(format!(
                "outboundByHost takes host names, not the address {pattern}"
            )));
        }
        if pattern.is_everything() {
            return Err(serde::de::Error::custom(
                "outboundByHost takes no bare *: it would send secrets to every host",
            ));
        }
        Ok(Self(pattern))
    }
}

/// What is added to requests to a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Outbound {
    /// Headers and their values, which the sandbox never sees. A header of the sandbox's own with such a name is removed.
    pub headers: BTreeMap<String, HeaderSecret>,
    /// Whether they are sent over plain http, too; else requests over http to this host are refused.
    #[serde(default)]
    pub allow_http: bool,
}

/// A header's value that nobody may read. It neither prints nor serialises.
#[derive(Clone)]
pub struct HeaderSecret(SecretKey);

impl HeaderSecret {
    /// Takes a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(SecretKey::new(value))
    }

    /// The value, for the request and for the daemon's own state.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

impl fmt::Debug for HeaderSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HeaderSecret(..)")
    }
}

impl PartialEq for HeaderSecret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for HeaderSecret {}

impl<'de> Deserialize<'de> for HeaderSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::new(String::deserialize(deserializer)?))
    }
}

/// A policy as people may see it: names of headers, without their values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownPolicy {
    enable_internet: bool,
    allowed_hosts: Vec<HostPattern>,
    denied_hosts: Vec<HostPattern>,
    outbound_by_host: BTreeMap<String, ShownOutbound>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownOutbound {
    headers: BTreeMap<String, String>,
    allow_http: bool,
}

/// What is shown in place of a value.
const HIDDEN: &str = "***";

/// Why a policy is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPolicy {
    /// Not a header, or one that belongs to the connection.
    #[error("outboundByHost {host}: {header:?} cannot be a header to add")]
    Header {
        /// The entry.
        host: String,
        /// The name of the header.
        header: String,
    },
    /// A policy as it was shown, given back.
    #[error(
        "outboundByHost {host}: the value of {header:?} is {HIDDEN}, which stands for one that is not shown; give the value \
         itself or ${{NAME}}"
    )]
    Hidden {
        /// The entry.
        host: String,
        /// The name of the header.
        header: String,
    },
    /// A value with line breaks or such.
    #[error("outboundByHost {host}: the value of {header:?} has characters that headers cannot have")]
    Value {
        /// The entry.
        host: String,
        /// The name of the header.
        header: String,
    },
}

/// Why something is not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// Rule 1.
    #[error("deniedHosts names it")]
    Denied,
    /// Rule 2.
    #[error("allowedHosts does not name it")]
    NotAllowed,
    /// Rule 3.
    #[error("this sandbox has no internet")]
    NoInternet,
    /// An address that no sandbox reaches.
    #[error("its address is the host's own, link-local, multicast or otherwise not of the internet")]
    Address,
    /// An address of a private network.
    #[error("its address is private, and allowedHosts has no range that holds it")]
    Private,
    /// A connection to an address where names are what counts.
    #[error("allowedHosts and deniedHosts name hosts, so addresses without a name are not reached")]
    Raw,
    /// A connection for one name says that it is for another.
    #[error("the connection was made to one host and asks for another")]
    OtherHost,
}

impl Forbidden {
    /// A short, stable name of the rule, for the audit log and metrics.
    pub fn rule(self) -> &'static str {
        match self {
            Self::Denied => "denied-host",
            Self::NotAllowed => "not-allowed-host",
            Self::NoInternet => "no-internet",
            Self::Address => "forbidden-address",
            Self::Private => "private-address",
            Self::Raw => "raw-address",
            Self::OtherHost => "other-host",
        }
    }
}

/// Headers that are the connection's business, or name the host.
const NO_HEADERS_TO_ADD: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

impl EgressPolicy {
    /// Checks what serde does not.
    ///
    /// # Errors
    /// Names the entry, never a value.
    pub fn check(&self) -> Result<(), InvalidPolicy> {
        for (host, outbound) in &self.outbound_by_host {
            for (header, value) in &outbound.headers {
                let (host, header) = (host.0.to_string(), header.clone());
                let is_good =
                    header.parse::<HeaderName>().is_ok_and(|name| !NO_HEADERS_TO_ADD.contains(&name.as_str()));
                if !is_good {
                    return Err(InvalidPolicy::Header { host, header });
                }
                if value.expose() == HIDDEN {
                    return Err(InvalidPolicy::Hidden { host, header });
                }
                if HeaderValue::from_str(value.expose()).is_err() {
                    return Err(InvalidPolicy::Value { host, header });
                }
            }
        }
        Ok(())
    }

    /// The policy without values of headers, to be shown. Values are `"***"`.
    pub fn shown(&self) -> ShownPolicy {
        self.with_values(|_| HIDDEN.to_owned())
    }

    /// The policy with values of headers, as it can be read again: for the daemon's own state, which is root's alone.
    pub fn kept(&self) -> ShownPolicy {
        self.with_values(|secret| secret.expose().to_owned())
    }

    fn with_values(&self, value: impl Fn(&HeaderSecret) -> String) -> ShownPolicy {
        let outbound = |outbound: &Outbound| ShownOutbound {
            headers: outbound.headers.iter().map(|(name, secret)| (name.clone(), value(secret))).collect(),
            allow_http: outbound.allow_http,
        };
        ShownPolicy {
            enable_internet: self.enable_internet,
            allowed_hosts: self.allowed_hosts.clone(),
            denied_hosts: self.denied_hosts.clone(),
            outbound_by_host: self
                .outbound_by_host
                .iter()
                .map(|(host, it)| (host.0.to_string(), outbound(it)))
                .collect(),
        }
    }

    /// Whether a host of this name may be reached, as far as the name says. Lower-case, without the dot at the end.
    ///
    /// # Errors
    /// The rule.
    pub fn check_name(&self, name: &str) -> Result<(), Forbidden> {
        if self.denied_hosts.iter().any(|pattern| pattern.is_name(name)) {
            return Err(Forbidden::Denied);
        }
        if !self.allowed_hosts.is_empty() {
            let is_allowed = self.allowed_hosts.iter().any(|pattern| pattern.is_name(name));
            return if is_allowed { Ok(()) } else { Err(Forbidden::NotAllowed) };
        }
        if self.enable_internet || self.outbound(name).is_some() { Ok(()) } else { Err(Forbidden::NoInternet) }
    }

    /// Whether this address may be connected to for a name that may be reached.
    ///
    /// # Errors
    /// The rule.
    pub fn check_address_of_name(&self, address: IpAddr) -> Result<(), Forbidden> {
        self.check_kind(address)?;
        if is_private(address) && !self.is_range_allowed(address) {
            return Err(Forbidden::Private);
        }
        Ok(())
    }

    /// Whether this address may be connected to without a name.
    ///
    /// # Errors
    /// The rule.
    pub fn check_raw_address(&self, address: IpAddr) -> Result<(), Forbidden> {
        self.check_kind(address)?;
        if self.is_range_allowed(address) {
            return Ok(());
        }
        let is_open = match self.allowed_hosts.as_slice() {
            [] if !self.enable_internet => return Err(Forbidden::NoInternet),
            [] => true,
            patterns => patterns.iter().any(HostPattern::is_everything),
        };
        if !is_open {
            return Err(Forbidden::NotAllowed);
        }
        if self.denied_hosts.iter().any(HostPattern::is_about_names) {
            return Err(Forbidden::Raw);
        }
        if is_private(address) { Err(Forbidden::Private) } else { Ok(()) }
    }

    /// What is added to requests to this host.
    pub fn outbound(&self, name: &str) -> Option<&Outbound> {
        self.outbound_by_host.iter().find(|(host, _)| host.0.is_name(name)).map(|(_, outbound)| outbound)
    }

    fn check_kind(&self, address: IpAddr) -> Result<(), Forbidden> {
        if embedded(address).into_iter().any(is_never_reached) {
            return Err(Forbidden::Address);
        }
        if embedded(address).into_iter().any(|it| self.denied_hosts.iter().any(|pattern| pattern.is_address(it))) {
            return Err(Forbidden::Denied);
        }
        Ok(())
    }

    fn is_range_allowed(&self, address: IpAddr) -> bool {
        self.allowed_hosts.iter().any(|pattern| pattern.is_address(address))
    }
}

/// The address, and the IPv4 address that packets to it end up at, where it is a form of one.
fn embedded(address: IpAddr) -> Vec<IpAddr> {
    let mut all = vec![address.to_canonical()];
    if let IpAddr::V6(v6) = address {
        let parts = v6.segments();
        let v4 = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
        match parts {
            // Mapped, translated (SIIT) and compatible addresses, and NAT64's, also the local-use range.
            [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
            | [0, 0, 0, 0, 0xffff, 0, high, low]
            | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
            | [0x64, 0xff9b, 1, _, _, _, high, low] => all.push(v4(high, low)),
            // 6to4.
            [0x2002, high, low, ..] => all.push(v4(high, low)),
            // Teredo: the client's address, inverted.
            [0x2001, 0, _, _, _, _, high, low] => all.push(v4(!high, !low)),
            _ => {}
        }
    }
    all
}

/// Addresses that are never reached, whatever the lists say.
fn is_never_reached(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            // "This" network, loopback, multicast, reserved, broadcast.
            matches!(a, 0 | 127 | 224..)
                // Link-local: metadata services of most clouds.
                || (a, b) == (169, 254)
                // IETF protocol assignments, among them NAT64's and other machinery.
                || (a, b, c) == (192, 0, 0)
                // Ours, inside sandboxes.
                || (a == 198 && matches!(b, 18 | 19))
                || METADATA_V4.contains(&address)
        }
        IpAddr::V6(address) => {
            let parts = address.segments();
            address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                // Link-local and the site-local ones that went before unique local addresses.
                || matches!(parts[0], 0xfe80..=0xfeff)
                // The compatible form, which nobody has had for long.
                || parts[..6] == [0; 6]
                || METADATA_V6.contains(&address)
        }
    }
}

/// Metadata services that are not link-local: Alibaba's and Azure's wire server, Oracle's.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];

/// Amazon's and Google's.
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// Addresses of somebody's own network, which a sandbox of the internet has no business with.
fn is_private(address: IpAddr) -> bool {
    embedded(address).into_iter().any(|address| match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            address.is_private()
                // Shared by carriers.
                || (a == 100 && matches!(b, 64..=127))
                // For documentation: nothing is there, so whatever is there is somebody's own.
                || matches!((a, b, c), (192, 0, 2) | (198, 51, 100) | (203, 0, 113))
                // The old relays of 6to4.
                || (a, b, c) == (192, 88, 99)
        }
        IpAddr::V6(address) => {
            let parts = address.segments();
            // Only this range is the internet's.
            !matches!(parts[0], 0x2000..=0x3fff)
                || parts[..2] == [0x2001, 0xdb8]
                // Benchmarking, ORCHID and other special ranges.
                || (parts[0] == 0x2001 && parts[1] < 0x200)
        }
    })
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
