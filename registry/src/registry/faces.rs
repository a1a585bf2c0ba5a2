//! One host by TLS and by plain HTTP: which of the two it speaks is found out where nobody has said it.
//!
//! A host on this machine is asked by plain HTTP first, which costs nothing where that is right. A server that speaks
//! TLS answers such a request with 400, or breaks the connection: then the request is made again by TLS, and if that
//! works, the host is asked so from then on. A host that may be insecure is asked by TLS first. Nothing but the scheme
//! differs, so that the login, and what belongs to the host, follow it.

use reqwest::{Response, StatusCode, Url};

use crate::{
    auth::Auth,
    error::{Error, ErrorKind, Result},
    http::same_origin,
    shared::Shared,
};

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

    /// From now on the host is asked so.
    pub(super) fn remember(&self, face: &Face) {
        let scheme = face.base.scheme();
        tracing::debug!(host = self.authority, scheme, "found out how this host is to be asked");
        self.shared.find_tls(&self.authority, face.is_tls());
    }
}

/// Whether an answer to a request to `face` may come from a server that is to be asked otherwise.
pub(super) fn is_suspect<T>(face: &Face, answer: &Result<(Response, T)>) -> bool {
    match answer {
        Ok((response, _)) => is_bad_request(face, response) && same_origin(response.url(), &face.base),
        Err(Error::NotTls { .. }) => face.is_tls(),
        Err(error @ Error::Transport { url, .. }) => {
            // A port that refuses connections does so whatever is spoken; a host without one has two.
            let other_port = face.base.port().is_none() || !error.is_refused_connection();
            let own = Url::parse(url).is_ok_and(|url| same_origin(&url, &face.base));
            own && other_port && error.kind() != ErrorKind::Timeout
        }
        Err(_) => false,
    }
}

/// Whether the answer of `face`, asked after another one gave `before`, shows that it is the right one.
pub(super) fn is_right<T>(face: &Face, answer: &Result<(Response, T)>, before: &Result<(Response, T)>) -> bool {
    match answer {
        // Told to a server that may well speak TLS.
        Ok((response, _)) => !is_bad_request(face, response) || matches!(before, Err(Error::NotTls { .. })),
        Err(error) => !matches!(error, Error::NotTls { .. } | Error::Transport { .. }),
    }
}

/// What servers that speak TLS answer to plain HTTP, if they answer.
fn is_bad_request(face: &Face, response: &Response) -> bool {
    !face.is_tls() && response.status() == StatusCode::BAD_REQUEST
}
