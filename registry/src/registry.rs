//! The distribution API of one repository: reading. Writing is in [`upload`].

mod download;
mod faces;
pub(crate) mod range;
pub(crate) mod targets;
pub(crate) mod upload;

pub(crate) use self::{
    download::{Senders, download, foreign},
    range::{Body as RangeBody, accept, answer, range_header},
    upload::Content,
};

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use lazo_format::Digest;
use oci_spec::image::{Descriptor, MediaType};
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName},
};

use self::{
    faces::{Answer, Face, Faces, is_registrys, leads_to},
    targets::Targets,
};
use crate::{
    auth::{Auth, Scopes, Site, credentials::Store},
    document::{Document, MAX_DOCUMENT, check_digest, descriptor, digest_of, media_type_within},
    error::{Error, ErrorKind, Result},
    hosts::{Abilities, HostConfig, Server},
    http::{
        Body, Http, Request,
        redirect::{Way, is_redirect},
    },
    media,
    options::Options,
    reference::DockerRef,
    shared::{LoginKey, Transport},
};

/// Logins tried for one request: an expired token, then a fresh one.
const MAX_LOGINS: usize = 2;
/// How long a host that failed is asked after the others: about what a restart takes.
const REST: Duration = Duration::from_secs(30);
/// Header by which a registry names the digest of what it sends or has stored.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// One repository of a registry.
#[derive(Clone)]
pub(crate) struct Registry(Arc<Inner>);

struct Inner {
    http: Arc<Http>,
    faces: Faces,
    reference: DockerRef,
    /// The registry whose images are asked for, where this host is another one.
    namespace: Option<String>,
    /// For requests to this host, and to no other.
    headers: HeaderMap,
    /// Whether redirects are followed that others could forge.
    insecure_redirects: bool,
    may: Abilities,
    name: String,
    targets: Targets,
    /// Until when the host is asked last, after a failure.
    resting: Mutex<Option<Instant>>,
}

/// A request to the registry, to be sent as often as needed.
struct Call<'a> {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Body,
    scopes: Scopes,
    what: &'a str,
    patience: Duration,
    /// The blob asked for, of which the place may be known.
    blob: Option<Digest>,
}

impl<'a> Call<'a> {
    fn new(method: Method, url: Url, scopes: Scopes, what: &'a str) -> Self {
        let (headers, body, patience) = (HeaderMap::new(), Body::Empty, Duration::ZERO);
        Self { method, url, headers, body, scopes, what, patience, blob: None }
    }

    fn header(mut self, name: HeaderName, value: &str) -> Result<Self> {
        let value = value.parse().map_err(|e| Error::invalid(self.what, e))?;
        self.headers.insert(name, value);
        Ok(self)
    }
}

impl Registry {
    /// The repository of `reference` at one of its hosts.
    pub(crate) fn new(reference: &DockerRef, host: &HostConfig, options: &Options) -> Result<Self> {
        let way = Approach::new(reference, host, options);
        let Approach { server: Server { tls, authority, path }, mirror, other, transport } = &way;
        let scheme = |tls| if tls { "https" } else { "http" };
        let face = |tls: bool| {
            let base = format!("{}://{authority}{path}/{}/", scheme(tls), reference.repository);
            let base = Url::parse(&base).map_err(|e| Error::invalid(format_args!("registry {authority}"), e))?;
            let auth = login(reference, host, options, &way, (tls, &base));
            Ok(Face { base, auth })
        };
        let (usual, other) = (face(*tls)?, other.then(|| face(!tls)).transpose()?);
        let http = Http::with(options, transport.clone(), &usual.base);
        let name = match (*mirror, path.as_str()) {
            (false, _) => format!("docker://{}/{}", reference.host, reference.repository),
            (true, "/v2") => format!("{}://{authority}", scheme(*tls)),
            (true, path) => format!("{}://{authority}{path}", scheme(*tls)),
        };
        let by_tls = *tls || other.is_some();
        let unseen = options.insecure && !mirror && transport.skip_verify && by_tls;
        if unseen && options.shared.is_first_insecure(authority) {
            let plain = if other.is_some() { ", and plain HTTP is spoken if it has no TLS" } else { "" };
            tracing::warn!(host = authority, "its certificate is not looked at{plain}");
        }
        let faces = Faces { usual, other, authority: authority.clone(), shared: options.shared.clone() };
        Ok(Self(Arc::new(Inner {
            http,
            faces,
            reference: reference.clone(),
            namespace: mirror.then(|| reference.host.clone()),
            headers: host.headers.clone(),
            insecure_redirects: host.insecure_redirects.unwrap_or(options.insecure_redirects),
            may: host.may,
            name,
            targets: Targets::new(),
            resting: Mutex::new(None),
        })))
    }

