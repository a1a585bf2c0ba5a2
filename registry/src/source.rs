//! Reading an image from wherever it is.

use std::ops::Range;

use bytes::Bytes;
use lazo_format::Digest;
use oci_spec::image::Descriptor;

use crate::{
    blob::BlobStream,
    document::{Document, Manifest},
    error::{Error, Result},
    options::Options,
    platform::Platform,
    reference::ImageRef,
};

/// An image to read.
pub struct Source {
    reference: ImageRef,
}

impl Source {
    /// Prepares to read; the network is first used by the calls below, TLS set up only for an https connection.
    pub async fn open(reference: &ImageRef, _options: &Options) -> Result<Self> {
        Ok(Self { reference: reference.clone() })
    }

    /// What was opened.
    #[must_use]
    pub fn reference(&self) -> &ImageRef {
        &self.reference
    }

    /// The digest that the reference stands for now; from a registry by HEAD, without the document.
    pub async fn root_digest(&self) -> Result<Digest> {
        Err(Error::invalid(&self.reference, "not yet"))
    }

    /// The manifest or index that the reference names.
    pub async fn root(&self) -> Result<Document> {
        Err(Error::invalid(&self.reference, "not yet"))
    }

    /// A manifest, index or config by its descriptor.
    pub async fn document(&self, _descriptor: &Descriptor) -> Result<Document> {
        Err(Error::invalid(&self.reference, "not yet"))
    }

    /// The image manifest for a platform. A reference to a single manifest is that one, whatever its platform.
    pub async fn resolve(&self, _platform: &Platform) -> Result<Manifest> {
        Err(Error::invalid(&self.reference, "not yet"))
    }

    /// The image manifests of all platforms in order; build attestations are left out.
    pub async fn platforms(&self) -> Result<Vec<Descriptor>> {
        Err(Error::invalid(&self.reference, "not yet"))
    }

    /// An image manifest by its descriptor.
    pub async fn manifest(&self, _descriptor: &Descriptor) -> Result<Manifest> {
        Err(Error::invalid(&self.reference, "not yet"))
    }

    /// A whole blob, verified.
    pub async fn blob(&self, _descriptor: &Descriptor) -> Result<BlobStream> {
        Err(Error::invalid(&self.reference, "not yet"))
    }

    /// Exactly the bytes `range` of a blob of `blob_size` bytes. The content is NOT verified.
    pub async fn blob_range(&self, _digest: &Digest, _blob_size: u64, _range: Range<u64>) -> Result<Bytes> {
        Err(Error::invalid(&self.reference, "not yet"))
    }
}
