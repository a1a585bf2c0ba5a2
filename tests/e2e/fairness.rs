//! Registries that send a byte now and then, beside good ones: nobody else's mount, read or prefetch waits for them.

use std::{
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use lazo_daemon::node::{client::Client, protocol::MountRequest};

use crate::support::{
    Scratch,
    faults::{Fault, Proxy, Target},
    layout::blob_path,
    metrics::{sum, until},
    mounted::Mounted,
    node::Node,
    run,
    served::{NAME, Served},
};

/// Mounts of images whose manifests drip: as many as could once be opened at all.
const EVIL: usize = 24;
/// Images of one registry that are opened at a time.
const OF_A_REGISTRY: usize = 12;
/// Between two bytes: never so long that a connection counts as stalled.
const EVERY: Duration = Duration::from_secs(2);

/// `lazo mount`s that wait; killed on drop.
struct Waiting(Vec<Child>);

impl Waiting {
    fn start(scratch: &Scratch, image: &str, name: &str) -> Self {
        let spawn = |number| {
            let dir = scratch.dir(&format!("{name}-{number}"));
            let mut command = scratch.lazo(["mount", image]);
            command.arg(dir).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("lazo mount")
        };
        Self((0..EVIL).map(spawn).collect())
    }

    fn all_wait(&mut self) -> bool {
        self.0.iter_mut().all(|child| child.try_wait().expect("its state").is_none())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits until manifests of a repository were asked for by as many as may.
fn wait_for_requests(proxy: &Proxy, repository: &str) {
    until("as many as may have asked", || {
        let log = proxy.log();
        (log.iter().filter(|request| request.path.contains(repository)).count() >= OF_A_REGISTRY).then_some(())
    });
}

/// Mounts by name and by files, and reads.
fn mount_and_read(served: &Served, node: &Node<'_>, round: &str) {
    let begin = Instant::now();
    let by_name = node.mount(&served.image(), &format!("named-{round}"), &[]);
    let named = begin.elapsed();
    served.original().assert_same(by_name.path(), served.original().next());
    let read = begin.elapsed() - named;

    let files = served.scratch.dir(&format!("files-{round}"));
    let layer = blob_path(&served.layout, &served.manifest.bootstrap_layer());
    run("tar", ["-xzf", layer.to_str().expect("a plain path"), "-C", files.to_str().expect("a plain path")]);
    let place = served.scratch.dir(&format!("adopted-{round}"));
    let request = MountRequest { files: Some(files.join("image")), ..MountRequest::new(served.image(), place.clone()) };
    let begin = Instant::now();
    Client::at(node.socket()).mount(&request).expect("a mount by files");
    let by_files = begin.elapsed();
    let adopted = Mounted::adopt(&served.scratch, place);
    served.original().assert_same(adopted.path(), served.original().next());
    println!("{round}: mount by name {named:.1?}, its first read {read:.1?}, mount by files {by_files:.1?}");
}

#[test]
fn manifests_that_drip_hold_up_no_other_mount() {
    let served = Served::new("small");
    let evil = Proxy::start(&served.registry.host);
    let node = Node::start(&served.scratch, "erofs");
    mount_and_read(&served, &node, "alone");

    evil.set(Target::Manifests, Fault::Drip(1, EVERY));
    let mut waiting = Waiting::start(&served.scratch, &evil.image(NAME), "evil");
    wait_for_requests(&evil, "/app/");
    mount_and_read(&served, &node, "beside");
    assert!(waiting.all_wait(), "the mounts that drip were still there");

    // Those who go give back what they took, though their manifests drip on.
    drop(waiting);
    let mut waiting = Waiting::start(&served.scratch, &evil.image("other:lazo"), "others");
    wait_for_requests(&evil, "/other/");
    assert!(waiting.all_wait());
    drop(waiting);
    evil.heal();
    let healed = node.mount(&evil.image(NAME), "healed", &[]);
    served.original().assert_same(healed.path(), served.original().next());
}

#[test]
fn blobs_that_drip_stop_nobody_elses_prefetch_and_reads() {
    let (slow, served) = (Served::new("debian"), Served::new("small"));
    let evil = Proxy::start(&slow.registry.host);
    let node = Node::with(&slow.scratch, "prefetch = \"all\"\n");
    evil.set(Target::Blobs, Fault::Drip(1000, Duration::from_millis(300)));
    let _evil = node.mount(&evil.image(NAME), "evil", &[]);
    evil.wait_for_hits(1);
    let good = node.mount(&served.image(), "good", &[]);
    thread::scope(|scope| {
        let stuck = scope.spawn(|| slow.original().compare(&slow.scratch.join("evil"), slow.original().next()));
        served.original().assert_all_same(good.path());
        until("the good image is there", || (sum(&node.metrics(), "lazo_fill_complete") >= 1.0).then_some(()));
        until("slow answers are counted", || (sum(&node.metrics(), "lazo_source_slow_total") >= 1.0).then_some(()));
        assert!(node.log().contains("comes too slowly"), "{}", node.log());
        evil.heal();
        stuck.join().expect("a reader").expect("it goes on when the source does");
    });
}
