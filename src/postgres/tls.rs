//! TLS for Postgres: the one meaning of `sslmode` and `sslrootcert`, for all connections.
//!
//! Makes a rustls configuration that trusts what libpq would trust, and the hash that ties a SCRAM login to the
//! certificate (channel binding). It opens no connection: [`super::connect()`], [`super::sqlx_relay`] and `wire` do.
//!
//! | `sslmode` | without `sslrootcert` | with it |
//! |---|---|---|
//! | `require` | any certificate | as `verify-ca` (libpq does the same) |
//! | `verify-ca` | a chain to the system's authorities | a chain to the file's |
//! | `verify-full` | the same, and the name is the host's | the same, and the name is the host's |
//!
//! In two points webpki, which rustls uses, is stricter than libpq, and the certificate that Postgres's manual recommends
//! (`openssl req -x509 … -subj /CN=host`) fails both. So both are relaxed here: a certificate that is in `sslrootcert`
//! itself is trusted although it is marked as an authority, since the operator has named it; and if a certificate has no
//! `subjectAltName`, its subject's CN is its name.
//!
//! In every mode the handshake's signature is checked, which proves that the server has the certificate's private key:
//! without that, channel binding would prove nothing.
//!
//! Sources: <https://www.postgresql.org/docs/current/libpq-ssl.html>, <https://www.rfc-editor.org/rfc/rfc5929#section-4>

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_cert::der::Decode;
use x509_cert::der::oid::ObjectIdentifier;

use crate::config::SslMode;

/// libpq's name for the system's authorities, instead of a file.
pub(super) const SYSTEM_ROOTS: &str = "system";

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of authorities cannot be read, or is not PEM.
    #[error("the certificates in {path} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The file holds no usable certificate.
    #[error("{path} holds no usable certificate")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The system has no authorities.
    #[error("the system has no trusted certificates")]
    NoSystemRoots,
    /// The host is neither a DNS name nor an address.
    #[error("{0:?} is not a name that a certificate can be for")]
    Name(String),
    /// rustls refuses the configuration.
    #[error("the TLS configuration is refused")]
    Config(#[source] rustls::Error),
}

impl TlsError {
    /// What an operator can do.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Unreadable { path, .. } | Self::Empty { path } => format!(
                "put the server's authority as PEM into {} (sslrootcert) and make it readable to this user",
                path.display()
            ),
            Self::NoSystemRoots => {
                "install the package ca-certificates, or name the server's authority with sslrootcert=FILE".to_owned()
            }
            Self::Name(_) => "use a host name or address in the URL, or sslmode=verify-ca".to_owned(),
            Self::Config(_) => "this is a fault of the program: please report it".to_owned(),
        }
    }
}

/// The remedy for a certificate that was refused in a handshake; `None` for other errors.
///
/// Both drivers give a refusal as an [`std::io::Error`] around a [`rustls::Error`].
#[must_use]
pub fn refusal_hint(error: &std::io::Error) -> Option<String> {
    let refused = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::InvalidCertificate(reason) = refused else {
        return None;
    };
    Some(match reason {
        // A bad signature comes from an authority of the same name with another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "name the authority that signed the server's certificate with sslrootcert=FILE".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "connect by a name in the certificate's subjectAltName, or use sslmode=verify-ca".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "renew the server's certificate".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "check the clocks of both machines".to_owned()
        }
        _ => "replace the server's certificate by an X.509 v3 one with a subjectAltName".to_owned(),
    })
}

/// The remedy if the server does not offer TLS.
pub const NOT_OFFERED: &str = "ALTER SYSTEM SET ssl = on on the server (with ssl_cert_file, ssl_key_file); sslmode=disable \
                               in the URL only on a network that you trust";

/// The configuration for a mode. `root` is a PEM file of authorities, or `system`.
///
/// [`SslMode::Disable`] is treated as [`SslMode::Require`]: a caller without TLS does not call this.
///
/// # Errors
/// The authorities cannot be read, or there are none.
pub fn client_config(mode: SslMode, root: Option<&Path>) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let trust = match (mode, root) {
        (SslMode::Disable | SslMode::Require, None) => Trust::Anyone,
        (SslMode::VerifyFull, root) => Trust::Named(Roots::load(root)?),
        (_, root) => Trust::Chained(Roots::load(root)?),
    };
    let verifier = Verifier {
        trust,
        provider: Arc::clone(&provider),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Config)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(config)
}

