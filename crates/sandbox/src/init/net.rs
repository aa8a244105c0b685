//! The network of a new sandbox: the loopback interface, and nothing else.

use std::fs;
use std::io;

/// Brings `lo` up in the current network namespace. Guests may use every port: the namespace is theirs alone, while the
/// capability for low ports counts in the namespace's owner only, which is the host.
pub(super) fn open_loopback() -> io::Result<()> {
    crate::network::open_loopback()?;
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
}
