//! Bootstrap and chunk index: each by itself, against each other, against the manifest.

use lazo_format::{Bootstrap, ChunkDigest, Digest, Header, Index, Summary};
use lazo_registry::{LazoLayers, Source};

use super::report::{ImageReport, Part, chain};
use crate::error::{Error, Result};
use crate::image::unpack_metadata;
use crate::inspect::shown;
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

fn validated(bootstrap: Mapped, index: Mapped, report: &mut ImageReport) -> Metadata {
    let bytes: &[u8] = bootstrap.as_ref();
    let (size, digest) = (bytes.len() as u64, ChunkDigest::of(bytes));
    report.bootstrap_bytes = size;
    let index = Index::parse(index).and_then(|index| index.validate().map(|()| index));
    let index = index.map_err(|error| report.add(Part::Index, chain(&error))).ok();
    let header = index.as_ref().map(Index::header);
    if let Some(Header { bootstrap_size, bootstrap_digest, .. }) = header
        && (*bootstrap_size, *bootstrap_digest) != (size, digest)
    {
        let expected = format_args!("the index is for one of {bootstrap_size} bytes, {bootstrap_digest}");
        report.add(Part::Bootstrap, format_args!("it has {size} bytes, {digest}; {expected}"));
    }
    let bootstrap = Bootstrap::parse(bootstrap).and_then(|tree| Ok((tree.validate()?, tree)));
    let bootstrap = bootstrap.map_err(|error| report.add(Part::Bootstrap, chain(&error))).ok();
    let bootstrap = bootstrap.map(|(summary, bootstrap)| {
        compare_header(&summary, header, report);
        bootstrap
    });
    Metadata { bootstrap, index }
}

fn compare_header(tree: &Summary, header: Option<&Header>, report: &mut ImageReport) {
    (report.entries, report.file_bytes) = (tree.entries, tree.file_bytes);
    let Some(header) = header else { return };
    let counts = [("entries", header.entries, tree.entries), ("bytes of files", header.file_bytes, tree.file_bytes)];
    for (what, expected, actual) in counts {
        if expected != actual {
            report.add(Part::Index, format_args!("it counts {expected} {what}, the tree has {actual}"));
        }
    }
    if tree.inodes_with_xattrs > 0 && !header.has_xattrs {
        report.add(Part::Index, "it says that no file has extended attributes, but some have");
    }
}

/// Compares the manifest's blobs, the index's blob table and the bootstrap's device table.
fn compare(metadata: &Metadata, layers: &LazoLayers, report: &mut ImageReport) {
    let Some(index) = &metadata.index else { return };
    let count = index.blob_count();
    if count != layers.blobs.len() {
        report.add(Part::Index, format_args!("it has {count} blobs, the manifest {}", layers.blobs.len()));
    }
    if let Some(devices) = metadata.bootstrap.as_ref().map(Bootstrap::device_count)
        && devices != count
    {
        report.add(Part::Bootstrap, format_args!("it has {devices} devices, the index {count} blobs"));
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
        if let Some(Ok(slot)) = metadata.bootstrap.as_ref().map(|bootstrap| bootstrap.slot(number))
            && (slot.tag != digest.hex().as_bytes() || slot.size != record.device_size)
        {
            let (tag, size) = (shown(slot.tag), slot.size);
            let expected = format_args!("the index has {} of {} bytes", digest.hex(), record.device_size);
            report.add(Part::Bootstrap, format_args!("device {number} is {tag} of {size} bytes, {expected}"));
        }
    }
}
