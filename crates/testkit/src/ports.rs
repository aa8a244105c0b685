//! Ports for servers that are told where to listen, and listen there again after a death.

use std::net::TcpListener;
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};

/// Below what the kernel gives to outgoing connections (`ip_local_port_range` begins at 32768). A port from that range
/// looks free, and while its server is down the next connection of anyone may leave from it: the server then finds
/// "Address already in use" when it comes back.
const PORTS: Range<u16> = 10_000..32_000;

/// Ports that no one listens on, each given once in this process.
///
/// # Errors
/// When all are taken.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut ports = [0; N];
    for port in &mut ports {
        *port = free_port()?;
    }
    Ok(ports)
}

/// A port that no one listens on, given once in this process.
///
/// # Errors
/// When all are taken.
pub fn free_port() -> Result<u16> {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    // Programs that run side by side begin at different places.
    let start = std::process::id() % u32::from(count);
    for _ in 0..count {
        let given = u32::from(GIVEN.fetch_add(1, Ordering::Relaxed));
        let offset = (start.wrapping_mul(7919) + given) % u32::from(count);
        let port = PORTS.start + u16::try_from(offset)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port between {} and {} is free", PORTS.start, PORTS.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_outside_of_what_outgoing_connections_take_and_given_once() {
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let lowest: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
        let mut ports = free_ports::<64>().unwrap();
        assert!(ports.iter().all(|port| *port < lowest), "{ports:?} and {lowest}");
        ports.sort_unstable();
        assert!(ports.windows(2).all(|pair| pair[0] != pair[1]), "{ports:?}");
    }
}
