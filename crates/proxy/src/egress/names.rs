//! Which name an address of a sandbox's stands for. Pure.
//!
//! The name server gives each name that a sandbox asks for an address of its own, of a range that is nowhere on the
//! internet. So a connection is known by the name that it was made for, whatever is said later on it, and what the name
//! stands for outside is found out when the connection is passed on.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

/// First address that is given: those before it in 198.18.0.0/15 are the sandbox's own and its name server's.
const FIRST: u32 = 0xc612_0100;
/// Last one.
const LAST: u32 = 0xc613_ffff;

/// Most names that are known at a time.
const NAME_COUNT_MAX: usize = 4096;

/// The names of one sandbox. Addresses go round: one is given to another name only when all others had their turn, so who
/// keeps an address for long does not reach somebody else's host by it.
#[derive(Debug, Default)]
pub(super) struct Names {
    by_name: HashMap<Arc<str>, Entry>,
    by_address: HashMap<u32, Arc<str>>,
    next: u32,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    address: u32,
    /// By the clock that counts questions and connections.
    used: u64,
    /// Connections that are open.
    held: usize,
}

impl Names {
    /// No names yet. Where addresses begin is left to chance, so that what a sandbox remembers from an earlier daemon is
    /// rather nobody's address than another name's.
    pub(super) fn new() -> Self {
        let chance = RandomState::new().hash_one(0_u8) % u64::from(LAST - FIRST + 1);
        Self { next: u32::try_from(chance).unwrap_or_default(), ..Self::default() }
    }

    /// The address of a name; a new one if it has none. `None` if all names that are known are in use.
    pub(super) fn address(&mut self, name: &str) -> Option<Ipv4Addr> {
        self.clock += 1;
        if let Some(entry) = self.by_name.get_mut(name) {
            entry.used = self.clock;
            return Some(Ipv4Addr::from_bits(entry.address));
        }
        if self.by_name.len() >= NAME_COUNT_MAX {
            self.forget_oldest()?;
        }
        let address = self.free_address();
        let name: Arc<str> = name.into();
        self.by_address.insert(address, Arc::clone(&name));
        self.by_name.insert(name, Entry { address, used: self.clock, held: 0 });
        Some(Ipv4Addr::from_bits(address))
    }

    fn forget_oldest(&mut self) -> Option<()> {
        let free = self.by_name.iter().filter(|(_, entry)| entry.held == 0);
        let name = Arc::clone(free.min_by_key(|(_, entry)| entry.used)?.0);
        let entry = self.by_name.remove(&name)?;
        self.by_address.remove(&entry.address);
        Some(())
    }

    fn free_address(&mut self) -> u32 {
        // There are many times more addresses than names, so the next one is nearly always free.
        loop {
            let address = FIRST + self.next;
            self.next = if address == LAST { 0 } else { self.next + 1 };
            if !self.by_address.contains_key(&address) {
                return address;
            }
        }
    }

    fn hold(&mut self, address: Ipv4Addr) -> Option<Arc<str>> {
        self.clock += 1;
        let name = self.by_address.get(&address.to_bits())?;
        let entry = self.by_name.get_mut(name)?;
        entry.held += 1;
        entry.used = self.clock;
        Some(Arc::clone(name))
    }

    fn release(&mut self, name: &str) {
        if let Some(entry) = self.by_name.get_mut(name) {
            entry.held = entry.held.saturating_sub(1);
        }
    }
}

/// A name that a connection is open for; its address stays its own meanwhile.
#[derive(Debug)]
pub(super) struct Held {
    names: Arc<Mutex<Names>>,
    name: Arc<str>,
}

impl Held {
    /// The name that has this address.
    pub(super) fn take(names: &Arc<Mutex<Names>>, address: Ipv4Addr) -> Option<Self> {
        let name = names.lock().unwrap_or_else(PoisonError::into_inner).hold(address)?;
        Some(Self { names: Arc::clone(names), name })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).release(&self.name);
    }
}

/// Whether addresses of this kind are ours to give, and so stand for nothing if they have no name.
pub(super) fn is_given(address: Ipv4Addr) -> bool {
    let [a, b, ..] = address.octets();
    a == 198 && matches!(b, 18 | 19)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_begin_anywhere() {
        let begins = std::iter::repeat_with(|| Names::new().address("a").unwrap()).take(200);
        let begins: std::collections::HashSet<_> = begins.collect();
        assert!(begins.len() > 100, "{}", begins.len());
        assert!(begins.into_iter().all(|address| (FIRST..=LAST).contains(&address.to_bits())));
    }

    #[test]
    fn a_name_keeps_its_address() {
        let mut names = Names::default();
        let one = names.address("a.b").unwrap();
        assert_eq!(one, Ipv4Addr::new(198, 18, 1, 0));
        assert_ne!(names.address("c.d").unwrap(), one);
        assert_eq!(names.address("a.b").unwrap(), one);
        assert!(is_given(one));
        assert_eq!(names.hold(Ipv4Addr::new(198, 18, 7, 7)), None);
    }

    #[test]
    fn the_oldest_names_go_but_none_that_is_in_use() {
        let names = Arc::new(Mutex::new(Names::default()));
        let address = |name: &str| names.lock().unwrap().address(name);
        let first = address("first").unwrap();
        let held = Held::take(&names, first).unwrap();
        let second = address("second").unwrap();
        let mut seen = std::collections::HashSet::from([first, second]);
        for index in 0..NAME_COUNT_MAX * 3 {
            assert!(seen.insert(address(&format!("n{index}")).unwrap()), "an address was given twice too early");
        }
        assert_eq!(address("first"), Some(first));
        assert!(Held::take(&names, second).is_none());
        assert_ne!(address("second"), Some(second));
        assert_eq!(names.lock().unwrap().by_name.len(), NAME_COUNT_MAX);
        assert_eq!(names.lock().unwrap().by_address.len(), NAME_COUNT_MAX);
        drop(held);
        for index in 0..NAME_COUNT_MAX {
            address(&format!("m{index}"));
        }
        assert!(Held::take(&names, first).is_none());
    }

    #[test]
    fn addresses_go_round_and_leave_out_those_in_use() {
        let mut names = Names { next: LAST - FIRST - 1, ..Names::default() };
        let last = [names.address("a").unwrap(), names.address("b").unwrap(), names.address("c").unwrap()];
        assert_eq!(last, [[198, 19, 255, 254], [198, 19, 255, 255], [198, 18, 1, 0]].map(Ipv4Addr::from));
        names.next = LAST - FIRST - 1;
        assert_eq!(names.address("d").unwrap(), Ipv4Addr::new(198, 18, 1, 1));
    }

    #[test]
    fn when_all_are_in_use_there_are_no_more() {
        let names = Arc::new(Mutex::new(Names::default()));
        let mut held = Vec::new();
        for index in 0..NAME_COUNT_MAX {
            let address = names.lock().unwrap().address(&format!("n{index}")).unwrap();
            held.push(Held::take(&names, address).unwrap());
        }
        assert_eq!(names.lock().unwrap().address("one more"), None);
        held.pop();
        assert!(names.lock().unwrap().address("one more").is_some());
    }
}
