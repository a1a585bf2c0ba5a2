//! Tokens: what a token server answers, for how long that is used, and the headers that show a login.

use std::time::Duration;

use base64::{Engine, engine::general_purpose};
use reqwest::{
    Method, Url,
    header::{CONTENT_TYPE, HeaderValue},
};
use serde::Deserialize;

use super::credentials::{Credentials, Secret};
use crate::{
    error::{Error, Result},
    http::{Body, Request, redirect::is_loopback},
};

/// Lifetime of a token that does not state one, from the token specification.
pub(super) const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// A token is not used in the last part of its life, for requests take time and clocks differ.
const SAFETY_MARGIN: Duration = Duration::from_secs(10);
/// A token this near its end is renewed beside the request that uses it, so that nobody waits for a new one.
const RENEW_AHEAD: Duration = Duration::from_secs(30);
/// No token is kept for longer, whatever its server says.
pub(super) const LONGEST_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Rights that a request needs, in the token specification's words: `repository:NAME:pull,push`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Scopes(Vec<String>);

impl Scopes {
    pub(crate) fn pull(repository: &str) -> Self {
        Self(vec![format!("repository:{repository}:pull")])
    }

    pub(crate) fn push(repository: &str) -> Self {
        Self(vec![format!("repository:{repository}:pull,push")])
    }

    /// To be let in at all, as `/v2/` asks for.
    pub(crate) fn none() -> Self {
        Self(Vec::new())
    }

    /// What a registry has asked for, as it stands.
    pub(super) fn asked(scope: String) -> Self {
        Self(vec![scope])
    }

    pub(crate) fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

/// What a token server says.
#[derive(Deserialize)]
pub(crate) struct TokenAnswer {
    token: Option<Secret>,
    access_token: Option<Secret>,
    #[serde(default)]
    expires_in: serde_json::Value,
}

impl TokenAnswer {
    /// `None` for what is not understood: serde's message may quote the answer.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// The token, by either name; some servers send the other one empty.
    pub(crate) fn token(&self) -> Option<&Secret> {
        [&self.token, &self.access_token].into_iter().flatten().find(|token| !token.reveal().is_empty())
    }

    /// How long it lives. Some servers write the number as a string or with a fraction.
    pub(crate) fn lifetime(&self) -> Duration {
        let number = match &self.expires_in {
            serde_json::Value::String(text) => text.trim().parse().ok(),
            other => other.as_f64(),
        };
        let lifetime = number.filter(|seconds| *seconds >= 0.0).map(|s| s.min(LONGEST_LIFETIME.as_secs_f64()));
        lifetime.map_or(DEFAULT_LIFETIME, Duration::from_secs_f64)
    }
}

/// What is asked of a token server, and the login that goes with it.
pub(super) fn question<'a>(
    what: &'a str,
    realm: &Url,
    service: Option<&str>,
    scopes: &Scopes,
    credentials: Option<&Credentials>,
) -> Result<(Request<'a>, Option<HeaderValue>)> {
    let mut url = realm.clone();
    if let Some(Credentials::Identity(token)) = credentials {
        let form = identity_form(service, scopes, token);
        let request = Request::new(Method::POST, url, what)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")?
            .body(Body::Bytes(form.into()));
        return Ok((request, None));
    }
    {
        let mut query = url.query_pairs_mut();
        query.extend_pairs(service.map(|s| ("service", s)));
        query.extend_pairs(scopes.0.iter().map(|s| ("scope", s.as_str())));
    }
    let authorization = match credentials {
        Some(Credentials::Password { user, password }) => {
            url.query_pairs_mut().append_pair("account", user);
            Some(basic(user, password)?)
        }
        _ => None,
    };
    Ok((Request::get(url, what), authorization))
}

/// The form by which an identity token is traded for an access token.
fn identity_form(service: Option<&str>, scopes: &Scopes, token: &Secret) -> String {
    // The serializer that belongs to URLs serves forms as well.
    let mut url = Url::parse("form:").expect("a constant");
    url.query_pairs_mut()
        .append_pair("grant_type", "refresh_token")
        .append_pair("client_id", "lazo")
        .extend_pairs(service.map(|s| ("service", s)))
        .append_pair("scope", &scopes.0.join(" "))
        .append_pair("refresh_token", token.reveal());
    url.query().unwrap_or_default().to_owned()
}

/// The token server that a registry names, which is talked to by TLS (`tls`) or not, and is on this machine (`local`) or not. `Err` is
/// why nothing is sent there.
pub(crate) fn token_server(realm: &str, tls: bool, local: bool) -> Result<Url, String> {
    let url = Url::parse(realm).map_err(|e| format!("it names a bad token server {realm:?}: {e}"))?;
    match url.scheme() {
        "https" => Ok(url),
        // Not any realm on this machine: whose program listens there is not for a registry elsewhere to say.
        "http" if !tls || (local && is_loopback(&url)) => Ok(url),
        _ => Err(format!("it names a token server without TLS, {realm:?}; no login is sent there")),
    }
}

/// For how long a token that lives so long is used before it is renewed, and for how long it can be used at all.
pub(crate) fn usable(lifetime: Duration) -> (Duration, Duration) {
    let lifetime = lifetime.min(LONGEST_LIFETIME);
    let usable = lifetime - SAFETY_MARGIN.min(lifetime / 2);
    (usable - RENEW_AHEAD.min(usable / 4), usable)
}

/// The header that shows a token; `None` if it cannot be one.
pub(crate) fn bearer(token: &Secret) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {}", token.reveal()))
}

pub(super) fn basic(user: &str, password: &Secret) -> Result<HeaderValue> {
    let pair = general_purpose::STANDARD.encode(format!("{user}:{}", password.reveal()));
    sensitive(&format!("Basic {pair}")).ok_or_else(|| Error::invalid("login", "it cannot be sent in a header"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
