//! The documents of the converted image: its config and manifest, made from the source's.

use std::collections::{BTreeMap, HashMap};

use lazo_format::Digest;
use lazo_format::media::{
    ANNOTATION_BLOB, ANNOTATION_BOOTSTRAP, ANNOTATION_DIRECT_IO, BOOTSTRAP_LAYER, BOOTSTRAP_VERSION, LABEL_DIRECT_IO,
    LAZO_BLOB, YES,
};
use lazo_registry::Document;
use lazo_registry::oci_spec::image::{Descriptor, ImageManifest, MediaType, Platform};
use serde_json::{Value, json};

use crate::error::Error;

/// The source's config: every field kept as it is, but for what names layers.
#[derive(Clone, Debug)]
pub(crate) struct Config(Value);

impl Config {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let value: Value =
            serde_json::from_slice(bytes).map_err(|e| Error::Image(format!("the image's config is no JSON: {e}")))?;
        match value.is_object() {
            true => Ok(Self(value)),
            false => Err(Error::Image("the image's config is no JSON object".into())),
        }
    }

    /// Digests of the uncompressed layers.
    pub(crate) fn diff_ids(&self) -> Result<Vec<Digest>, Error> {
        let ids = self.0.pointer("/rootfs/diff_ids").and_then(Value::as_array);
        let ids = ids.ok_or_else(|| Error::Image("the image's config has no rootfs.diff_ids".into()))?;
        ids.iter()
            .map(|id| {
                let text = id.as_str().unwrap_or_default();
                text.parse().map_err(|e| Error::Image(format!("the config's diff_ids hold {id}: {e}")))
            })
            .collect()
    }

    /// OS and architecture as the config has them, if it does.
    pub(crate) fn platform(&self) -> Option<Platform> {
        let field = |name| self.0.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let mut platform = Platform::default();
        platform.set_os(field("os")?.into());
        platform.set_architecture(field("architecture")?.into());
        platform.set_variant(field("variant").map(str::to_owned));
        Some(platform)
    }

    /// Whether the image says that its programs open files with `O_DIRECT`.
    pub(crate) fn wants_direct_io(&self) -> bool {
        let labels = self.0.pointer("/config/Labels");
        labels.and_then(|labels| labels.get(LABEL_DIRECT_IO)).and_then(Value::as_str) == Some(YES)
    }

    /// The converted image's config: `kept` tells which source layers have a blob, `diff_ids` names the new layers.
    pub(crate) fn converted(mut self, kept: &[bool], diff_ids: &[Digest]) -> Vec<u8> {
        let ids: Vec<String> = diff_ids.iter().map(ToString::to_string).collect();
        self.0["rootfs"] = json!({"type": "layers", "diff_ids": ids});
        if let Some(history) = self.0.get_mut("history").and_then(Value::as_array_mut) {
            let is_layer = |entry: &Value| !entry.get("empty_layer").and_then(Value::as_bool).unwrap_or(false);
            if history.iter().filter(|entry| is_layer(entry)).count() == kept.len() {
                let layers = history.iter_mut().filter(|entry| is_layer(entry) && entry.is_object());
                for (entry, _) in layers.zip(kept).filter(|(_, kept)| !**kept) {
                    entry["empty_layer"] = Value::Bool(true);
                }
            }
            history.push(json!({"created_by": "lazo convert", "comment": "bootstrap: metadata of all layers"}));
        }
        self.0.to_string().into_bytes()
    }
}

/// The descriptor of a blob layer.
pub(crate) fn blob_layer(digest: &Digest, size: u64) -> Descriptor {
    annotated(LAZO_BLOB, digest, size, &[(ANNOTATION_BLOB, &digest.to_string())])
}

/// The descriptor of the bootstrap layer. `direct_io`: of an image that is to be served as a FUSE tree.
pub(crate) fn bootstrap_layer(digest: &Digest, size: u64, direct_io: bool) -> Descriptor {
    let all = [(ANNOTATION_BOOTSTRAP, BOOTSTRAP_VERSION), (ANNOTATION_DIRECT_IO, YES)];
    annotated(BOOTSTRAP_LAYER, digest, size, if direct_io { &all } else { &all[..1] })
}

fn annotated(media_type: &str, digest: &Digest, size: u64, annotations: &[(&str, &str)]) -> Descriptor {
    let mut descriptor = lazo_registry::descriptor(media_type.into(), digest, size);
    let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    descriptor.set_annotations(Some(annotations.collect::<HashMap<_, _>>()));
    descriptor
}

/// The converted image's manifest, with the source's annotations.
pub(crate) fn manifest(source: &ImageManifest, config: &Descriptor, layers: &[Descriptor]) -> Result<Document, Error> {
    let mut value = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::ImageManifest.as_ref(),
        "config": config,
        "layers": layers,
    });
    if let Some(annotations) = source.annotations() {
        value["annotations"] = json!(annotations.iter().collect::<BTreeMap<_, _>>());
    }
    Ok(Document::new(MediaType::ImageManifest, lazo_registry::to_json(&value)?))
}

/// An index of several platforms' manifests; each descriptor carries its platform.
pub(crate) fn index(
    manifests: &[Descriptor],
    annotations: Option<&HashMap<String, String>>,
) -> Result<Document, Error> {
    let mut value = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::ImageIndex.as_ref(),
        "manifests": manifests,
    });
    if let Some(annotations) = annotations {
        value["annotations"] = json!(annotations.iter().collect::<BTreeMap<_, _>>());
    }
    Ok(Document::new(MediaType::ImageIndex, lazo_registry::to_json(&value)?))
}
