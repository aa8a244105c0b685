//! How many connections one client may hold that have not shown that they may ask.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections of one address that were not admitted yet.
const PENDING_COUNT_MAX: usize = 128;

/// Counts connections by address until they are admitted. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peers(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Peers {
    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more; `None`: this address has too many.
    pub(crate) fn enter(&self, address: IpAddr) -> Option<Pending> {
        let address = network_of(address);
        let mut counts = self.counts();
        let count = counts.entry(address).or_default();
        if *count >= PENDING_COUNT_MAX {
            return None;
        }
        *count += 1;
        let place = Place { peers: self.clone(), address };
        Some(Pending(Arc::new(Mutex::new(Some(place)))))
    }
}

/// Whoever has an IPv6 address has a whole network of them.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into())
        }
        address => address,
    }
}

#[derive(Debug)]
struct Place {
    peers: Peers,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.peers.counts();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// A connection that counts until it is admitted or gone. Each of its requests carries it.
#[derive(Clone, Debug)]
pub(crate) struct Pending(Arc<Mutex<Option<Place>>>);

impl Pending {
    /// It has shown that it may ask: it counts no longer.
    pub(crate) fn admit(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_and_no_more() {
        let peers = Peers::default();
        let here: IpAddr = "192.0.2.1".parse().unwrap();
        let mut all: Vec<Pending> = (0..PENDING_COUNT_MAX).map(|_| peers.enter(here).unwrap()).collect();
        assert!(peers.enter(here).is_none());
        assert!(peers.enter("::ffff:192.0.2.1".parse().unwrap()).is_none());
        assert!(peers.enter("192.0.2.2".parse().unwrap()).is_some());
        // One that ends makes room, and so does one that is admitted, however often.
        all.pop();
        all.push(peers.enter(here).unwrap());
        assert!(peers.enter(here).is_none());
        all[0].admit();
        all[0].clone().admit();
        all.push(peers.enter(here).unwrap());
        assert!(peers.enter(here).is_none());
        drop(all);
        assert!(peers.counts().is_empty());
    }

    #[test]
    fn a_network_counts_as_one() {
        let peers = Peers::default();
        let _all: Vec<Pending> = (0..PENDING_COUNT_MAX)
            .map(|number| peers.enter(format!("2001:db8::{number:x}").parse().unwrap()).unwrap())
            .collect();
        assert!(peers.enter("2001:db8::ffff:1".parse().unwrap()).is_none());
        assert!(peers.enter("2001:db8:0:1::1".parse().unwrap()).is_some());
    }
}
