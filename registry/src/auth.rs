//! Logging in: basic credentials and bearer tokens, asked for only when a registry wants them.

pub(crate) mod challenge;
pub(crate) mod credentials;
pub(crate) mod helper;
pub(crate) mod keep;
#[cfg(test)]
mod tests;
mod token;

use std::{
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lru::LruCache;
use reqwest::{
    StatusCode, Url,
    header::{HeaderMap, HeaderValue},
};
use tokio::{sync::OwnedMutexGuard, task::JoinHandle};

pub(crate) use self::token::{Scopes, TokenAnswer, bearer, token_server, usable};
use self::{
    challenge::{Bearer, Challenges},
    credentials::{Credentials, Secret, Store},
    token::{DEFAULT_LIFETIME, basic, question},
};
use crate::{
    error::{Error, Result},
    http::{Http, redirect::is_loopback, same_origin},
};

/// Tokens kept: one a set of scopes, of which a source or destination has a handful.
const MAX_TOKENS: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");
/// Largest answer of a token server, bytes. Tokens that list many rights reach some tens of kilobytes.
const MAX_TOKEN_ANSWER: u64 = 1 << 20;
/// The login to one repository of one host. Clones share it.
///
/// Credentials are read anew for each renewal. Renewals run one at a time and to their end, even when the request that asked
/// for one is given up; those that wait for one share its outcome, an error included.
#[derive(Clone)]
pub(crate) struct Auth(Arc<Inner>);

struct Inner {
    store: Store,
    site: Site,
    state: Mutex<State>,
    /// Held while credentials or a token are being fetched.
    renewal: Arc<tokio::sync::Mutex<()>>,
}

/// Whom the login is for.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    /// Under which its login is kept.
    pub(crate) host: String,
    pub(crate) repository: String,
    /// Whether requests to the host itself are encrypted.
    pub(crate) tls: bool,
    /// A mirror may keep the repository under another name; the scopes that it asks for are taken as they are.
    pub(crate) mirror: bool,
    /// Headers for the host itself, sent to its token server as well when that is the same server.
    pub(crate) headers: HeaderMap,
    /// API address of the repository.
    pub(crate) base: Url,
}

struct State {
    scheme: Scheme,
    tokens: LruCache<Scopes, Token>,
    /// What the last failed renewal came to, for those that waited for it.
    failure: Option<Failure>,
    /// Who gave no token just now. When the registry names no other, asking again at once is of no use.
    given_up: Option<Issuer>,
}

struct Failure {
    scopes: Scopes,
    /// Whether it only says that there are no other credentials to try.
    forbidden: bool,
    at: Instant,
    error: Error,
}

/// What the registry has asked for so far.
#[derive(Clone)]
enum Scheme {
    Nothing,
    Basic(HeaderValue),
    Bearer(Issuer),
}

/// Who issues tokens.
#[derive(Clone, PartialEq, Eq)]
struct Issuer {
    realm: Url,
    service: Option<String>,
    /// What a mirror asked for.
    scope: Option<String>,
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    /// The credentials that it was issued for.
    credentials: Option<Credentials>,
    renew_from: Instant,
    use_until: Instant,
}

/// What is known without asking anyone.
enum Known {
    /// The registry has not asked for a login so far.
    NoneNeeded,
    Header(HeaderValue),
    /// A token that should be renewed soon.
    Ageing(HeaderValue),
    /// A token must be fetched first.
    Missing,
}

impl Known {
    fn header(self) -> Option<HeaderValue> {
        match self {
            Self::Header(header) | Self::Ageing(header) => Some(header),
            Self::NoneNeeded | Self::Missing => None,
        }
    }
}

/// Why credentials or a token are fetched.
enum Cause {
    /// The token is missing, or near its end.
    Age,
    /// A 401.
    Challenge(Challenges),
    /// A 403: worth another attempt only with other credentials than before.
    Forbidden,
}

impl Auth {
    pub(crate) fn new(store: Store, site: Site) -> Self {
        let tokens = LruCache::new(MAX_TOKENS);
        let state = Mutex::new(State { scheme: Scheme::Nothing, tokens, failure: None, given_up: None });
        Self(Arc::new(Inner { store, site, state, renewal: Arc::default() }))
    }

