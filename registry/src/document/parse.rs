//! Manifests and indexes from their bytes.

use std::collections::HashMap;

use oci_spec::image::{
    Descriptor, ImageIndex, ImageManifest, ImageManifestBuilder, MediaType, Platform as OciPlatform, SCHEMA_VERSION,
};

use crate::{
    error::Result,
    json::{Json, Object, Value},
    media,
};

/// Parses an image manifest; `what` names it in errors. Layers may be missing, and so may everything that says what the
/// document is.
///
/// # Errors
/// When it is no manifest, says that it is an index, or could be read as one.
pub fn parse_manifest(what: &str, bytes: &[u8]) -> Result<ImageManifest> {
    let json = Json::new(what, bytes);
    let mut fields = json.root()?.object(&[
        "schemaVersion",
        "mediaType",
        "artifactType",
        "config",
        "layers",
        "annotations",
        "manifests",
        "fsLayers",
    ])?;
    let media_type = own_media_type(&mut fields, |own| !media::is_index(own))?;
    if fields.take("manifests").is_some() {
        return Err(fields.error("it has the fields of both a manifest and an index"));
    }
    let builder = ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .config(descriptor(fields.need("config")?)?)
        .layers(fields.read("layers", descriptors)?);
    let mut manifest = builder.build().map_err(|e| fields.error(e))?;
    manifest.set_media_type(media_type);
    manifest.set_artifact_type(optional_type(&mut fields, "artifactType")?);
    manifest.set_annotations(annotations(&mut fields)?);
    Ok(manifest)
}

/// Parses an index or manifest list, or the `index.json` of a layout; `what` names it in errors.
///
/// # Errors
/// When it is no index, says that it is a manifest, or could be read as one.
pub fn parse_index(what: &str, bytes: &[u8]) -> Result<ImageIndex> {
    let json = Json::new(what, bytes);
    let mut fields = json.root()?.object(&[
        "schemaVersion",
        "mediaType",
        "artifactType",
        "manifests",
        "annotations",
        "config",
        "layers",
        "fsLayers",
    ])?;
    let media_type = own_media_type(&mut fields, |own| !media::is_manifest(own))?;
    if fields.take("config").is_some() || fields.take("layers").is_some() {
        return Err(fields.error("it has the fields of both a manifest and an index"));
    }
    let mut index = ImageIndex::default();
    index.set_media_type(media_type);
    index.set_artifact_type(optional_type(&mut fields, "artifactType")?);
    index.set_manifests(fields.read("manifests", descriptors)?);
    index.set_annotations(annotations(&mut fields)?);
    Ok(index)
}

/// What a document calls itself, where that does not contradict what it is taken for. A `schemaVersion` says nothing more:
/// builders leave it out, and runtimes do not look at it.
fn own_media_type(fields: &mut Object<'_>, suits: impl FnOnce(&MediaType) -> bool) -> Result<Option<MediaType>> {
    fields.read("schemaVersion", |value| value.integer())?;
    if fields.take("fsLayers").is_some() {
        return Err(fields.error("it is of Docker's schemaVersion 1; push the image again with a newer client"));
    }
    let own = optional_type(fields, "mediaType")?;
    match own {
        Some(own) if !suits(&own) => {
            Err(fields.error(format_args!("it calls itself {own}, but is referred to as another kind of document")))
        }
        own => Ok(own),
    }
}

fn optional_type(fields: &mut Object<'_>, name: &str) -> Result<Option<MediaType>> {
    let text = fields.read(name, |value| value.text())?;
    Ok((!text.is_empty()).then(|| text.as_str().into()))
}

fn annotations(fields: &mut Object<'_>) -> Result<Option<HashMap<String, String>>> {
    let annotations = fields.read("annotations", Value::text_map)?;
    Ok((!annotations.is_empty()).then_some(annotations))
}

fn descriptors(list: Value<'_>) -> Result<Vec<Descriptor>> {
    list.list()?.into_iter().map(descriptor).collect()
}

fn descriptor(value: Value<'_>) -> Result<Descriptor> {
    let mut fields =
        value.object(&["mediaType", "digest", "size", "urls", "annotations", "platform", "artifactType"])?;
    let digest = fields.need("digest")?;
    let parsed = digest.text()?.parse::<oci_spec::image::Digest>().map_err(|error| digest.error(error))?;
    let size = fields.need("size")?;
    let bytes = u64::try_from(size.integer()?).map_err(|_| size.error("it is negative"))?;
    let media_type = fields.read("mediaType", |value| value.text())?;
    let mut descriptor = Descriptor::new(media_type.as_str().into(), bytes, parsed);
    let urls = fields.read("urls", Value::texts)?;
    descriptor.set_urls((!urls.is_empty()).then_some(urls));
    descriptor.set_annotations(annotations(&mut fields)?);
    descriptor.set_platform(fields.read("platform", platform)?);
    descriptor.set_artifact_type(optional_type(&mut fields, "artifactType")?);
    Ok(descriptor)
}

/// A platform that does not name the architecture is none; one without a system is Linux, for which containerd takes it on
/// the machines that lazo runs on.
fn platform(value: Value<'_>) -> Result<Option<OciPlatform>> {
    let mut fields = value.object(&["architecture", "os", "os.version", "os.features", "variant"])?;
    let (architecture, os) = (fields.read("architecture", |v| v.text())?, fields.read("os", |v| v.text())?);
    let variant = fields.read("variant", |v| v.text())?;
    fields.read("os.version", |v| v.text())?;
    fields.read("os.features", Value::texts)?;
    if architecture.is_empty() {
        return Ok(None);
    }
    let mut platform = OciPlatform::default();
    platform.set_architecture(architecture.as_str().into());
    platform.set_os(if os.is_empty() { "linux".into() } else { os.as_str().into() });
    platform.set_variant((!variant.is_empty()).then_some(variant));
    Ok(Some(platform))
}
