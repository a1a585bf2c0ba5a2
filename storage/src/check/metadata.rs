//! Bootstrap and chunk index: each by itself, against each other, against the manifest.

use lazo_format::metadata::Validation;
use lazo_format::{Bootstrap, Digest, Index, MetadataError};
use lazo_registry::{LazoLayers, Source};

use super::report::{ImageReport, Part, chain};
use crate::error::{Error, Result};
use crate::image::unpack_metadata;
use crate::image::verify::look;
use crate::mapped::Mapped;

/// The parts that hold together by themselves.
#[derive(Default)]
pub(super) struct Metadata {
    pub(super) bootstrap: Option<Bootstrap<Mapped>>,
    pub(super) index: Option<Index<Mapped>>,
}

/// Fetches the bootstrap layer and checks all that is in it.
///
/// # Errors
/// When there is no place for temporary files.
pub(super) async fn metadata(
    source: &Source,
    layers: &LazoLayers,
    diff_id: &Digest,
    report: &mut ImageReport,
) -> Result<Metadata> {
    report.bootstrap_layer_bytes = layers.bootstrap.size();
    // The files stay mapped when their names are gone.
    let temporary = tempfile::tempdir().map_err(Error::io("make a temporary directory in", std::env::temp_dir()))?;
    let manifest = report.manifest.clone();
    match unpack_metadata(source, temporary.path(), &layers.bootstrap, diff_id, &manifest).await {
        Ok((bootstrap, index)) => {
            let metadata = validated(bootstrap, index, report);
            compare(&metadata, layers, report);
            Ok(metadata)
        }
        Err(error) => {
            report.add(Part::BootstrapLayer, chain(&error));
            Ok(Metadata::default())
        }
    }
}

/// The parts that are sound by themselves, after the same look as a mount makes.
fn validated(bootstrap: Mapped, index: Mapped, report: &mut ImageReport) -> Metadata {
    report.bootstrap_bytes = bootstrap.as_ref().len() as u64;
    let (Validation { summary, errors }, _) = look(&bootstrap, &index);
    let mut index_is_sound = true;
    for error in &errors {
        let part = if error.is_of_index() { Part::Index } else { Part::Bootstrap };
        index_is_sound &= !matches!(error, MetadataError::Index(_));
        report.add(part, chain(error));
    }
    if let Some(tree) = &summary {
        (report.entries, report.file_bytes) = (tree.entries, tree.file_bytes);
    }
    Metadata {
        bootstrap: summary.and_then(|_| Bootstrap::parse(bootstrap).ok()),
        index: Index::parse(index).ok().filter(|_| index_is_sound),
    }
}

/// Compares the manifest's blobs and the index's blob table.
fn compare(metadata: &Metadata, layers: &LazoLayers, report: &mut ImageReport) {
    let Some(index) = &metadata.index else { return };
    let count = index.blob_count();
    if count != layers.blobs.len() {
        report.add(Part::Index, format_args!("it has {count} blobs, the manifest {}", layers.blobs.len()));
    }
    for number in index.blob_numbers() {
        // Validated before, so that the record can be read.
        let Ok(record) = index.blob(number) else { continue };
        let (digest, size) = (record.digest, record.compressed_size);
        if let Some(blob) = layers.blobs.get(usize::from(number.0))
            && (blob.digest, blob.descriptor.size()) != (digest, size)
        {
            let manifest = format_args!("the manifest's is {} of {} bytes", blob.digest, blob.descriptor.size());
            report.add(Part::Index, format_args!("blob {number} is {digest} of {size} bytes, {manifest}"));
        }
    }
}
