//! A directory of a web server.

use std::ops::Range;

use futures_util::future::BoxFuture;
use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use lazo_format::BlobRecord;
use lazo_registry::{Options, Web};
use reqwest::Url;

use super::{Answer, BlobSource, ByteStream, SourceError, blob_path};

/// Blobs as `https://HOST/PATH/blobs/sha256/HEX`: a layout directory that a web server serves.
pub struct WebSource {
    web: Web,
    /// Its path ends with a slash.
    base: Url,
    name: String,
}

impl WebSource {
    /// The directory at `base`, whose path ends with a slash. User information in it is sent as basic auth. Named as its
    /// URL, without that.
    #[must_use]
    pub fn new(base: Url, options: &Options) -> Self {
        let name = shown(&base);
        Self { web: Web::new(options), base, name }
    }

    /// A blob's address, and its name for errors.
    fn place(&self, blob: &BlobRecord) -> (Url, String) {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{}", self.base.path(), blob_path(&blob.digest)));
        (url, format!("blob {} of {}", blob.digest, self.name))
    }
}

impl BlobSource for WebSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn open_range<'a>(
        &'a self,
        blob: &'a BlobRecord,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        Box::pin(async move {
            let (url, what) = self.place(blob);
            let stream = self.web.open_range(&what, &url, blob.compressed_size, range).await?;
            Ok(stream.map_err(SourceError::from).boxed())
        })
    }

    fn open<'a>(&'a self, blob: &'a BlobRecord, range: Range<u64>) -> BoxFuture<'a, Result<Answer, SourceError>> {
        Box::pin(async move {
            let (url, what) = self.place(blob);
            Ok(self.web.open_answer(&what, &url, blob.compressed_size, range).await?.into())
        })
    }
}

/// A URL without its user information.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // These fail for URLs without a host, which http and https have.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}
