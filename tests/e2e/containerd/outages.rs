//! The registry goes, for some time or for good.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Scratch,
    containerd::Site,
    crafted::{Layer, publish},
    faults::Proxy,
    node::Node,
    random::Random,
    registry::Registry,
    stdout_of,
};

/// How long the registry is gone.
const OUTAGE: Duration = Duration::from_secs(20);

/// Adds up everything that is there.
const READ: &str = "find /data -type f | sort | while read name; do md5sum $name || exit 1; done";

fn layer() -> Layer {
    let mut random = Random::new(3);
    (0..20).fold(Layer::new().busybox(), |layer, number| {
        let bytes: Vec<u8> = (0..32 << 10).flat_map(|_| random.next().to_le_bytes()).collect();
        layer.file(&format!("data/{number}"), 0o644, &bytes)
    })
}

#[test]
fn a_start_waits_for_a_registry_that_comes_back() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let (plain, _) = publish(&scratch, &registry, "app", vec![layer()]);
    let proxy = Proxy::start(&registry.host);
    let image = proxy.image("app:lazo");
    let _node = Node::with(&scratch, super::CONFIG);
    let site = Site::start(&scratch);
    site.pull(&plain, &["--snapshotter", "overlayfs"]);
    let expected = site.run_ok("overlayfs", &plain, READ);
    site.pull(&image, &[]);
    proxy.refuse();
    let begin = Instant::now();
    thread::scope(|scope| {
        let container = scope.spawn(|| site.run_ok("lazo", &image, READ));
        thread::sleep(OUTAGE);
        assert!(!container.is_finished(), "it ran without its data");
        proxy.listen();
        assert_eq!(container.join().expect("the container"), expected);
    });
    assert!(begin.elapsed() >= OUTAGE);
}

#[test]
fn without_its_registry_a_cached_image_goes_on_for_good() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let image = publish(&scratch, &registry, "app", vec![layer(), Layer::new().file("data/top", 0o644, b"top\n")]).1;
    let node = Node::with(&scratch, super::CONFIG);
    let mut site = Site::start(&scratch);
    site.pull(&image, &[]);
    let expected = site.run_ok("lazo", &image, READ);
    assert_eq!(expected.lines().count(), 21);
    let (id, mut running) = site.container("default", "lazo", &image, &[]);
    assert_eq!(stdout_of(running.args(["/bin/sh", "-c", READ])), expected);
    drop(registry);
    assert_eq!(site.run_ok("lazo", &image, READ), expected);
    // Everything is started again, and knows nothing but what it has kept.
    site.kill_containerd();
    site.kill_snapshotter();
    node.stop();
    let _node = Node::with(&scratch, super::CONFIG);
    site.start_snapshotter();
    site.start_containerd();
    assert_eq!(site.run_ok("lazo", &image, READ), expected);
    let task = ["task", "start", &id];
    assert_eq!(site.ctr_ok(task), expected, "a container that was made before");
}
