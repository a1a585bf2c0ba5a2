//! Writing an image to wherever it shall go.

use std::path::Path;

use lazo_format::Digest;
use oci_spec::image::Descriptor;

use crate::{
    document::Document,
    error::{Error, Result},
    options::Options,
    reference::ImageRef,
};

/// What became of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was written.
    Uploaded,
    /// It was there already.
    Existed,
    /// The registry took it over from the source's repository.
    Mounted,
}

/// An image to write.
pub struct Destination {
    reference: ImageRef,
    staging: tempfile::TempDir,
}

impl Destination {
    /// Prepares to write.
    pub async fn open(reference: &ImageRef, _options: &Options) -> Result<Self> {
        let staging = tempfile::tempdir().map_err(|e| Error::io("cannot make a temporary directory", e))?;
        Ok(Self { reference: reference.clone(), staging })
    }

    /// What was opened.
    #[must_use]
    pub fn reference(&self) -> &ImageRef {
        &self.reference
    }

    /// Where to write blobs before [`Self::put_blob_file`]; removed on drop.
    #[must_use]
    pub fn staging_dir(&self) -> &Path {
        self.staging.path()
    }

    /// Whether the destination holds this blob.
    pub async fn has_blob(&self, _digest: &Digest, _size: u64) -> Result<bool> {
        Err(Error::invalid(&self.reference, "not yet"))
    }

    /// Stores a blob. A file in [`Self::staging_dir`] is taken over (it may be gone afterwards).
    pub async fn put_blob_file(
        &self,
        _file: &Path,
        _descriptor: &Descriptor,
        _mount_from: Option<&ImageRef>,
    ) -> Result<Outcome> {
        Err(Error::invalid(&self.reference, "not yet"))
    }

    /// Stores a small blob.
    pub async fn put_blob_bytes(&self, _bytes: Vec<u8>, _descriptor: &Descriptor) -> Result<Outcome> {
        Err(Error::invalid(&self.reference, "not yet"))
    }

    /// Stores a manifest or index under its digest, without a tag.
    pub async fn put_manifest(&self, _document: &Document) -> Result<()> {
        Err(Error::invalid(&self.reference, "not yet"))
    }

    /// The last, atomic step: stores `root` and points the reference at it.
    pub async fn commit(self, _root: &Document) -> Result<()> {
        Err(Error::invalid(&self.reference, "not yet"))
    }
}
