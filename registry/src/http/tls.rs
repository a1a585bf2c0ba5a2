//! TLS as registries are met with: the authorities of the system and those that were configured, client certificates,
//! and words for what is wrong with a server's certificate.

mod certificate;
mod verifier;

use std::{error::Error as StdError, io, path::Path, sync::Arc};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use self::verifier::{Anyone, Refusal, Verifier};
use crate::{
    error::{Error, Result},
    http::chain,
    shared::{Identity, Transport},
};

/// How an authority is made known; the end of a message.
const NAME_IT: &str = "name its authority's PEM file by --ca, `ca` in lazo.toml or in this host's hosts.toml, or put \
                       it into the host's directory in certs.d as a .crt file";

/// TLS to the hosts that a transport is for: the system's authorities (or those in SSL_CERT_FILE and SSL_CERT_DIR) and
/// the extra ones. Reads some hundred kilobytes of files.
pub(super) fn config(transport: &Transport) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match transport.skip_verify {
        true => Arc::new(Anyone::new(&provider)),
        false => Arc::new(verifier(transport, &provider)?),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::invalid("TLS", e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &transport.identity {
        Some(identity) => {
            let (what, certificates, key) = load_identity(identity)?;
            config.with_client_auth_cert(certificates, key).map_err(|e| Error::invalid(what, e))?
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A client that will never speak TLS, and so need not load a single certificate.
pub(super) fn no_config() -> Result<ClientConfig> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::invalid("TLS", e))?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    Ok(config)
}

fn verifier(transport: &Transport, provider: &Arc<CryptoProvider>) -> Result<Verifier> {
    let (mut roots, mut own) = (RootCertStore::empty(), Vec::new());
    for path in &transport.ca {
        let what = format!("CA file {}", path.display());
        let found = certificates(&what, &read(&what, path)?)?;
        if found.is_empty() {
            return Err(Error::invalid(what, "it holds no PEM certificate"));
        }
        for certificate in &found {
            roots.add(certificate.clone()).map_err(|e| Error::invalid(&what, e))?;
        }
        own.extend(found);
    }
    let system = rustls_native_certs::load_native_certs();
    for error in system.errors {
        tracing::warn!(%error, "some of the system's certificate authorities cannot be read");
    }
    roots.add_parsable_certificates(system.certs);
    if roots.is_empty() {
        let reason = format!("the system has none (Debian's package ca-certificates); {NAME_IT}");
        return Err(Error::invalid("certificate authorities", reason));
    }
    let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    Ok(Verifier { usual: usual.map_err(|e| Error::invalid("TLS", e))?, own })
}

fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| Error::invalid(what, e))
}

type LoadedIdentity = (String, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn load_identity(identity: &Identity) -> Result<LoadedIdentity> {
    let what = format!("client certificate {}", identity.certificate.display());
    let pem = read(&what, &identity.certificate)?;
    let key = match &identity.key {
        Some(key) => read(&format!("client key {}", key.display()), key)?,
        None => pem.clone(),
    };
    let certificates = certificates(&what, &pem)?;
    // The cause might quote the key.
    match PrivateKeyDer::from_pem_slice(&key) {
        Ok(key) if !certificates.is_empty() => Ok((what, certificates, key)),
        _ => Err(Error::invalid(what, "no PEM certificate with its unencrypted key")),
    }
}

fn read(what: &str, path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io(format_args!("cannot read {what}"), e))
}

/// What keeps a TLS connection from being made, where trying again is of no use.
pub(super) enum Trouble {
    /// What is wrong, and what the user can do.
    Untrusted(String),
    /// The server does not speak TLS.
    NotTls,
}

/// What a TLS error means, if an error is one.
pub(super) fn trouble(error: &(dyn StdError + 'static)) -> Option<Trouble> {
    let mut next = Some(error);
    while let Some(error) = next {
        match error.downcast_ref::<rustls::Error>() {
            Some(rustls::Error::InvalidCertificate(reason)) => return Some(Trouble::Untrusted(certificate(reason))),
            Some(rustls::Error::AlertReceived(alert)) if is_about_us(*alert) => {
                let reason = format!("it wants a client certificate, or refuses the one it got ({alert:?})");
                return Some(Trouble::Untrusted(reason));
            }
            Some(rustls::Error::InvalidMessage(_)) => return Some(Trouble::NotTls),
            _ => {}
        }
        // An I/O error hides the error it was made of from source().
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn certificate(reason: &CertificateError) -> String {
    if let CertificateError::Other(other) = reason
        && let Some(Refusal(reason)) = other.0.downcast_ref::<Refusal>()
    {
        return reason.clone();
    }
    format!("its certificate is not trusted ({})", chain(&rustls::Error::InvalidCertificate(reason.clone())))
}

/// Whether a server's alert is about a client certificate.
fn is_about_us(alert: AlertDescription) -> bool {
    use AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked, CertificateUnknown,
        UnknownCA, UnsupportedCertificate,
    };
    matches!(
        alert,
        AccessDenied
            | BadCertificate
            | CertificateExpired
            | CertificateRequired
            | CertificateRevoked
            | CertificateUnknown
            | UnknownCA
            | UnsupportedCertificate
    )
}
