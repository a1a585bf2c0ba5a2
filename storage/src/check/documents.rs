//! Manifest and config: do they describe a lazo image.

use lazo_format::Digest;
use lazo_format::media::{ANNOTATION_BLOB, ANNOTATION_BOOTSTRAP, BOOTSTRAP_LAYER, BOOTSTRAP_VERSION, LAZO_BLOB};
use lazo_registry::oci_spec::image::{Descriptor, ImageManifest};
use lazo_registry::{Manifest, Source, digest_of};
use serde::Deserialize;

use super::report::{ImageReport, Part, chain};

/// The layers of a lazo image.
pub(super) struct Layers {
    pub(super) blobs: Vec<Blob>,
    pub(super) bootstrap: Descriptor,
}

/// A blob as the manifest has it.
pub(super) struct Blob {
    pub(super) descriptor: Descriptor,
    pub(super) digest: Digest,
}

/// Whether a manifest is that of a lazo image: a layer says that it is the bootstrap.
pub(super) fn is_lazo(manifest: &ImageManifest) -> bool {
    manifest.layers().iter().any(|layer| annotation(layer, ANNOTATION_BOOTSTRAP).is_some())
}

fn annotation<'a>(layer: &'a Descriptor, key: &str) -> Option<&'a str> {
    layer.annotations().as_ref()?.get(key).map(String::as_str)
}

/// Sorts the layers into blobs and bootstrap; notes what is not as it should be. `None` without a bootstrap layer.
pub(super) fn layers(manifest: &Manifest, report: &mut ImageReport) -> Option<Layers> {
    let (last, others) = manifest.manifest.layers().split_last()?;
    let part = Part::Manifest;
    match annotation(last, ANNOTATION_BOOTSTRAP) {
        Some(BOOTSTRAP_VERSION) => {}
        Some(other) => report.add(part, format_args!("the bootstrap layer is version {other:?}: update lazo")),
        None => {
            report.add(part, "the bootstrap layer is not the last layer");
            return None;
        }
    }
    if last.media_type().as_ref() != BOOTSTRAP_LAYER {
        let found = last.media_type();
        report.add(part, format_args!("the bootstrap layer's media type is {found}, not {BOOTSTRAP_LAYER}"));
    }
    let mut blobs: Vec<Blob> = Vec::new();
    for layer in others {
        let digest = match digest_of(layer) {
            Ok(digest) => digest,
            Err(error) => {
                report.add(part, chain(&error));
                continue;
            }
        };
        if layer.media_type().as_ref() != LAZO_BLOB {
            let found = layer.media_type();
            report.add(part, format_args!("layer {digest} has the media type {found}, not {LAZO_BLOB}"));
        }
        if annotation(layer, ANNOTATION_BLOB) != Some(&digest.to_string()) {
            report.add(part, format_args!("layer {digest} lacks the annotation {ANNOTATION_BLOB} with its digest"));
        }
        if blobs.iter().any(|blob| blob.digest == digest) {
            report.add(part, format_args!("layer {digest} is there twice"));
        }
        blobs.push(Blob { descriptor: layer.clone(), digest });
    }
    Some(Layers { blobs, bootstrap: last.clone() })
}

/// What is looked at in a config.
#[derive(Deserialize)]
pub(crate) struct Config {
    os: Option<String>,
    architecture: Option<String>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

impl Config {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn diff_ids(&self) -> &[Digest] {
        &self.rootfs.diff_ids
    }
}

/// Fetches the config and compares the blobs' diff IDs, each the blob's own digest. Answers the bootstrap layer's.
pub(super) async fn config(
    source: &Source,
    manifest: &Manifest,
    layers: &Layers,
    report: &mut ImageReport,
) -> Option<Digest> {
    let document = source.document(manifest.manifest.config()).await;
    let document = document.map_err(|error| report.add(Part::Config, chain(&error))).ok()?;
    let config = Config::parse(&document.bytes).map_err(|error| report.add(Part::Config, chain(&error))).ok()?;
    if let (None, Some(os), Some(architecture)) = (&report.platform, config.os, config.architecture) {
        report.platform = Some(format!("{os}/{architecture}"));
    }
    let diff_ids = config.rootfs.diff_ids;
    let count = manifest.manifest.layers().len();
    if diff_ids.len() != count {
        report.add(Part::Config, format_args!("it has {} diff_ids, the manifest {count} layers", diff_ids.len()));
    }
    for (blob, diff_id) in layers.blobs.iter().zip(&diff_ids) {
        if blob.digest != *diff_id {
            let digest = blob.digest;
            report.add(Part::Config, format_args!("the diff_id of blob {digest} is {diff_id}, not the blob's digest"));
        }
    }
    diff_ids.last().copied()
}
