//! Other tools move lazo images about, and every way into and out of the converter gives the same image.

use serde_json::Value;

use crate::support::{
    Corpus, Scratch, converted,
    layout::{Manifest, digest_of, json, text},
    listing::Listing,
    mounted::Mounted,
    registry::{Registry, USER},
    run, skopeo_copy,
};

/// The digest of what a reference names, as skopeo sees it.
fn digest(reference: &str) -> String {
    let raw = run("skopeo", ["inspect", "--tls-verify=false", "--raw", reference]);
    lazo_format::Digest::sha256_of(raw.as_bytes()).to_string()
}

#[test]
fn skopeo_copies_keep_every_digest() {
    let scratch = Scratch::new();
    let (first, second) = (Registry::start(&scratch, "first"), Registry::start(&scratch, "second"));
    let layout = converted("small", "gzip");
    let expected = digest_of(&layout, "lazo");
    let first_image = first.push(&layout, "lazo", "app:lazo");
    let copy = format!("oci:{}:copy", scratch.join("copy").display());
    let archive = format!("oci-archive:{}:lazo", scratch.join("copy.tar").display());
    let back = format!("oci:{}:lazo", scratch.join("back").display());
    skopeo_copy(&first_image, &copy, &[]);
    skopeo_copy(&copy, &second.image("other/app:lazo"), &[]);
    skopeo_copy(&second.image("other/app:lazo"), &archive, &[]);
    skopeo_copy(&archive, &back, &[]);
    for place in [&first_image, &copy, &second.image("other/app:lazo"), &back] {
        assert_eq!(digest(place), expected, "{place}");
        scratch.lazo_ok(["check", place]);
    }
    scratch.lazo_ok(["check", &archive]);
    let mounted = Mounted::new(&scratch, &second.image("other/app:lazo"), "mount");
    assert!(mounted.path().join("odd/data").is_dir());
    mounted.umount();
}

#[test]
fn every_transport_gives_the_same_image() {
    let (scratch, corpus) = (Scratch::new(), Corpus::get("small"));
    let registry = Registry::start(&scratch, "registry");
    let expected = digest_of(&converted("small", "gzip"), "lazo");
    let source = registry.push(&corpus.layout(), "gzip", "app:source");
    let archived = format!("oci-archive:{}:gzip", scratch.join("source.tar").display());
    skopeo_copy(&source, &archived, &[]);

    let to_archive = format!("oci-archive:{}:lazo", scratch.join("lazo.tar").display());
    let to_layout = format!("oci:{}:lazo", scratch.join("layout").display());
    let to_registry = registry.image("app:lazo");
    let bare = to_registry.trim_start_matches("docker://").replace("app:", "bare:");
    for (from, to) in
        [(&source, &to_registry), (&archived, &to_layout), (&corpus.image("gzip"), &to_archive), (&source, &bare)]
    {
        scratch.lazo_ok(["convert", from, to]);
        let to = if *to == bare { format!("docker://{bare}") } else { to.clone() };
        if !to.starts_with("oci-archive:") {
            assert_eq!(digest(&to), expected, "{from} to {to}");
        }
        scratch.lazo_ok(["check", &to]);
    }
    let unpacked = format!("oci:{}:lazo", scratch.join("unpacked").display());
    skopeo_copy(&to_archive, &unpacked, &[]);
    assert_eq!(digest(&unpacked), expected, "through an archive");
}

