//! Which servers are believed to be who they say.
//!
//! webpki takes a certificate only if an authority has issued it that is another one. Go, and so docker and containerd,
//! also take one that is itself among the authorities that the operator has configured: `openssl req -x509` makes such
//! certificates, and docker's own instructions put them into `certs.d`.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use super::{NAME_IT, certificate::Certificate};

/// Takes what webpki takes, and the certificates that the operator has named themselves.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) usual: Arc<WebPkiServerVerifier>,
    /// The configured authorities: never the system's, which vouch for others only.
    pub(super) own: Vec<CertificateDer<'static>>,
}

/// Why a certificate is refused, and what the user can do.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

impl Verifier {
    /// Checks a certificate that is among the configured ones: its dates, its purpose and its name.
    fn check_own(&self, der: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<(), Error> {
        // Refuses critical extensions that nobody here understands, too.
        let parsed = ParsedCertificate::try_from(der)?;
        let found = Certificate::parse(der).ok_or(CertificateError::BadEncoding)?;
        let (from, until) = found.validity();
        let time = Duration::from_secs(now.as_secs());
        let unix = |at: Duration| UnixTime::since_unix_epoch(at);
        if time < from {
            return Err(CertificateError::NotValidYetContext { time: now, not_before: unix(from) }.into());
        }
        if time > until {
            return Err(CertificateError::ExpiredContext { time: now, not_after: unix(until) }.into());
        }
        if !found.is_for_servers() {
            return Err(CertificateError::InvalidPurpose.into());
        }
        verify_server_name(&parsed, name)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let usual = self.usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let Err(error) = usual else { return usual };
        let checked = match self.own.iter().any(|own| own == end_entity) {
            true => self.check_own(end_entity, server_name, now),
            false => Err(error),
        };
        match checked {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(error) => Err(explained(error, end_entity, server_name)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// The same error with a reason that names what the certificate says.
fn explained(error: Error, der: &CertificateDer<'_>, name: &ServerName<'_>) -> Error {
    let Error::InvalidCertificate(reason) = &error else { return error };
    let certificate = Certificate::parse(der);
    let text = match reason {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            match certificate.as_ref().and_then(Certificate::hosts) {
                Some(hosts) => format!(
                    "its certificate is not for {}, but for {hosts}; ask it by such a name, or give it a certificate that has \
                     this one",
                    name.to_str()
                ),
                None => format!(
                    "its certificate is not for {}, nor for any host: it has no subjectAltName, and a common name does not count",
                    name.to_str()
                ),
            }
        }
        CertificateError::ExpiredContext { time, not_after } => {
            format!("its certificate has expired: it was valid until {}, and now it is {}", date(not_after), date(time))
        }
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "its certificate is not valid yet: it will be from {} on, and by this machine's clock now it is {}",
            date(not_before),
            date(time)
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is for other purposes than a server's (extended key usage)".to_owned()
        }
        CertificateError::UnknownIssuer => {
            let issuer = certificate.map(|c| format!(" ({})", c.issuer())).unwrap_or_default();
            format!("its certificate is not trusted: who has issued it{issuer} is not known here; {NAME_IT}")
        }
        other => {
            let reason = match other {
                CertificateError::Other(other) => other.to_string(),
                other => Error::InvalidCertificate(other.clone()).to_string(),
            };
            format!("its certificate is not trusted ({reason}); if it is meant to be, {NAME_IT}")
        }
    };
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Refusal(text)))))
}

fn date(time: &UnixTime) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(time.as_secs()))
}

/// Takes every certificate, for hosts of which the operator has said so.
#[derive(Debug)]
pub(super) struct Anyone(Vec<SignatureScheme>);

impl Anyone {
    pub(super) fn new(provider: &CryptoProvider) -> Self {
        Self(provider.signature_verification_algorithms.supported_schemes())
    }
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
