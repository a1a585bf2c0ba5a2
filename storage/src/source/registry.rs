//! What an image's reference stands for: a registry with its mirrors, a layout directory, an archive.

use std::ops::Range;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use lazo_format::BlobRecord;
use lazo_registry::{Endpoint, ImageRef, Source};

use super::{Answer, BlobSource, ByteStream, LayoutSource, SourceError};

/// The places that hold the blobs of an opened image, in the order in which they should be asked: mirrors, the registry
/// itself; or its one layout or archive.
///
/// # Errors
/// When the path of a layout cannot be made absolute.
pub fn of_image(source: &Source) -> Result<Vec<Arc<dyn BlobSource>>, SourceError> {
    // Its endpoint would read on the runtime's own threads, which a file server can hold for ever.
    if let ImageRef::OciLayout { path, .. } = source.reference() {
        return Ok(vec![Arc::new(LayoutSource::new(path)?)]);
    }
    Ok(source.endpoints().into_iter().map(|endpoint| Arc::new(EndpointSource(endpoint)) as _).collect())
}

/// A registry or one of its mirrors; or an archive, which is taken to lie on a local disk.
#[derive(Debug)]
pub struct EndpointSource(Endpoint);

impl EndpointSource {
    /// The place that `endpoint` stands for, named as that is.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self(endpoint)
    }
}

impl BlobSource for EndpointSource {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn open_range<'a>(
        &'a self,
        blob: &'a BlobRecord,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        Box::pin(async move {
            let stream = self.0.open_range(&blob.digest, blob.compressed_size, range).await?;
            Ok(stream.map_err(SourceError::from).boxed())
        })
    }

    fn open<'a>(&'a self, blob: &'a BlobRecord, range: Range<u64>) -> BoxFuture<'a, Result<Answer, SourceError>> {
        Box::pin(async move { Ok(self.0.open_answer(&blob.digest, blob.compressed_size, range).await?.into()) })
    }
}

impl From<lazo_registry::Error> for SourceError {
    fn from(error: lazo_registry::Error) -> Self {
        let kind = error.kind();
        Self { kind, retry_after: error.retry_after(), error: error.into() }
    }
}
