use std::collections::HashMap;

use oci_spec::image::{ImageManifestBuilder, MediaType};

use super::*;
use crate::document::descriptor;

fn layer(number: u8, media_type: &str, annotation: Option<(&str, &str)>) -> Descriptor {
    let mut layer = descriptor(media_type.into(), &Digest::sha256_of(&[number]), 7);
    layer.set_annotations(annotation.map(|(key, value)| HashMap::from([(key.to_owned(), value.to_owned())])));
    layer
}

fn blob(number: u8) -> Descriptor {
    layer(number, LAZO_BLOB, Some((ANNOTATION_BLOB, &Digest::sha256_of(&[number]).to_string())))
}

fn bootstrap(media_type: &str, version: &str) -> Descriptor {
    layer(200, media_type, Some((ANNOTATION_BOOTSTRAP, version)))
}

fn good() -> Descriptor {
    bootstrap(BOOTSTRAP_LAYER, BOOTSTRAP_VERSION)
}

fn manifest(layers: Vec<Descriptor>) -> ImageManifest {
    let config = descriptor(MediaType::ImageConfig, &Digest::sha256_of(b""), 0);
    ImageManifestBuilder::default().schema_version(2u32).config(config).layers(layers).build().unwrap()
}

const DOCKER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

#[test]
fn reads_sound_images() {
    for (layers, blobs) in [
        (vec![good()], 0),
        (vec![blob(1), good()], 1),
        (vec![blob(1), blob(2), bootstrap(DOCKER_GZIP, BOOTSTRAP_VERSION)], 2),
    ] {
        let found = LazoLayers::sound(&manifest(layers.clone())).unwrap();
        assert_eq!((found.blobs.len(), &found.bootstrap), (blobs, layers.last().unwrap()));
        let above = manifest(layers.into_iter().chain([layer(9, PLAIN, None)]).collect());
        assert_eq!(LazoLayers::sound_below(&above), Some(Ok(found)));
    }
    assert_eq!(LazoLayers::sound_below(&manifest(vec![layer(1, PLAIN, None)])), None);
}

/// What `read` tells a check is what `sound` refuses a mount for.
#[test]
fn faults_are_for_all_alike() {
    let unannotated = layer(1, LAZO_BLOB, None);
    let other = layer(1, LAZO_BLOB, Some((ANNOTATION_BLOB, "sha256:0")));
    let typed = layer(1, PLAIN, Some((ANNOTATION_BLOB, &Digest::sha256_of(&[1]).to_string())));
    for (layers, reasons) in [
        (vec![], vec!["it has no layers"]),
        (vec![layer(1, PLAIN, None)], vec!["its last layer is no bootstrap"]),
        (vec![good(), blob(1)], vec!["not the last layer: 1 others lie above it"]),
        (vec![bootstrap(BOOTSTRAP_LAYER, "v9")], vec![r#"version "v9""#]),
        (vec![bootstrap(PLAIN, BOOTSTRAP_VERSION)], vec!["the bootstrap layer's media type is"]),
        (vec![unannotated, good()], vec!["layer 1 of 2 (sha256:", "lacks the annotation"]),
        (vec![blob(2), other, good()], vec!["layer 2 of 3", "lacks the annotation"]),
        (vec![typed, good()], vec!["has the media type"]),
        (vec![blob(1), blob(2), blob(1), good()], vec!["layer 3 of 4", "is there twice"]),
    ] {
        let manifest = manifest(layers);
        let refused = LazoLayers::sound(&manifest).unwrap_err().to_string();
        assert!(reasons.iter().all(|reason| refused.contains(reason)), "{refused}");
        let told = match LazoLayers::read(&manifest) {
            Ok((_, faults)) => faults[0].to_string(),
            Err(fault) => fault.to_string(),
        };
        assert_eq!(told, refused);
    }
}

#[test]
fn diff_ids_go_with_the_layers() {
    let layers = LazoLayers::sound(&manifest(vec![blob(1), good()])).unwrap();
    let id = |number: u8| Digest::sha256_of(&[number]);
    assert_eq!(layers.sound_diff_id(&[id(1), id(7)]), Ok(id(7)));
    for (ids, reason) in [
        (vec![], "it has 0 diff_ids, the manifest 2 layers"),
        (vec![id(1)], "it has 1 diff_ids"),
        (vec![id(1), id(2), id(3)], "it has 3 diff_ids"),
        (vec![id(2), id(7)], "not the blob's digest"),
    ] {
        let refused = layers.sound_diff_id(&ids).unwrap_err();
        assert!(refused.to_string().contains(reason), "{refused}");
        assert_eq!(layers.bootstrap_diff_id(&ids).1[0], refused);
    }
}
