//! Manifests, indexes and references: parsed by themselves, and as the documents of a layout directory that is read all
//! the way to the config.
#![no_main]

use std::cell::LazyCell;
use std::fs;

use lazo_format::Digest;
use lazo_registry::oci_spec::image::MediaType;
use lazo_registry::{Config, Document, ImageRef, LazoLayers, Options, Platform, Source, is_attestation};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

const MEDIA_TYPES: [&str; 6] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/json",
];

struct Scene {
    directory: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

thread_local! {
    static SCENE: LazyCell<Scene> = LazyCell::new(|| {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
        fs::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Scene { directory, runtime: tokio::runtime::Builder::new_current_thread().build().unwrap() }
    });
}

// The first byte chooses; the rest is the document.
fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else { return };
    let media_type = MEDIA_TYPES[usize::from(*choice) % MEDIA_TYPES.len()];
    let document = Document::new(MediaType::from(media_type), bytes.to_vec());
    let _ = document.content();
    let _ = Config::parse("config", bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        parse_names(text);
    }
    SCENE.with(|scene| {
        let root = scene.directory.path();
        let digest = Digest::sha256_of(bytes);
        let blob = root.join("blobs/sha256").join(digest.hex());
        fs::write(&blob, bytes).unwrap();
        let index = json!({ "schemaVersion": 2, "manifests": [
            { "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() }
        ] });
        fs::write(root.join("index.json"), index.to_string()).unwrap();
        scene.runtime.block_on(read(root));
        fs::write(root.join("index.json"), bytes).unwrap();
        scene.runtime.block_on(read(root));
        fs::remove_file(blob).unwrap();
    });
});

fn parse_names(text: &str) {
    if let Ok(reference) = text.parse::<ImageRef>() {
        // What is shown must mean the same.
        assert_eq!(reference.to_string().parse::<ImageRef>().unwrap(), reference);
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    let _ = text.parse::<Platform>();
}

async fn read(layout: &std::path::Path) {
    let reference = ImageRef::OciLayout { path: layout.to_path_buf(), tag: None };
    let source = Source::open(&reference, &Options::default()).await.unwrap();
    let _ = source.root().await;
    let _ = source.resolve(&"linux/amd64".parse().unwrap()).await;
    for (descriptor, manifest) in source.images().await.into_iter().flat_map(|images| images.images) {
        let _ = is_attestation(&descriptor);
        let Ok(manifest) = manifest else { continue };
        let _ = source.config(&manifest).await;
        let _ = LazoLayers::read(&manifest.manifest);
        for layer in manifest.manifest.layers() {
            let _ = source.blob(layer).await.map(|stream| stream.size());
        }
    }
}