/// The host of a URL as the name that a certificate must have.
///
/// # Errors
/// It is neither a DNS name nor an address.
pub fn server_name(host: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Name(host.to_owned()))
}

/// The `tls-server-end-point` channel binding of a certificate: its hash under the hash function of its own signature,
/// SHA-256 instead of MD5 and SHA-1 (RFC 5929 §4.1).
///
/// `None` if it is not defined (Ed25519) or not supported here (RSA-PSS): then the login has no channel binding.
#[must_use]
pub fn tls_server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    const fn oid(text: &str) -> ObjectIdentifier {
        ObjectIdentifier::new_unwrap(text)
    }
    /// RSA with MD5, RSA with SHA-1, ECDSA with SHA-1, then RSA and ECDSA with SHA-256.
    const SHA256: [ObjectIdentifier; 5] = [
        oid("1.2.840.113549.1.1.4"),
        oid("1.2.840.113549.1.1.5"),
        oid("1.2.840.10045.4.1"),
        oid("1.2.840.113549.1.1.11"),
        oid("1.2.840.10045.4.3.2"),
    ];
    /// RSA and ECDSA with SHA-224.
    const SHA224: [ObjectIdentifier; 2] = [oid("1.2.840.113549.1.1.14"), oid("1.2.840.10045.4.3.1")];
    /// RSA and ECDSA with SHA-384.
    const SHA384: [ObjectIdentifier; 2] = [oid("1.2.840.113549.1.1.12"), oid("1.2.840.10045.4.3.3")];
    /// RSA and ECDSA with SHA-512.
    const SHA512: [ObjectIdentifier; 2] = [oid("1.2.840.113549.1.1.13"), oid("1.2.840.10045.4.3.4")];

    let algorithm = x509_cert::Certificate::from_der(certificate)
        .ok()?
        .signature_algorithm
        .oid;
    if SHA256.contains(&algorithm) {
        Some(Sha256::digest(certificate).to_vec())
    } else if SHA224.contains(&algorithm) {
        Some(Sha224::digest(certificate).to_vec())
    } else if SHA384.contains(&algorithm) {
        Some(Sha384::digest(certificate).to_vec())
    } else if SHA512.contains(&algorithm) {
        Some(Sha512::digest(certificate).to_vec())
    } else {
        None
    }
}

/// The authorities that are trusted.
#[derive(Debug)]
struct Roots {
    store: RootCertStore,
    /// Certificates that the operator named: trusted as they are, see the module's header.
    named: Vec<CertificateDer<'static>>,
}

impl Roots {
    fn load(file: Option<&Path>) -> Result<Self, TlsError> {
        match file.filter(|path| *path != Path::new(SYSTEM_ROOTS)) {
            Some(path) => Self::from_file(path),
            None => Self::from_system(),
        }
    }

    fn from_file(path: &Path) -> Result<Self, TlsError> {
        let unreadable = |source| TlsError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let named = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(unreadable)?;
        let mut store = RootCertStore::empty();
        let (added, _) = store.add_parsable_certificates(named.iter().cloned());
        if added == 0 {
            return Err(TlsError::Empty { path: path.to_owned() });
        }
        Ok(Self { store, named })
    }

    fn from_system() -> Result<Self, TlsError> {
        let found = rustls_native_certs::load_native_certs();
        let mut store = RootCertStore::empty();
        let (added, _) = store.add_parsable_certificates(found.certs);
        if added == 0 {
            return Err(TlsError::NoSystemRoots);
        }
        Ok(Self {
            store,
            named: Vec::new(),
        })
    }
}

/// Which servers are accepted.
#[derive(Debug)]
enum Trust {
    /// Any server that has its certificate's private key.
    Anyone,
    /// One with a chain to an authority.
    Chained(Roots),
    /// One with a chain to an authority and the right name.
    Named(Roots),
}

