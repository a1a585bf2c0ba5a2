//! An image's metadata: manifest, bootstrap and chunk index, verified and mapped.
//!
//! The chain of trust is: the reference's digest, or what the registry says the tag is, names the manifest; the manifest
//! names the bootstrap layer by digest, and through the config by diffID; the layer holds the chunk index; its header has
//! the BLAKE3 of the bootstrap, and its records those of all chunks.
//!
//! ```text
//! STATE/images/<manifest digest>/manifest.json  as the registry has it; hashed at each use
//!                                config.json    likewise
//!                                bootstrap      mapped; hashed when `verified.json` does not know this very file
//!                                index          likewise
//!                                verified.json  what was hashed and validated, and as which files
//! STATE/images/<chunk index's digest>/...        of an image that came as files: the same without manifest.json and config.json
//! STATE/images/<index digest>/index.json        of an image for several platforms: which manifest was chosen for one
//!                             OS-ARCH[-VARIANT]
//! ```
//! A directory appears by rename when everything in it is synced, so it is whole or not there.

mod adopt;
pub(crate) mod download;
mod keep;
pub(crate) mod stamp;
pub(crate) mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lazo_format::{BlobIndex, Bootstrap, Digest, Index};
use lazo_registry::{ImageRef, LazoFault, LazoLayers, Platform, Source, digest_of};

use crate::error::{Error, Result};
use crate::mapped::Mapped;
use crate::table::ImageIndex;
pub(crate) use download::unpack_metadata;
use keep::Kept;
pub use stamp::this_boot;

/// A lazo image with everything at hand that a mount needs at once.
#[derive(Debug)]
pub struct LazoImage {
    name: String,
    manifest_digest: Digest,
    bootstrap: Bootstrap<Mapped>,
    index: Arc<ImageIndex>,
    direct_io: bool,
}

impl LazoImage {
    /// Opens the image that `source` stands for, for one platform where there are several.
    ///
    /// A reference by digest whose image is kept under `state_dir` needs neither network nor, after the first time since
    /// boot, more work than for a small image. Otherwise what is missing is downloaded, verified and kept.
    ///
    /// # Errors
    /// When the image cannot be had, is none of lazo's, or its parts contradict each other.
    pub async fn open(source: &Source, state_dir: &Path, platform: &Platform) -> Result<Self> {
        let name = source.reference().to_string();
        let images = state_dir.join("images");
        if let ImageRef::Docker(reference) = source.reference()
            && let Some(digest) = &reference.digest
            && let Some(kept) = keep::find(&images, digest, platform)
        {
            return Self::assemble(name, kept);
        }
        let manifest = source.resolve(platform).await?;
        let digest = digest_of(&manifest.descriptor)?;
        let layers = sound(&name, LazoLayers::sound(&manifest.manifest))?;
        let kept = match keep::open(&images, &digest) {
            Some(kept) => kept,
            None => download::download(source, &images, &manifest, &layers, &name).await?,
        };
        if let ImageRef::Docker(reference) = source.reference()
            && let Some(wanted) = &reference.digest
            && *wanted != digest
        {
            keep::remember(&images, &source.root().await?, platform, &digest)?;
        }
        Self::assemble(name, kept)
    }

    /// Opens the image with this manifest as it is kept under `state_dir`: without a source, and for who knows that it was here.
    ///
    /// # Errors
    /// [`Error::NotKept`] when it is not there any more, or is damaged.
    pub fn kept(name: String, state_dir: &Path, manifest: &Digest) -> Result<Self> {
        match keep::open(&state_dir.join("images"), manifest) {
            Some(kept) => Self::assemble(name, kept),
            None => Err(Error::NotKept { image: name, state_dir: state_dir.to_owned() }),
        }
    }

