//! HTTP as registries need it: clients built when first used, redirects that leave secrets behind, timeouts that watch
//! for progress rather than for the end, least rates, and retries with growing pauses.

mod body;
pub(crate) mod pace;
pub(crate) mod redirect;
mod retry;
mod tls;

use std::{
    error::Error as StdError,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use reqwest::{
    Client, Method, Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, RETRY_AFTER},
    redirect::Policy,
};

pub(crate) use self::{body::Body, retry::Backoff};
use self::{
    pace::{LEAST_RATE, Pace, SMALL},
    redirect::is_loopback,
    tls::Trouble,
};
use crate::{
    error::{Error, Result},
    options::Options,
    shared::{ClientKey, Transport},
};

/// Connections kept for reuse to one host: more than a fetch scheduler has requests under way.
const IDLE_CONNECTIONS: usize = 32;
/// How long an unused connection is kept. Load balancers close theirs after 60 s and more.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Bytes that may be on their way on one HTTP/2 connection unread, for all its requests together: more than is ever asked for at
/// a time, so that bodies nobody reads at the moment never hold up those that somebody waits for.
const CONNECTION_WINDOW: u32 = 64 << 20;
/// The same for one request: 2 MiB keep 1 Gbit/s busy at a round trip of 16 ms.
const STREAM_WINDOW: u32 = 2 << 20;
/// How often an HTTP/2 connection with requests under way is probed, and how long it may take to answer. Its requests share its
/// fate, so a dead one would fail them again and again until TCP gives it up.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of an error answer read for its message.
const MAX_ERROR_BODY: u64 = 16 * 1024;
/// Most characters of a registry's own words shown.
const MAX_ERROR_TEXT: usize = 300;

/// HTTP to one host and to where it sends us. Clients are shared by what they need: plain or TLS, loopback (never through
/// a proxy) or not, and how to connect.
pub(crate) struct Http {
    options: Options,
    /// How the host itself is connected to.
    transport: Transport,
    /// The same for all other hosts: nothing vouches for us there, and their certificates are looked at.
    elsewhere: Transport,
    /// The host; none if nothing special is said of any.
    home: Option<String>,
}

/// A request that can be sent again.
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    /// Names the object in errors.
    pub(crate) what: &'a str,
    /// Longest silence of the server, when more than the stall timeout is due.
    pub(crate) patience: Duration,
    /// Whether somebody else has named the URL, so that it gets nothing of the host's own, whatever its host is.
    pub(crate) away: bool,
}

impl<'a> Request<'a> {
    pub(crate) fn new(method: Method, url: Url, what: &'a str) -> Self {
        let (headers, body, patience) = (HeaderMap::new(), Body::Empty, Duration::ZERO);
        Self { method, url, headers, body, what, patience, away: false }
    }

    pub(crate) fn get(url: Url, what: &'a str) -> Self {
        Self::new(Method::GET, url, what)
    }

    pub(crate) fn header(mut self, name: reqwest::header::HeaderName, value: &str) -> Result<Self> {
        let value = HeaderValue::from_str(value).map_err(|e| Error::invalid(self.what, e))?;
        self.headers.insert(name, value);
        Ok(self)
    }

    pub(crate) fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    pub(crate) fn away(self, away: bool) -> Self {
        Self { away, ..self }
    }
}

impl Http {
    pub(crate) fn new(options: &Options) -> Arc<Self> {
        let transport = Self::usual_transport(options);
        Arc::new(Self { options: options.clone(), elsewhere: transport.clone(), transport, home: None })
    }

    /// The same with another way of connecting to one host, by whatever port. Where that sends us has no use for a client certificate, and
    /// is not trusted unseen; the authorities, which the operator trusts, and the proxy stay the same.
    pub(crate) fn with(options: &Options, transport: Transport, home: &Url) -> Arc<Self> {
        let elsewhere = Transport { identity: None, skip_verify: false, ..transport.clone() };
        let home = home.host_str().map(str::to_owned);
        Arc::new(Self { options: options.clone(), transport, elsewhere, home })
    }

    /// How hosts are connected to of which nothing special is said.
    pub(crate) fn usual_transport(options: &Options) -> Transport {
        let (ca, connect_timeout) = (options.extra_ca.clone(), options.connect_timeout);
        Transport { ca, connect_timeout, ..Transport::default() }
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::new(self.options.attempts)
    }

