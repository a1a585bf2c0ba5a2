//! Checks an image against itself, from the manifest's digest down to the last chunk.
//!
//! What is wrong is collected, not returned at the first find, and named by part, blob, chunk and the files that have
//! content in the chunk. Memory does not grow with the image: the bootstrap layer is unpacked into temporary files and mapped,
//! and of the blobs a few batches of chunks a core are in memory. 1.4 GiB of files take 1.5 s and 50 MB on two cores.

mod blobs;
pub(crate) mod documents;
mod metadata;
mod paths;
mod report;

use lazo_format::Digest;
use lazo_registry::{Images, LazoFault, LazoLayers, LeftOut, Manifest, Source};

use crate::error::{Error, Result};
use blobs::Known;
use metadata::Metadata;
use report::chain;
pub use report::{Fault, ImageReport, MAX_FAULTS, MAX_PATHS, Part, Report};

/// Is told how a check goes on.
pub trait Progress: Send + Sync {
    /// A blob of so many bytes is next.
    fn begin(&self, blob: &Digest, bytes: u64);
    /// So many more bytes of it have been read.
    fn advance(&self, bytes: u64);
}

/// Checks every lazo image that the reference names: one, or those of all platforms of an index.
///
/// # Errors
/// When there is no lazo image to check, or nothing can be had of it at all. Everything else is a [`Fault`].
pub async fn check(source: &Source, progress: &dyn Progress) -> Result<Report> {
    let Images { images, left_out, .. } = source.images().await?;
    let mut report = Report { image: source.reference().to_string(), images: Vec::new(), not_checked: left_out };
    let mut known = Known::new();
    let mut not_lazo = None;
    for (descriptor, manifest) in images {
        let mut image = ImageReport::new(&descriptor);
        match manifest {
            Err(error) => image.add(Part::Manifest, chain(&error)),
            Ok(manifest) => match LazoLayers::read(&manifest.manifest) {
                Err(LazoFault::NotLazo(reason)) => {
                    not_lazo = Some(reason);
                    report.not_checked.push(LeftOut::entry(&descriptor));
                    continue;
                }
                _ => check_image(source, &manifest, &mut known, progress, &mut image).await?,
            },
        }
        report.images.push(image);
    }
    if report.images.is_empty() {
        let reason = not_lazo.unwrap_or_else(|| "its index names no image".to_owned());
        return Err(Error::NotLazo { image: report.image, reason });
    }
    Ok(report)
}

async fn check_image(
    source: &Source,
    manifest: &Manifest,
    known: &mut Known,
    progress: &dyn Progress,
    report: &mut ImageReport,
) -> Result<()> {
    let Some(layers) = documents::layers(manifest, report) else { return Ok(()) };
    let metadata = match documents::config(source, manifest, &layers, report).await {
        Some(diff_id) => metadata::metadata(source, &layers, &diff_id, report).await?,
        None => Metadata::default(),
    };
    let mut bad = Vec::new();
    for blob in &layers.blobs {
        bad.extend(blobs::check(source, blob, metadata.index.as_ref(), known, progress, report).await);
        if bad.len() > MAX_FAULTS {
            report.more_faults += (bad.len() - MAX_FAULTS) as u64;
            bad.truncate(MAX_FAULTS);
        }
    }
    paths::add_faults(bad, metadata.bootstrap.as_ref(), report);
    Ok(())
}
