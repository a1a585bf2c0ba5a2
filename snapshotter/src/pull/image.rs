//! What the registry says of an image, and what follows from it.

use lazo_format::Digest;
use lazo_registry::oci_spec::image::Descriptor;
use lazo_registry::{
    DockerRef, Document, Found, ImageRef, LazoLayers, Manifest, Options, Platform, Source, shown_platform,
};

use super::PullError;
use crate::containerd::Labels;
use crate::labels;

/// Longest label, name and value together, that containerd takes.
const MAX_LABEL: usize = 4096;

/// An image in a registry.
pub(super) struct Image {
    /// Its name in containerd.
    pub(super) name: String,
    pub(super) reference: DockerRef,
    pub(super) source: Source,
    /// Indexes that lead to the manifest, outermost first.
    pub(super) indexes: Vec<Document>,
    pub(super) manifest: Manifest,
    /// Lowest first; an image may have none.
    pub(super) layers: Vec<Layer>,
    /// Blobs and bootstrap, where it is a lazo image or made from one.
    lazo: Option<LazoLayers>,
}

pub(crate) struct Layer {
    pub(crate) descriptor: Descriptor,
    pub(crate) kind: LayerKind,
    /// What its snapshot is to have.
    pub(crate) labels: Labels,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerKind {
    /// Data of a lazo image, which is fetched as it is read.
    Blob,
    /// The tree of a lazo image.
    Bootstrap,
    Plain,
}

/// An image's config.
pub(super) struct Config {
    pub(super) document: Document,
    pub(super) diff_ids: Vec<String>,
    /// Under which names the snapshots of the layers are kept.
    pub(super) chain_ids: Vec<String>,
}

impl Image {
    pub(super) async fn find(reference: &DockerRef, platform: &Platform, options: &Options) -> Result<Self, PullError> {
        let mut reference = reference.clone();
        if reference.tag.is_none() && reference.digest.is_none() {
            reference.tag = Some("latest".to_owned());
        }
        let source = Source::open(&ImageRef::Docker(reference.clone()), options).await?;
        let Found { indexes, manifest, .. } = source.find(platform).await?;
        let name = reference.to_string();
        let layers = layers(&name, &manifest)?;
        let lazo = lazo_part(&manifest)?;
        Ok(Self { name, reference, source, indexes, manifest, layers, lazo })
    }

    /// What its name stands for.
    pub(super) fn target(&self) -> &Descriptor {
        self.indexes.first().map_or(&self.manifest.descriptor, |index| &index.descriptor)
    }

    /// Its config, which must be for this platform.
    pub(super) async fn config(&self, wanted: &Platform) -> Result<Config, PullError> {
        let document = self.source.document(self.manifest.manifest.config()).await?;
        let config = lazo_registry::Config::parse(document.descriptor.digest(), &document.bytes)?;
        // An image that does not say what it is for is taken, as containerd does.
        if let Some(own) = config.platform().filter(|own| !wanted.accepts(own)) {
            return Err(PullError::Platform { found: shown_platform(&own), wanted: wanted.to_string() });
        }
        let ids = config.diff_ids_for(&self.manifest.manifest)?;
        if let Some(lazo) = &self.lazo {
            let fault = lazo.sound_diff_id(&ids[..=lazo.blobs.len()]);
            fault.map_err(|fault| no_image(format_args!("config {}: {fault}", document.descriptor.digest())))?;
        }
        let diff_ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let chain_ids = chain_ids(&diff_ids);
        Ok(Config { document, diff_ids, chain_ids })
    }
}

pub(super) fn no_image(reason: impl std::fmt::Display) -> PullError {
    PullError::NoImage { reason: reason.to_string() }
}

/// Under which names the snapshots of layers with these diffIDs are kept, as the image specification defines.
pub(crate) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut ids: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let id = match ids.last() {
            None => diff_id.clone(),
            Some(below) => Digest::sha256_of(format!("{below} {diff_id}").as_bytes()).to_string(),
        };
        ids.push(id);
    }
    ids
}