    pub(crate) fn reference(&self) -> &DockerRef {
        &self.0.reference
    }

    /// The registry's as references name it, without tag and digest; a mirror's is its address.
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// Host and port, where this is another host than the one that the reference names.
    pub(crate) fn stands_in(&self) -> Option<&str> {
        self.0.namespace.as_ref().map(|_| self.0.faces.authority.as_str())
    }

    pub(crate) fn may(&self) -> Abilities {
        self.0.may
    }

    pub(crate) fn http(&self) -> &Arc<Http> {
        &self.0.http
    }

    /// Whether the host failed a short while ago.
    pub(crate) fn is_resting(&self) -> bool {
        self.0.resting.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }

    /// Has the host asked last for a while, if `error` says that it does not work well.
    pub(crate) fn rest_after(&self, error: &Error) {
        if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Local) {
            *self.0.resting.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + REST);
        }
    }

    pub(crate) fn blob_name(&self, digest: &Digest) -> String {
        format!("blob {digest} of {}/{}", self.0.reference.host, self.0.reference.repository)
    }

    fn manifest_name(&self, reference: &str) -> String {
        let DockerRef { host, repository, .. } = &self.0.reference;
        let separator = if reference.contains(':') { '@' } else { ':' };
        format!("manifest {host}/{repository}{separator}{reference}")
    }

    fn url(&self, path: &str) -> Result<Url> {
        let mut url = self.0.faces.now().base.join(path).map_err(|e| Error::invalid(path, e))?;
        if let Some(namespace) = &self.0.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    fn blob_url(&self, digest: &Digest) -> Result<Url> {
        // "./" keeps the digest's colon from being taken for a scheme's.
        self.url(&format!("./blobs/{digest}"))
    }

    fn manifest_url(&self, reference: &str) -> Result<Url> {
        self.url(&format!("./manifests/{reference}"))
    }

    fn pull(&self) -> Scopes {
        Scopes::pull(&self.0.reference.repository)
    }

    /// Sends a call once, logging in and following redirects as needed. Any status is an answer but a redirect, and 401 and
    /// 403 as long as there is another login to try.
    async fn call(&self, call: &Call<'_>) -> Result<Response> {
        let Some(digest) = call.blob else {
            return Ok(self.pursue(call, call.url.clone()).await?.0);
        };
        if let Some(lease) = self.0.targets.lease(&digest) {
            let known = lease.url.clone();
            match self.pursue(call, known).await {
                Ok((response, _)) if lease.accepts(&response) => return Ok(response),
                Ok(_) => tracing::debug!(what = call.what, "a redirect has ended; asking the registry again"),
                Err(error) => tracing::debug!(%error, "a redirect leads nowhere now; asking the registry again"),
            }
        }
        let (response, lifetime) = self.pursue(call, call.url.clone()).await?;
        if let Some(lifetime) = lifetime.filter(|_| response.status().is_success()) {
            self.0.targets.keep(&digest, response.url().clone(), lifetime);
        }
        Ok(response)
    }

    /// [`Self::call`] from `url` on; also for how long the redirects hold, if there were any.
    async fn pursue(&self, call: &Call<'_>, url: Url) -> Result<(Response, Option<Duration>)> {
        let faces = &self.0.faces;
        let face = faces.now();
        let first = self.pursue_at(face, call, faces.at(face, &url)).await;
        let Some(other) = faces.instead_of(face).filter(|other| first.is_suspect(face, other)) else {
            return first.result;
        };
        let second = self.pursue_at(other, call, faces.at(other, &url)).await;
        if second.is_registrys {
            faces.remember(other);
        }
        if second.counts_more(other, face, &first) { second.result } else { first.result }
    }

    /// [`Self::pursue`] with the host asked by TLS or not, as `face` has it.
    async fn pursue_at(&self, face: &Face, call: &Call<'_>, url: Url) -> Answer {
        let mut is_registrys = false;
        let result = self.follow(face, call, url, &mut is_registrys).await;
        Answer { result, is_registrys }
    }

    /// Logs in and follows redirects; and notes whether the host has answered as registries do.
    async fn follow(
        &self,
        face: &Face,
        call: &Call<'_>,
        url: Url,
        noted: &mut bool,
    ) -> Result<(Response, Option<Duration>)> {
        let (http, auth) = (&self.0.http, &face.auth);
        let mut way = Way::new(call.what, url, &face.base, self.0.insecure_redirects);
        let (mut logins, mut reconsidered) = (0, false);
        let mut lifetime = None;
        // What to log in with now, when that has just been found out.
        let mut fresh = None;
        loop {
            let own = !way.is_away();
            // Storage behind a redirect has its own signature in the URL; a login is only for the registry itself.
            let authorization = match fresh.take() {
                Some(header) if own => Some(header),
                _ if own => auth.header(http, &call.scopes).await?,
                _ => None,
            };
            let response = http.send(&self.request(call, way.url(), own), authorization.as_ref()).await?;
            let status = response.status();
            // Storage that sends what was asked for has been named by a registry.
            *noted |= if own { is_registrys(&response) } else { status.is_success() };
            if own && self.0.faces.instead_of(face).is_some_and(|other| leads_to(&response, other)) {
                return Ok((response, lifetime));
            }
            if status == StatusCode::UNAUTHORIZED && own && logins < MAX_LOGINS {
                logins += 1;
                fresh = auth.challenged(http, response.headers(), &call.scopes, authorization.as_ref()).await?;
            } else if let (StatusCode::FORBIDDEN, Some(used), false) = (status, &authorization, reconsidered) {
                reconsidered = true;
                fresh = auth.forbidden(http, &call.scopes, used).await;
                if fresh.is_none() {
                    return Ok((response, lifetime));
                }
            } else if is_redirect(status) && matches!(call.method, Method::GET | Method::HEAD) {
                way.follow(&response)?;
                let holds = targets::lifetime(response.headers(), way.url());
                lifetime = Some(lifetime.map_or(holds, |l: Duration| l.min(holds)));
            } else {
                return Ok((response, lifetime));
            }
        }
    }

    fn request<'a>(&self, call: &Call<'a>, url: &Url, own: bool) -> Request<'a> {
        let mut headers = if own { self.0.headers.clone() } else { HeaderMap::new() };
        headers.extend(call.headers.clone());
        let (method, url, body) = (call.method.clone(), url.clone(), call.body.clone());
        Request { method, url, headers, body, what: call.what, patience: call.patience, away: !own }
    }

    /// [`Self::call`], with every status but `accepted` an error.
    async fn expect(&self, call: &Call<'_>, accepted: &[StatusCode]) -> Result<Response> {
        let response = self.call(call).await?;
        if accepted.contains(&response.status()) {
            return Ok(response);
        }
        Err(self.0.http.refusal(response, &call.method, call.what).await)
    }

    /// [`Self::expect`], again after transient errors.
    async fn persist(&self, call: &Call<'_>, accepted: &[StatusCode]) -> Result<Response> {
        let mut backoff = self.0.http.backoff();
        loop {
            match self.expect(call, accepted).await {
                Ok(response) => return Ok(response),
                Err(error) => backoff.wait(error).await?,
            }
        }
    }

    /// Asks to be let in; whether a login was wanted for that.
    pub(crate) async fn enter(&self) -> Result<bool> {
        let what = format!("registry {}", self.0.reference.host);
        let base = &self.0.faces.now().base;
        let mut url = base.clone();
        url.set_path(base.path().strip_suffix(&format!("{}/", self.0.reference.repository)).unwrap_or("/v2/"));
        self.persist(&Call::new(Method::GET, url, Scopes::none(), &what), &[StatusCode::OK]).await?;
        Ok(self.0.faces.now().auth.is_wanted())
    }

    /// The manifest or index by tag or digest, in one attempt.
    pub(crate) async fn manifest(&self, reference: &str, expected: Option<&Descriptor>) -> Result<Document> {
        let what = self.manifest_name(reference);
        let call = Call::new(Method::GET, self.manifest_url(reference)?, self.pull(), &what)
            .header(ACCEPT, media::MANIFEST_ACCEPT)?;
        let (headers, bytes) = self.read_document(&call).await?;
        if let Some(expected) = expected {
            return Document { descriptor: expected.clone(), bytes }.check(&what);
        }
        let digest = match (reference.parse::<Digest>(), content_digest(&headers)) {
            (Ok(digest), _) | (Err(_), Some(digest)) => {
                check_digest(&what, &digest, &bytes)?;
                digest
            }
            (Err(_), None) => Digest::sha256_of(&bytes),
        };
        let media_type = media_type(&headers, &bytes, &what)?;
        Ok(Document { descriptor: descriptor(media_type, &digest, bytes.len() as u64), bytes })
    }

    async fn read_document(&self, call: &Call<'_>) -> Result<(HeaderMap, Vec<u8>)> {
        let mut response = self.expect(call, &[StatusCode::OK]).await?;
        let bytes = self.0.http.read_all(&mut response, MAX_DOCUMENT, call.what).await?;
        Ok((response.headers().clone(), bytes))
    }

    /// The digest that a tag stands for, in one attempt; without the manifest where the registry says it in a header.
    pub(crate) async fn manifest_digest(&self, tag: &str) -> Result<Digest> {
        let what = self.manifest_name(tag);
        let call = Call::new(Method::HEAD, self.manifest_url(tag)?, self.pull(), &what)
            .header(ACCEPT, media::MANIFEST_ACCEPT)?;
        let response = self.expect(&call, &[StatusCode::OK]).await?;
        match content_digest(response.headers()) {
            Some(digest) => Ok(digest),
            None => self.manifest(tag, None).await?.digest(),
        }
    }

    /// A small blob, a config for instance, or a manifest, in one attempt.
    pub(crate) async fn document(&self, expected: &Descriptor) -> Result<Document> {
        let media_type = expected.media_type();
        if media::is_index(media_type) || media::is_manifest(media_type) {
            return self.manifest(expected.digest().as_ref(), Some(expected)).await;
        }
        let digest = digest_of(expected)?;
        let what = self.blob_name(&digest);
        if expected.size() > MAX_DOCUMENT {
            return Err(Error::TooLarge { what, limit: MAX_DOCUMENT });
        }
        let call = Call::new(Method::GET, self.blob_url(&digest)?, self.pull(), &what);
        let (_, bytes) = self.read_document(&call).await?;
        Document { descriptor: expected.clone(), bytes }.check(&what)
    }
}

