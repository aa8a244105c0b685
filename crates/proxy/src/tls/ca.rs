//! A sandbox's certificate authority.

use std::fmt;
use std::io;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::CertificateDer;
use sandpail_spec::SecretKey;
use serde::Deserialize;
use time::OffsetDateTime;

/// Where the bundle of trusted certificates goes in each sandbox, and what [`TRUST_VARIABLES`] say.
pub const BUNDLE_PATH: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Other places where distributions keep it: replaced where they are there.
pub const BUNDLE_PATHS: [&str; 5] = [
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/lib/ssl/cert.pem",
];

/// Variables by which programs that bring their own certificates are told of the bundle; the value is [`BUNDLE_PATH`].
pub const TRUST_VARIABLES: [&str; 7] = [
    "AWS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
];

/// The certificate authority of one sandbox.
pub struct Ca {
    name: String,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca").finish_non_exhaustive()
    }
}

/// Why there is no certificate. Holds no key.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// It cannot be made.
    #[error("a certificate cannot be made: {0}")]
    Make(String),
    /// What was kept is no certificate authority.
    #[error("the kept certificate authority cannot be read")]
    Kept,
}

/// What is kept of it.
#[derive(Deserialize)]
struct Kept {
    name: String,
    certificate: String,
    key: String,
}

impl Ca {
    /// Makes one for the sandbox of this id. Takes well below a millisecond.
    ///
    /// # Errors
    /// [`CaError::Make`].
    pub fn generate(sandbox: &str) -> Result<Self, CaError> {
        // At most 64 characters, as X.520 says.
        let name = format!("sandpail sandbox {}", sandbox.chars().take(40).collect::<String>());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let params = params(&name);
        let certificate = params.self_signed(&key).map_err(make)?.pem();
        Ok(Self { name, certificate, issuer: Issuer::new(params, key) })
    }

    /// Takes up what [`Ca::keep`] gave.
    ///
    /// # Errors
    /// [`CaError::Kept`].
    pub fn load(kept: &SecretKey) -> Result<Self, CaError> {
        let kept: Kept = serde_json::from_str(kept.expose()).map_err(|_| CaError::Kept)?;
        let key = SecretKey::new(kept.key);
        let key = KeyPair::from_pem(key.expose()).map_err(|_| CaError::Kept)?;
        Ok(Self { issuer: Issuer::new(params(&kept.name), key), name: kept.name, certificate: kept.certificate })
    }

    /// The authority with its key, as text: for the daemon's own state, which is root's alone.
    pub fn keep(&self) -> SecretKey {
        let key = self.issuer.key().serialize_pem();
        let kept = serde_json::json!({ "name": self.name, "certificate": self.certificate, "key": key });
        SecretKey::new(kept.to_string())
    }

    /// The certificate, in PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The certificates that the sandbox is to trust: this one, then the host's, in PEM.
    ///
    /// # Errors
    /// Those of the file system; a host without certificates is none.
    pub fn bundle(&self) -> io::Result<Vec<u8>> {
        let mut bundle = self.certificate.clone().into_bytes();
        for path in std::iter::once(BUNDLE_PATH).chain(BUNDLE_PATHS) {
            match std::fs::read(path) {
                Ok(host) => {
                    bundle.push(b'\n');
                    bundle.extend(host);
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bundle)
    }

    /// A certificate for a host, in DER, with this key.
    pub(super) fn sign(&self, host: &str, key: &KeyPair) -> Result<CertificateDer<'static>, CaError> {
        let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(make)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "sandpail");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // Strict verifiers ask for it.
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = validity();
        Ok(params.signed_by(key, &self.issuer).map_err(make)?.der().clone())
    }
}

fn make(error: rcgen::Error) -> CaError {
    CaError::Make(error.to_string())
}

/// The same for the same name, so that a loaded authority signs as the one that was made.
fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "sandpail");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = validity();
    params
}

/// The same for all, whatever the host's clock says: what bounds the life of these certificates is that of the sandbox, the
/// only one that trusts them.
fn validity() -> (OffsetDateTime, OffsetDateTime) {
    (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2120, 1, 1))
}
