//! Reading an image from wherever it is.

use std::{fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use lazo_format::Digest;
use oci_spec::image::Descriptor;

use crate::{
    archive::Archive,
    blob::BlobStream,
    docker_archive::DockerArchive,
    document::{Content, Document, Manifest, digest_of},
    endpoint::{Endpoint, Local, check_bounds},
    error::{Error, Result},
    layout::{Files, Layout},
    media,
    options::Options,
    reference::ImageRef,
    registry::foreign,
    repository::Repository,
    section::blocking,
};

/// An image to read. Its calls may be made in parallel.
pub struct Source {
    reference: ImageRef,
    kind: Kind,
}

enum Kind {
    Registry(Repository),
    Local(Local),
}

impl Source {
    /// Prepares to read: archives are scanned, nothing else is touched. The network is first used by the calls below,
    /// and certificates are loaded only for an https connection.
    ///
    /// # Errors
    /// When an archive cannot be read, or the reference is no URL.
    pub async fn open(reference: &ImageRef, options: &Options) -> Result<Self> {
        let kind = match reference.clone() {
            ImageRef::Docker(docker) => Kind::Registry(Repository::open(&docker, options).await?),
            ImageRef::OciLayout { path, tag } => Kind::Local(Local::Layout(Layout::new(Files::Directory(path), tag))),
            ImageRef::OciArchive { path, tag } => {
                let archive = on_thread(move || Archive::open(&path)).await?;
                Kind::Local(Local::Layout(Layout::new(Files::Archive(archive), tag)))
            }
            ImageRef::DockerArchive { path, reference } => {
                let archive = on_thread(move || DockerArchive::open(&path, reference.as_deref())).await?;
                Kind::Local(Local::DockerArchive(Arc::new(archive)))
            }
        };
        Ok(Self { reference: reference.clone(), kind })
    }

    /// What was opened.
    #[must_use]
    pub fn reference(&self) -> &ImageRef {
        &self.reference
    }

    /// The digest that the reference stands for now; from a registry by HEAD, without the document.
    ///
    /// # Errors
    /// As [`Self::root`].
    pub async fn root_digest(&self) -> Result<Digest> {
        match &self.kind {
            Kind::Registry(repository) => repository.root_digest().await,
            _ => self.root().await?.digest(),
        }
    }

    /// The manifest or index that the reference names.
    ///
    /// # Errors
    /// When it does not exist, cannot be had, is over [`crate::MAX_DOCUMENT`], or does not match its digest.
    pub async fn root(&self) -> Result<Document> {
        match &self.kind {
            Kind::Registry(repository) => repository.root().await,
            Kind::Local(Local::Layout(layout)) => layout.root().await,
            Kind::Local(Local::DockerArchive(archive)) => Ok(archive.root().clone()),
        }
    }

    /// What writing to this reference replaces: what the tag stands for, in a layout only what has just this tag, and all of
    /// an archive.
    ///
    /// # Errors
    /// As [`Self::root`], but that there is nothing yet is none.
    pub async fn replaced(&self) -> Result<Vec<Document>> {
        let found = match &self.kind {
            Kind::Local(Local::Layout(layout)) => layout.replaced().await,
            _ => self.root().await.map(|root| vec![root]),
        };
        match found {
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            found => found,
        }
    }

    /// A manifest, index or config by its descriptor.
    ///
    /// # Errors
    /// As [`Self::root`], and when the size is not the descriptor's.
    pub async fn document(&self, descriptor: &Descriptor) -> Result<Document> {
        match &self.kind {
            Kind::Registry(repository) => repository.document(descriptor).await,
            Kind::Local(Local::Layout(layout)) => layout.document(descriptor).await,
            Kind::Local(Local::DockerArchive(archive)) => archive.document(&digest_of(descriptor)?),
        }
    }

    /// An image manifest by its descriptor.
    ///
    /// # Errors
    /// As [`Self::document`], and when it is no image manifest.
    pub async fn manifest(&self, descriptor: &Descriptor) -> Result<Manifest> {
        let document = self.document(descriptor).await?;
        match document.content()? {
            Content::Manifest(manifest) => Ok(Manifest::new(document, *manifest)),
            Content::Index(_) => {
                Err(Error::invalid(format_args!("manifest {}", descriptor.digest()), "it is an index, no image"))
            }
        }
    }

    /// The places that blobs come from, in the order in which they should be asked: mirrors, then the registry itself; or
    /// the one layout or archive.
    #[must_use]
    pub fn endpoints(&self) -> Vec<Endpoint> {
        match &self.kind {
            Kind::Registry(repository) => repository.endpoints(),
            Kind::Local(local) => vec![Endpoint::local(local.clone())],
        }
    }

    /// A whole blob, verified as it comes: the stream ends well only if digest and size were right. A connection that
    /// breaks is taken up where it broke. Foreign layers come from their URLs.
    ///
    /// # Errors
    /// When the blob does not exist or cannot be had.
    pub async fn blob(&self, descriptor: &Descriptor) -> Result<BlobStream> {
        let digest = digest_of(descriptor)?;
        let is_foreign = media::layer_kind(descriptor.media_type()).is_some_and(|k| k.foreign);
        match (&self.kind, self.own_blob(descriptor, &digest).await) {
            (Kind::Registry(repository), Err(error)) if error.is_not_found() && is_foreign => {
                let stream = foreign(repository.http(), descriptor, &digest).await?;
                BlobStream::new(format!("foreign layer {digest}"), descriptor, stream)
            }
            (_, found) => found,
        }
    }

    async fn own_blob(&self, descriptor: &Descriptor, digest: &Digest) -> Result<BlobStream> {
        match &self.kind {
            Kind::Registry(repository) => {
                let (stream, senders) = repository.blob(descriptor).await?;
                Ok(BlobStream::new(repository.blob_name(digest), descriptor, stream)?.from(senders))
            }
            Kind::Local(local) => {
                let (what, section) = local.section(digest, descriptor.size()).await?;
                BlobStream::new(what.clone(), descriptor, section.blob_stream(what))
            }
        }
    }

    /// Exactly the bytes `range` of a blob of `blob_size` bytes, held in memory. Their content is NOT verified.
    ///
    /// # Errors
    /// When the range does not lie in the blob, or the source cannot give just these bytes of a blob of just that size.
    pub async fn blob_range(&self, digest: &Digest, blob_size: u64, range: Range<u64>) -> Result<Bytes> {
        check_bounds(digest, blob_size, &range)?;
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        match &self.kind {
            Kind::Registry(repository) => repository.blob_range(digest, blob_size, range).await,
            Kind::Local(local) => {
                let (what, section) = local.section(digest, blob_size).await?;
                let part = section.slice(range).ok_or_else(|| Error::invalid(&what, "range outside of it"))?;
                part.bytes().await.map_err(|e| Error::io(format_args!("cannot read {what}"), e))
            }
        }
    }
}

pub(crate) async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    blocking(work).await.map_err(|e| Error::io("a worker thread failed", e))?
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("reference", &self.reference).finish_non_exhaustive()
    }
}