/// How a host is come to.
struct Approach {
    server: Server,
    /// Whether it is another host than the one that the reference names.
    mirror: bool,
    /// Whether the host may speak TLS or plain HTTP otherwise than `server` has it, which is to be found out.
    other: bool,
    transport: Transport,
}

impl Approach {
    fn new(reference: &DockerRef, host: &HostConfig, options: &Options) -> Self {
        let server = host.server.clone().unwrap_or_else(|| usual_server(reference, host, options));
        let mirror = server.authority != reference.api_host();
        let insecure = options.insecure && !mirror;
        let open = reference.is_loopback() && !options.loopback_tls && !host.speaks_tls();
        let other = host.server.is_none() && !options.plain_http && (open || insecure);
        let mut transport = transport(host, options);
        transport.skip_verify = host.skip_verify.unwrap_or(insecure);
        Self { server, mirror, other, transport }
    }
}

/// The login for one host by one scheme, shared by all that ask it so.
fn login(
    reference: &DockerRef,
    host: &HostConfig,
    options: &Options,
    way: &Approach,
    (tls, base): (bool, &Url),
) -> Auth {
    let mut store = Store::new(options);
    // The login for the registry goes to no mirror.
    if !way.mirror {
        store = store.with_own(options.login.clone(), options.token_file.clone());
    }
    let site = Site {
        host: if way.mirror { way.server.authority.clone() } else { reference.host.clone() },
        repository: reference.repository.clone(),
        tls,
        mirror: way.mirror,
        headers: host.headers.clone(),
        base: base.clone(),
    };
    let key = LoginKey { base: base.to_string(), store: store.clone(), transport: way.transport.clone() };
    options.shared.login(key, || Auth::new(store, site))
}

