//! Connections to the outside: by policy, to addresses that were checked and no others.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::outside::Outside;
use super::{EgressPolicy, Forbidden};

/// For asking what addresses a name has.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// For one address to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses that are tried.
const TRY_COUNT_MAX: usize = 3;

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// To the host of this name.
    Name(String),
    /// To this address, which no name led to.
    Address(IpAddr),
}

impl Place {
    /// As text.
    pub(super) fn host(&self) -> String {
        match self {
            Self::Name(name) => name.clone(),
            Self::Address(address) => address.to_string(),
        }
    }

    /// Whether it may be reached, as far as can be told without asking for its addresses.
    pub(super) fn check(&self, policy: &EgressPolicy) -> Result<(), Forbidden> {
        match self {
            Self::Name(name) => policy.check_name(name),
            Self::Address(address) => policy.check_raw_address(*address),
        }
    }

    /// Whether a connection to this address of the place may go on.
    pub(super) fn check_address(&self, policy: &EgressPolicy, address: IpAddr) -> Result<(), Forbidden> {
        self.check(policy)?;
        match self {
            Self::Name(_) => policy.check_address_of_name(address),
            Self::Address(_) => Ok(()),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    #[error("its name cannot be resolved: {0}")]
    Unresolved(io::Error),
    #[error("it does not answer: {0}")]
    Unreachable(io::Error),
}

/// The addresses of a name that may be connected to. Not empty.
pub(super) async fn addresses(
    outside: &dyn Outside,
    policy: &EgressPolicy,
    name: &str,
) -> Result<Vec<IpAddr>, DialError> {
    policy.check_name(name)?;
    let found = timeout(RESOLVE_TIMEOUT, outside.resolve(name)).await;
    let found = found.map_err(io::Error::from).flatten().map_err(DialError::Unresolved)?;
    let mut refused = None;
    let mut good = Vec::new();
    for address in found {
        match policy.check_address_of_name(address) {
            Ok(()) if outside.is_own(address) => refused = Some(Forbidden::Address),
            Ok(()) => good.push(address),
            Err(forbidden) => refused = Some(forbidden),
        }
    }
    match refused {
        _ if !good.is_empty() => Ok(good),
        Some(forbidden) => Err(forbidden.into()),
        None => Err(DialError::Unresolved(io::ErrorKind::NotFound.into())),
    }
}

/// Connects to a place, if the policy lets it.
pub(super) async fn dial(
    outside: &dyn Outside,
    policy: &EgressPolicy,
    place: &Place,
    port: u16,
) -> Result<(TcpStream, IpAddr), DialError> {
    let addresses = match place {
        Place::Name(name) => addresses(outside, policy, name).await?,
        Place::Address(address) => {
            policy.check_raw_address(*address)?;
            if outside.is_own(*address) {
                return Err(Forbidden::Address.into());
            }
            vec![*address]
        }
    };
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses.into_iter().take(TRY_COUNT_MAX) {
        let connected = timeout(CONNECT_TIMEOUT, outside.connect(SocketAddr::new(address, port))).await;
        match connected.map_err(io::Error::from).flatten() {
            Ok(stream) => {
                // Failing that, small writes are a little later.
                let _result = stream.set_nodelay(true);
                return Ok((stream, address));
            }
            Err(error) => last = error,
        }
    }
    Err(DialError::Unreachable(last))
}
