//! Ranges of blobs from a registry.

use std::{ops::Range, sync::Arc};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use lazo_format::Digest;
use reqwest::{
    Method, Response, StatusCode,
    header::{CONTENT_RANGE, RANGE},
};

use super::{Call, Registry};
use crate::{
    endpoint::{RangeAnswer, RangeStream},
    error::{Error, Result},
    http::Http,
};

impl Registry {
    /// Exactly `range` of a blob as it comes, unverified, in one attempt.
    pub(crate) async fn open_range(&self, digest: &Digest, size: u64, range: Range<u64>) -> Result<Body> {
        let opened = self.open_response(digest, size, range.clone()).await?;
        Ok(Body::new(self.0.http.clone(), opened, self.blob_name(digest), range))
    }

    /// The same, or all of the blob where a server sends that.
    pub(crate) async fn open_answer(&self, digest: &Digest, size: u64, range: Range<u64>) -> Result<RangeAnswer> {
        let opened = self.open_response(digest, size, range.clone()).await?;
        Ok(answer(self.0.http.clone(), opened, self.blob_name(digest), size, range))
    }

    /// A response whose body holds `range`, after the bytes to be skipped.
    pub(crate) async fn open_response(&self, digest: &Digest, size: u64, range: Range<u64>) -> Result<(Response, u64)> {
        let what = self.blob_name(digest);
        let mut call = Call::new(Method::GET, self.blob_url(digest)?, self.pull(), &what);
        if let Some(value) = range_header(size, &range) {
            call = call.header(RANGE, &value)?;
        }
        call.blob = Some(*digest);
        let response = self.call(&call).await?;
        let accepted = accept(&self.0.http, response, &what, size, range).await;
        if accepted.is_err() {
            self.0.targets.forget(digest);
        }
        accepted
    }
}

/// What the Range header says; nothing when the blob is wanted whole.
pub(crate) fn range_header(size: u64, range: &Range<u64>) -> Option<String> {
    (*range != (0..size)).then(|| format!("bytes={}-{}", range.start, range.end - 1))
}

/// A response to [`range_header`] whose body holds `range`, after the bytes to be skipped.
pub(crate) async fn accept(
    http: &Http,
    response: Response,
    what: &str,
    size: u64,
    range: Range<u64>,
) -> Result<(Response, u64)> {
    match response.status() {
        StatusCode::PARTIAL_CONTENT if range != (0..size) => {
            check_content_range(&response, size, &range).map_err(|reason| Error::invalid(what, reason))?;
            Ok((response, 0))
        }
        StatusCode::OK => {
            if let Some(actual) = response.content_length().filter(|len| *len != size) {
                return Err(Error::SizeMismatch { what: what.to_owned(), expected: size, actual });
            }
            if range.start > 0 {
                tracing::debug!(what, "the server ignores ranges; reading from the start");
            }
            Ok((response, range.start))
        }
        StatusCode::RANGE_NOT_SATISFIABLE => Err(Error::invalid(
            what,
            format_args!(
                "the server has no bytes {}-{}: its blob is shorter than {size} bytes",
                range.start, range.end
            ),
        )),
        _ => Err(http.refusal(response, &Method::GET, what).await),
    }
}

/// What [`accept`] gave: a range, or all of the blob if the server has ignored that one was asked for.
pub(crate) fn answer(
    http: Arc<Http>,
    opened: (Response, u64),
    what: String,
    size: u64,
    range: Range<u64>,
) -> RangeAnswer {
    let whole = opened.0.status() == StatusCode::OK && range != (0..size);
    let body = if whole { Body::whole(http, opened.0, what, size) } else { Body::new(http, opened, what, range) };
    RangeAnswer { stream: body.stream(), whole }
}

/// The answer to a range request, of which the head was right.
pub(crate) struct Body {
    http: Arc<Http>,
    response: Response,
    what: String,
    range: Range<u64>,
    /// Whether what follows the range need not be looked at: the server sends the whole blob, or has announced the length.
    lax: bool,
    /// Bytes yet to come before the range.
    skip: u64,
    /// Bytes of the range yet to come.
    left: u64,
}

impl Body {
    /// What [`accept`] gave, as a body.
    pub(crate) fn new(http: Arc<Http>, (response, skip): (Response, u64), what: String, range: Range<u64>) -> Self {
        // What the server announced was checked; and a connection whose announced body was read is used again.
        let lax = response.status() == StatusCode::OK || response.content_length().is_some();
        Self { http, response, what, skip, left: range.end - range.start, range, lax }
    }

    /// All of a blob.
    fn whole(http: Arc<Http>, response: Response, what: String, size: u64) -> Self {
        let lax = response.content_length().is_some();
        Self { http, response, what, skip: 0, left: size, range: 0..size, lax }
    }

    pub(crate) fn stream(self) -> RangeStream {
        stream::try_unfold(self, async |mut body| Ok(body.next().await?.map(|piece| (piece, body)))).boxed()
    }

    /// All of it, in memory.
    pub(crate) async fn bytes(mut self) -> Result<Bytes> {
        let wanted = usize::try_from(self.left).map_err(|e| Error::invalid(&self.what, e))?;
        let mut out = BytesMut::with_capacity(wanted);
        while let Some(piece) = self.next().await? {
            out.extend_from_slice(&piece);
        }
        Ok(out.freeze())
    }

    /// The next piece; after the last byte of the range, `None`.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if self.left == 0 && self.lax {
                return Ok(None);
            }
            let Some(mut piece) = self.http.chunk(&mut self.response, &self.what).await? else {
                return if self.left == 0 { Ok(None) } else { Err(self.wrong_size(0)) };
            };
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(piece.len());
            piece.advance(skipped);
            self.skip -= skipped as u64;
            let room = usize::try_from(self.left).unwrap_or(usize::MAX);
            if piece.len() > room {
                if !self.lax {
                    return Err(self.wrong_size(piece.len() as u64));
                }
                piece.truncate(room);
            }
            self.left -= piece.len() as u64;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }

    fn wrong_size(&self, more: u64) -> Error {
        let expected = self.range.end - self.range.start;
        let what = format!("bytes {}-{} of {}", self.range.start, self.range.end, self.what);
        Error::SizeMismatch { what, expected, actual: expected - self.left + more }
    }
}

/// Whether a 206 answers what was asked, by its headers.
fn check_content_range(response: &Response, size: u64, range: &Range<u64>) -> Result<(), String> {
    let value = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    answers_range(value, response.content_length(), size, range)
}

/// Whether a `Content-Range` of the form `bytes START-END/SIZE`, and the length that is announced beside it, are what was asked for.
pub(crate) fn answers_range(value: &str, announced: Option<u64>, size: u64, range: &Range<u64>) -> Result<(), String> {
    let parse = || {
        let (span, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = span.split_once('-')?;
        let total = if total == "*" { size } else { total.parse().ok()? };
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?, total))
    };
    let (asked, expected) = (format!("{}-{}/{size}", range.start, range.end - 1), range.end - range.start);
    if parse() != Some((range.start, range.end - 1, size)) {
        return Err(format!("asked for bytes {asked}, but the server answered {value:?}"));
    }
    match announced {
        Some(actual) if actual != expected => {
            Err(format!("asked for bytes {asked}, but the server announced {actual} bytes"))
        }
        _ => Ok(()),
    }
}