/// The registry by its name, where nothing else is said.
fn usual_server(reference: &DockerRef, host: &HostConfig, options: &Options) -> Server {
    let plain = if reference.is_loopback() {
        // Certificates for a local registry say that it speaks TLS.
        !options.loopback_tls && !host.speaks_tls()
    } else {
        options.plain_http
    };
    Server { tls: !plain, authority: reference.api_host().to_owned(), path: "/v2".to_owned() }
}

/// How to connect to a host.
fn transport(host: &HostConfig, options: &Options) -> Transport {
    let mut transport = Http::usual_transport(options);
    transport.ca.extend(host.ca.iter().cloned());
    transport.identity.clone_from(&host.identity);
    transport.connect_timeout = host.dial_timeout.unwrap_or(options.connect_timeout);
    transport.proxy.clone_from(&host.proxy);
    transport
}

pub(crate) fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get(CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}

/// The media type of a manifest: the header's, or the document's own where the header is none for manifests.
pub(crate) fn media_type(headers: &HeaderMap, bytes: &[u8], what: &str) -> Result<MediaType> {
    let header = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let header = header.split(';').next().unwrap_or_default().trim();
    if media::is_schema1(header) {
        return Err(Error::invalid(what, "it is of Docker's schema 1; push the image again with a newer client"));
    }
    let named = MediaType::from(header);
    if media::is_index(&named) || media::is_manifest(&named) {
        return Ok(named);
    }
    media_type_within(bytes).ok_or_else(|| Error::invalid(what, format_args!("{header:?} is no image manifest")))
}
