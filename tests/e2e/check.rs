//! `lazo check` and `lazo inspect`.

use std::fs;

use serde_json::Value;

use crate::support::{
    Scratch, converted,
    layout::{self, Manifest},
    registry::Registry,
};

#[test]
fn check_names_what_is_wrong() {
    let scratch = Scratch::new();
    let good = converted("small", "gzip");
    scratch.lazo_ok(["check", &format!("oci:{}:lazo", good.display())]);
    let manifest = Manifest::of(&good, "lazo");
    let (blob, size) = manifest.blobs()[0].clone();
    let config = layout::text(&manifest.document["config"]["digest"]);
    for (name, digest, at) in
        [("blob", &blob, size / 2), ("bootstrap", &manifest.bootstrap_layer(), 100), ("config", &config, 5)]
    {
        let copy = scratch.join(name);
        layout::copy(&good, &copy);
        layout::flip(&layout::blob_path(&copy, digest), at);
        let error = scratch.lazo_err(["check", &format!("oci:{}:lazo", copy.display())]);
        assert!(error.contains(&digest[..19]), "{name}: {error}");
    }
    let copy = scratch.join("missing");
    layout::copy(&good, &copy);
    fs::remove_file(layout::blob_path(&copy, &blob)).expect("the blob");
    assert!(scratch.lazo_err(["check", &format!("oci:{}:lazo", copy.display())]).contains(&blob[..19]));
}

#[test]
fn check_over_a_registry() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let layout = converted("small", "gzip");
    let image = registry.push(&layout, "lazo", "app:lazo");
    scratch.lazo_ok(["check", &image]);
    let (digest, size) = Manifest::of(&layout, "lazo").blobs()[0].clone();
    layout::flip(&registry.blob_path(&digest), size - 1);
    let error = scratch.lazo_err(["check", &image]);
    assert!(error.contains(&digest[..19]), "{error}");
}

#[test]
fn inspect_an_image_and_a_path() {
    let scratch = Scratch::new();
    let image = format!("oci:{}:lazo", converted("small", "gzip").display());
    let parse = |text: String| serde_json::from_str::<Value>(&text).expect("JSON");
    let summary = parse(scratch.lazo_ok(["inspect", "--json", &image]));
    assert!(summary.to_string().contains(&Manifest::of(&converted("small", "gzip"), "lazo").digest), "{summary}");
    let file = parse(scratch.lazo_ok(["inspect", "--json", &image, "/odd/data/noise-524288"]));
    assert!(file.to_string().contains("524288"), "{file}");
    assert!(scratch.lazo_ok(["inspect", &image]).lines().count() > 3);
    assert!(scratch.lazo_err(["inspect", &image, "/no/such/path"]).contains("no/such/path"));
}
