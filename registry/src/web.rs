//! Ranges of files of ordinary web servers, with the clients, checks and errors of a registry's blobs.

use std::{ops::Range, sync::Arc};

use futures_util::{StreamExt, stream};
use reqwest::{Client, Response, Url, header::RANGE};

use crate::{
    endpoint::{RangeAnswer, RangeStream},
    error::{Error, Result},
    http::{
        Http, Request,
        redirect::{Way, is_redirect},
    },
    options::Options,
    registry::{RangeBody, accept, answer, range_header},
};

/// Web servers, by the [`Options`] that say how to reach registries. Clones share their connections.
#[derive(Clone)]
pub struct Web(Arc<Http>);

impl Web {
    /// Prepares; certificates are loaded for the first https connection.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        Self(Http::new(options))
    }

    /// Opens `range` of the file at `url`, of `size` bytes, in one attempt: redirects are followed, but nothing is tried
    /// again that failed. Resolves when the head of the answer is there and right. The content is NOT verified. `what`
    /// names the file in errors, which show no query and no user information.
    ///
    /// User information in the URL is sent as basic auth, to that server only.
    ///
    /// # Errors
    /// As [`crate::Endpoint::open_range`].
    pub async fn open_range(&self, what: &str, url: &Url, size: u64, range: Range<u64>) -> Result<RangeStream> {
        let Some(opened) = self.open(what, url, size, range.clone()).await? else { return Ok(stream::empty().boxed()) };
        Ok(RangeBody::new(self.0.clone(), opened, what.to_owned(), range).stream())
    }

    /// The same; but a server that ignores ranges is let send all of the file.
    ///
    /// # Errors
    /// As [`crate::Endpoint::open_range`].
    pub async fn open_answer(&self, what: &str, url: &Url, size: u64, range: Range<u64>) -> Result<RangeAnswer> {
        let Some(opened) = self.open(what, url, size, range.clone()).await? else {
            return Ok(RangeAnswer { stream: stream::empty().boxed(), whole: false });
        };
        Ok(answer(self.0.clone(), opened, what.to_owned(), size, range))
    }

    /// The open answer, and how many bytes of it are to be skipped. Nothing for an empty range.
    async fn open(&self, what: &str, url: &Url, size: u64, range: Range<u64>) -> Result<Option<(Response, u64)>> {
        if range.start > range.end || range.end > size {
            let reason = format!("bytes {}-{} do not lie in its {size} bytes", range.start, range.end);
            return Err(Error::invalid(what, reason));
        }
        if range.is_empty() {
            return Ok(None);
        }
        let mut way = Way::new(what, url.clone(), url, self.0.options().insecure_redirects);
        loop {
            let (user, password) = if way.is_away() { ("", None) } else { (url.username(), url.password()) };
            let mut at = way.url().clone();
            // These fail for URLs without a host, which http and https have.
            let _ = at.set_username(user);
            let _ = at.set_password(password);
            let mut request = Request::get(at, what).away(way.is_away());
            if let Some(value) = range_header(size, &range) {
                request = request.header(RANGE, &value)?;
            }
            let response = self.0.send(&request, None).await?;
            if !is_redirect(response.status()) {
                return accept(&self.0, response, what, size, range).await.map(Some);
            }
            way.follow(&response)?;
        }
    }

    /// A client that may ask `url`, for libraries that make requests of their own. It follows no redirects.
    ///
    /// # Errors
    /// When certificates cannot be loaded.
    pub fn client(&self, url: &Url) -> Result<Client> {
        self.0.client(url)
    }
}
