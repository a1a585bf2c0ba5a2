//! Logging in: basic credentials and bearer tokens, asked for only when a registry wants them.

pub(crate) mod challenge;
pub(crate) mod credentials;

use std::{
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose};
use lru::LruCache;
use reqwest::{
    Method, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde::Deserialize;

use self::{
    challenge::Challenge,
    credentials::{Credentials, Secret, Store},
};
use crate::{
    error::{Error, Result},
    http::{Body, Http, Request},
    reference::is_loopback_host,
};

/// Tokens kept: one a set of scopes, of which a source or destination has a handful.
const MAX_TOKENS: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");
/// Largest answer of a token server, bytes. Tokens that list many rights reach some tens of kilobytes.
const MAX_TOKEN_ANSWER: u64 = 1 << 20;
/// Lifetime of a token that does not state one, from the token specification.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// A token is not used in the last part of its life, for requests take time and clocks differ.
const SAFETY_MARGIN: Duration = Duration::from_secs(10);

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

    pub(crate) fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

/// The login to one registry.
pub(crate) struct Auth {
    http: Arc<Http>,
    store: Store,
    /// As the user names it.
    host: String,
    repository: String,
    /// Whether requests to the registry itself are encrypted.
    tls: bool,
    state: Mutex<State>,
    /// Held while a token is fetched, so that many requests share one.
    renewal: tokio::sync::Mutex<()>,
}

struct State {
    scheme: Scheme,
    tokens: LruCache<Scopes, Token>,
}

/// What the registry has asked for so far.
#[derive(Clone)]
enum Scheme {
    Nothing,
    Basic(HeaderValue),
    Bearer { realm: Url, service: Option<String> },
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    use_until: Instant,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<Secret>,
    access_token: Option<Secret>,
    expires_in: Option<u64>,
}

impl Auth {
    pub(crate) fn new(http: Arc<Http>, host: &str, repository: &str, tls: bool) -> Self {
        let store = Store::new(http.options());
        let state = Mutex::new(State { scheme: Scheme::Nothing, tokens: LruCache::new(MAX_TOKENS) });
        let (host, repository) = (host.to_owned(), repository.to_owned());
        Self { http, store, host, repository, tls, state, renewal: tokio::sync::Mutex::new(()) }
    }

    /// The `Authorization` header for a request, as far as the registry has asked for one.
    pub(crate) async fn header(&self, scopes: &Scopes) -> Result<Option<HeaderValue>> {
        if let Some(known) = self.known(scopes) {
            return Ok(known);
        }
        let _renewal = self.renewal.lock().await;
        match self.known(scopes) {
            Some(known) => Ok(known),
            None => self.fetch_token(scopes).await.map(Some),
        }
    }

    /// Learns from a 401 that came in spite of `used`; afterwards [`Self::header`] gives something new, or an error is
    /// returned because there is nothing else to offer.
    pub(crate) async fn challenged(
        &self,
        headers: &HeaderMap,
        scopes: &Scopes,
        used: Option<&HeaderValue>,
    ) -> Result<()> {
        let challenge = challenge::strongest(headers)
            .ok_or_else(|| self.denied("the registry wants a login of a kind unknown here, or does not say which"))?;
        let _renewal = self.renewal.lock().await;
        // Someone else may have renewed it meanwhile.
        if let Some(Some(known)) = self.known(scopes)
            && used != Some(&known)
        {
            return Ok(());
        }
        match challenge {
            Challenge::Basic => self.set_basic(used).await,
            Challenge::Bearer { realm, service, .. } => {
                let realm = self.check_realm(&realm)?;
                {
                    let mut state = self.state();
                    state.scheme = Scheme::Bearer { realm, service };
                    state.tokens.pop(scopes);
                }
                let fresh = self.fetch_token(scopes).await?;
                if used == Some(&fresh) {
                    return Err(self.denied("it refuses the token kept for it; log in again"));
                }
                Ok(())
            }
        }
    }

    /// `None` when a token must be fetched first.
    fn known(&self, scopes: &Scopes) -> Option<Option<HeaderValue>> {
        let mut state = self.state();
        match &state.scheme {
            Scheme::Nothing => Some(None),
            Scheme::Basic(header) => Some(Some(header.clone())),
            Scheme::Bearer { .. } => {
                let token = state.tokens.get(scopes).filter(|t| Instant::now() < t.use_until)?;
                Some(Some(token.header.clone()))
            }
        }
    }

    async fn set_basic(&self, used: Option<&HeaderValue>) -> Result<()> {
        let header = match self.store.find(&self.host, &self.repository).await? {
            Some(Credentials::Password { user, password }) => basic(&user, &password)?,
            Some(_) => return Err(self.denied("it wants user name and password, but a token is kept for it")),
            None => return Err(self.denied("it wants a login, and none is kept; log in with `docker login`")),
        };
        if used == Some(&header) {
            return Err(self.denied("it refuses the user name and password kept for it; log in again"));
        }
        self.state().scheme = Scheme::Basic(header);
        Ok(())
    }

    /// A token for `scopes`, from the token server; kept.
    async fn fetch_token(&self, scopes: &Scopes) -> Result<HeaderValue> {
        let Scheme::Bearer { realm, service } = self.state().scheme.clone() else {
            return Err(self.denied("it has asked for no token"));
        };
        let credentials = self.store.find(&self.host, &self.repository).await?;
        if let Some(Credentials::Access(token)) = &credentials {
            // Tried once: a registry that refuses it has nothing else to be offered.
            return self.keep(scopes, token, DEFAULT_LIFETIME);
        }
        let mut backoff = self.http.backoff();
        loop {
            match self.ask(&realm, service.as_deref(), scopes, credentials.as_ref()).await {
                Ok(answer) => {
                    let lifetime = answer.expires_in.map_or(DEFAULT_LIFETIME, Duration::from_secs);
                    let token = answer.token.or(answer.access_token).filter(|t| !t.reveal().is_empty());
                    let token = token.ok_or_else(|| self.denied("its token server sent no token"))?;
                    return self.keep(scopes, &token, lifetime);
                }
                Err(error) => backoff.wait(error).await?,
            }
        }
    }

    /// One question to the token server.
    async fn ask(
        &self,
        realm: &Url,
        service: Option<&str>,
        scopes: &Scopes,
        credentials: Option<&Credentials>,
    ) -> Result<TokenAnswer> {
        let what = format!("token for {}", self.host);
        let mut url = realm.clone();
        let (request, authorization) = match credentials {
            Some(Credentials::Identity(token)) => {
                let form = identity_form(service, scopes, token);
                let request = Request::new(Method::POST, url, &what)
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")?
                    .body(Body::Bytes(form.into()));
                (request, None)
            }
            other => {
                {
                    let mut query = url.query_pairs_mut();
                    query.extend_pairs(service.map(|s| ("service", s)));
                    query.extend_pairs(scopes.0.iter().map(|s| ("scope", s.as_str())));
                }
                let authorization = match other {
                    Some(Credentials::Password { user, password }) => {
                        url.query_pairs_mut().append_pair("account", user);
                        Some(basic(user, password)?)
                    }
                    _ => None,
                };
                (Request::get(url, &what), authorization)
            }
        };
        let mut response = self.http.send(&request, authorization.as_ref()).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                let kept =
                    if credentials.is_some() { "the login kept for it; log in again" } else { "anonymous access" };
                return Err(self.denied(&format!("its token server refuses {kept} ({})", response.status())));
            }
            _ => return Err(self.http.refusal(response, &request.method, &what).await),
        }
        let bytes = self.http.read_all(&mut response, MAX_TOKEN_ANSWER, &what).await?;
        // serde's message may quote the answer.
        serde_json::from_slice(&bytes).map_err(|_| Error::invalid(&what, "the token server's answer is not understood"))
    }

    fn keep(&self, scopes: &Scopes, token: &Secret, lifetime: Duration) -> Result<HeaderValue> {
        let header = sensitive(&format!("Bearer {}", token.reveal()))
            .ok_or_else(|| self.denied("its token cannot be sent in a header"))?;
        let margin = SAFETY_MARGIN.min(lifetime / 2);
        let lifetime = lifetime.min(Duration::from_secs(24 * 3600));
        let use_until = Instant::now() + lifetime.saturating_sub(margin);
        self.state().tokens.put(scopes.clone(), Token { header: header.clone(), use_until });
        Ok(header)
    }

    /// The realm is the registry's word, and the password goes there: never in the clear when the registry is not.
    fn check_realm(&self, realm: &str) -> Result<Url> {
        let url = Url::parse(realm).map_err(|e| self.denied(&format!("it names a bad token server {realm:?}: {e}")))?;
        let loopback = url.host_str().is_some_and(|h| is_loopback_host(h.trim_matches(['[', ']'])));
        match url.scheme() {
            "https" => Ok(url),
            "http" if !self.tls || loopback => Ok(url),
            _ => Err(self.denied(&format!("it names a token server without TLS, {realm:?}; no login is sent there"))),
        }
    }

    fn denied(&self, reason: &str) -> Error {
        Error::Denied { what: format!("registry {}", self.host), reason: reason.to_owned() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("host", &self.host).finish_non_exhaustive()
    }
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

fn basic(user: &str, password: &Secret) -> Result<HeaderValue> {
    let pair = general_purpose::STANDARD.encode(format!("{user}:{}", password.reveal()));
    sensitive(&format!("Basic {pair}")).ok_or_else(|| Error::invalid("login", "it cannot be sent in a header"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;

    #[test]
    fn passwords_stay_encrypted() {
        let auth = |tls| Auth::new(Http::new(&Options::default()), "h.example", "app", tls);
        let table = [
            ("https://auth.example/token", true, true),
            ("http://auth.example/token", true, false),
            ("http://localhost:5001/token", true, true),
            ("http://auth.example/token", false, true),
            ("file:///etc/passwd", false, false),
        ];
        for (realm, tls, allowed) in table {
            assert_eq!(auth(tls).check_realm(realm).is_ok(), allowed, "{realm} {tls}");
        }
        let header = basic("me", &Secret::new("secret-pw".into())).unwrap();
        let shown = format!("{header:?} {:?}", auth(true));
        assert!(!shown.contains("secret") && !shown.contains("bWU6"), "{shown}");
    }

    #[test]
    fn tokens_are_bounded() {
        let auth = Auth::new(Http::new(&Options::default()), "h.example", "app", true);
        auth.state().scheme = Scheme::Bearer { realm: Url::parse("https://a/").unwrap(), service: None };
        for n in 0..1000 {
            auth.keep(&Scopes::pull(&format!("app{n}")), &Secret::new("t".into()), Duration::MAX).unwrap();
        }
        assert_eq!(auth.state().tokens.len(), MAX_TOKENS.get());
        assert!(auth.known(&Scopes::pull("app999")).is_some() && auth.known(&Scopes::pull("app0")).is_none());
        assert!(auth.keep(&Scopes::pull("app"), &Secret::new("a\nb".into()), DEFAULT_LIFETIME).is_err());
    }
}