    /// Opens the image whose bootstrap layer somebody has unpacked into files, and keeps them under `state_dir`. Its identity
    /// is the digest of its chunk index, which covers all else.
    ///
    /// The files are links to those in `files` where they can be: nobody may write to them any more.
    ///
    /// # Errors
    /// When they cannot be read, or are not those of one lazo image.
    pub fn adopt(name: String, state_dir: &Path, files: &Path) -> Result<Self> {
        let kept = adopt::adopt(&name, &state_dir.join("images"), files)?;
        Self::assemble(name, kept)
    }

    /// Where its bootstrap is kept, for the kernel.
    #[must_use]
    pub fn bootstrap_path(&self, state_dir: &Path) -> PathBuf {
        state_dir.join("images").join(self.manifest_digest.hex()).join(keep::BOOTSTRAP)
    }

    /// The image as the user named it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Digest of its manifest; of its chunk index if it came as files.
    #[must_use]
    pub fn manifest_digest(&self) -> &Digest {
        &self.manifest_digest
    }

    /// Its metadata tree.
    #[must_use]
    pub fn bootstrap(&self) -> &Bootstrap<Mapped> {
        &self.bootstrap
    }

    /// Its chunk index.
    #[must_use]
    pub fn index(&self) -> &Arc<ImageIndex> {
        &self.index
    }

    /// Whether its manifest says that its programs open files with `O_DIRECT`, which the kernel's EROFS refuses. An image that came as files
    /// has none, and whoever brought them knows.
    #[must_use]
    pub fn wants_direct_io(&self) -> bool {
        self.direct_io
    }

    /// Parses what was validated before, and checks that manifest, bootstrap and index speak of the same blobs. Independent of the
    /// number of entries.
    fn assemble(name: String, kept: Kept) -> Result<Self> {
        let layers = kept.manifest.as_ref().map(|manifest| sound(&name, LazoLayers::sound(manifest))).transpose()?;
        let index = Index::parse(kept.index).map_err(|source| Error::Index { image: name.clone(), source })?;
        if index.header().bootstrap_size != kept.bootstrap.as_ref().len() as u64 {
            return damaged(&name, "the bootstrap has not the size that the chunk index says");
        }
        let mut direct_io = false;
        if let Some(layers) = layers {
            check_blobs(&name, &layers, &index)?;
            direct_io = layers.wants_direct_io();
        }
        let bad = |source| Error::Bootstrap { image: name.clone(), source };
        let bootstrap = Bootstrap::parse(kept.bootstrap).map_err(bad)?;
        bootstrap.check_devices(&index).map_err(bad)?;
        let index = Arc::new(ImageIndex::new(index, kept.tables));
        Ok(Self { manifest_digest: kept.digest, bootstrap, index, name, direct_io })
    }
}

/// What the reader of manifests and configs says, as an error about this image.
fn sound<T>(image: &str, read: std::result::Result<T, LazoFault>) -> Result<T> {
    read.map_err(|fault| match fault {
        LazoFault::NotLazo(reason) => Error::NotLazo { image: image.to_owned(), reason },
        LazoFault::Manifest(reason) => {
            Error::Damaged { image: image.to_owned(), reason: format!("manifest: {reason}") }
        }
        LazoFault::Config(reason) => Error::Damaged { image: image.to_owned(), reason: format!("config: {reason}") },
    })
}

fn damaged<T>(image: &str, reason: &str) -> Result<T> {
    Err(Error::Damaged { image: image.to_owned(), reason: reason.to_owned() })
}

fn check_blobs(image: &str, layers: &LazoLayers, index: &Index<Mapped>) -> Result<()> {
    if index.blob_count() != layers.blobs.len() {
        let reason = format!("the manifest has {} blobs, the chunk index {}", layers.blobs.len(), index.blob_count());
        return damaged(image, &reason);
    }
    for (number, blob) in (0..).map(BlobIndex).zip(&layers.blobs) {
        let record = index.blob(number).map_err(|source| Error::Index { image: image.to_owned(), source })?;
        if blob.digest != record.digest || blob.descriptor.size() != record.compressed_size {
            let reason = format!("blob {} of the manifest is not blob {number} of the chunk index", blob.digest);
            return damaged(image, &reason);
        }
    }
    Ok(())
}
