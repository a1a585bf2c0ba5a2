//! Where a blob's stored bytes come from.

use std::ops::Range;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use lazo_format::BlobRecord;
use lazo_registry::Source;

use crate::error::SourceError;

/// A place that has blobs: a registry, a layout directory.
pub trait BlobSource: Send + Sync + 'static {
    /// What log lines call it.
    fn name(&self) -> String;

    /// The bytes of `range` of a blob as it is stored, exactly `range.end - range.start` of them.
    ///
    /// The content is not trusted: every chunk in it is checked against the chunk index. The source does its own retries.
    fn read_range<'a>(&'a self, blob: &'a BlobRecord, range: Range<u64>) -> BoxFuture<'a, Result<Bytes, SourceError>>;
}

impl BlobSource for Source {
    fn name(&self) -> String {
        self.reference().to_string()
    }

    fn read_range<'a>(&'a self, blob: &'a BlobRecord, range: Range<u64>) -> BoxFuture<'a, Result<Bytes, SourceError>> {
        Box::pin(async move { Ok(self.blob_range(&blob.digest, blob.compressed_size, range).await?) })
    }
}
