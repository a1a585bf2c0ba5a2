//! The distribution API of one repository: reading. Writing is in [`upload`].

mod download;
mod range;
mod upload;

pub(crate) use self::{
    download::foreign,
    range::{Body as RangeBody, accept, range_header},
    upload::Content,
};

use std::{sync::Arc, time::Duration};

use lazo_format::Digest;
use oci_spec::image::{Descriptor, MediaType};
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, LOCATION},
};

use crate::{
    auth::{Auth, Scopes},
    document::{Document, MAX_DOCUMENT, check_digest, descriptor, digest_of, media_type_within},
    error::{Error, Result},
    http::{Body, Http, Request, same_origin, shown_url},
    media,
    options::Options,
    reference::DockerRef,
};

/// Redirects followed for one request; registries make one, to their storage.
const MAX_REDIRECTS: usize = 5;
/// Logins tried for one request: an expired token, then a fresh one.
const MAX_LOGINS: usize = 2;
/// Header by which a registry names the digest of what it sends or has stored.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// One repository of a registry.
#[derive(Clone)]
pub(crate) struct Registry(Arc<Inner>);

struct Inner {
    http: Arc<Http>,
    auth: Auth,
    reference: DockerRef,
    /// `https://HOST/v2/REPOSITORY/`.
    base: Url,
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
}

impl<'a> Call<'a> {
    fn new(method: Method, url: Url, scopes: Scopes, what: &'a str) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: Body::Empty, scopes, what, patience: Duration::ZERO }
    }

    fn header(mut self, name: HeaderName, value: &str) -> Result<Self> {
        let value = value.parse().map_err(|e| Error::invalid(self.what, e))?;
        self.headers.insert(name, value);
        Ok(self)
    }
}

impl Registry {
    pub(crate) fn new(reference: &DockerRef, http: Arc<Http>) -> Result<Self> {
        let options: &Options = http.options();
        let plain = if reference.is_loopback() { !options.loopback_tls } else { options.plain_http };
        let scheme = if plain { "http" } else { "https" };
        let base = format!("{scheme}://{}/v2/{}/", reference.api_host(), reference.repository);
        let base = Url::parse(&base).map_err(|e| Error::invalid(format_args!("registry {}", reference.host), e))?;
        let auth = Auth::new(http.clone(), &reference.host, &reference.repository, !plain);
        Ok(Self(Arc::new(Inner { http, auth, reference: reference.clone(), base })))
    }

    pub(crate) fn reference(&self) -> &DockerRef {
        &self.0.reference
    }

    /// As references name it, without tag and digest.
    pub(crate) fn name(&self) -> String {
        let DockerRef { host, repository, .. } = &self.0.reference;
        format!("docker://{host}/{repository}")
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
        self.0.base.join(path).map_err(|e| Error::invalid(path, e))
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

    /// Sends a call once, logging in and following redirects as needed. Any status but 401 and a redirect is an answer.
    async fn call(&self, call: &Call<'_>) -> Result<Response> {
        let http = &self.0.http;
        let mut url = call.url.clone();
        let (mut logins, mut redirects) = (0, 0);
        loop {
            let own = same_origin(&url, &self.0.base);
            // Storage behind a redirect has its own signature in the URL; a login is only for the registry itself.
            let authorization = if own { self.0.auth.header(&call.scopes).await? } else { None };
            let request = Request {
                method: call.method.clone(),
                url: url.clone(),
                headers: call.headers.clone(),
                body: call.body.clone(),
                what: call.what,
                patience: call.patience,
            };
            let response = http.send(&request, authorization.as_ref()).await?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && own && logins < MAX_LOGINS {
                logins += 1;
                self.0.auth.challenged(response.headers(), &call.scopes, authorization.as_ref()).await?;
            } else if is_redirect(status) && matches!(call.method, Method::GET | Method::HEAD) {
                redirects += 1;
                if redirects > MAX_REDIRECTS {
                    return Err(Error::invalid(call.what, format_args!("more than {MAX_REDIRECTS} redirects")));
                }
                url = location(&response, call.what)?;
            } else {
                return Ok(response);
            }
        }
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

    /// The manifest or index by tag or digest.
    pub(crate) async fn manifest(&self, reference: &str, expected: Option<&Descriptor>) -> Result<Document> {
        let what = self.manifest_name(reference);
        let call = Call::new(Method::GET, self.manifest_url(reference)?, self.pull(), &what)
            .header(ACCEPT, media::MANIFEST_ACCEPT)?;
        let mut backoff = self.0.http.backoff();
        let (headers, bytes) = loop {
            match self.read_document(&call).await {
                Ok(read) => break read,
                Err(error) => backoff.wait(error).await?,
            }
        };
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

    /// The digest that a tag stands for, without the manifest where the registry says it in a header.
    pub(crate) async fn manifest_digest(&self, reference: &str) -> Result<Digest> {
        if let Ok(digest) = reference.parse() {
            return Ok(digest);
        }
        let what = self.manifest_name(reference);
        let call = Call::new(Method::HEAD, self.manifest_url(reference)?, self.pull(), &what)
            .header(ACCEPT, media::MANIFEST_ACCEPT)?;
        let response = self.persist(&call, &[StatusCode::OK]).await?;
        match content_digest(response.headers()) {
            Some(digest) => Ok(digest),
            None => self.manifest(reference, None).await?.digest(),
        }
    }

    /// A small blob, a config for instance, or a manifest.
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
        let mut backoff = self.0.http.backoff();
        let bytes = loop {
            match self.read_document(&call).await {
                Ok((_, bytes)) => break bytes,
                Err(error) => backoff.wait(error).await?,
            }
        };
        Document { descriptor: expected.clone(), bytes }.check(&what)
    }
}

/// Where an answer sends us. From https there is no way back to http.
pub(crate) fn location(response: &Response, what: &str) -> Result<Url> {
    let location = response.headers().get(LOCATION).and_then(|v| v.to_str().ok());
    let location = location.ok_or_else(|| Error::invalid(what, "the server sends us on, but not where"))?;
    let mut url = response.url().join(location).map_err(|e| Error::invalid(what, format_args!("bad Location: {e}")))?;
    let back = response.url().scheme() == "https" && url.scheme() == "http";
    // A registry behind a proxy that does TLS may not know its own scheme.
    let corrected = back && url.host() == response.url().host() && url.set_scheme("https").is_ok();
    if (back && !corrected) || !matches!(url.scheme(), "http" | "https") {
        return Err(Error::invalid(what, format_args!("refused to be sent on to {}", shown_url(&url))));
    }
    Ok(url)
}

pub(crate) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get(CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}

/// The media type of a manifest: the header's, or the document's own where the header is none for manifests.
fn media_type(headers: &HeaderMap, bytes: &[u8], what: &str) -> Result<MediaType> {
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
