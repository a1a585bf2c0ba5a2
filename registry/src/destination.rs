//! Writing an image to wherever it shall go.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use lazo_format::Digest;
use oci_spec::image::Descriptor;
use tempfile::TempDir;

use crate::{
    document::{Document, digest_of},
    error::{Error, Result},
    layout::writer::{Writer, check_bytes},
    options::Options,
    reference::{DockerRef, ImageRef},
    registry::{Content, Registry},
    repository::open_for_push,
    section::Section,
    source::on_thread,
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

/// An image to write. Its calls may be made in parallel; [`Self::commit`] comes last. What is not committed leaves a
/// layout or archive as it was; a registry keeps blobs that no manifest names until it collects its garbage.
pub struct Destination {
    reference: ImageRef,
    kind: Kind,
    staging: PathBuf,
}

enum Kind {
    Registry(Registry, TempDir),
    Layout(Arc<Writer>),
}

impl Destination {
    /// Prepares to write: makes the staging directory, and for a layout its directory.
    ///
    /// # Errors
    /// When the destination cannot be written, holds something else, or is a docker-archive.
    pub async fn open(reference: &ImageRef, options: &Options) -> Result<Self> {
        let (kind, staging) = match reference.clone() {
            ImageRef::Docker(docker) => {
                let parent = options.staging_parent.clone().unwrap_or_else(temporary_parent);
                let staging = tempfile::Builder::new().prefix("lazo-").tempdir_in(&parent);
                let staging = staging.map_err(|e| {
                    Error::io(format_args!("cannot make a staging directory in {}", parent.display()), e)
                })?;
                let path = staging.path().to_owned();
                (Kind::Registry(open_for_push(&docker, options).await?, staging), path)
            }
            ImageRef::OciLayout { path, tag } => layout(move || Writer::directory(&path, tag.as_deref())).await?,
            ImageRef::OciArchive { path, tag } => layout(move || Writer::archive(&path, tag.as_deref())).await?,
            ImageRef::DockerArchive { .. } => {
                return Err(Error::invalid(
                    reference,
                    "docker-archive cannot hold these images; write to oci-archive:FILE or oci:DIR instead",
                ));
            }
        };
        Ok(Self { reference: reference.clone(), kind, staging })
    }

    /// What was opened.
    #[must_use]
    pub fn reference(&self) -> &ImageRef {
        &self.reference
    }

    /// Where to write blobs before [`Self::put_blob_file`]; removed on drop.
    #[must_use]
    pub fn staging_dir(&self) -> &Path {
        &self.staging
    }

    /// Whether the destination holds this blob.
    ///
    /// # Errors
    /// When it cannot be asked, or a registry holds a blob of that digest and another size.
    pub async fn has_blob(&self, digest: &Digest, size: u64) -> Result<bool> {
        match &self.kind {
            Kind::Registry(registry, _) => registry.has_blob(digest, size).await,
            Kind::Layout(writer) => Ok(writer.has_blob(digest, size)),
        }
    }

    /// Stores a blob, unless it is there. A file in [`Self::staging_dir`] is taken over, and gone after success; there
    /// the caller vouches for the digest when the destination is local. Any other file is left, and checked.
    /// `mount_from` is where the blob may also be: a repository of the same registry lends it without an upload.
    ///
    /// # Errors
    /// When the file has another size (or, if checked, digest), or storing fails after retries.
    pub async fn put_blob_file(
        &self,
        file: &Path,
        descriptor: &Descriptor,
        mount_from: Option<&ImageRef>,
    ) -> Result<Outcome> {
        let (digest, size) = (digest_of(descriptor)?, descriptor.size());
        let file = file.to_owned();
        match &self.kind {
            Kind::Layout(writer) => {
                let writer = writer.clone();
                on_thread(move || writer.put_file(&file, &digest, size)).await
            }
            Kind::Registry(registry, _) => {
                let fail = |e| Error::io(format_args!("cannot read {}", file.display()), e);
                let section = Section::open(&file).map_err(fail)?;
                if section.len() != size {
                    let what = file.display().to_string();
                    return Err(Error::SizeMismatch { what, expected: size, actual: section.len() });
                }
                let from = lender(registry.reference(), mount_from);
                let outcome = registry.put_blob(&digest, &Content::File(section), from).await?;
                if file.starts_with(&self.staging) {
                    std::fs::remove_file(&file)
                        .map_err(|e| Error::io(format_args!("cannot remove {}", file.display()), e))?;
                }
                Ok(outcome)
            }
        }
    }

    /// Stores a small blob, unless it is there.
    ///
    /// # Errors
    /// When the bytes do not match the descriptor, or storing fails after retries.
    pub async fn put_blob_bytes(&self, bytes: Vec<u8>, descriptor: &Descriptor) -> Result<Outcome> {
        let digest = check_bytes(&bytes, descriptor)?;
        match &self.kind {
            Kind::Registry(registry, _) => registry.put_blob(&digest, &Content::Bytes(bytes.into()), None).await,
            Kind::Layout(writer) => {
                let writer = writer.clone();
                on_thread(move || writer.put_bytes(&bytes, &digest)).await
            }
        }
    }

    /// Stores a manifest or index under its digest, without a tag.
    ///
    /// # Errors
    /// When the bytes do not match the descriptor, or storing fails after retries.
    pub async fn put_manifest(&self, document: &Document) -> Result<()> {
        let digest = check_bytes(&document.bytes, &document.descriptor)?;
        match &self.kind {
            Kind::Registry(registry, _) => registry.put_manifest(&digest.to_string(), document).await,
            Kind::Layout(writer) => {
                let (writer, bytes) = (writer.clone(), document.bytes.clone());
                on_thread(move || writer.put_bytes(&bytes, &digest)).await.map(drop)
            }
        }
    }

    /// The last, atomic step: stores `root` and points the reference at it.
    ///
    /// # Errors
    /// When `root` does not match its descriptor or a digest in the reference, or storing fails after retries.
    pub async fn commit(self, root: &Document) -> Result<()> {
        let digest = check_bytes(&root.bytes, &root.descriptor)?;
        match self.kind {
            Kind::Registry(registry, _staging) => {
                let reference = registry.reference();
                if let Some(expected) = reference.digest
                    && expected != digest
                {
                    return Err(Error::digest(&self.reference, expected, digest));
                }
                if reference.digest.is_none() || reference.tag.is_some() {
                    let tag = reference.tag.as_deref().unwrap_or("latest");
                    return registry.put_manifest(tag, root).await;
                }
                registry.put_manifest(&digest.to_string(), root).await
            }
            Kind::Layout(writer) => {
                let root = root.clone();
                // Calls still under way would lose their staging directory.
                let writer = Arc::into_inner(writer)
                    .ok_or_else(|| Error::invalid(&self.reference, "committed while blobs are being stored"))?;
                on_thread(move || writer.commit(&root)).await
            }
        }
    }
}

/// Where large temporary files belong: TMPDIR, else /var/tmp, which unlike /tmp is seldom memory.
fn temporary_parent() -> PathBuf {
    let large = PathBuf::from("/var/tmp");
    if std::env::var_os("TMPDIR").is_none() && large.is_dir() { large } else { std::env::temp_dir() }
}

async fn layout(open: impl FnOnce() -> Result<Writer> + Send + 'static) -> Result<(Kind, PathBuf)> {
    let writer = on_thread(open).await?;
    let staging = writer.incoming();
    Ok((Kind::Layout(Arc::new(writer)), staging))
}

/// The repository that may lend blobs: another one of the same registry.
fn lender<'a>(own: &DockerRef, from: Option<&'a ImageRef>) -> Option<&'a str> {
    match from {
        Some(ImageRef::Docker(from)) if from.host == own.host && from.repository != own.repository => {
            Some(&from.repository)
        }
        _ => None,
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destination").field("reference", &self.reference).finish_non_exhaustive()
    }
}
