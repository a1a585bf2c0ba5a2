//! Checks an image against itself, from the manifest's digest down to the last chunk.
//!
//! What is wrong is collected, not returned at the first find, and named by part, blob, chunk and the paths that use the
//! chunk. Every blob is streamed once: while its SHA-256 is computed, the chunks in it are decoded and hashed on all
//! cores. Memory: the bootstrap layer is unpacked into temporary files and mapped; of a blob, at most
//! [`chunks::BATCHES_PER_CORE`] batches of [`chunks::BATCH`] stored bytes a core are in memory, and one decoded chunk each.

mod chunks;
mod documents;
mod report;

use std::collections::{BTreeMap, HashSet};

use lazo_format::{BlobIndex, Bootstrap, Digest, FileType, Index};
use lazo_registry::oci_spec::image::Descriptor;
use lazo_registry::{Manifest, Source};

use crate::error::{Error, Result};
use crate::image::layer::{self, Unpacked};
use crate::inspect::shown;
use crate::mapped::Mapped;
use crate::walk::{Run, runs, walk};

use chunks::BadChunk;
use documents::Layers;
pub use report::{Fault, ImageReport, MAX_FAULTS, MAX_PATHS, Part, Report};

/// Told how the check goes on, so that a user can be told.
pub trait Progress: Send + Sync {
    /// A blob of so many bytes is next.
    fn begin(&self, blob: &Digest, bytes: u64);
    /// So many more bytes of it are checked.
    fn advance(&self, bytes: u64);
}

/// Checks every lazo image that the reference names: one, or those of all platforms of an index.
///
/// # Errors
/// When there is no lazo image to check, or not even its manifest can be had. Everything else is a [`Fault`].
pub async fn check(source: &Source, progress: &dyn Progress) -> Result<Report> {
    let mut report = Report { image: source.reference().to_string(), images: Vec::new(), others: 0 };
    let mut checked = HashSet::new();
    for descriptor in source.platforms().await? {
        let manifest = match source.manifest(&descriptor).await {
            Ok(manifest) => manifest,
            Err(error) => {
                let mut image = ImageReport::new(&descriptor);
                image.add(Fault::new(Part::Manifest, &error));
                report.images.push(image);
                continue;
            }
        };
        match Layers::of(&manifest) {
            None => report.others += 1,
            Some(layers) => {
                let check = ImageCheck { source, progress, manifest: &manifest, layers, report: ImageReport::new(&descriptor) };
                report.images.push(check.run(&mut checked).await?);
            }
        }
    }
    if report.images.is_empty() {
        let reason = "no layer has the annotation of a bootstrap layer".to_owned();
        return Err(Error::NotLazo { image: report.image, reason });
    }
    Ok(report)
}

/// One image on the way through its check.
struct ImageCheck<'a> {
    source: &'a Source,
    progress: &'a dyn Progress,
    manifest: &'a Manifest,
    layers: Layers,
    report: ImageReport,
}

/// The metadata, each part as far as it can be trusted.
struct Metadata {
    bootstrap: Option<Bootstrap<Mapped>>,
    index: Option<Index<Mapped>>,
}

