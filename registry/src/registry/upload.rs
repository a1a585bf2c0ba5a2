//! Blobs and manifests to a registry.

use std::time::Duration;

use bytes::Bytes;
use lazo_format::Digest;
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{CONTENT_RANGE, CONTENT_TYPE, RANGE},
};

use super::{Call, Registry, content_digest};
use crate::{
    auth::Scopes,
    destination::Outcome,
    document::Document,
    error::{Error, Result},
    http::{Backoff, Body, redirect},
    section::Section,
};

/// Blobs up to this size are sent in one request; above it, a broken connection is worth going on from.
const MONOLITHIC: u64 = 4 << 20;
/// How long a registry may take to finish an upload: it may hash or copy the whole blob before it answers.
const FINISH_PATIENCE: Duration = Duration::from_secs(600);
/// The body of an upload.
const OCTETS: &str = "application/octet-stream";

/// What to upload.
#[derive(Clone)]
pub(crate) enum Content {
    Bytes(Bytes),
    File(Section),
}

impl Content {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(section) => section.len(),
        }
    }

    fn all(&self) -> Body {
        match self {
            Self::Bytes(bytes) => Body::Bytes(bytes.clone()),
            Self::File(section) => Body::File(section.clone()),
        }
    }

    /// The bytes `start..end`, which lie within.
    fn part(&self, start: u64, end: u64) -> Option<Body> {
        match self {
            Self::File(section) => section.slice(start..end).map(Body::File),
            Self::Bytes(bytes) => {
                let range = usize::try_from(start).ok()?..usize::try_from(end).ok()?;
                (range.end <= bytes.len()).then(|| Body::Bytes(bytes.slice(range)))
            }
        }
    }
}

/// What became of an upload that was begun.
enum Begun {
    Mounted,
    At(Url),
}

impl Registry {
    fn push(&self) -> Scopes {
        Scopes::push(&self.0.reference.repository)
    }

