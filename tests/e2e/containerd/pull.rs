//! `lazo pull`: what it says, and what it leaves.

use std::{
    fs,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::support::{
    Scratch,
    containerd::{Site, name_of},
    crafted::{Layer, TAR, blob, edit, name, publish},
    failure_of,
    faults::Proxy,
    layout::{Manifest, blob_path, digest_of},
    metrics::until,
    node::Node,
    random::Random,
    registry::Registry,
};

fn noise(length: usize) -> Vec<u8> {
    let mut random = Random::new(9);
    (0..length / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

/// Nothing of containerd's is left of a pull.
fn assert_nothing_left(site: &Site<'_>, snapshotter: &str) {
    assert_eq!(site.content("default"), [""; 0]);
    assert_eq!(site.snapshots("default", snapshotter), [""; 0]);
    assert_eq!(site.ctr_ok(["leases", "ls", "-q"]), "");
    assert_eq!(site.ctr_ok(["images", "ls", "-q"]), "");
    assert_eq!(site.ctr_ok(["content", "active"]).lines().count(), 1, "nothing but the headline");
}

#[test]
fn failures_name_what_can_be_done() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let (plain, lazo) = publish(&scratch, &registry, "app", vec![Layer::new().busybox()]);
    let node = Node::with(&scratch, super::CONFIG);
    let mut site = Site::start(&scratch);
    let missing = registry.image("nothing:here");
    let said = failure_of(&mut scratch.lazo(["pull", "--address", "/nowhere.sock", name_of(&lazo)]));
    assert!(said.contains("containerd does not answer at /nowhere.sock") && said.contains("--address"), "{said}");
    for (image, options, reasons) in [
        (&lazo, ["--snapshotter", "other"], ["no snapshotter \"other\"", "[proxy_plugins.lazo]"]),
        (&lazo, ["--snapshotter", "overlayfs"], ["it is a lazo image", "--snapshotter lazo"]),
        (&lazo, ["--namespace", "in/valid"], ["in/valid", "identifier"]),
        (&missing, ["--namespace", "default"], ["nothing:here", "not found"]),
        (&plain, ["--platform", "linux/s390x"], ["not for linux/s390x", "--platform linux/"]),
    ] {
        let said = failure_of(site.pull_command(image).args(options));
        assert!(reasons.iter().all(|reason| said.contains(reason)), "{options:?}: {said}");
        assert!(said.contains(name_of(image)), "{options:?}: {said}");
    }
    assert_nothing_left(&site, "lazo");
    assert_nothing_left(&site, "overlayfs");
    site.kill_snapshotter();
    let said = failure_of(&mut site.pull_command(&lazo));
    assert!(said.contains("is `lazo snapshotter` running?"), "{said}");
    drop(node);
}

#[test]
fn an_interrupted_pull_leaves_nothing() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    publish(
        &scratch,
        &registry,
        "app",
        vec![Layer::new().busybox(), Layer::new().file("data", 0o644, &noise(8 << 20))],
    );
    let proxy = Proxy::start(&registry.host);
    let _node = Node::with(&scratch, super::CONFIG);
    let site = Site::start(&scratch);
    proxy.set_bandwidth(1 << 20);
    let mut command = site.pull_command(&proxy.image("app:plain"));
    let pulling = command.args(["--snapshotter", "overlayfs"]).stderr(Stdio::piped()).spawn().expect("lazo pull");
    until("it writes a layer", || site.ctr_ok(["content", "active"]).contains("layer-").then_some(()));
    kill_process(Pid::from_child(&pulling), Signal::INT).expect("it lives");
    let begin = Instant::now();
    let output = pulling.wait_with_output().expect("its end");
    assert!(begin.elapsed() < Duration::from_secs(5), "it takes its time");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("interrupted"));
    assert_nothing_left(&site, "overlayfs");
}