    /// Sends one request once; no redirects, no retries. `authorization` is added when given.
    pub(crate) async fn send(&self, request: &Request<'_>, authorization: Option<&HeaderValue>) -> Result<Response> {
        let key = self.client_key(&request.url, request.away);
        let client = self.client_by(&key)?;
        let mut headers = request.headers.clone();
        if let Some(value) = authorization {
            headers.insert(AUTHORIZATION, value.clone());
        }
        let mut builder = client.request(request.method.clone(), request.url.clone()).headers(headers);
        let progress = Arc::new(AtomicU64::new(0));
        if let Some(len) = request.body.len() {
            builder = builder.header(CONTENT_LENGTH, len).body(request.body.to_reqwest(&progress));
        }
        let shown = shown_url(&request.url);
        let failed = |e: reqwest::Error| {
            let error = transport_error(request.what, &shown, e);
            if matches!(error, Error::Untrusted { .. }) {
                // Certificates are renewed on disk: the next attempt reads them anew.
                self.options.shared.forget_client(&key);
            }
            error
        };
        let mut answer = std::pin::pin!(builder.send());
        let patience = self.options.stall_timeout.max(request.patience);
        let mut moved = 0;
        loop {
            match tokio::time::timeout(patience, &mut answer).await {
                Ok(answer) => return answer.map_err(failed),
                Err(_) => {
                    let now = progress.load(Ordering::Relaxed);
                    if now == moved {
                        return Err(stalled(request.what, &shown, patience));
                    }
                    moved = now;
                }
            }
        }
    }

    /// The next piece of a body, within the stall timeout.
    pub(crate) async fn chunk(&self, response: &mut Response, what: &str) -> Result<Option<Bytes>> {
        let patience = self.options.stall_timeout;
        match tokio::time::timeout(patience, response.chunk()).await {
            Ok(chunk) => chunk.map_err(|e| transport_error(what, &shown_url(response.url()), e)),
            Err(_) => Err(stalled(what, &shown_url(response.url()), patience)),
        }
    }

    /// [`Self::chunk`] of a body that must keep a pace.
    pub(crate) async fn paced_chunk(
        &self,
        response: &mut Response,
        pace: &mut Pace,
        what: &str,
    ) -> Result<Option<Bytes>> {
        let (since, left) = (Instant::now(), pace.left());
        let chunk = tokio::time::timeout(left, self.chunk(response, what)).await;
        let bytes = chunk.as_ref().ok().and_then(|chunk| chunk.as_ref().ok()?.as_ref()).map_or(0, Bytes::len);
        pace.count(since.elapsed(), bytes);
        chunk.unwrap_or_else(|_| Err(too_slow(what, &shown_url(response.url()))))
    }

    /// A whole body of at most `limit` bytes. It must keep the pace of [`Pace`].
    pub(crate) async fn read_all(&self, response: &mut Response, limit: u64, what: &str) -> Result<Vec<u8>> {
        let too_large = || Error::TooLarge { what: what.to_owned(), limit };
        if response.content_length().is_some_and(|len| len > limit) {
            return Err(too_large());
        }
        let (mut out, mut pace) = (Vec::new(), Pace::new(SMALL.min(self.options.document_timeout)));
        while let Some(chunk) = self.paced_chunk(response, &mut pace, what).await? {
            if (out.len() + chunk.len()) as u64 > limit {
                return Err(too_large());
            }
            out.extend_from_slice(&chunk);
        }
        Ok(out)
    }

    /// Turns an unwelcome answer into the error that it is, with the registry's own words.
    pub(crate) async fn refusal(&self, mut response: Response, method: &Method, what: &str) -> Error {
        let status = response.status();
        let url = shown_url(response.url());
        let retry_after = retry_after(response.headers());
        let detail = match self.read_all(&mut response, MAX_ERROR_BODY, what).await {
            Ok(body) => error_text(&body),
            Err(_) => String::new(),
        };
        let what = what.to_owned();
        match status {
            StatusCode::NOT_FOUND => Error::NotFound { what: format!("{what} ({url})") },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Denied {
                what,
                reason: format!("{url} answered {status}{detail}; check the login for this registry"),
            },
            _ => {
                Error::Status { what, request: format!("{method} {url}"), status: status.as_u16(), detail, retry_after }
            }
        }
    }

    /// A client that may ask `url`.
    pub(crate) fn client(&self, url: &Url) -> Result<Client> {
        self.client_by(&self.client_key(url, false))
    }

    fn client_key(&self, url: &Url, away: bool) -> ClientKey {
        let at_home = !away && self.home.as_deref() == url.host_str();
        let transport = if at_home { &self.transport } else { &self.elsewhere };
        ClientKey::new(url.scheme() == "https", is_loopback(url), transport)
    }

    fn client_by(&self, key: &ClientKey) -> Result<Client> {
        if let Some(client) = self.options.shared.client(key) {
            return Ok(client);
        }
        let client = build(key)?;
        Ok(self.options.shared.keep_client(key.clone(), client))
    }
}