    /// Whether the repository has the blob.
    pub(crate) async fn has_blob(&self, digest: &Digest, size: u64) -> Result<bool> {
        let what = self.blob_name(digest);
        let call = Call::new(Method::HEAD, self.blob_url(digest)?, self.push(), &what);
        match self.persist(&call, &[StatusCode::OK]).await {
            Ok(response) => {
                let length = response.headers().get(reqwest::header::CONTENT_LENGTH);
                match length.and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok()) {
                    Some(actual) if actual != size => Err(Error::SizeMismatch { what, expected: size, actual }),
                    _ => Ok(true),
                }
            }
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Stores a blob, from scratch if need be; `mount_from` is a repository of the same registry that may have it.
    pub(crate) async fn put_blob(
        &self,
        digest: &Digest,
        content: &Content,
        mount_from: Option<&str>,
    ) -> Result<Outcome> {
        if self.has_blob(digest, content.len()).await? {
            return Ok(Outcome::Existed);
        }
        let what = self.blob_name(digest);
        // Counts uploads from the start; the parts of one have their own count, which progress resets.
        let mut backoff = self.0.http.backoff();
        let mut from = mount_from;
        loop {
            let attempt = match self.begin(&what, digest, from.take()).await {
                Ok(Begun::Mounted) => return Ok(Outcome::Mounted),
                Ok(Begun::At(url)) => self.transfer(&what, url, digest, content).await,
                Err(error) => Err(error),
            };
            match attempt {
                Ok(()) => return Ok(Outcome::Uploaded),
                Err(error) => {
                    backoff.wait(error).await?;
                    // The answer may have been lost after the work was done.
                    if self.has_blob(digest, content.len()).await? {
                        return Ok(Outcome::Uploaded);
                    }
                }
            }
        }
    }

    /// Where an answer to an upload says that it goes on. Another host gets the blob, but no login and nothing else of this one's.
    fn location(&self, response: &Response, what: &str) -> Result<Url> {
        redirect::location(response, what, self.0.insecure_redirects)
    }

    /// Opens an upload session, or has the blob mounted.
    async fn begin(&self, what: &str, digest: &Digest, from: Option<&str>) -> Result<Begun> {
        let url = self.url("./blobs/uploads/")?;
        if let Some(from) = from {
            let mut mount = url.clone();
            mount.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
            let scopes = self.push().and(Scopes::pull(from));
            let call = Call::new(Method::POST, mount, scopes, what);
            match self.expect(&call, &[StatusCode::CREATED, StatusCode::ACCEPTED]).await {
                Ok(response) if response.status() == StatusCode::CREATED => return Ok(Begun::Mounted),
                Ok(response) => return Ok(Begun::At(self.location(&response, what)?)),
                // Not every registry mounts, nor for everyone.
                Err(error) => tracing::debug!(%error, "mounting failed; uploading"),
            }
        }
        let response = self.expect(&Call::new(Method::POST, url, self.push(), what), &[StatusCode::ACCEPTED]).await?;
        Ok(Begun::At(self.location(&response, what)?))
    }

    async fn transfer(&self, what: &str, url: Url, digest: &Digest, content: &Content) -> Result<()> {
        if content.len() <= MONOLITHIC.min(self.0.http.options().upload_chunk) {
            return self.finish(what, url, digest, content.all()).await;
        }
        let url = self.send_parts(what, url, content).await?;
        self.finish(what, url, digest, Body::Bytes(Bytes::new())).await
    }

    /// Sends the blob part by part, going on from where the registry says it is after a failure. A registry that has
    /// dropped the session is a transient error: the whole upload may be tried again.
    async fn send_parts(&self, what: &str, mut url: Url, content: &Content) -> Result<Url> {
        let size = content.len();
        let part = self.0.http.options().upload_chunk.max(1);
        let mut backoff = self.0.http.backoff();
        let mut offset = 0;
        while offset < size {
            let end = size.min(offset + part);
            let body = content.part(offset, end).ok_or_else(|| Error::invalid(what, "the file has become shorter"))?;
            let (next, stored) = match self.send_part(what, url.clone(), offset, end, body).await {
                Ok(answer) => answer,
                Err(error) => self.recover(what, url, error, &mut backoff).await?,
            };
            if stored > size {
                return Err(Error::SizeMismatch { what: what.to_owned(), expected: size, actual: stored });
            }
            if stored > offset {
                backoff.reset();
            } else {
                let reason = format!("the registry holds {stored} of {size} bytes, and no more");
                backoff.wait(self.broken_off(what, reason)).await?;
            }
            (url, offset) = (next, stored);
        }
        Ok(url)
    }

    /// After a failed part: where the upload stands now.
    async fn recover(&self, what: &str, url: Url, error: Error, backoff: &mut Backoff) -> Result<(Url, u64)> {
        let disagrees = matches!(error, Error::Status { status: 416, .. });
        if !disagrees && !error.is_transient() {
            return Err(error);
        }
        let reason = crate::http::chain(&error);
        if !disagrees {
            backoff.wait(error).await?;
        }
        self.upload_status(what, url).await.map_err(|lost| match lost {
            Error::NotFound { .. } | Error::Status { status: 416, .. } => {
                self.broken_off(what, format!("the registry dropped the upload after: {reason}"))
            }
            other => other,
        })
    }

    fn broken_off(&self, what: &str, reason: String) -> Error {
        Error::transport(what, &self.0.faces.now().base, std::io::Error::other(reason))
    }

    /// One PATCH; where to go on, and how many bytes the registry holds now.
    async fn send_part(&self, what: &str, url: Url, start: u64, end: u64, body: Body) -> Result<(Url, u64)> {
        let mut call = Call::new(Method::PATCH, url, self.push(), what)
            .header(CONTENT_TYPE, OCTETS)?
            .header(CONTENT_RANGE, &format!("{start}-{}", end - 1))?;
        call.body = body;
        let response = self.expect(&call, &[StatusCode::ACCEPTED, StatusCode::NO_CONTENT]).await?;
        Ok((self.location(&response, what)?, stored(&response).unwrap_or(end)))
    }

    /// Asks how far an upload has come.
    async fn upload_status(&self, what: &str, url: Url) -> Result<(Url, u64)> {
        let call = Call::new(Method::GET, url.clone(), self.push(), what);
        let response = self.expect(&call, &[StatusCode::NO_CONTENT, StatusCode::ACCEPTED]).await?;
        let next = self.location(&response, what).unwrap_or(url);
        Ok((next, stored(&response).unwrap_or(0)))
    }

    async fn finish(&self, what: &str, mut url: Url, digest: &Digest, body: Body) -> Result<()> {
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let mut call = Call::new(Method::PUT, url, self.push(), what).header(CONTENT_TYPE, OCTETS)?;
        call.body = body;
        call.patience = FINISH_PATIENCE;
        let response = self.expect(&call, &[StatusCode::CREATED, StatusCode::NO_CONTENT]).await?;
        check_stored(&response, digest, what)
    }

    /// Stores a manifest or index under a tag or its digest.
    pub(crate) async fn put_manifest(&self, reference: &str, document: &Document) -> Result<()> {
        let what = self.manifest_name(reference);
        let mut call = Call::new(Method::PUT, self.manifest_url(reference)?, self.push(), &what)
            .header(CONTENT_TYPE, document.descriptor.media_type().as_ref())?;
        call.body = Body::Bytes(Bytes::copy_from_slice(&document.bytes));
        let response = self.persist(&call, &[StatusCode::CREATED, StatusCode::OK, StatusCode::ACCEPTED]).await?;
        check_stored(&response, &document.digest()?, &what)
    }
}

/// Bytes the registry holds, by the headers of its answer.
fn stored(response: &Response) -> Option<u64> {
    stored_bytes(response.headers().get(RANGE)?.to_str().ok()?)
}

/// Bytes that a `Range` of the form `0-LAST` speaks of; `0-0` is that of an empty upload.
pub(crate) fn stored_bytes(range: &str) -> Option<u64> {
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    let last: u64 = range.strip_prefix("0-")?.parse().ok()?;
    if last == 0 { Some(0) } else { last.checked_add(1) }
}

/// A registry that says what it has stored must have stored that.
fn check_stored(response: &Response, expected: &Digest, what: &str) -> Result<()> {
    match content_digest(response.headers()) {
        Some(actual) if actual != *expected && actual.algorithm() == expected.algorithm() => {
            Err(Error::digest(format_args!("{what} as stored"), *expected, actual))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_say_how_much_is_stored() {
        for (range, bytes) in [
            ("0-0", Some(0)),
            ("0-9", Some(10)),
            ("bytes=0-9", Some(10)),
            ("0-18446744073709551614", Some(u64::MAX)),
            ("0-18446744073709551615", None),
            ("0-18446744073709551616", None),
            ("1-9", None),
            ("", None),
        ] {
            assert_eq!(stored_bytes(range), bytes, "{range}");
        }
    }
}
