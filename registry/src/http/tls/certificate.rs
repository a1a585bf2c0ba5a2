//! What a certificate says of itself, read from its bytes; nothing of it is proven.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use x509_cert::{
    certificate::{CertificateInner, Raw},
    der::{Decode as _, oid::ObjectIdentifier},
    ext::pkix::{ExtendedKeyUsage, SubjectAltName, name::GeneralName},
};

/// Purposes that a server's certificate may have.
const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const ANY_PURPOSE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");
/// Names of a certificate that a message shows.
const SHOWN_NAMES: usize = 8;
/// Characters of a name that a message shows; a host name has at most 253.
const SHOWN_CHARACTERS: usize = 253;

/// A certificate that could be read.
pub(super) struct Certificate(CertificateInner<Raw>);

impl Certificate {
    /// `None` for bytes that are no certificate.
    pub(super) fn parse(der: &[u8]) -> Option<Self> {
        CertificateInner::from_der(der).ok().map(Self)
    }

    /// From when and until when it is valid, since 1970; both are still within.
    pub(super) fn validity(&self) -> (Duration, Duration) {
        let validity = self.0.tbs_certificate().validity();
        (validity.not_before.to_unix_duration(), validity.not_after.to_unix_duration())
    }

    /// Whether it may be a server's, as Go understands it: it says nothing of purposes, or names this one, or all.
    pub(super) fn is_for_servers(&self) -> bool {
        match self.0.tbs_certificate().get_extension::<ExtendedKeyUsage>() {
            Ok(None) => true,
            Ok(Some((_, purposes))) => purposes.0.iter().any(|purpose| [SERVER_AUTH, ANY_PURPOSE].contains(purpose)),
            Err(_) => false,
        }
    }

    /// Whom it says it was issued by.
    pub(super) fn issuer(&self) -> String {
        shown(&self.0.tbs_certificate().issuer().to_string())
    }

    /// The hosts that it is for, for a message; `None` if it names none.
    pub(super) fn hosts(&self) -> Option<String> {
        let names = self.0.tbs_certificate().get_extension::<SubjectAltName>().ok().flatten()?.1;
        let names: Vec<String> = names.0.iter().filter_map(host).collect();
        let more = names.len().saturating_sub(SHOWN_NAMES);
        let mut text = names.iter().take(SHOWN_NAMES).cloned().collect::<Vec<_>>().join(", ");
        if more > 0 {
            text += &format!(" and {more} more");
        }
        (!names.is_empty()).then_some(text)
    }
}

fn host(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) => Some(shown(name.as_str())),
        GeneralName::IpAddress(octets) => {
            let octets = octets.as_bytes();
            let v4 = <[u8; 4]>::try_from(octets).map(|octets| Ipv4Addr::from(octets).to_string());
            v4.or_else(|_| <[u8; 16]>::try_from(octets).map(|octets| Ipv6Addr::from(octets).to_string())).ok()
        }
        _ => None,
    }
}

/// Words of a stranger, fit for a message.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN_CHARACTERS).collect()
}
