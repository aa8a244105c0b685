//! The network outside sandboxes, as the daemon sees it.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;

/// What is done outside. Tests have one of their own.
#[async_trait]
pub(super) trait Outside: fmt::Debug + Send + Sync + 'static {
    /// The addresses of a name.
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;

    /// Whether an address is one of this host's own.
    fn is_own(&self, address: IpAddr) -> bool;

    /// Connects.
    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream>;

    /// What hosts are known by.
    fn tls(&self) -> io::Result<Arc<ClientConfig>>;
}

/// The host's own network and resolver.
#[derive(Debug, Default)]
pub(super) struct Host {
    tls: OnceLock<Arc<ClientConfig>>,
}

/// Addresses of one name that are looked at.
const ADDRESS_COUNT_MAX: usize = 16;

#[async_trait]
impl Outside for Host {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let mut addresses = Vec::new();
        for found in tokio::net::lookup_host((name, 0)).await?.take(ADDRESS_COUNT_MAX) {
            if !addresses.contains(&found.ip()) {
                addresses.push(found.ip());
            }
        }
        Ok(addresses)
    }

    fn is_own(&self, address: IpAddr) -> bool {
        is_own(address.to_canonical())
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(to).await
    }

    fn tls(&self) -> io::Result<Arc<ClientConfig>> {
        if let Some(known) = self.tls.get() {
            return Ok(Arc::clone(known));
        }
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(io::Error::other("this host trusts no certificates: install ca-certificates"));
        }
        let client = Arc::new(client(roots)?);
        Ok(Arc::clone(self.tls.get_or_init(|| client)))
    }
}

/// A client that speaks HTTP/1.1 and verifies by these roots.
pub(super) fn client(roots: RootCertStore) -> io::Result<ClientConfig> {
    let client = ClientConfig::builder_with_provider(crate::tls::provider()).with_safe_default_protocol_versions();
    let client = client.map_err(io::Error::other)?;
    let mut client = client.with_root_certificates(roots).with_no_client_auth();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(client)
}

/// Only own addresses can be bound to, as long as nobody allowed others.
fn is_own(address: IpAddr) -> bool {
    if UdpSocket::bind((address, 0)).is_err() {
        return false;
    }
    let is_nonlocal_allowed = |version: &str| {
        fs::read_to_string(format!("/proc/sys/net/{version}/ip_nonlocal_bind")).is_ok_and(|text| text.trim() != "0")
    };
    match address {
        IpAddr::V4(_) if is_nonlocal_allowed("ipv4") => {
            let table = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
            is_local_in_trie(&table, &address.to_string())
        }
        IpAddr::V6(address) if is_nonlocal_allowed("ipv6") => {
            let table = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
            table.starts_with(&format!("{:032x}", address.to_bits()))
                || table.contains(&format!("\n{:032x}", address.to_bits()))
        }
        _ => true,
    }
}

/// Lines such as `|-- 10.0.0.1` with `/32 host LOCAL` below them.
fn is_local_in_trie(table: &str, address: &str) -> bool {
    let mut is_this = false;
    for line in table.lines() {
        let line = line.trim_start_matches([' ', '|', '+', '-']);
        match line.split_ascii_whitespace().next() {
            Some(first) if !first.starts_with('/') => is_this = first == address,
            _ if is_this && line.contains("host LOCAL") => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses() {
        for (address, expected) in
            [("127.0.0.1", true), ("127.9.9.9", true), ("::1", true), ("192.0.2.77", false), ("2001:db8::77", false)]
        {
            assert_eq!(is_own(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn the_table_of_a_host_that_binds_to_anything() {
        let table = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.0.1\n        /32 host LOCAL\n     |-- 10.0.0.255\n        /32 link BROADCAST\n";
        assert!(is_local_in_trie(table, "10.0.0.1"));
        assert!(!is_local_in_trie(table, "10.0.0.255"));
        assert!(!is_local_in_trie(table, "10.0.0.2"));
    }
}
