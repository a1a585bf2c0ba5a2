//! Streams of blobs that vouch for what they carried.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::{Stream, stream::BoxStream};
use lazo_format::{Digest, Hasher};
use oci_spec::image::Descriptor;
use tokio::io::AsyncRead;

use crate::{
    document::digest_of,
    error::{Error, Result},
    registry::Senders,
};

/// A blob's bytes in order. Ends with `None` only when size and digest were right; otherwise with an error.
pub struct BlobStream {
    what: String,
    inner: BoxStream<'static, Result<Bytes>>,
    hasher: Option<Hasher>,
    expected: Digest,
    size: u64,
    read: u64,
    senders: Option<Senders>,
}

impl BlobStream {
    /// Checks `inner` against `descriptor`; `what` names the blob in errors.
    pub(crate) fn new(what: String, descriptor: &Descriptor, inner: BoxStream<'static, Result<Bytes>>) -> Result<Self> {
        let expected = digest_of(descriptor)?;
        let hasher = Some(Hasher::new(expected.algorithm()));
        Ok(Self { what, inner, hasher, expected, size: descriptor.size(), read: 0, senders: None })
    }

    /// Who sends the blob, to be told when it is wrong.
    pub(crate) fn from(self, senders: Senders) -> Self {
        Self { senders: Some(senders), ..self }
    }

    /// Size of the whole blob, bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The same as a reader; its errors hold this crate's [`Error`].
    pub fn into_async_read(self) -> impl AsyncRead + Send + Unpin + 'static {
        tokio_util::io::StreamReader::new(self)
    }

    fn step(&mut self, item: Option<Result<Bytes>>) -> Option<Result<Bytes>> {
        let bytes = match item {
            Some(Ok(bytes)) => bytes,
            Some(Err(error)) => {
                self.hasher = None;
                return Some(Err(error));
            }
            None => return self.end(),
        };
        self.read += bytes.len() as u64;
        if self.read > self.size {
            self.hasher = None;
            return Some(Err(self.wrong_size()));
        }
        self.hasher.as_mut()?.update(&bytes);
        Some(Ok(bytes))
    }

    fn end(&mut self) -> Option<Result<Bytes>> {
        let hasher = self.hasher.take()?;
        if self.read != self.size {
            return Some(Err(self.wrong_size()));
        }
        let actual = hasher.finish();
        let expected = self.expected;
        (actual != expected).then(|| Err(Error::digest(&self.what, expected, actual)))
    }

    fn wrong_size(&self) -> Error {
        Error::SizeMismatch { what: self.what.clone(), expected: self.size, actual: self.read }
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Without a hasher the verdict is out.
        if self.hasher.is_none() {
            return Poll::Ready(None);
        }
        let item = ready!(self.inner.as_mut().poll_next(context));
        let step = self.step(item);
        if let (Some(Err(error)), Some(senders)) = (&step, &self.senders) {
            senders.rest_after(error);
        }
        Poll::Ready(step)
    }
}

impl std::fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobStream")
            .field("what", &self.what)
            .field("size", &self.size)
            .field("read", &self.read)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, stream};
    use lazo_format::Algorithm;
    use oci_spec::image::MediaType;

    use super::*;
    use crate::document::descriptor;

    async fn collect(parts: &[&'static str], digest: &Digest, size: u64) -> Result<String> {
        let descriptor = descriptor(MediaType::ImageLayer, digest, size);
        let parts: Vec<Result<Bytes>> = parts.iter().map(|p| Ok(Bytes::from_static(p.as_bytes()))).collect();
        let mut blob = BlobStream::new("blob X".into(), &descriptor, stream::iter(parts).boxed())?;
        let mut out = String::new();
        while let Some(part) = blob.next().await {
            out.push_str(std::str::from_utf8(&part?).unwrap());
        }
        assert!(blob.next().await.is_none(), "nothing follows the end");
        Ok(out)
    }

    #[tokio::test]
    async fn vouches_for_size_and_digest() {
        let sha256 = Digest::sha256_of(b"hello");
        let mut hasher = Hasher::new(Algorithm::Sha512);
        hasher.update(b"hello");
        for digest in [sha256, hasher.finish()] {
            assert_eq!(collect(&["he", "", "llo"], &digest, 5).await.unwrap(), "hello");
            let short = collect(&["he"], &digest, 5).await.unwrap_err();
            assert_eq!(short.to_string(), "blob X: size mismatch: expected 5 bytes, got 2");
            let long = collect(&["hello", "!"], &digest, 5).await.unwrap_err();
            assert_eq!(long.to_string(), "blob X: size mismatch: expected 5 bytes, got 6");
            let wrong = collect(&["hellO"], &digest, 5).await.unwrap_err();
            assert!(matches!(wrong, Error::DigestMismatch { .. }), "{wrong}");
        }
    }
}
