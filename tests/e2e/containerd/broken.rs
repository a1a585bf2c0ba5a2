//! Images that are not what they should be: whoever starts a container of one is told why it cannot be.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::Path,
};

use serde_json::Value;

use crate::support::{
    Scratch,
    containerd::{Site, name_of},
    crafted::{Layer, TAR, blob, convert, edit, publish},
    failure_of,
    layout::{Manifest, blob_path, flip, text},
    node::Node,
    output_of,
    registry::Registry,
};

fn layer() -> Layer {
    Layer::new().busybox().file("data/file", 0o644, &[9; 100_000])
}

/// The bootstrap layer with its diffID, after one bit of this member was made wrong, at an offset in it.
fn tampered(layout: &Path, layer: &Value, member: &str, at: u64) -> (Value, Value) {
    let stored = fs::read(blob_path(layout, &text(&layer["digest"]))).expect("the layer");
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&*stored).read_to_end(&mut bytes).expect("a tar");
    let mut archive = tar::Archive::new(&*bytes);
    let entries = archive.entries().expect("members").map(|entry| entry.expect("a member"));
    let place =
        entries.filter(|entry| &*entry.path_bytes() == member.as_bytes()).map(|entry| entry.raw_file_position());
    let place = usize::try_from(place.last().expect("the member") + at).expect("an offset");
    bytes[place] ^= 4;
    let diff_id = blob(layout, TAR, &bytes)["digest"].clone();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).expect("a layer");
    let mut other = blob(layout, &text(&layer["mediaType"]), &gzip.finish().expect("a layer"));
    other["annotations"] = layer["annotations"].clone();
    (other, diff_id)
}

#[test]
fn a_damaged_tree_fails_the_pull_or_the_start_with_the_reason() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    convert(&scratch, "app", vec![layer()]);
    let layout = scratch.join("app");
    let _node = Node::with(&scratch, super::CONFIG);
    let site = Site::start(&scratch);
    for (member, at, reason) in [("image/bootstrap", 1024 + 40, "bootstrap"), ("image/index", 3, "index")] {
        edit(&layout, "lazo", |layers, diff_ids| {
            let bootstrap = layers.last_mut().expect("a layer");
            let (other, diff_id) = tampered(&layout, bootstrap, member, at);
            *bootstrap = other;
            *diff_ids.last_mut().expect("a diffID") = diff_id;
        });
        let name = format!("broken:{reason}");
        let image = registry.push(&layout, "edited", &name);
        fs::write(layout.join("index.json"), untagged(&layout)).expect("the index");
        if member == "image/index" {
            let said = failure_of(&mut site.pull_command(&image));
            assert!(said.contains(member) && said.contains("damaged"), "{said}");
            continue;
        }
        site.pull(&image, &[]);
        let output = site.run("lazo", &image, "true");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{member}: it started");
        assert!(said.contains(name_of(&image)) && said.contains(reason), "{member}: {said}");
    }
}

#[test]
fn an_image_that_takes_the_chain_id_of_another_harms_nobody() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let layers = vec![layer(), Layer::new().file("data/top", 0o644, b"top\n")];
    let (plain, lazo) = publish(&scratch, &registry, "app", layers);
    let base = Manifest::of(&scratch.join("app-plain"), "plain").document["layers"][0]["digest"].clone();
    edit(&scratch.join("app"), "lazo", |_, diff_ids| diff_ids[0] = base);
    let hostile = registry.push(&scratch.join("app"), "edited", "hostile:lazo");
    let _node = Node::with(&scratch, super::CONFIG);
    let site = Site::start(&scratch);
    failure_of(&mut site.pull_command(&hostile));
    for image in [&plain, &lazo] {
        site.pull(image, &[]);
        assert_eq!(site.run_ok("lazo", image, "cat /data/top"), "top\n", "{image}");
    }
}

/// The layout's index without the last image.
fn untagged(layout: &Path) -> String {
    let index = fs::read(layout.join("index.json")).expect("the index");
    let mut index: Value = serde_json::from_slice(&index).expect("JSON");
    index["manifests"].as_array_mut().expect("manifests").pop();
    index.to_string()
}

#[test]
fn a_damaged_layer_fails_the_pull_and_leaves_nothing() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let image = publish(&scratch, &registry, "app", vec![layer()]).1;
    let digest = Manifest::of(&scratch.join("app"), "lazo").bootstrap_layer();
    flip(&registry.blob_path(&digest), 100);
    let _node = Node::with(&scratch, super::CONFIG);
    let site = Site::start(&scratch);
    let said = failure_of(&mut site.pull_command(&image));
    assert!(said.contains(&digest) && said.contains("digest mismatch"), "{said}");
    assert_eq!(site.content("default"), [""; 0]);
    assert_eq!(site.snapshots("default", "lazo"), [""; 0]);
}

#[test]
fn damaged_data_is_an_error_to_who_reads_it() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let layers = vec![Layer::new().busybox(), Layer::new().file("data/file", 0o644, &[9; 100_000])];
    let image = publish(&scratch, &registry, "app", layers).1;
    let (digest, size) = Manifest::of(&scratch.join("app"), "lazo").blobs().pop().expect("a blob");
    flip(&registry.blob_path(&digest), size / 2);
    let node = Node::with(&scratch, super::CONFIG);
    let site = Site::start(&scratch);
    site.pull(&image, &[]);
    let (_, mut command) = site.container("default", "lazo", &image, &["--rm"]);
    let output = output_of(command.args(["/bin/cat", "/data/file"]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("Input/output error"), "{said}");
    assert!(!output.stdout.iter().any(|byte| *byte != 9), "wrong bytes were read");
    assert!(node.log().contains(&digest), "{}", node.log());
}