/// The layers up to the bootstrap, which must be those of a sound lazo image; above them may lie others.
fn lazo_part(manifest: &Manifest) -> Result<Option<LazoLayers>, PullError> {
    let read = LazoLayers::sound_below(&manifest.manifest).transpose();
    read.map_err(|fault| no_image(format_args!("manifest {}: {fault}", manifest.descriptor.digest())))
}

pub(crate) fn layers(name: &str, manifest: &Manifest) -> Result<Vec<Layer>, PullError> {
    let descriptors = manifest.manifest.layers();
    let count = descriptors.len();
    if let Some((number, other)) = (1..).zip(descriptors).find(|(_, layer)| !is_layer(layer)) {
        let (digest, kind) = (other.digest(), other.media_type());
        return Err(no_image(format_args!("layer {number} of {count} ({digest}) is of type {kind}")));
    }
    let layer = |(number, descriptor): (usize, &Descriptor)| {
        let annotations = descriptor.annotations().iter().flatten();
        let inherited = annotations.filter(|(name, _)| name.starts_with(labels::INHERITED));
        let mut labels: Labels = inherited.map(|(name, value)| (name.clone(), value.clone())).collect();
        let kind = match (labels.contains_key(labels::BLOB), labels.contains_key(labels::BOOTSTRAP)) {
            (true, _) => LayerKind::Blob,
            (false, true) => LayerKind::Bootstrap,
            (false, false) => LayerKind::Plain,
        };
        labels.insert(labels::IMAGE_REF.to_owned(), name.to_owned());
        labels.insert(labels::MANIFEST_DIGEST.to_owned(), manifest.descriptor.digest().to_string());
        labels.insert(labels::LAYER_DIGEST.to_owned(), descriptor.digest().to_string());
        labels.insert(labels::IMAGE_LAYERS.to_owned(), digests(&descriptors[number..]));
        Layer { descriptor: descriptor.clone(), kind, labels }
    };
    Ok(descriptors.iter().enumerate().map(layer).collect())
}

/// Whether containerd counts it as a layer.
fn is_layer(descriptor: &Descriptor) -> bool {
    let media_type = descriptor.media_type().to_string();
    media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.")
}

/// As many of these digests as fit into a label.
fn digests(layers: &[Descriptor]) -> String {
    let room = MAX_LABEL - labels::IMAGE_LAYERS.len();
    let mut joined = String::new();
    for layer in layers {
        let digest = layer.digest().to_string();
        if joined.len() + digest.len() + 1 > room {
            break;
        }
        if !joined.is_empty() {
            joined.push(',');
        }
        joined.push_str(&digest);
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the example in Go's reference implementation of the specification.
    #[test]
    fn names_of_snapshots() {
        let ids = chain_ids(&["sha256:a".to_owned(), "sha256:b".to_owned(), "sha256:c".to_owned()]);
        let hash = |text: String| Digest::sha256_of(text.as_bytes()).to_string();
        let second = hash("sha256:a sha256:b".to_owned());
        assert_eq!(ids, ["sha256:a".to_owned(), second.clone(), hash(format!("{second} sha256:c"))]);
        assert!(chain_ids(&[]).is_empty());
    }

    #[test]
    fn a_label_holds_what_fits() {
        let digest = Digest::sha256_of(b"");
        let layer = lazo_registry::descriptor("application/vnd.oci.image.layer.v1.tar".into(), &digest, 0);
        assert_eq!(digests(&[layer.clone(), layer.clone()]), format!("{digest},{digest}"));
        let many = digests(&vec![layer; 200]);
        assert!(many.len() + labels::IMAGE_LAYERS.len() <= MAX_LABEL);
        assert!(many.split(',').all(|part| part == digest.to_string()));
    }
}
