//! containerd starts containers from lazo images and ordinary ones, by lazo's snapshotter.

mod broken;
mod cri;
mod direct;
mod killed;
mod many;
mod namespaces;
mod outages;
mod owners;
mod pull;
mod references;
mod sockets;

use std::{fs, path::Path};

use base64::Engine as _;
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::support::{
    Corpus, Scratch,
    containerd::{Site, name_of},
    converted,
    crafted::{Layer, convert, publish},
    failure_of,
    layout::Manifest,
    listing::Listing,
    metrics::until,
    node::Node,
    registry::{Registry, USER},
    skopeo_copy, stdout_of,
};

/// The daemon of most tests.
const CONFIG: &str = "prefetch = \"none\"\n";

/// What each layer of a pulled image has come to, lowest first.
fn states(pulled: &Value) -> Vec<&str> {
    pulled["layers"].as_array().expect("layers").iter().map(|layer| layer["state"].as_str().expect("a state")).collect()
}

/// Everything that a tree shows but for how often directories are linked, of which an overlay has ideas of its own.
fn listing(root: &Path) -> Listing {
    let mut listing = Listing::of_directory(root);
    listing.0.values_mut().filter(|entry| entry.kind == "directory").for_each(|entry| entry.nlink = 0);
    listing
}

/// Directories that no layer lists have the time at which somebody needed them.
fn made_by_unpacking(names: &[&str]) -> Vec<(Vec<u8>, String)> {
    names.iter().map(|name| (name.as_bytes().to_vec(), "mtime".to_owned())).collect()
}

#[test]
fn a_lazo_image_runs_without_its_blobs_in_the_content_store() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let layout = converted("debian", "python");
    let image = registry.push(&layout, "lazo", "app:lazo");
    let manifest = Manifest::of(&layout, "lazo");
    let _node = Node::with(&scratch, CONFIG);
    let site = Site::start(&scratch);
    let pulled = site.pull(&image, &[]);
    assert_eq!(states(&pulled), ["lazy", "lazy", "fetched"]);
    let said = site.run_ok("lazo", &image, "python3 -c 'import json, ssl; print(json.dumps([6 * 7]))'");
    assert_eq!(said, "[42]\n");
    let content = site.content("default");
    assert!(content.contains(&manifest.digest) && content.contains(&manifest.bootstrap_layer()), "{content:?}");
    assert_eq!(content.len(), 3, "manifest, config and bootstrap: {content:?}");
    for (blob, size) in manifest.blobs() {
        assert!(!content.contains(&blob), "{blob} is in the content store");
        let requests = registry.requests();
        let requests: Vec<_> = requests.iter().filter(|request| request.path.contains(&blob)).collect();
        let fetched: u64 = requests.iter().map(|request| request.bytes).sum();
        assert!(requests.iter().all(|request| request.status != 200 || request.method == "HEAD"), "{requests:?}");
        assert!(fetched < size, "all of {blob} was fetched");
    }
    // Once more, and nothing is fetched.
    let before = registry.requests().len();
    assert_eq!(states(&site.pull(&image, &[])), ["lazy", "lazy", "present"]);
    let after = registry.requests();
    let layers = after[before..].iter().filter(|request| request.path.contains(&manifest.bootstrap_layer()));
    assert_eq!(layers.count(), 0, "the bootstrap was fetched twice");
}

#[test]
fn the_tree_is_the_one_that_overlayfs_shows_of_the_original() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let plain = registry.push(&Corpus::get("debian").layout(), "python", "app:plain");
    let lazo = registry.push(&converted("debian", "python"), "lazo", "app:lazo");
    let _node = Node::with(&scratch, CONFIG);
    let site = Site::start(&scratch);
    let original = site.mount(&site.pull(&plain, &["--snapshotter", "overlayfs"]), "original");
    let tree = site.mount(&site.pull(&lazo, &[]), "tree");
    listing(&original).assert_same("by lazo", &listing(&tree), &made_by_unpacking(&["."]));
}

