//! Certificates for the hosts that a sandbox's connections are intercepted for, made when they are first needed.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ServerSessionMemoryCache, StoresServerSessions};

use super::{Ca, CaError};

/// Hosts whose certificates are remembered.
const HOST_COUNT_MAX: usize = 256;
/// Sessions that clients may take up again.
const SESSION_COUNT_MAX: usize = 256;

/// The cryptography of all our TLS.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Makes certificates. They share one key, which is not the authority's.
pub(crate) struct Mint {
    ca: Ca,
    key: KeyPair,
    provider: Arc<CryptoProvider>,
    sessions: Arc<dyn StoresServerSessions>,
    known: Mutex<HashMap<String, Arc<ServerConfig>>>,
}

impl fmt::Debug for Mint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mint").finish_non_exhaustive()
    }
}

impl Mint {
    /// A mint that has no certificates yet.
    ///
    /// # Errors
    /// [`CaError::Make`].
    pub(crate) fn new(ca: Ca) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| CaError::Make(error.to_string()))?;
        let sessions = ServerSessionMemoryCache::new(SESSION_COUNT_MAX);
        Ok(Self { ca, key, provider: provider(), sessions, known: Mutex::default() })
    }

    /// How to be this host. HTTP/1.1 is all that is offered.
    ///
    /// # Errors
    /// [`CaError::Make`].
    pub(crate) fn config(&self, host: &str) -> Result<Arc<ServerConfig>, CaError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = known.get(host) {
            return Ok(Arc::clone(config));
        }
        // A guest that asks for so many hosts shall not make the daemon keep them all; making one again is cheap.
        if known.len() >= HOST_COUNT_MAX {
            known.clear();
        }
        let made = |error: rustls::Error| CaError::Make(error.to_string());
        let certificate = self.ca.sign(host, &self.key)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(made)?.with_no_client_auth();
        let mut config = builder.with_single_cert(vec![certificate], key).map_err(made)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.session_storage = Arc::clone(&self.sessions);
        let config = Arc::new(config);
        known.insert(host.to_owned(), Arc::clone(&config));
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};

    use super::*;

    /// Shakes hands in memory; says why not.
    fn shake(trusted: &Ca, mint: &Mint, host: &str, asked: &str) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(trusted.certificate().as_bytes()).unwrap()).unwrap();
        let client = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let client = Arc::new(client.with_root_certificates(roots).with_no_client_auth());
        let name = ServerName::try_from(asked.to_owned()).unwrap();
        let mut client = ClientConnection::new(client, name).unwrap();
        let mut server = ServerConnection::new(mint.config(host).unwrap()).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn only_its_own_sandbox_trusts_it_and_only_for_the_host() {
        let ca = Ca::generate("one").unwrap();
        // After a restart it is the same authority.
        let mint = Mint::new(Ca::load(&ca.keep()).unwrap()).unwrap();
        for host in ["s3.example.com", "a.b.s3.internal", "10.1.2.3", "2001:db8::1"] {
            shake(&ca, &mint, host, host).unwrap();
        }
        assert!(shake(&ca, &mint, "s3.example.com", "other.example.com").is_err());
        assert!(shake(&Ca::generate("one").unwrap(), &mint, "s3.example.com", "s3.example.com").is_err());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mint = Mint::new(Ca::generate("one").unwrap()).unwrap();
        let first = mint.config("h0.x").unwrap();
        assert!(Arc::ptr_eq(&first, &mint.config("h0.x").unwrap()));
        for index in 0..HOST_COUNT_MAX + 10 {
            mint.config(&format!("h{index}.x")).unwrap();
        }
        assert!(mint.known.lock().unwrap().len() <= HOST_COUNT_MAX);
    }

    #[test]
    fn keys_do_not_print() {
        let ca = Ca::generate(&"long".repeat(100)).unwrap();
        let kept = ca.keep();
        assert!(kept.expose().contains("PRIVATE KEY") && !ca.certificate().contains("PRIVATE"));
        assert!(!format!("{ca:?} {kept:?}").contains("PRIVATE"));
        assert!(Ca::load(&sandpail_spec::SecretKey::new("{}")).is_err());
        assert!(ca.bundle().unwrap().starts_with(ca.certificate().as_bytes()));
    }
}
