//! containerd, the snapshotter and the daemon in different mount namespaces.

use std::{fs, path::PathBuf, process::Output};

use crate::support::{
    Scratch,
    containerd::Site,
    crafted::{Layer, publish},
    metrics::until,
    node::Node,
    registry::Registry,
    run,
};

/// What `ctr run` says that fails.
fn refusal(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it started: {said}");
    said
}

/// Where the only image is mounted.
fn image_mount(scratch: &Scratch) -> PathBuf {
    let entries = fs::read_dir(scratch.join("run/containerd")).expect("images' mounts").flatten();
    let [only] = <[_; 1]>::try_from(entries.collect::<Vec<_>>()).expect("one image");
    only.path()
}

#[test]
fn mounts_that_are_not_seen_are_not_given_to_containers() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let layers = vec![Layer::new().busybox().file("etc/says", 0o644, b"hello\n")];
    let (plain, lazo) = publish(&scratch, &registry, "app", layers);
    let run_dir = scratch.dir("run");
    let run_dir = run_dir.to_str().expect("a plain path");
    run("mount", ["--bind", run_dir, run_dir]);
    run("mount", ["--make-shared", run_dir]);
    let _node = Node::with(&scratch, super::CONFIG);
    let private = ["unshare", "--mount", "--propagation", "private"];
    let shared = ["unshare", "--mount", "--propagation", "unchanged"];
    let mut site = Site::within(&scratch, &private, &private);
    site.pull(&lazo, &[]);
    site.pull(&plain, &[]);
    let directories = || fs::read_dir(scratch.join("state/snapshots")).expect("snapshots").count();
    let before = (site.snapshots("default", "lazo"), directories());

    let said = refusal(&site.run("lazo", &lazo, "true"));
    assert!(said.contains("lazo's snapshotter (process ") && said.contains("does not see the mount"), "{said}");
    site.kill_snapshotter();
    site.snapshotter_in(&[]);
    site.start_snapshotter();
    for _ in 0..3 {
        let said = refusal(&site.run("lazo", &lazo, "true"));
        assert!(said.contains("containerd (process ") && said.contains("mountPropagation: Bidirectional"), "{said}");
    }
    // No container's snapshot is left; ordinary images need no mount of the daemon's.
    until("the refused snapshots are gone", || {
        ((site.snapshots("default", "lazo"), directories()) == before).then_some(())
    });
    assert_eq!(super::image_mounts(&scratch), 1, "the image's own mount");
    assert_eq!(site.run_ok("lazo", &plain, "cat /etc/says"), "hello\n");

    site.kill_containerd();
    site.containerd_in(&shared);
    site.start_containerd();
    for _ in 0..2 {
        assert_eq!(site.run_ok("lazo", &lazo, "cat /etc/says"), "hello\n");
    }
    // A mount that was lost is made again, and containerd sees the new one.
    for _ in 0..2 {
        run("umount", ["-l", image_mount(&scratch).to_str().expect("a plain path")]);
        assert_eq!(site.run_ok("lazo", &lazo, "cat /etc/says"), "hello\n");
    }
    for image in [&lazo, &plain] {
        site.ctr_ok(["images", "rm", "--sync", crate::support::containerd::name_of(image)]);
    }
    until("all mounts have ended", || (super::image_mounts(&scratch) == 0).then_some(()));
}