#[test]
fn an_ordinary_image_is_as_with_overlayfs() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let image = registry.push(&Corpus::get("small").layout(), "app-one", "app:plain");
    let _node = Node::with(&scratch, CONFIG);
    let site = Site::start(&scratch);
    let mut trees = Vec::new();
    for snapshotter in ["overlayfs", "lazo"] {
        let pulled = site.pull(&image, &["--snapshotter", snapshotter]);
        let expected = if snapshotter == "overlayfs" { "fetched" } else { "unpacked" };
        assert_eq!(states(&pulled), [expected; 2], "{snapshotter}");
        trees.push(listing(&site.mount(&pulled, snapshotter)));
    }
    trees[0].assert_same("by lazo", &trees[1], &made_by_unpacking(&[".", "usr", "usr/share"]));
    let (plain, _) =
        publish(&scratch, &registry, "busybox", vec![Layer::new().busybox().file("etc/says", 0o644, b"hello\n")]);
    assert_eq!(states(&site.pull(&plain, &[])), ["fetched"]);
    assert_eq!(site.run_ok("lazo", &plain, "cat /etc/says"), "hello\n");
}

/// What programs do to files of their image; and then says what there is.
const CHANGES: &str = "set -e
echo new > /data/new; echo more >> /data/file; : > /data/emptied
rm /data/gone; rm -r /data/tree; mkdir /data/tree; echo other > /data/tree/other
mv /data/moved /data/elsewhere; mv /data/directory /data/renamed
chmod 600 /data/mode; ln /data/linked /data/link; dd if=/data/big of=/data/big bs=1 count=1 seek=5 conv=notrunc 2> /dev/null
cd /data; find . | sort; find . -type f | sort | while read f; do md5sum $f; stat -c '%a %u %s %h' $f; done
! test -e gone; ! test -e tree/inner; ! test -e moved; ! test -e directory; cat renamed/inner elsewhere tree/other";

#[test]
fn containers_write_delete_and_rename() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let names =
        ["file", "emptied", "gone", "tree/inner", "tree/deep/inner", "moved", "directory/inner", "mode", "linked"];
    let lower = names.iter().fold(Layer::new().busybox(), |layer, name| {
        layer.file(&format!("data/{name}"), 0o644, format!("{name}\n").as_bytes())
    });
    let lower = lower.file("data/big", 0o644, &vec![7; 3 << 20]);
    let (plain, lazo) =
        publish(&scratch, &registry, "app", vec![lower, Layer::new().file("data/top", 0o644, b"top\n")]);
    let _node = Node::with(&scratch, CONFIG);
    let site = Site::start(&scratch);
    site.pull(&plain, &["--snapshotter", "overlayfs"]);
    site.pull(&lazo, &[]);
    let expected = site.run_ok("overlayfs", &plain, CHANGES);
    assert!(expected.contains("./tree/other") && expected.ends_with("other\n"), "{expected}");
    assert_eq!(site.run_ok("lazo", &lazo, CHANGES), expected);
    // Nobody else sees any of it.
    assert_eq!(site.run_ok("lazo", &lazo, CHANGES), expected);
    assert_eq!(site.snapshots("default", "lazo").len(), 3, "a blob for each layer, and the bootstrap");
}

#[test]
fn programs_are_started_in_a_running_container() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let layer = Layer::new().busybox().file("data/cold", 0o644, b"cold\n");
    let (_, lazo) = publish(&scratch, &registry, "app", vec![layer]);
    let _node = Node::with(&scratch, CONFIG);
    let site = Site::start(&scratch);
    site.pull(&lazo, &[]);
    let id = site.start_container(&lazo, &[], "while :; do sleep 1; done");
    assert_eq!(site.exec(&id, "cat /data/cold; echo here > /data/here"), "cold\n");
    assert_eq!(site.exec(&id, "cat /data/here"), "here\n");
    site.remove_container(&id);
}

#[test]
fn a_private_registry_is_used_with_dockers_credentials() {
    let scratch = Scratch::new();
    let registry = Registry::with_basic_auth(&scratch, "registry");
    let (image, config) = (registry.image("app:lazo"), scratch.dir(".docker").join("config.json"));
    let layer = Layer::new().busybox().file("etc/says", 0o644, b"hello\n");
    let from = convert(&scratch, "app", vec![layer]);
    let login = ["--dest-creds", USER];
    skopeo_copy(&from, &image, &login);
    let _node = Node::with(&scratch, CONFIG);
    let site = Site::start(&scratch);
    let refused = failure_of(&mut site.pull_command(&image));
    assert!(refused.contains("access denied") && refused.contains("docker login"), "{refused}");
    let auth = base64::engine::general_purpose::STANDARD.encode(USER);
    fs::write(&config, format!("{{\"auths\": {{\"{}\": {{\"auth\": \"{auth}\"}}}}}}", registry.host)).expect("a login");
    site.pull(&image, &[]);
    assert_eq!(site.run_ok("lazo", &image, "cat /etc/says"), "hello\n");
}

