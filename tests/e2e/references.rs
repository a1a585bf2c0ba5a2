//! An image that is in two repositories, with a login for each: by name, through the node daemon.

use std::{fs, io, path::Path};

use base64::Engine as _;
use rustix::process::{Signal, kill_process};

use crate::support::{
    Scratch,
    crafted::{Layer, convert},
    metrics::until,
    mounted::wait_for_end,
    node::{MODES, Node},
    random::Random,
    registry::Registry,
    skopeo_copy,
};

/// Blobs of the image, in each of which there is a file.
const FILES: usize = 12;

/// Two registries with the same image, and who may use them.
pub(crate) struct Two<'a> {
    scratch: &'a Scratch,
    registries: [Registry; 2],
    pub(crate) images: [String; 2],
}

/// Of the registries; repositories and mounts are called `a` and `b`.
const REGISTRIES: [&str; 2] = ["registry-a", "registry-b"];
const NAMES: [&str; 2] = ["a", "b"];
const USERS: [&str; 2] = ["user", "second"];

impl<'a> Two<'a> {
    pub(crate) fn new(scratch: &'a Scratch) -> Self {
        let layers = (0..FILES).map(|number| {
            let layer = if number == 0 { Layer::new().busybox() } else { Layer::new() };
            layer.file(&format!("data/{number}"), 0o644, &content(number))
        });
        let layout = convert(scratch, "app", layers.collect());
        let registries = [0, 1].map(|number| Registry::for_user(scratch, REGISTRIES[number], USERS[number]));
        let images = [0, 1].map(|number| registries[number].image(&format!("{}/app:lazo", NAMES[number])));
        for number in [0, 1] {
            let login = Self::login(number);
            skopeo_copy(&layout, &images[number], &["--all", "--preserve-digests", "--dest-creds", &login]);
        }
        Self { scratch, registries, images }
    }

    /// Logs in to both, as `docker login` does.
    pub(crate) fn log_in(&self) {
        let auths = [0, 1].map(|number| {
            let auth = base64::engine::general_purpose::STANDARD.encode(format!("{}:secret", USERS[number]));
            format!("\"{}\": {{\"auth\": \"{auth}\"}}", self.registries[number].host)
        });
        let config = format!("{{\"auths\": {{{}}}}}", auths.join(", "));
        fs::write(self.scratch.dir(".docker").join("config.json"), config).expect("the logins");
    }

    pub(crate) fn revoke(&self, number: usize) {
        self.registries[number].admit(self.scratch, REGISTRIES[number], "nobody");
    }

    pub(crate) fn admit(&self, number: usize) {
        self.registries[number].admit(self.scratch, REGISTRIES[number], USERS[number]);
    }

    pub(crate) fn hang(&self, number: usize) {
        self.registries[number].hang();
    }

    pub(crate) fn go_on(&self, number: usize) {
        self.registries[number].go_on();
    }

    pub(crate) fn login(number: usize) -> String {
        format!("{}:secret", USERS[number])
    }

    pub(crate) fn name(&self, number: usize) -> &str {
        self.images[number].strip_prefix("docker://").expect("a registry's")
    }
}

/// What no compression makes smaller, and no other file has.
pub(crate) fn content(number: usize) -> Vec<u8> {
    let mut random = Random::new(number as u64 + 77);
    (0..40_000).flat_map(|_| random.next().to_le_bytes()).collect()
}

/// The names of the one image that a daemon serves.
pub(crate) fn names(node: &Node<'_>) -> Vec<String> {
    let images = node.get("images");
    let images = images.as_array().expect("a list");
    assert_eq!(images.len(), 1, "{images:?}");
    let names = images[0]["references"].as_array().expect("names");
    names.iter().map(|name| name.as_str().expect("a name").to_owned()).collect()
}

fn assert_reads(root: &Path, number: usize) {
    let path = root.join(format!("data/{number}"));
    let read = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(read == content(number), "wrong bytes in {}", path.display());
}

fn kill_worker(node: &Node<'_>) {
    let worker = node.worker();
    kill_process(worker, Signal::KILL).expect("it lives");
    wait_for_end(worker);
}

#[test]
fn each_repository_of_an_image_is_a_source_as_long_as_it_is_mounted_from_there() {
    for mode in MODES {
        let scratch = Scratch::new();
        let two = Two::new(&scratch);
        two.log_in();
        let config = format!("mode = \"{mode}\"\nprefetch = \"none\"\noutage_limit = 20\n");
        let node = Node::with(&scratch, &config);
        let [a, b] = [0, 1].map(|number| node.mount(&two.images[number], NAMES[number], &[]));
        assert_eq!(names(&node), two.images, "{mode}: one image with two names");
        assert_reads(a.path(), 0);
        // The first login is revoked: both mounts go on by the second.
        two.revoke(0);
        assert_reads(a.path(), 1);
        assert_reads(b.path(), 2);
        // It counts again, and the other one does not: what is mounted once more is tried at once.
        two.admit(0);
        two.revoke(1);
        let again = node.mount(&two.images[0], "again", &[]);
        assert_reads(b.path(), 3);
        // So does the next worker.
        kill_worker(&node);
        two.admit(1);
        two.revoke(0);
        assert_reads(a.path(), 4);
        assert_eq!(names(&node), two.images, "{mode}: after the worker was killed");
        // A name goes with its last mount.
        a.umount();
        assert_eq!(names(&node), two.images, "{mode}: it is mounted once more");
        again.umount();
        assert_eq!(names(&node), two.images[1..], "{mode}: the second one stays");
        assert_reads(b.path(), 5);
        // Readers fail only if all refuse, and work again when one does not.
        two.revoke(1);
        let refused = fs::read(b.path().join("data/6")).expect_err("nobody gives it");
        assert_eq!(refused.kind(), io::Error::from_raw_os_error(5).kind(), "{refused}");
        two.admit(0);
        let a = node.mount(&two.images[0], "a-again", &[]);
        assert_reads(b.path(), 7);
        assert_reads(b.path(), 6);
        b.umount();
        a.umount();
        node.stop();
    }
}

#[test]
fn a_daemon_that_was_killed_makes_mounts_anew_with_all_names() {
    let scratch = Scratch::new();
    let two = Two::new(&scratch);
    two.log_in();
    let config = "prefetch = \"none\"\n";
    let node = Node::with(&scratch, config);
    let [a, b] = [0, 1].map(|number| node.mount(&two.images[number], NAMES[number], &[]));
    assert_reads(a.path(), 0);
    node.kill();
    two.revoke(0);
    let node = Node::with(&scratch, config);
    until("both names are known again", || (names(&node).len() == 2).then_some(()));
    assert_reads(a.path(), 1);
    assert_reads(b.path(), 2);
}