fn build(key: &ClientKey) -> Result<Client> {
    let transport = &key.transport;
    let mut builder = Client::builder()
        .user_agent(concat!("lazo/", env!("CARGO_PKG_VERSION")))
        .redirect(Policy::none())
        .referer(false)
        .connect_timeout(transport.connect_timeout)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_keep_alive_interval(PROBE_INTERVAL)
        .http2_keep_alive_timeout(PROBE_TIMEOUT);
    let mut proxy_tls = false;
    match &transport.proxy {
        Some(proxy) => {
            proxy_tls = proxy.starts_with("https:");
            let proxy = reqwest::Proxy::all(proxy).map_err(|e| Error::invalid("proxy", chain(&e.without_url())))?;
            builder = builder.proxy(proxy);
        }
        None if key.loopback => builder = builder.no_proxy(),
        None => proxy_tls = environment_proxy_needs_tls(),
    }
    // A plain connection may still go through an https:// proxy.
    let tls = if key.tls || proxy_tls { tls::config(transport)? } else { tls::no_config()? };
    builder.tls_backend_preconfigured(tls).build().map_err(|e| Error::invalid("HTTP client", chain(&e)))
}

fn environment_proxy_needs_tls() -> bool {
    ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]
        .iter()
        .any(|name| std::env::var(name).is_ok_and(|value| value.starts_with("https:")))
}

/// A URL without what may be secret: user information, query (signatures, upload state), fragment.
pub(crate) fn shown_url(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Fails for URLs that cannot have user information.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

/// Whether both URLs lead to the same server by the same protocol.
pub(crate) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host() == b.host() && a.port_or_known_default() == b.port_or_known_default()
}

fn stalled(what: &str, url: &str, patience: Duration) -> Error {
    let reason = format!("no byte moved for {patience:?}");
    Error::transport(what, url, io::Error::new(io::ErrorKind::TimedOut, reason))
}

fn too_slow(what: &str, url: &str) -> Error {
    let reason = format!("its bytes come more slowly than {} KiB a second", LEAST_RATE >> 10);
    Error::transport(what, url, io::Error::new(io::ErrorKind::TimedOut, reason))
}

fn transport_error(what: &str, url: &str, error: reqwest::Error) -> Error {
    let error = error.without_url();
    if error.is_builder() {
        return Error::invalid(what, chain(&error));
    }
    match tls::trouble(&error) {
        Some(Trouble::Untrusted(reason)) => Error::Untrusted { what: what.to_owned(), url: url.to_owned(), reason },
        Some(Trouble::NotTls) => Error::NotTls { what: what.to_owned(), url: url.to_owned() },
        None => Error::transport(what, url, error),
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// The wait that `Retry-After` asks for, in seconds or as a date; none for a date that has passed.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    Some(until.duration_since(SystemTime::now()).unwrap_or_default())
}

/// `: CODE: message` of a registry's JSON error, cleaned and bounded; empty when there is none.
pub(crate) fn error_text(body: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &json["errors"][0];
    let parts: Vec<&str> = ["code", "message"].iter().filter_map(|key| error[key].as_str()).collect();
    if parts.is_empty() {
        return String::new();
    }
    let clean = parts.join(": ").chars().filter(|c| !c.is_control()).take(MAX_ERROR_TEXT).collect::<String>();
    format!(": {clean}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_no_secrets() {
        let url = Url::parse("https://user:pw@cdn.example/b?X-Amz-Signature=abc#f").unwrap();
        assert_eq!(shown_url(&url), "https://cdn.example/b");
    }

    #[test]
    fn tells_origins_apart() {
        let same = |a: &str, b: &str| same_origin(&Url::parse(a).unwrap(), &Url::parse(b).unwrap());
        assert!(same("https://a/x", "https://a:443/y"));
        assert!(!same("https://a/x", "http://a/x"));
        assert!(!same("https://a/x", "https://a:444/x"));
        assert!(!same("https://a/x", "https://b/x"));
    }

    #[test]
    fn reads_retry_after() {
        let wait = |value: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(value).unwrap())]);
            retry_after(&headers)
        };
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("soon"), None);
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(30));
        let asked = wait(&date).unwrap();
        assert!(asked > Duration::from_secs(25) && asked <= Duration::from_secs(30), "{asked:?}");
    }

    #[test]
    fn reads_a_registrys_words() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no\u0007 access"}]}"#;
        assert_eq!(error_text(body), ": DENIED: no access");
        assert_eq!(error_text(b"<html>"), "");
        assert_eq!(error_text(b"{}"), "");
    }
}
