//! One host by TLS and by plain HTTP: which of the two it speaks is found out where nobody has said it.
//!
//! A host on this machine is asked by plain HTTP first, which costs nothing where that is right. A server that speaks
//! TLS answers such a request with 400, sends us on to its TLS, or breaks the connection: then the request is made
//! again by TLS. A host that may be insecure is asked by TLS first, and by plain HTTP if it does not speak TLS. Where a
//! registry answers, the host is asked so for some minutes. Nothing but the scheme differs, so that the login, and what
//! belongs to the host, follow it.

use std::time::Duration;

use reqwest::{
    Response, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderName, LOCATION},
};

use crate::{
    auth::{Auth, challenge},
    error::{Error, ErrorKind, Result},
    http::{redirect::is_redirect, same_origin},
    shared::Shared,
};

/// Header by which a registry says that it is one.
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// The host by one of the two.
pub(super) struct Face {
    /// `https://HOST/v2/REPOSITORY/`.
    pub(super) base: Url,
    pub(super) auth: Auth,
}

impl Face {
    fn is_tls(&self) -> bool {
        self.base.scheme() == "https"
    }
}

/// The host by what it speaks as far as is known, and by the other one if that may be tried.
pub(super) struct Faces {
    pub(super) usual: Face,
    pub(super) other: Option<Face>,
    /// Host and port as written, under which is kept what was found out.
    pub(super) authority: String,
    pub(super) shared: Shared,
}

impl Faces {
    /// How the host is asked at the moment.
    pub(super) fn now(&self) -> &Face {
        match &self.other {
            Some(other) if self.shared.found_tls(&self.authority) == Some(other.is_tls()) => other,
            _ => &self.usual,
        }
    }

    /// What may be tried in place of `face`.
    pub(super) fn instead_of(&self, face: &Face) -> Option<&Face> {
        let other = self.other.as_ref()?;
        Some(if face.is_tls() == other.is_tls() { &self.usual } else { other })
    }

    /// The same URL at `face`, if it is this host's.
    pub(super) fn at(&self, face: &Face, url: &Url) -> Url {
        let is_ours = |face: &Face| same_origin(url, &face.base);
        if !is_ours(&self.usual) && !self.other.as_ref().is_some_and(is_ours) {
            return url.clone();
        }
        let mut at = face.base.clone();
        at.set_path(url.path());
        at.set_query(url.query());
        at
    }

    /// For some minutes the host is asked so.
    pub(super) fn remember(&self, face: &Face) {
        let (host, scheme) = (&self.authority, face.base.scheme());
        let is_news = self.shared.find_tls(host, face.is_tls());
        if is_news && self.usual.is_tls() && !face.is_tls() {
            tracing::warn!(host, "it does not speak TLS, so that all is sent to it in the clear");
        } else {
            tracing::debug!(host, scheme, "found out how this host is to be asked");
        }
    }
}

/// What came of a request to a face.
pub(super) struct Answer {
    /// The answer, and for how long the redirects to it hold, if there were any.
    pub(super) result: Result<(Response, Option<Duration>)>,
    /// Whether the host itself has answered as registries do.
    pub(super) is_registrys: bool,
}

impl Answer {
    /// Whether it may come from a server that is to be asked as `other` instead of as `face`.
    pub(super) fn is_suspect(&self, face: &Face, other: &Face) -> bool {
        let own = |url: &Url| same_origin(url, &face.base);
        match &self.result {
            // What servers that speak TLS answer to plain HTTP, if they answer.
            Ok((response, _)) if !face.is_tls() && own(response.url()) => {
                response.status() == StatusCode::BAD_REQUEST && !self.is_registrys || leads_to(response, other)
            }
            Ok(_) => false,
            Err(Error::NotTls { .. }) => face.is_tls(),
            // A port that refuses connections does so whatever is spoken; a host without one has two. Anything else that is wrong with
            // TLS is no reason to do without: whoever is on the way can break connections.
            Err(error @ Error::Transport { url, .. }) => {
                let refused = error.is_refused_connection();
                let may = if refused { face.base.port().is_none() } else { !face.is_tls() };
                may && error.kind() != ErrorKind::Timeout && Url::parse(url).is_ok_and(|url| own(&url))
            }
            Err(_) => false,
        }
    }

    /// Whether this answer of `face` counts more than `before`, which came of the request to `other`. By TLS, and at the same port, any
    /// answer does. At the port of plain HTTP something else often listens, so that there only a registry's does.
    pub(super) fn counts_more(&self, face: &Face, other: &Face, before: &Self) -> bool {
        let sent_on = matches!(&before.result, Ok((response, _)) if leads_to(response, face));
        let answered = !matches!(self.result, Err(Error::NotTls { .. } | Error::Transport { .. }));
        let here = face.is_tls() || face.base.port().is_some();
        sent_on || self.is_registrys || here && answered && !self.is_suspect(face, other)
    }
}

/// Whether a plain-HTTP server sends us on to its own TLS.
pub(super) fn leads_to(response: &Response, other: &Face) -> bool {
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let to = location.filter(|_| is_redirect(response.status())).and_then(|to| response.url().join(to).ok());
    other.is_tls() && to.is_some_and(|to| same_origin(&to, &other.base))
}

/// Whether the host's own answer is of the kind that registries give. An error of theirs is JSON, or names the API.
pub(super) fn is_registrys(response: &Response) -> bool {
    let (status, headers) = (response.status(), response.headers());
    let json = || headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    match status {
        StatusCode::UNAUTHORIZED => challenge::known(headers).is_some(),
        _ if status.is_client_error() => headers.contains_key(API_VERSION) || json(),
        _ => status.is_success(),
    }
}