#[test]
fn every_source_format_gives_the_same_layers() {
    let (scratch, corpus) = (Scratch::new(), Corpus::get("small"));
    let registry = Registry::start(&scratch, "registry");
    let expected = Manifest::of(&converted("small", "gzip"), "lazo").document["layers"].clone();
    let schema2 = registry.image("app:schema2");
    skopeo_copy(&corpus.image("gzip"), &schema2, &["--format", "v2s2"]);
    let raw: Value =
        serde_json::from_str(&run("skopeo", ["inspect", "--tls-verify=false", "--raw", &schema2])).expect("JSON");
    assert_eq!(raw["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    let docker_archive = format!("docker-archive:{}", scratch.join("docker.tar").display());
    skopeo_copy(&corpus.image("gzip"), &format!("{docker_archive}:some/app:v1"), &[]);
    let sources = [
        corpus.image("zstd"),
        corpus.image("tar"),
        corpus.image("mixed"),
        schema2,
        docker_archive.clone(),
        format!("{docker_archive}:some/app:v1"),
    ];
    let layout = scratch.join("layout");
    for (number, source) in sources.iter().enumerate() {
        scratch.lazo_ok(["convert", source, &format!("oci:{}:t{number}", layout.display())]);
        assert_eq!(Manifest::of(&layout, &format!("t{number}")).document["layers"], expected, "{source}");
    }
}

#[test]
fn config_is_the_source_images_own() {
    let (corpus, layout) = (Corpus::get("small"), converted("small", "gzip"));
    let config = |layout: &std::path::Path, tag: &str| {
        let manifest = Manifest::of(layout, tag);
        json(layout, &text(&manifest.document["config"]["digest"]))
    };
    let (before, after) = (config(&corpus.layout(), "gzip"), config(&layout, "lazo"));
    for key in ["architecture", "os", "config", "created"] {
        assert_eq!(before[key], after[key], "{key}");
    }
    let layers = Manifest::of(&layout, "lazo").document["layers"].as_array().expect("layers").len();
    let diff_ids = after["rootfs"]["diff_ids"].as_array().expect("diffIDs");
    assert_eq!(diff_ids.len(), layers);
    for ((digest, _), diff_id) in Manifest::of(&layout, "lazo").blobs().iter().zip(diff_ids) {
        assert_eq!(diff_id, digest.as_str(), "a blob's diffID is its digest");
    }
}

#[test]
fn all_platforms_yield_an_index() {
    let (scratch, corpus) = (Scratch::new(), Corpus::get("small"));
    let registry = Registry::start(&scratch, "registry");
    let layout = scratch.join("layout");
    scratch.lazo_ok(["convert", "--all-platforms", &corpus.image("multi"), &format!("oci:{}:all", layout.display())]);
    scratch.lazo_ok([
        "convert",
        "--platform",
        "linux/arm64",
        &corpus.image("multi"),
        &format!("oci:{}:arm", layout.display()),
    ]);
    let index = json(&layout, &digest_of(&layout, "all"));
    let platforms: Vec<String> = index["manifests"]
        .as_array()
        .expect("manifests")
        .iter()
        .map(|entry| text(&entry["platform"]["architecture"]))
        .collect();
    assert_eq!(platforms, ["amd64", "arm64"]);
    assert_eq!(index["manifests"][0]["digest"], digest_of(&converted("small", "gzip"), "lazo"));
    assert_eq!(index["manifests"][1]["digest"], digest_of(&layout, "arm"));
    let error = scratch.lazo_err(["convert", "--platform", "linux/s390x", &corpus.image("multi"), "oci:/nowhere:x"]);
    assert!(
        error.contains("s390x") && error.contains("arm64"),
        "the error names neither what is wanted nor what is there: {error}"
    );

    let pushed = registry.push(&layout, "all", "app:all");
    scratch.lazo_ok(["convert", "--all-platforms", &corpus.image("multi"), &registry.image("app:direct")]);
    assert_eq!(digest(&registry.image("app:direct")), digest(&pushed));
    let mounted = Mounted::new(&scratch, &pushed, "mount");
    let listing = Listing::of_directory(mounted.path());
    mounted.umount();
    let single = Mounted::new(&scratch, &format!("oci:{}:lazo", converted("small", "gzip").display()), "single");
    Listing::of_directory(single.path()).assert_same("the host's platform of the index", &listing, &[]);
    single.umount();
}

#[test]
fn credentials_of_dockers_config() {
    use base64::Engine as _;
    let (scratch, corpus) = (Scratch::new(), Corpus::get("small"));
    let registry = Registry::with_basic_auth(&scratch, "registry");
    let image = registry.image("private:lazo");
    let error = scratch.lazo_err(["convert", &corpus.image("app-one"), &image]);
    assert!(error.contains(&registry.host), "{error}");
    assert!(error.contains("login"), "{error}");

    let config = |user: &str| {
        let auth = base64::engine::general_purpose::STANDARD.encode(user);
        serde_json::json!({ "auths": { registry.host.as_str(): { "auth": auth } } }).to_string()
    };
    std::fs::write(scratch.dir(".docker").join("config.json"), config(USER)).expect("docker's config.json");
    scratch.lazo_ok(["convert", &corpus.image("app-one"), &image]);
    scratch.lazo_ok(["check", &image]);
    let mounted = Mounted::new(&scratch, &image, "mount");
    assert_eq!(std::fs::read(mounted.path().join("app/one")).expect("a file").len(), 700_000);
    mounted.umount();

    let wrong = scratch.join("wrong.json");
    std::fs::write(&wrong, config("user:guess")).expect("a config.json");
    Scratch::new().lazo_err(["--authfile".as_ref(), wrong.as_os_str(), "check".as_ref(), image.as_ref()]);
}