/// Verifies a server's certificate as `sslmode` demands.
#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (roots, named) = match &self.trust {
            Trust::Anyone => return Ok(ServerCertVerified::assertion()),
            Trust::Chained(roots) => (roots, false),
            Trust::Named(roots) => (roots, true),
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if !roots.named.contains(end_entity) {
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                &roots.store,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
        }
        if named
            && let Err(error) = verify_server_name(&certificate, server_name)
            && !is_common_name(end_entity, server_name)
        {
            return Err(error);
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether a certificate without a `subjectAltName` has this host as its subject's CN, as libpq compares them:
/// without regard to case, and `*.` matches one label.
fn is_common_name(certificate: &CertificateDer<'_>, host: &ServerName<'_>) -> bool {
    /// `subjectAltName`.
    const ALTERNATIVE_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
    /// `commonName`.
    const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

    let Ok(certificate) = x509_cert::Certificate::from_der(certificate) else {
        return false;
    };
    let certificate = certificate.tbs_certificate;
    let has_alternatives = certificate
        .extensions
        .iter()
        .flatten()
        .any(|extension| extension.extn_id == ALTERNATIVE_NAME);
    let host = host.to_str();
    let mut attributes = certificate.subject.0.iter().flat_map(|names| names.0.iter());
    !has_alternatives
        && attributes.any(|attribute| {
            // In each string type that a CN may have, a host name is ASCII.
            attribute.oid == COMMON_NAME
                && std::str::from_utf8(attribute.value.value()).is_ok_and(|name| matches_host(name, &host))
        })
}

fn matches_host(pattern: &str, host: &str) -> bool {
    match (pattern.strip_prefix("*."), host.split_once('.')) {
        (Some(domain), Some((label, rest))) => !label.is_empty() && rest.eq_ignore_ascii_case(domain),
        (Some(_), None) => false,
        (None, _) => !pattern.is_empty() && pattern.eq_ignore_ascii_case(host),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};

    use super::*;

    fn certificate(algorithm: &'static SignatureAlgorithm) -> rcgen::Certificate {
        let key = KeyPair::generate_for(algorithm).unwrap();
        CertificateParams::new(["db.example.com".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap()
    }

    #[test]
    fn channel_binding_uses_the_hash_of_the_certificates_own_signature() {
        let p256 = certificate(&rcgen::PKCS_ECDSA_P256_SHA256);
        assert_eq!(
            tls_server_end_point(p256.der()),
            Some(Sha256::digest(p256.der()).to_vec())
        );
        let p384 = certificate(&rcgen::PKCS_ECDSA_P384_SHA384);
        assert_eq!(
            tls_server_end_point(p384.der()),
            Some(Sha384::digest(p384.der()).to_vec())
        );
        // An Ed25519 signature has no hash of its own: undefined by the RFC.
        assert_eq!(tls_server_end_point(certificate(&rcgen::PKCS_ED25519).der()), None);
        assert_eq!(tls_server_end_point(b"not a certificate"), None);
    }

    #[test]
    fn authorities_that_cannot_be_read_are_named() {
        let missing = Path::new("/nonexistent/root.crt");
        assert!(matches!(
            client_config(SslMode::VerifyFull, Some(missing)),
            Err(TlsError::Unreadable { path, .. }) if path == missing
        ));
        let mut empty = tempfile::NamedTempFile::new().unwrap();
        writeln!(empty, "no certificate in here").unwrap();
        assert!(matches!(
            client_config(SslMode::Require, Some(empty.path())),
            Err(TlsError::Empty { .. })
        ));
    }

    #[test]
    fn require_alone_needs_no_authorities() {
        assert!(client_config(SslMode::Require, None).is_ok());
    }

    #[test]
    fn a_common_name_counts_where_there_is_no_alternative() {
        let key = KeyPair::generate().unwrap();
        let certificate = |alternatives: &[&str]| {
            let names: Vec<_> = alternatives.iter().map(ToString::to_string).collect();
            let mut params = CertificateParams::new(names).unwrap();
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, "*.Example.com");
            params.self_signed(&key).unwrap().der().clone()
        };
        let is_name = |certificate: &_, host| is_common_name(certificate, &server_name(host).unwrap());
        assert!(is_name(&certificate(&[]), "db.example.com"));
        assert!(!is_name(&certificate(&[]), "example.com"));
        assert!(!is_name(&certificate(&[]), "a.db.example.com"));
        assert!(!is_name(&certificate(&["other.org"]), "db.example.com"));
        assert!(matches_host("LOCALHOST", "localhost"));
        assert!(!matches_host("", "localhost"));
        assert!(!matches_host("*.", "localhost"));
    }

    #[test]
    fn a_name_or_an_address_can_be_certified() {
        assert!(server_name("db.example.com").is_ok());
        assert!(server_name("::1").is_ok());
        assert!(matches!(server_name("a b"), Err(TlsError::Name(_))));
    }
}