/// Directories of images that are mounted for containers.
fn image_mounts(scratch: &Scratch) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    let below = scratch.join("run/containerd");
    table.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| Path::new(point).starts_with(&below)).count()
}

/// Blobs in the cache.
fn cached(scratch: &Scratch) -> usize {
    fs::read_dir(scratch.join("state/blobs")).map_or(0, |blobs| blobs.count())
}

#[test]
fn what_a_removed_image_took_is_free_again() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let base = || Layer::new().busybox();
    let one = publish(&scratch, &registry, "one", vec![base(), Layer::new().file("data/one", 0o644, &[1; 5000])]).1;
    let two = publish(&scratch, &registry, "two", vec![base(), Layer::new().file("data/two", 0o644, &[2; 5000])]).1;
    let _node = Node::with(&scratch, CONFIG);
    let site = Site::start(&scratch);
    for (image, name) in [(&one, "one"), (&two, "two")] {
        site.pull(image, &[]);
        site.run_ok("lazo", image, &format!("cat /data/{name}"));
    }
    assert_eq!((image_mounts(&scratch), cached(&scratch)), (2, 3), "the lower blob is one");
    site.ctr_ok(["images", "rm", "--sync", name_of(&one)]);
    until("the first image's own blob is dropped", || (cached(&scratch) == 2).then_some(()));
    assert_eq!((image_mounts(&scratch), site.snapshots("default", "lazo").len()), (1, 3));
    assert_eq!(site.run_ok("lazo", &two, "cat /data/two | head -c 1"), "\u{2}");
    site.ctr_ok(["images", "rm", "--sync", name_of(&two)]);
    until("all blobs are dropped", || (cached(&scratch) == 0).then_some(()));
    assert_eq!((image_mounts(&scratch), site.snapshots("default", "lazo").len()), (0, 0));
    assert!(site.content("default").is_empty());
    until("no directories of snapshots are left", || {
        let left = fs::read_dir(scratch.join("state/snapshots")).expect("the directory").flatten();
        let left = left.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).count();
        (left == 0).then_some(())
    });
}

#[test]
fn two_namespaces_have_the_same_image() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let (_, lazo) =
        publish(&scratch, &registry, "app", vec![Layer::new().busybox().file("data/file", 0o644, b"data\n")]);
    let _node = Node::with(&scratch, CONFIG);
    let site = Site::start(&scratch);
    let read = |namespace: &str| {
        let (_, mut command) = site.container(namespace, "lazo", &lazo, &["--rm"]);
        stdout_of(command.args(["/bin/sh", "-c", "cat /data/file"]))
    };
    for namespace in ["first", "second"] {
        site.pull(&lazo, &["--namespace", namespace]);
        assert_eq!(read(namespace), "data\n");
    }
    let name = name_of(&lazo);
    site.ctr_ok(["--namespace", "first", "images", "rm", "--sync", name]);
    assert!(site.snapshots("first", "lazo").is_empty());
    assert_eq!(site.snapshots("second", "lazo").len(), 2);
    assert_eq!(read("second"), "data\n");
    assert_eq!(cached(&scratch), 1);
    site.ctr_ok(["--namespace", "second", "images", "rm", "--sync", name]);
    until("the blob is dropped", || (cached(&scratch) == 0).then_some(()));
    assert_eq!(image_mounts(&scratch), 0);
}

#[test]
fn an_image_that_the_daemon_has_lost_is_mounted_again() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let (_, image) =
        publish(&scratch, &registry, "app", vec![Layer::new().busybox().file("data/file", 0o644, b"data\n")]);
    let node = Node::with(&scratch, CONFIG);
    let site = Site::start(&scratch);
    site.pull(&image, &[]);
    assert_eq!(site.run_ok("lazo", &image, "cat /data/file"), "data\n");
    fs::remove_dir_all(scratch.join("state/images")).expect("what the daemon has kept");
    let failed = || {
        let images = node.get("images");
        images.as_array().expect("images").iter().map(|image| image["failed"].is_string()).collect::<Vec<_>>()
    };
    let before = node.worker();
    kill_process(before, Signal::KILL).expect("kill the worker");
    until("another worker serves", || (node.worker() != before).then_some(()));
    assert_eq!(failed(), [true], "it cannot be restored");
    assert_eq!(site.run_ok("lazo", &image, "cat /data/file"), "data\n");
    assert_eq!(failed(), [false]);
}