impl ImageCheck<'_> {
    /// `checked` holds the blobs that were found good in another image, with the digest of their chunk table.
    async fn run(mut self, checked: &mut HashSet<(Digest, [u8; 32])>) -> Result<ImageReport> {
        for fault in std::mem::take(&mut self.layers.faults) {
            self.report.add(Fault::new(Part::Manifest, fault));
        }
        let diff_ids = self.config().await;
        let unpacked = self.bootstrap_layer(diff_ids.as_deref()).await?;
        let metadata = match unpacked {
            Some(unpacked) => self.metadata(unpacked).await?,
            None => Metadata { bootstrap: None, index: None },
        };
        self.compare_tables(&metadata);
        let mut bad = BTreeMap::new();
        for number in 0..self.layers.blobs.len() {
            if let Some(found) = self.blob(number, metadata.index.as_ref(), checked).await? {
                bad.insert(found.0, found.1);
            }
        }
        self.add_chunk_faults(&metadata, &bad);
        Ok(self.report)
    }

    /// The config's diff IDs, if it can be had; compares those of the blobs.
    async fn config(&mut self) -> Option<Vec<Digest>> {
        let document = match self.source.document(self.manifest.manifest.config()).await {
            Ok(document) => document,
            Err(error) => {
                self.report.add(Fault::new(Part::Config, &error));
                return None;
            }
        };
        let (platform, diff_ids) = match documents::config(&document.bytes) {
            Ok(config) => config,
            Err(error) => {
                self.report.add(Fault::new(Part::Config, error));
                return None;
            }
        };
        self.report.platform = self.report.platform.take().or(platform);
        let layers = self.manifest.manifest.layers().len();
        if diff_ids.len() != layers {
            let (ids, what) = (diff_ids.len(), "the config has");
            self.report.add(Fault::new(Part::Config, format_args!("{what} {ids} diff_ids, the manifest {layers} layers")));
        }
        for (blob, diff_id) in self.layers.blobs.iter().zip(&diff_ids) {
            if blob.digest != *diff_id {
                let message = format_args!("the diff_id of blob {} is {diff_id}: it must be the blob's own digest", blob.digest);
                self.report.add(Fault::new(Part::Config, message));
            }
        }
        Some(diff_ids)
    }

    /// Fetches and unpacks the bootstrap layer; compares its diff ID.
    async fn bootstrap_layer(&mut self, diff_ids: Option<&[Digest]>) -> Result<Option<Unpacked>> {
        let descriptor = &self.layers.bootstrap;
        let unpacked = match self.source.blob(descriptor).await {
            Ok(stream) => layer::unpack(stream).await,
            Err(error) => Err(error.into()),
        };
        let unpacked = match unpacked {
            Ok(unpacked) => unpacked,
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(error) => {
                self.report.add(Fault::new(Part::BootstrapLayer, &error));
                return Ok(None);
            }
        };
        let actual = unpacked.diff_id;
        match diff_ids.and_then(<[Digest]>::last) {
            Some(expected) if *expected != actual => {
                let message = format_args!("the config has {expected} as its diff_id, its tar is {actual}");
                self.report.add(Fault::new(Part::BootstrapLayer, message));
            }
            _ => {}
        }
        self.report.bootstrap_layer_bytes = descriptor.size();
        Ok(Some(unpacked))
    }

    /// Validates bootstrap and index, each for itself and against each other.
    fn metadata(&mut self, unpacked: Unpacked) -> Metadata {
        let Unpacked { bootstrap, index, .. } = unpacked;
        let index = match Index::parse(index).and_then(|index| index.validate().map(|()| index)) {
            Ok(index) => Some(index),
            Err(error) => {
                self.report.add(Fault::new(Part::Index, &error));
                None
            }
        };
        let bytes: &[u8] = bootstrap.as_ref();
        if let Some(header) = index.as_ref().map(Index::header) {
            let (size, digest) = (bytes.len() as u64, ChunkDigest::of(bytes));
            if (header.bootstrap_size, header.bootstrap_digest) != (size, digest) {
                let message = format_args!(
                    "the index is for a bootstrap of {} bytes, {}; this one has {size} bytes, {digest}",
                    header.bootstrap_size, header.bootstrap_digest
                );
                self.report.add(Fault::new(Part::Bootstrap, message));
            }
        }
        self.report.bootstrap_bytes = bytes.len() as u64;
        let bootstrap = match Bootstrap::parse(bootstrap).and_then(|bootstrap| Ok((bootstrap.validate()?, bootstrap))) {
            Ok((summary, bootstrap)) => {
                self.compare_header(&summary, index.as_ref().map(Index::header));
                Some(bootstrap)
            }
            Err(error) => {
                self.report.add(Fault::new(Part::Bootstrap, &error));
                None
            }
        };
        Metadata { bootstrap, index }
    }

    fn compare_header(&mut self, tree: &Summary, header: Option<&Header>) {
        self.report.entries = tree.entries;
        self.report.file_bytes = tree.file_bytes;
        let Some(header) = header else { return };
        for (what, index, bootstrap) in
            [("entries", header.entries, tree.entries), ("bytes of files", header.file_bytes, tree.file_bytes)]
        {
            if index != bootstrap {
                self.report.add(Fault::new(Part::Index, format_args!("it counts {index} {what}, the tree has {bootstrap}")));
            }
        }
        if tree.inodes_with_xattrs > 0 && !header.has_xattrs {
            self.report.add(Fault::new(Part::Index, "it says that no file has extended attributes, but some have"));
        }
    }

    /// Compares the manifest's blobs, the index's blob table and the bootstrap's device table.
    fn compare_tables(&mut self, metadata: &Metadata) -> Result<()> {
        let blobs = &self.layers.blobs;
        let Some(index) = &metadata.index else { return Ok(()) };
        let mut faults = Vec::new();
        if index.blob_count() != blobs.len() {
            faults.push((Part::Index, format!("it has {} blobs, the manifest {}", index.blob_count(), blobs.len())));
        }
        if let Some(devices) = metadata.bootstrap.as_ref().map(Bootstrap::device_count)
            && devices != index.blob_count()
        {
            faults.push((Part::Bootstrap, format!("it has {devices} devices, the index {} blobs", index.blob_count())));
        }
        for number in (0..index.blob_count()).map_while(|number| u16::try_from(number).ok()).map(BlobIndex) {
            // Validated, so that every record can be read.
            let Ok(record) = index.blob(number) else { continue };
            if let Some(blob) = blobs.get(usize::from(number.0))
                && (blob.digest, blob.size) != (record.digest, record.compressed_size)
            {
                let (digest, size) = (record.digest, record.compressed_size);
                let other = format!("the manifest {} of {} bytes", blob.digest, blob.size);
                faults.push((Part::Index, format!("blob {number} is {digest} of {size} bytes, in {other}")));
            }
            if let Some(Ok(slot)) = metadata.bootstrap.as_ref().map(|bootstrap| bootstrap.slot(number))
                && (slot.tag != record.digest.hex().as_bytes() || slot.size != record.device_size)
            {
                let device = format!("{} of {} bytes", shown(slot.tag), slot.size);
                let message = format!("device {number} is {device}, in the index {} of {}", record.digest, record.device_size);
                faults.push((Part::Bootstrap, message));
            }
        }
        faults.into_iter().for_each(|(part, message)| self.report.add(Fault::new(part, message)));
        Ok(())
    }
