//! The documents of the converted image: its config and manifest, made from the source's.

use std::collections::{BTreeMap, HashMap};

use lazo_format::Digest;
use lazo_format::media::{
    ANNOTATION_BLOB, ANNOTATION_BOOTSTRAP, ANNOTATION_DIRECT_IO, BOOTSTRAP_LAYER, BOOTSTRAP_VERSION, LABEL_DIRECT_IO,
    LAZO_BLOB, YES,
};
use lazo_registry::oci_spec::image::{Descriptor, ImageManifest, MediaType};
use lazo_registry::{Document, is_field};
use serde::Serialize;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};

use crate::error::Error;

/// The fields of a JSON object, each as it was written.
type Fields = BTreeMap<String, Box<RawValue>>;

/// The source's config: every field kept as it is, but for what names layers.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) parsed: lazo_registry::Config,
    fields: Fields,
}

impl Config {
    pub(crate) fn parse(document: &Document) -> Result<Self, Error> {
        let digest = document.descriptor.digest();
        let parsed = lazo_registry::Config::parse(digest, &document.bytes)?;
        let fields = serde_json::from_str(&String::from_utf8_lossy(&document.bytes));
        let fields = fields.map_err(|e| Error::Image(format!("config {digest} is no JSON object: {e}")))?;
        Ok(Self { parsed, fields })
    }

    /// Whether the image says that its programs open files with `O_DIRECT`.
    pub(crate) fn wants_direct_io(&self) -> bool {
        self.parsed.labels().get(LABEL_DIRECT_IO).is_some_and(|label| label == YES)
    }

    /// The converted image's config: `kept` tells which source layers have a blob, `diff_ids` names the new layers.
    pub(crate) fn converted(mut self, kept: &[bool], diff_ids: &[Digest]) -> Result<Vec<u8>, Error> {
        let ids: Vec<String> = diff_ids.iter().map(ToString::to_string).collect();
        self.fields.retain(|name, _| !is_field(name, "rootfs"));
        self.fields.insert("rootfs".to_owned(), raw(&json!({"type": "layers", "diff_ids": ids}))?);
        if let Some(history) =
            self.fields.iter_mut().find(|(name, _)| is_field(name, "history")).map(|(_, value)| value)
            && let Ok(Some(entries)) = serde_json::from_str::<Option<Vec<Option<Fields>>>>(history.get())
        {
            *history = raw(&with_bootstrap(entries, kept)?)?;
        }
        to_vec(&self.fields)
    }
}

/// The history of the converted image: layers without a blob have become empty, and the bootstrap is the last one.
fn with_bootstrap(entries: Vec<Option<Fields>>, kept: &[bool]) -> Result<Vec<Fields>, Error> {
    let mut entries: Vec<Fields> = entries.into_iter().map(Option::unwrap_or_default).collect();
    let is_layer =
        |entry: &Fields| !entry.iter().any(|(name, value)| is_field(name, "empty_layer") && value.get() == "true");
    if entries.iter().filter(|entry| is_layer(entry)).count() == kept.len() {
        let layers = entries.iter_mut().filter(|entry| is_layer(entry));
        for (entry, _) in layers.zip(kept).filter(|(_, kept)| !**kept) {
            entry.retain(|name, _| !is_field(name, "empty_layer"));
            entry.insert("empty_layer".to_owned(), raw(&true)?);
        }
    }
    let bootstrap = [
        ("comment".to_owned(), raw(&"bootstrap: metadata of all layers")?),
        ("created_by".to_owned(), raw(&"lazo convert")?),
    ];
    entries.push(bootstrap.into());
    Ok(entries)
}

fn raw(value: &impl Serialize) -> Result<Box<RawValue>, Error> {
    to_raw_value(value).map_err(|e| Error::Image(format!("its config cannot be written: {e}")))
}

fn to_vec(fields: &Fields) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(fields).map_err(|e| Error::Image(format!("its config cannot be written: {e}")))
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