    /// The `Authorization` header for a request, as far as the registry has asked for one.
    pub(crate) async fn header(&self, http: &Arc<Http>, scopes: &Scopes) -> Result<Option<HeaderValue>> {
        match self.0.known(scopes) {
            Known::NoneNeeded => Ok(None),
            Known::Header(header) => Ok(Some(header)),
            Known::Ageing(header) => {
                if let Ok(turn) = self.0.renewal.clone().try_lock_owned() {
                    // Should it fail, the request that comes after the token's end tries again, and tells.
                    drop(self.spawn(turn, http, scopes.clone(), Cause::Age, None));
                }
                Ok(Some(header))
            }
            Known::Missing => match self.renew(http, scopes, Cause::Age, None).await {
                Ok(header) => Ok(header),
                Err(error) => {
                    // Its token server may have moved: the registry's own answer says where to.
                    tracing::debug!(%error, "no new token; asking without one");
                    self.0.forget_issuer(scopes);
                    Ok(None)
                }
            },
        }
    }

    /// Whether the registry has asked for a login so far.
    pub(crate) fn is_wanted(&self) -> bool {
        !matches!(self.0.state().scheme, Scheme::Nothing)
    }

    /// Learns from a 401 that came in spite of `used`; what to try instead.
    ///
    /// # Errors
    /// When there is nothing else to offer, or a token cannot be had.
    pub(crate) async fn challenged(
        &self,
        http: &Arc<Http>,
        headers: &HeaderMap,
        scopes: &Scopes,
        used: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>> {
        let challenge = challenge::known(headers)
            .ok_or_else(|| self.0.denied("the registry wants a login of a kind unknown here, or does not say which"))?;
        self.renew(http, scopes, Cause::Challenge(challenge), used).await
    }

    /// After a 403 in spite of `used`: what to try instead, if the credentials are not those any more that `used` came from.
    /// Some registries answer so when a login has expired.
    pub(crate) async fn forbidden(&self, http: &Arc<Http>, scopes: &Scopes, used: &HeaderValue) -> Option<HeaderValue> {
        match self.renew(http, scopes, Cause::Forbidden, Some(used)).await {
            Ok(header) => header,
            Err(error) => {
                tracing::debug!(%error, "no other login to try after a 403");
                None
            }
        }
    }

    async fn renew(
        &self,
        http: &Arc<Http>,
        scopes: &Scopes,
        cause: Cause,
        used: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>> {
        let since = Instant::now();
        let turn = self.0.renewal.clone().lock_owned().await;
        if let Some(settled) = self.0.settled(scopes, matches!(cause, Cause::Forbidden), used, since) {
            return settled.map(Some);
        }
        match self.spawn(turn, http, scopes.clone(), cause, used.cloned()).await {
            Ok(result) => result,
            Err(error) => Err(Error::io("a login did not end", std::io::Error::other(error))),
        }
    }

    /// Fetches credentials or a token in a task of its own; `turn` is held meanwhile.
    fn spawn(
        &self,
        turn: OwnedMutexGuard<()>,
        http: &Arc<Http>,
        scopes: Scopes,
        cause: Cause,
        used: Option<HeaderValue>,
    ) -> JoinHandle<Result<Option<HeaderValue>>> {
        let (inner, http) = (self.0.clone(), http.clone());
        let forbidden = matches!(cause, Cause::Forbidden);
        tokio::spawn(async move {
            let limit = http.options().document_timeout;
            let result = tokio::time::timeout(limit, inner.obtain(&http, &scopes, cause, used.as_ref())).await;
            let result = result.unwrap_or_else(|_| Err(inner.late(limit)));
            if let Err(error) = &result {
                let failure = Failure { scopes, forbidden, at: Instant::now(), error: error.duplicate() };
                inner.state().failure = Some(failure);
            }
            drop(turn);
            result
        })
    }
}

impl Inner {
    fn known(&self, scopes: &Scopes) -> Known {
        let mut state = self.state();
        match &state.scheme {
            Scheme::Nothing => Known::NoneNeeded,
            Scheme::Basic(header) => Known::Header(header.clone()),
            Scheme::Bearer(_) => {
                let now = Instant::now();
                match state.tokens.get(scopes).filter(|t| now < t.use_until) {
                    Some(token) if now < token.renew_from => Known::Header(token.header.clone()),
                    Some(token) => Known::Ageing(token.header.clone()),
                    None => Known::Missing,
                }
            }
        }
    }

    /// What someone else's renewal came to while this one waited `since` then for its turn.
    fn settled(
        &self,
        scopes: &Scopes,
        forbidden: bool,
        used: Option<&HeaderValue>,
        since: Instant,
    ) -> Option<Result<HeaderValue>> {
        if let Some(header) = self.known(scopes).header()
            && used != Some(&header)
        {
            return Some(Ok(header));
        }
        let state = self.state();
        let same = |f: &&Failure| f.scopes == *scopes && f.forbidden == forbidden && f.at >= since;
        let failure = state.failure.as_ref().filter(same)?;
        Some(Err(failure.error.duplicate()))
    }

    async fn obtain(
        &self,
        http: &Http,
        scopes: &Scopes,
        cause: Cause,
        used: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>> {
        let credentials = self.store.find(&self.site.host, &self.site.repository, &http.options().helpers).await?;
        match cause {
            Cause::Age => {}
            Cause::Challenge(Challenges { bearer: None, .. }) => return self.set_basic(credentials, used).map(Some),
            Cause::Challenge(Challenges { bearer: Some(bearer), basic }) => {
                let token = self.token_of(http, scopes, bearer, credentials.clone(), used).await;
                return match (token, credentials) {
                    // Where a password serves as well, a token server that gives nothing is no obstacle.
                    (Err(error), password @ Some(Credentials::Password { .. })) if basic => {
                        tracing::debug!(%error, "no token; the registry takes a password as well");
                        self.set_basic(password, used).map(Some)
                    }
                    (token, _) => token.map(Some),
                };
            }
            Cause::Forbidden => {
                let scheme = self.state().scheme.clone();
                match scheme {
                    Scheme::Nothing => return Ok(None),
                    Scheme::Basic(_) => return self.set_basic(credentials, used).map(Some),
                    Scheme::Bearer(_) => {
                        let mut state = self.state();
                        if state.tokens.peek(scopes).is_some_and(|t| t.credentials == credentials) {
                            return Err(self.denied("the login kept for it has not changed"));
                        }
                        state.tokens.pop(scopes);
                    }
                }
            }
        }
        self.fresh_token(http, scopes, credentials, used).await.map(Some)
    }

    /// A token from the server that a challenge names.
    async fn token_of(
        &self,
        http: &Http,
        scopes: &Scopes,
        Bearer { realm, service, scope }: Bearer,
        credentials: Option<Credentials>,
        used: Option<&HeaderValue>,
    ) -> Result<HeaderValue> {
        let issuer = Issuer { realm: self.check_realm(&realm)?, service, scope: scope.filter(|_| self.site.mirror) };
        {
            let mut state = self.state();
            state.tokens.pop(scopes);
            state.scheme = Scheme::Bearer(issuer.clone());
            if state.given_up.take() == Some(issuer)
                && let Some(failure) = state.failure.as_ref().filter(|f| f.scopes == *scopes)
            {
                return Err(failure.error.duplicate());
            }
        }
        self.fresh_token(http, scopes, credentials, used).await
    }

    async fn fresh_token(
        &self,
        http: &Http,
        scopes: &Scopes,
        credentials: Option<Credentials>,
        used: Option<&HeaderValue>,
    ) -> Result<HeaderValue> {
        let fresh = self.fetch_token(http, scopes, credentials).await?;
        if used == Some(&fresh) {
            return Err(self.denied("it refuses the token kept for it; log in again"));
        }
        Ok(fresh)
    }

    /// Has the next request made without a token, unless there is one by now.
    fn forget_issuer(&self, scopes: &Scopes) {
        let mut state = self.state();
        if state.tokens.peek(scopes).is_some_and(|token| Instant::now() < token.use_until) {
            return;
        }
        match std::mem::replace(&mut state.scheme, Scheme::Nothing) {
            Scheme::Bearer(issuer) => state.given_up = Some(issuer),
            other => state.scheme = other,
        }
    }

    fn set_basic(&self, credentials: Option<Credentials>, used: Option<&HeaderValue>) -> Result<HeaderValue> {
        let header = match credentials {
            Some(Credentials::Password { user, password }) => basic(&user, &password)?,
            Some(_) => return Err(self.denied("it wants user name and password, but a token is kept for it")),
            None => {
                return Err(
                    self.denied("it wants a login, and none is kept; log in with `lazo login` or `docker login`")
                );
            }
        };
        if used == Some(&header) {
            return Err(self.denied("it refuses the user name and password; log in again"));
        }
        self.state().scheme = Scheme::Basic(header.clone());
        Ok(header)
    }

    async fn fetch_token(&self, http: &Http, scopes: &Scopes, credentials: Option<Credentials>) -> Result<HeaderValue> {
        let Scheme::Bearer(issuer) = self.state().scheme.clone() else {
            return Err(self.denied("it no longer wants a token"));
        };
        if let Some(Credentials::Access(token)) = &credentials {
            // Used as it is: a registry that refuses it has nothing else to be offered.
            let token = token.clone();
            return self.keep(scopes, &token, credentials, DEFAULT_LIFETIME);
        }
        let answer = self.ask(http, &issuer, scopes, credentials.as_ref()).await?;
        let token = answer.token().ok_or_else(|| self.denied("its token server sent no token"))?;
        self.keep(scopes, token, credentials, answer.lifetime())
    }

    /// One question to the token server.
    async fn ask(
        &self,
        http: &Http,
        issuer: &Issuer,
        scopes: &Scopes,
        credentials: Option<&Credentials>,
    ) -> Result<TokenAnswer> {
        let what = format!("token for {}", self.site.host);
        let asked = issuer.scope.clone().map(Scopes::asked);
        let scopes = asked.as_ref().unwrap_or(scopes);
        let (mut request, authorization) =
            question(&what, &issuer.realm, issuer.service.as_deref(), scopes, credentials)?;
        if same_origin(&issuer.realm, &self.site.base) {
            let own = std::mem::replace(&mut request.headers, self.site.headers.clone());
            request.headers.extend(own);
        }
        let mut response = http.send(&request, authorization.as_ref()).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                let kept = if credentials.is_some() { "the login; log in again" } else { "anonymous access" };
                return Err(self.denied(&format!("its token server refuses {kept} ({})", response.status())));
            }
            _ => return Err(http.refusal(response, &request.method, &what).await),
        }
        let bytes = http.read_all(&mut response, MAX_TOKEN_ANSWER, &what).await?;
        TokenAnswer::parse(&bytes).ok_or_else(|| Error::invalid(&what, "the token server's answer is not understood"))
    }

    fn keep(
        &self,
        scopes: &Scopes,
        token: &Secret,
        credentials: Option<Credentials>,
        lifetime: Duration,
    ) -> Result<HeaderValue> {
        let header = bearer(token).ok_or_else(|| self.denied("its token cannot be sent in a header"))?;
        let (renew_after, usable) = usable(lifetime);
        let now = Instant::now();
        let (renew_from, use_until) = (now + renew_after, now + usable);
        let token = Token { header: header.clone(), credentials, renew_from, use_until };
        self.state().tokens.put(scopes.clone(), token);
        Ok(header)
    }

    /// The realm is the registry's word, and the password goes there: never in the clear when the registry is not.
    fn check_realm(&self, realm: &str) -> Result<Url> {
        token_server(realm, self.site.tls, is_loopback(&self.site.base)).map_err(|reason| self.denied(&reason))
    }

    fn late(&self, after: Duration) -> Error {
        let reason = std::io::Error::new(std::io::ErrorKind::TimedOut, format!("none came within {after:.1?}"));
        Error::transport(format_args!("token for {}", self.site.host), &self.site.base, reason)
    }

    fn denied(&self, reason: &str) -> Error {
        Error::Denied { what: format!("registry {}", self.site.host), reason: reason.to_owned() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("host", &self.0.site.host).finish_non_exhaustive()
    }
}
