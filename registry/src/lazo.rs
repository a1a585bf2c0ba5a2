//! What makes an image lazo's: its manifest's layers with their annotations, and the diffIDs that go with them. This is the
//! only reader of it, so that whatever is checked, mounted, inspected or pulled is judged alike.

use std::collections::HashSet;

use lazo_format::{
    Digest,
    media::{
        ANNOTATION_BLOB, ANNOTATION_BOOTSTRAP, ANNOTATION_DIRECT_IO, BOOTSTRAP_LAYER, BOOTSTRAP_VERSION, LAZO_BLOB, YES,
    },
};
use oci_spec::image::{Descriptor, ImageManifest};

use crate::{
    document::digest_of,
    media::{Compression, LayerKind, layer_kind},
};

/// The layers of a lazo image, as its manifest has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LazoLayers {
    /// In the order of their device numbers.
    pub blobs: Vec<LazoBlob>,
    /// The layer that holds bootstrap and chunk index.
    pub bootstrap: Descriptor,
}

/// A blob as the manifest has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LazoBlob {
    /// With its size in the registry.
    pub descriptor: Descriptor,
    /// Its digest.
    pub digest: Digest,
}

/// Why a manifest or config is not that of a sound lazo image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LazoFault {
    /// It is an image, but none that `lazo convert` made.
    #[error("{0}")]
    NotLazo(String),
    /// The manifest of a lazo image is not as it should be.
    #[error("{0}")]
    Manifest(String),
    /// The config of a lazo image does not go with its manifest.
    #[error("{0}")]
    Config(String),
}

impl LazoLayers {
    /// Whether the image says that its programs open files with `O_DIRECT`.
    #[must_use]
    pub fn wants_direct_io(&self) -> bool {
        annotation(&self.bootstrap, ANNOTATION_DIRECT_IO) == Some(YES)
    }

    /// Whether a manifest is that of a lazo image: some layer says that it is the bootstrap.
    #[must_use]
    pub fn are_in(manifest: &ImageManifest) -> bool {
        manifest.layers().iter().any(|layer| annotation(layer, ANNOTATION_BOOTSTRAP).is_some())
    }

    /// Reads the layers and lists all that is wrong with them; an image with any fault is not to be mounted. What can be
    /// read is returned with the faults, so that the rest can be checked.
    ///
    /// # Errors
    /// The one fault with which there is nothing to go on with: no bootstrap, or not as the last layer.
    pub fn read(manifest: &ImageManifest) -> Result<(Self, Vec<LazoFault>), LazoFault> {
        let (last, others) = split(manifest)?;
        let mut faults = Vec::new();
        let mut fault = |text: String| faults.push(LazoFault::Manifest(text));
        let version = annotation(last, ANNOTATION_BOOTSTRAP).unwrap_or_default();
        if version != BOOTSTRAP_VERSION {
            fault(format!(
                "its bootstrap is of version {version:?}, and this lazo reads {BOOTSTRAP_VERSION}: update lazo"
            ));
        }
        let kind = layer_kind(last.media_type());
        if kind != Some(LayerKind { compression: Compression::Gzip, foreign: false }) {
            fault(format!("the bootstrap layer's media type is {}, not {BOOTSTRAP_LAYER}", last.media_type()));
        }
        let mut blobs: Vec<LazoBlob> = Vec::new();
        let mut seen = HashSet::new();
        let count = manifest.layers().len();
        for (number, layer) in (1..).zip(others) {
            let digest = match digest_of(layer) {
                Ok(digest) => digest,
                Err(error) => {
                    fault(format!("layer {number} of {count}: {error}"));
                    continue;
                }
            };
            let what = format!("layer {number} of {count} ({digest})");
            if layer.media_type().as_ref() != LAZO_BLOB {
                fault(format!("{what} has the media type {}, not {LAZO_BLOB}", layer.media_type()));
            }
            if annotation(layer, ANNOTATION_BLOB) != Some(layer.digest().as_ref()) {
                fault(format!("{what} lacks the annotation {ANNOTATION_BLOB} with its digest"));
            }
            if !seen.insert(digest) {
                fault(format!("{what} is there twice"));
            }
            blobs.push(LazoBlob { descriptor: layer.clone(), digest });
        }
        Ok((Self { blobs, bootstrap: last.clone() }, faults))
    }

    /// The same for an image that is to be used: any fault will do to refuse it.
    ///
    /// # Errors
    /// The first fault.
    pub fn sound(manifest: &ImageManifest) -> Result<Self, LazoFault> {
        match Self::read(manifest)? {
            (layers, faults) if faults.is_empty() => Ok(layers),
            (_, faults) => Err(faults.into_iter().next().expect("not empty")),
        }
    }

    /// The same for an image that may have been made from a lazo image: the layers above its topmost bootstrap do not count.
    /// `None` for an image without one.
    #[must_use]
    pub fn sound_below(manifest: &ImageManifest) -> Option<Result<Self, LazoFault>> {
        let layers = manifest.layers();
        let top = layers.iter().rposition(|layer| annotation(layer, ANNOTATION_BOOTSTRAP).is_some())?;
        let mut below = manifest.clone();
        below.set_layers(layers[..=top].to_vec());
        Some(Self::sound(&below))
    }

    /// The diffID of the bootstrap layer, and all in which the config's diffIDs do not go with the layers: there is one a
    /// layer, and a blob's is the blob's own digest.
    #[must_use]
    pub fn bootstrap_diff_id(&self, ids: &[Digest]) -> (Option<Digest>, Vec<LazoFault>) {
        let mut faults = Vec::new();
        let (count, layers) = (ids.len(), self.blobs.len() + 1);
        if count != layers {
            faults.push(LazoFault::Config(format!("it has {count} diff_ids, the manifest {layers} layers")));
        }
        for (blob, diff_id) in self.blobs.iter().zip(ids).filter(|(blob, diff_id)| blob.digest != **diff_id) {
            let text = format!("the diff_id of blob {} is {diff_id}, not the blob's digest", blob.digest);
            faults.push(LazoFault::Config(text));
        }
        (ids.last().copied(), faults)
    }

    /// The same for an image that is to be used.
    ///
    /// # Errors
    /// The first fault.
    pub fn sound_diff_id(&self, ids: &[Digest]) -> Result<Digest, LazoFault> {
        let (diff_id, faults) = self.bootstrap_diff_id(ids);
        match (diff_id, faults.into_iter().next()) {
            (Some(diff_id), None) => Ok(diff_id),
            (_, Some(fault)) => Err(fault),
            (None, None) => Err(LazoFault::Config("it names no diff_ids".to_owned())),
        }
    }
}

/// The bootstrap layer, and those before it.
fn split(manifest: &ImageManifest) -> Result<(&Descriptor, &[Descriptor]), LazoFault> {
    let layers = manifest.layers();
    let not_lazo = |reason: &str| LazoFault::NotLazo(reason.to_owned());
    let (last, others) = layers.split_last().ok_or_else(|| not_lazo("it has no layers"))?;
    if annotation(last, ANNOTATION_BOOTSTRAP).is_some() {
        return Ok((last, others));
    }
    match layers.iter().rposition(|layer| annotation(layer, ANNOTATION_BOOTSTRAP).is_some()) {
        None => Err(not_lazo("its last layer is no bootstrap")),
        Some(place) => Err(LazoFault::Manifest(format!(
            "the bootstrap layer is not the last layer: {} others lie above it",
            others.len() - place
        ))),
    }
}

fn annotation<'a>(layer: &'a Descriptor, key: &str) -> Option<&'a str> {
    layer.annotations().as_ref()?.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests;
