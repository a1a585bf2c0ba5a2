//! Ordinary images made of a few files, for `lazo convert`.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::Scratch;

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
    let (plain, lazo) = (scratch.dir(&format!("{name}-plain")), scratch.join(name));
    let layers: Vec<Value> = layers
        .into_iter()
        .map(|layer| {
            let bytes = layer.0.into_inner().expect("a tar");
            blob(&plain, "application/vnd.oci.image.layer.v1.tar", &bytes)
        })
        .collect();
    let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config =
        json!({"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = blob(&plain, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
    let mut manifest = blob(&plain, kind, manifest.to_string().as_bytes());
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "plain"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(plain.join("index.json"), index.to_string()).expect("the index");
    fs::write(plain.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).expect("the mark");
    let (from, to) = (format!("oci:{}:plain", plain.display()), format!("oci:{}:lazo", lazo.display()));
    scratch.lazo_ok(["convert", &from, &to]);
    to
}

/// Writes a blob; its descriptor.
fn blob(layout: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    fs::create_dir_all(layout.join("blobs/sha256")).expect("a directory");
    fs::write(layout.join("blobs/sha256").join(&hex), bytes).expect("a blob");
    json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len()})
}
