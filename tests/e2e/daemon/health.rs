//! What is said of a daemon while a registry is away.

use std::path::Path;

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::support::{
    Scratch, converted,
    faults::Proxy,
    metrics::{curl, until, value},
    node::{MODES, Node},
    run,
    served::{NAME, Served},
};

/// Readers that wait at a time.
const READERS: usize = 12;

/// The status of an answer, and its body.
fn asked(node: &Node<'_>, path: &str) -> (String, Value) {
    let text = curl(&node.socket(), &format!("http://lazo/v1/{path}"), &["--include"]);
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).expect("a status").to_owned();
    (status, serde_json::from_str(body).expect("JSON"))
}

#[test]
fn a_daemon_whose_readers_wait_is_degraded_and_says_why() {
    for mode in MODES {
        let served = Served::new("debian");
        let proxy = Proxy::start(&served.registry.host);
        let node = Node::with(&served.scratch, &format!("mode = \"{mode}\"\n"));
        let image = proxy.image(NAME);
        let mounted = node.mount(&image, "mount", &["--prefetch", "none"]);
        let original = served.original();
        original.assert_same(mounted.path(), original.next());
        for path in ["health", "ready"] {
            let (status, health) = asked(&node, path);
            assert_eq!((&*status, &health["ok"], &health["status"]), ("200", &true.into(), &"ok".into()), "{health}");
        }
        proxy.refuse();
        let files: Vec<_> = (0..READERS).map(|_| original.next().to_owned()).collect();
        let lines_before = node.log().lines().count();
        std::thread::scope(|scope| {
            let readers: Vec<_> =
                files.iter().map(|file| scope.spawn(|| original.compare(mounted.path(), file))).collect();
            let health = until("the health is degraded", || {
                let (status, health) = asked(&node, "health");
                assert_eq!(status, "200", "the daemon lives: {health}");
                (health["status"] == "degraded").then_some(health)
            });
            assert_eq!(health["ok"], false);
            let [waiting] = &**health["waiting"].as_array().expect("a list") else { panic!("{health}") };
            assert_eq!(waiting["image"], *image, "{health}");
            assert!(waiting["requests"].as_u64().is_some_and(|count| count > 0), "{health}");
            assert!(waiting["since"].as_u64().is_some_and(|since| since > 1_600_000_000), "{health}");
            let source = &waiting["sources"][0];
            assert!(source["source"].as_str().is_some_and(|name| name.contains(&proxy.host())), "{health}");
            assert!(source["error"].as_str().is_some_and(|error| !error.is_empty()), "{health}");
            let problem = health["problems"][0].as_str().expect("a problem");
            assert!(problem.contains(&image) && problem.contains("readers wait"), "{problem}");
            assert_eq!(asked(&node, "ready").0, "503");
            assert!(served.scratch.lazo_ok(["stats"]).contains("readers wait"));
            until("the metrics say so", || (value(&node.metrics(), "lazo_outage_requests") > 0.0).then_some(()));
            proxy.listen();
            for reader in readers {
                reader.join().expect("a reader").expect("all of it");
            }
        });
        until("the health is well again", || (asked(&node, "ready").0 == "200").then_some(()));
        assert_eq!(value(&node.metrics(), "lazo_outage_requests"), 0.0);
        let lines = node.log().lines().count() - lines_before;
        assert!(lines < 60, "{lines} lines for an outage: {}", node.log());
        mounted.umount();
        node.stop();
    }
}

#[test]
fn what_is_released_is_not_shown_as_used() {
    let served = Served::new("small");
    let node = Node::start(&served.scratch, "fuse");
    let mounted = node.mount(&served.image(), "mount", &[]);
    served.original().assert_all_same(mounted.path());
    mounted.umount();
    let used = || value(&node.metrics(), "lazo_cache_bytes");
    until("the cache shows what it takes", || (used() > 0.0).then_some(()));
    let blobs: Vec<String> = served.manifest.blobs().into_iter().map(|(digest, _)| digest).collect();
    let body = serde_json::json!({ "blobs": blobs }).to_string();
    until("all blobs are let go", || {
        let answer = curl(&node.socket(), "http://lazo/v1/cache/release", &["--data", &body]);
        answer.contains("\"in_use\":[]").then_some(())
    });
    // At once, but for what the bitmaps beside the blobs take.
    assert!(used() < 65536.0, "{}", used());
    assert!(node.stats()["daemon"]["stats"]["cache_bytes"].as_u64().is_some_and(|bytes| bytes < 65536));
    node.stop();
}

#[test]
fn an_image_that_cannot_be_served_again_is_gone_with_its_last_mount() {
    for mode in MODES {
        let scratch = Scratch::new();
        let node = Node::start(&scratch, mode);
        let layout = scratch.join("layout");
        run("cp", [Path::new("-r"), &converted("small", "gzip"), &layout]);
        let mounted = node.mount(&format!("oci:{}:lazo", layout.display()), "mount", &[]);
        for directory in [layout, scratch.join("state/images")] {
            std::fs::remove_dir_all(directory).expect("it was there");
        }
        kill_process(node.worker(), Signal::KILL).expect("a worker");
        until("the image is said to have failed", || {
            (value(&node.metrics(), "lazo_failed_images") > 0.0).then_some(())
        });
        let (status, health) = asked(&node, "health");
        assert!(status == "200" && health["status"] == "degraded", "{mode}: {health}");
        mounted.umount();
        until("nothing is left of it", || node.get("images").as_array().is_some_and(Vec::is_empty).then_some(()));
        for gauge in ["lazo_images", "lazo_failed_images", "lazo_mounts"] {
            assert_eq!(value(&node.metrics(), gauge), 0.0, "{mode}: {gauge}");
        }
        assert_eq!(asked(&node, "ready").0, "200");
        node.stop();
    }
}
