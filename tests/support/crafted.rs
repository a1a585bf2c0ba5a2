//! Ordinary images made of a few files, for `lazo convert`.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::{
    Scratch,
    layout::{Manifest, json, text},
    registry::Registry,
};

pub(crate) const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// What busybox is called as.
const BUSYBOX: &str = "cat chmod cp dd echo find head ln ls md5sum mkdir mv rm sh sleep sort stat test touch";

/// A layer in the making: an uncompressed tar.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// A file of root's.
    pub(crate) fn file(self, path: &str, mode: u32, contents: &[u8]) -> Self {
        self.file_with(path, mode, contents, &[])
    }

    /// A symbolic link.
    pub(crate) fn link(mut self, path: &str, target: &str) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(0);
        self.0.append_link(&mut header, path, target).expect("a member");
        self
    }

    /// A character device for everybody.
    pub(crate) fn device(mut self, path: &str, major: u32, minor: u32) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Char);
        header.set_mode(0o666);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(0);
        header.set_device_major(major).expect("a number");
        header.set_device_minor(minor).expect("a number");
        self.0.append_data(&mut header, path, &[][..]).expect("a member");
        self
    }

    /// A shell and its tools, of one file.
    pub(crate) fn busybox(self) -> Self {
        let program = fs::read("/bin/busybox").expect("busybox-static: run scripts/install-deps");
        let layer = self.file("bin/busybox", 0o755, &program);
        BUSYBOX.split_whitespace().fold(layer, |layer, name| layer.link(&format!("bin/{name}"), "busybox"))
    }

    /// One that is a tar already.
    pub(crate) fn of_tar(bytes: Vec<u8>) -> Self {
        // The builder adds the end of the archive, which this one has.
        let end =
            bytes.chunks(512).rposition(|block| block.iter().any(|byte| *byte != 0)).map_or(0, |last| (last + 1) * 512);
        let mut builder = tar::Builder::new(Vec::new());
        builder.get_mut().extend_from_slice(&bytes[..end]);
        Self(builder)
    }

    /// As a tar.
    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().expect("a tar")
    }

    /// The same with extended attributes.
    pub(crate) fn file_with(mut self, path: &str, mode: u32, contents: &[u8], xattrs: &[(&str, &[u8])]) -> Self {
        let records: Vec<(String, &[u8])> =
            xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), *value)).collect();
        if !records.is_empty() {
            self.0.append_pax_extensions(records.iter().map(|(key, value)| (&**key, *value))).expect("a header");
        }
        let mut header = tar::Header::new_ustar();
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(contents.len() as u64);
        self.0.append_data(&mut header, path, contents).expect("a member");
        self
    }
}

/// Converts an image of these layers; the lazo image, as `lazo mount` takes it.
pub(crate) fn convert(scratch: &Scratch, name: &str, layers: Vec<Layer>) -> String {
    convert_with(scratch, name, layers, &json!({}), &[])
}

/// The same, of an image with these fields in its config, by `lazo convert` with these options.
pub(crate) fn convert_with(
    scratch: &Scratch,
    name: &str,
    layers: Vec<Layer>,
    fields: &Value,
    options: &[&str],
) -> String {
    let (plain, lazo) = (scratch.dir(&format!("{name}-plain")), scratch.join(name));
    let layers: Vec<Value> = layers.into_iter().map(|layer| blob(&plain, TAR, &layer.bytes())).collect();
    let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let mut config =
        json!({"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    for (key, value) in fields.as_object().expect("fields") {
        config[key] = value.clone();
    }
    let config = blob(&plain, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
    let mut manifest = blob(&plain, kind, manifest.to_string().as_bytes());
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "plain"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(plain.join("index.json"), index.to_string()).expect("the index");
    fs::write(plain.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).expect("the mark");
    let (from, to) = (format!("oci:{}:plain", plain.display()), format!("oci:{}:lazo", lazo.display()));
    scratch.lazo_ok(["convert", &from, &to].iter().chain(options));
    to
}

/// The same, in a registry: as `NAME:plain` and `NAME:lazo`. The names of both.
pub(crate) fn publish(scratch: &Scratch, registry: &Registry, name: &str, layers: Vec<Layer>) -> (String, String) {
    convert(scratch, name, layers);
    let plain = registry.push(&scratch.join(&format!("{name}-plain")), "plain", &format!("{name}:plain"));
    (plain, registry.push(&scratch.join(name), "lazo", &format!("{name}:lazo")))
}

/// Makes another image of one in a layout: what `edit` makes of its layers' descriptors and diffIDs. It gets the tag `edited`.
pub(crate) fn edit(layout: &Path, tag: &str, edit: impl FnOnce(&mut Vec<Value>, &mut Vec<Value>)) {
    let mut manifest = Manifest::of(layout, tag).document;
    let mut config = json(layout, &text(&manifest["config"]["digest"]));
    let layers = manifest["layers"].as_array_mut().expect("layers");
    edit(layers, config["rootfs"]["diff_ids"].as_array_mut().expect("diffIDs"));
    let kind = text(&manifest["config"]["mediaType"]);
    manifest["config"] = blob(layout, &kind, config.to_string().as_bytes());
    let kind = text(&manifest["mediaType"]);
    let entry = blob(layout, &kind, manifest.to_string().as_bytes());
    name(layout, entry, "edited");
}

/// Gives a manifest or index of a layout a tag.
pub(crate) fn name(layout: &Path, mut entry: Value, tag: &str) {
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    let path = layout.join("index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).expect("the index")).expect("JSON");
    index["manifests"].as_array_mut().expect("manifests").push(entry);
    fs::write(path, index.to_string()).expect("the index");
}

/// Writes a blob; its descriptor.
pub(crate) fn blob(layout: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    fs::create_dir_all(layout.join("blobs/sha256")).expect("a directory");
    fs::write(layout.join("blobs/sha256").join(&hex), bytes).expect("a blob");
    json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len()})
}