#[test]
fn pulls_at_once_share_what_they_fetch() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let layers = vec![Layer::new().busybox(), Layer::new().file("data", 0o644, &noise(4 << 20))];
    publish(&scratch, &registry, "app", layers);
    let proxy = Proxy::start(&registry.host);
    proxy.set_bandwidth(8 << 20);
    let _node = Node::with(&scratch, super::CONFIG);
    let site = Site::start(&scratch);
    let image = proxy.image("app:plain");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| site.pull(&image, &["--snapshotter", "overlayfs"]));
        }
    });
    let manifest = Manifest::of(&scratch.join("app-plain"), "plain").document;
    for layer in manifest["layers"].as_array().expect("layers") {
        let digest = layer["digest"].as_str().expect("a digest");
        let fetches = proxy.log().iter().filter(|request| request.path.contains(digest)).count();
        assert_eq!(fetches, 1, "{digest}");
    }
    assert_eq!(site.ctr_ok(["leases", "ls", "-q"]), "");
    assert_eq!(site.snapshots("default", "overlayfs").len(), 2);
    let check = site.ctr_ok(["images", "check", "--snapshotter", "overlayfs"]);
    assert!(check.contains("complete (3/3)") && check.contains("true"), "{check}");
}

#[test]
fn of_an_index_the_platforms_image_is_taken() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    publish(&scratch, &registry, "app", vec![Layer::new().busybox()]);
    let layout = scratch.join("app");
    let own = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let other = if own == "amd64" { "arm64" } else { "amd64" };
    edit(&layout, "lazo", |layers, diff_ids| {
        let bytes = Layer::new().file("other", 0o644, b"").bytes();
        layers.push(blob(&layout, TAR, &bytes));
        diff_ids.push(layers.last().expect("a layer")["digest"].clone());
    });
    let entry = |tag: &str, architecture: &str| {
        let digest = digest_of(&layout, tag);
        let size = fs::metadata(blob_path(&layout, &digest)).expect("a manifest").len();
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
               "platform": {"os": "linux", "architecture": architecture}})
    };
    let kind = "application/vnd.oci.image.index.v1+json";
    let index =
        json!({"schemaVersion": 2, "mediaType": kind, "manifests": [entry("edited", other), entry("lazo", own)]});
    let index = blob(&layout, kind, index.to_string().as_bytes());
    name(&layout, index.clone(), "index");
    let image = registry.push(&layout, "index", "app:index");
    let _node = Node::with(&scratch, super::CONFIG);
    let site = Site::start(&scratch);
    let pulled = site.pull(&image, &[]);
    assert_eq!((&pulled["digest"], &pulled["manifest"]), (&index["digest"], &json!(digest_of(&layout, "lazo"))));
    assert_eq!(site.run_ok("lazo", &image, "echo runs"), "runs\n");
    let said = failure_of(site.pull_command(&image).args(["--platform", "linux/s390x"]));
    assert!(said.contains(&format!("linux/{own}")) && said.contains(&format!("linux/{other}")), "{said}");
    // Its manifest is kept by the index, and everything goes with the image.
    site.ctr_ok(["images", "rm", "--sync", name_of(&image)]);
    assert_nothing_left(&site, "lazo");
}

#[test]
fn layers_above_a_lazo_image_are_ordinary_ones() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let base = Layer::new().busybox().file("data/gone", 0o644, b"").file("data/other", 0o644, b"old\n");
    publish(&scratch, &registry, "base", vec![base.file("data/kept", 0o644, b"kept\n")]);
    let layout = scratch.join("base");
    edit(&layout, "lazo", |layers, diff_ids| {
        let above = Layer::new().file("data/.wh.gone", 0o644, b"").file("data/other", 0o644, b"new\n");
        layers.push(blob(&layout, TAR, &above.bytes()));
        diff_ids.push(layers.last().expect("a layer")["digest"].clone());
    });
    let image = registry.push(&layout, "edited", "derived:lazo");
    let _node = Node::with(&scratch, super::CONFIG);
    let site = Site::start(&scratch);
    assert_eq!(super::states(&site.pull(&image, &[])), ["lazy", "fetched", "fetched"]);
    let said = site.run_ok("lazo", &image, "cd /data; echo *; cat *; echo more >> kept; rm other; echo *");
    assert_eq!(said, "kept other\nkept\nnew\nkept\n");
}
