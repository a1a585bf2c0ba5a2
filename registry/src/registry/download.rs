//! Whole blobs from a registry and its mirrors, going on where a broken connection ended.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use bytes::{Buf, Bytes};
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use lazo_format::Digest;
use oci_spec::image::Descriptor;
use reqwest::{Method, Response, StatusCode, Url};

use super::Registry;
use crate::{
    document::digest_of,
    error::{Error, Result},
    http::{
        Backoff, Http, Request,
        pace::Pace,
        redirect::{Way, is_redirect},
    },
    repository::Repository,
};

/// Bytes that a connection must bring before its breaking counts as a first failure again: a download over a bad line
/// goes on, one that gets nowhere ends.
const PROGRESS: u64 = 1 << 20;

/// A blob's bytes, unverified; fails here if no host has it.
pub(crate) async fn download(
    repository: Repository,
    descriptor: &Descriptor,
) -> Result<(BoxStream<'static, Result<Bytes>>, Senders)> {
    let digest = digest_of(descriptor)?;
    let size = descriptor.size();
    let (backoff, senders) = (repository.backoff(), Senders::default());
    let pace = repository.layer_pace();
    let mut download =
        Download { repository, digest, size, offset: 0, since: 0, open: None, pace, backoff, senders: senders.clone() };
    download.connect().await?;
    Ok((stream::try_unfold(download, Download::next).boxed(), senders))
}

/// Whose bytes a blob was made of, so that they can be asked last when it turns out to be wrong.
#[derive(Clone, Default)]
pub(crate) struct Senders(Arc<Mutex<Vec<Registry>>>);

impl Senders {
    fn add(&self, host: &Registry) {
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !hosts.iter().any(|h| h.name() == host.name()) {
            hosts.push(host.clone());
        }
    }

    /// Has all of them asked last for a while.
    pub(crate) fn rest_after(&self, error: &Error) {
        let hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One that gave up on its part already is to blame for the whole, rather than the one that went on from there.
        let known = hosts.iter().any(Registry::is_resting);
        hosts.iter().filter(|host| !known || host.is_resting()).for_each(|host| host.rest_after(error));
    }
}

/// A blob on its way.
struct Download {
    repository: Repository,
    digest: Digest,
    size: u64,
    /// Bytes handed out.
    offset: u64,
    /// Where the present connection began.
    since: u64,
    open: Option<Open>,
    /// Of all connections together, until another host's turn has come.
    pace: Pace,
    backoff: Backoff,
    senders: Senders,
}

struct Open {
    host: Registry,
    response: Response,
    /// How many of its bytes were handed out before.
    skip: u64,
}

impl Download {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        let what = self.repository.blob_name(&self.digest);
        loop {
            if self.open.is_none() {
                self.connect().await?;
            }
            let Some(Open { host, response, skip }) = &mut self.open else { return Ok(None) };
            match host.0.http.paced_chunk(response, &mut self.pace, &what).await {
                Ok(None) => return Ok(None),
                Ok(Some(mut chunk)) => {
                    let skipped = usize::try_from(*skip).unwrap_or(usize::MAX).min(chunk.len());
                    chunk.advance(skipped);
                    *skip -= skipped as u64;
                    self.offset += chunk.len() as u64;
                    if !chunk.is_empty() {
                        return Ok(Some((chunk, self)));
                    }
                }
                Err(error) => {
                    host.rest_after(&error);
                    if self.offset - self.since >= PROGRESS {
                        self.backoff.reset();
                    }
                    self.open = None;
                    if self.pace.left().is_zero() {
                        if self.repository.fresh_hosts() == 0 {
                            return Err(error);
                        }
                        self.pace = self.repository.layer_pace();
                    }
                    self.backoff.wait(error).await?;
                }
            }
        }
    }

    /// Opens the body at `offset`, again after transient errors.
    async fn connect(&mut self) -> Result<()> {
        self.since = self.offset;
        if self.offset >= self.size && self.size > 0 {
            return Ok(());
        }
        loop {
            let (since, left) = (Instant::now(), self.pace.left());
            let opened = self.repository.open_blob(&self.digest, self.size, self.offset..self.size, left).await;
            self.pace.count(since.elapsed(), 0);
            match opened {
                Ok((host, response, skip)) => {
                    self.senders.add(&host);
                    self.open = Some(Open { host, response, skip });
                    return Ok(());
                }
                Err(error) if self.pace.left().is_zero() => return Err(error),
                Err(error) => self.backoff.wait(error).await?,
            }
        }
    }
}

/// A layer that registries may not hold, from one of its own URLs; unverified, without a login.
pub(crate) async fn foreign(
    http: &Arc<Http>,
    descriptor: &Descriptor,
    digest: &Digest,
) -> Result<BoxStream<'static, Result<Bytes>>> {
    let what = format!("foreign layer {digest}");
    let urls = descriptor.urls().as_deref().unwrap_or_default();
    let mut last = Error::NotFound { what: format!("{what}: it names no URL to fetch it from") };
    for url in urls.iter().take(MAX_URLS) {
        let mut backoff = http.backoff();
        last = loop {
            match open_foreign(http, url, &what, descriptor.size()).await {
                Ok(response) => {
                    let (http, pace) = (http.clone(), Pace::new(http.options().document_timeout));
                    let state = (response, http, pace, what);
                    let body = stream::try_unfold(state, |(mut response, http, mut pace, what)| async move {
                        let chunk = http.paced_chunk(&mut response, &mut pace, &what).await?;
                        Ok(chunk.map(|chunk| (chunk, (response, http, pace, what))))
                    });
                    return Ok(body.boxed());
                }
                Err(error) => {
                    if let Err(error) = backoff.wait(error).await {
                        break error;
                    }
                }
            }
        };
    }
    Err(last)
}

/// URLs tried for a foreign layer.
const MAX_URLS: usize = 8;

async fn open_foreign(http: &Http, url: &str, what: &str, size: u64) -> Result<Response> {
    let url = Url::parse(url).map_err(|e| Error::invalid(what, format_args!("bad URL: {e}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Error::invalid(what, format_args!("URL scheme {} is not supported", url.scheme())));
    }
    // The image's author has named it, who may name the registry's own host.
    let mut way = Way::foreign(what, url, http.options().insecure_redirects);
    loop {
        let response = http.send(&Request::get(way.url().clone(), what).away(true), None).await?;
        if is_redirect(response.status()) {
            way.follow(&response)?;
            continue;
        }
        if response.status() != StatusCode::OK {
            return Err(http.refusal(response, &Method::GET, what).await);
        }
        if let Some(actual) = response.content_length().filter(|len| *len != size) {
            return Err(Error::SizeMismatch { what: what.to_owned(), expected: size, actual });
        }
        return Ok(response);
    }
}
