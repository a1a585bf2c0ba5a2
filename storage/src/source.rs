//! Where a blob's stored bytes come from.
//!
//! A [`SourceSpec`] is what a user writes, [`of_image`] gives the places that an image's own reference stands for. Every
//! implementation makes one attempt, holds none of the runtime's threads, and passes the suite in `tests/sources.rs`.

pub(crate) mod bucket;
mod layout;
mod registry;
mod spec;
mod web;

use std::error::Error as StdError;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use lazo_format::{BlobRecord, Digest};
pub use lazo_registry::ErrorKind;
use lazo_registry::RangeAnswer;

pub use self::bucket::BucketSource;
pub use self::layout::LayoutSource;
pub use self::registry::{EndpointSource, of_image};
pub use self::spec::{SourceSpec, SpecError};
pub use self::web::WebSource;

/// A range of a blob as it arrives: in pieces of any size, then the end or an error.
pub type ByteStream = BoxStream<'static, Result<Bytes, SourceError>>;

/// What a place sends when it is asked for a range.
pub struct Answer {
    /// The range, or all of the blob.
    pub stream: ByteStream,
    /// Whether it is all of the blob, from its first byte on: the place ignores ranges.
    pub whole: bool,
}

/// A place that has blobs: a registry, a mirror of it, a layout directory, a bucket.
///
/// A source makes one attempt. Patience, repetition and the choice between several sources are its caller's.
pub trait BlobSource: Send + Sync + 'static {
    /// What log lines and metrics call it. Never holds a secret.
    fn name(&self) -> &str;

    /// Asks for `range` of a blob as it is stored, login and redirects included. Ready when the answer has begun and is right;
    /// then come exactly `range.end - range.start` bytes, or an error in place of the end.
    ///
    /// To drop the future or the stream is to cancel the request. The content is not trusted: every chunk in it is
    /// checked against the chunk index.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    fn open_range<'a>(
        &'a self,
        blob: &'a BlobRecord,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>>;

    /// The same; but a place that ignores ranges may give all of the blob, of whose bytes the caller will make more than of those that it
    /// asked for.
    ///
    /// # Errors
    /// As [`Self::open_range`].
    fn open<'a>(&'a self, blob: &'a BlobRecord, range: Range<u64>) -> BoxFuture<'a, Result<Answer, SourceError>> {
        Box::pin(async move { Ok(Answer { stream: self.open_range(blob, range).await?, whole: false }) })
    }
}

impl From<RangeAnswer> for Answer {
    fn from(RangeAnswer { stream, whole }: RangeAnswer) -> Self {
        Self { stream: stream.map_err(SourceError::from).boxed(), whole }
    }
}

/// Why a source did not give what was asked for.
#[derive(Debug)]
pub struct SourceError {
    /// What to do about it.
    pub kind: ErrorKind,
    /// How long the source wants to be left alone.
    pub retry_after: Option<Duration>,
    error: Box<dyn StdError + Send + Sync>,
}

impl SourceError {
    /// An error of a kind, with its cause. Reads as the cause does.
    pub fn new(kind: ErrorKind, error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { kind, retry_after: None, error: error.into() }
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl StdError for SourceError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}

/// Where a layout keeps a blob, and so every source that is filled from one.
fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// Refuses a range that does not lie in the blob.
fn check_bounds(what: &str, blob: &BlobRecord, range: &Range<u64>) -> Result<(), SourceError> {
    if range.start <= range.end && range.end <= blob.compressed_size {
        return Ok(());
    }
    let (size, Range { start, end }) = (blob.compressed_size, range);
    Err(SourceError::new(ErrorKind::BadAnswer, format!("{what}: bytes {start}-{end} do not lie in its {size} bytes")))
}
