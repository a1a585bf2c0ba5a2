//! Hostile images and registries, all mounted at once: what they cost another image on the node. `make bench` runs it.

use std::{
    fs::{self, File},
    io::Read as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Scratch,
    faults::{Fault, Proxy, Target},
    hostile_images,
    mounted::Mounted,
    node::Node,
    served::{NAME, Served},
};

/// Chunks of the images that have too many: a table of 114 MB.
const CHUNKS: u32 = 2_000_000;
/// Cold reads that are timed.
const READS: usize = 40;
/// What is promised: how long a mount takes, by how much a cold read is later than alone, and the daemon's memory.
const MOUNT: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_millis(500);
const MEMORY: u64 = 128 << 20;

/// How long the mount took, and the longest cold read.
fn mount_and_read(served: &Served, node: &Node<'_>, name: &str) -> (Duration, Duration) {
    let begin = Instant::now();
    let mounted = node.mount(&served.image(), name, &["--prefetch", "none"]);
    let mount = begin.elapsed();
    let read = || {
        let begin = Instant::now();
        served.original().assert_same(mounted.path(), served.original().next());
        begin.elapsed()
    };
    let longest = (0..READS).map(|_| read()).max().expect("reads");
    mounted.umount();
    (mount, longest)
}

/// The resident memory of the worker, bytes.
fn memory(node: &Node<'_>) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.worker().as_raw_nonzero())).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// Reads the first mebibyte of a file, however that ends.
fn read_some(mounted: &Mounted<'_>, file: &Path) {
    let read = File::open(mounted.path().join(file)).and_then(|file| file.take(1 << 20).read_to_end(&mut Vec::new()));
    drop(read);
}

#[test]
#[ignore = "figures; part of make bench"]
fn eight_hostile_images_cost_another_little() {
    let (alone, served, evil) = (Served::new("debian"), Served::new("debian"), Served::new("small"));
    let quiet = Node::start(&alone.scratch, "erofs");
    let (_, longest_alone) = mount_and_read(&alone, &quiet, "alone");

    let images = Scratch::new();
    let list = hostile_images::longest_prefetch_list(CHUNKS).write(&images.join("list"));
    let chunks = hostile_images::many_small_chunks(CHUNKS).write(&images.join("chunks"));
    let endless = hostile_images::endless_prefetch_list(10 * CHUNKS).write(&images.join("endless"));
    let broken = hostile_images::broken().remove(0).parts.write(&images.join("broken"));
    let faults = [
        (Target::Manifests, Fault::Drip(1, Duration::from_secs(2))),
        (Target::Blobs, Fault::Drip(1000, Duration::from_millis(300))),
        (Target::Blobs, Fault::Stall(100)),
        (Target::Blobs, Fault::Garble),
    ];
    let proxies = faults.map(|(target, fault)| {
        let proxy = Proxy::start(&evil.registry.host);
        proxy.set(target, fault);
        proxy
    });
    let node = Node::start(&served.scratch, "erofs");
    let scratch = &served.scratch;
    let [manifests, blobs @ ..] = &proxies;
    // Two dozen that never get a manifest, and the images whose layers are refused, over and over.
    let mut waiting: Vec<_> =
        (0..24).map(|number| start(scratch, &manifests.image(NAME), &format!("drip-{number}"))).collect();
    let long = [node.mount(&list, "list", &[]), node.mount(&chunks, "chunks", &[])];
    let slow: Vec<Mounted<'_>> = (0..)
        .zip(blobs)
        .map(|(number, proxy)| node.mount(&proxy.image(NAME), &format!("slow-{number}"), &["--prefetch", "all"]))
        .collect();
    let mut refused: Vec<_> = [&endless, &broken].map(|image| start(scratch, image, "refused")).into();

    let ((mount, longest), rss) = thread::scope(|scope| {
        for mounted in &slow {
            let file = evil.original().next();
            scope.spawn(move || read_some(mounted, file));
        }
        for mounted in &long {
            scope.spawn(move || read_some(mounted, Path::new("file")));
        }
        let result = mount_and_read(&served, &node, "good");
        let rss = memory(&node);
        // Whoever still waits is let go.
        blobs.iter().for_each(Proxy::heal);
        (result, rss)
    });
    println!(
        "mount {mount:.2?}; longest of {READS} cold reads {longest:.2?}, alone {longest_alone:.2?}; memory {} MB",
        rss >> 20
    );
    for child in waiting.iter_mut().chain(&mut refused) {
        let _ = child.kill();
        child.wait().expect("its end");
    }
    assert!(mount < MOUNT, "{mount:?}");
    assert!(longest < longest_alone + LATER, "{longest:?}, alone {longest_alone:?}");
    assert!(rss < MEMORY, "{rss} bytes");
}

/// `lazo mount` in the background.
fn start(scratch: &Scratch, image: &str, name: &str) -> std::process::Child {
    let mut command = scratch.lazo(["mount", image]);
    command.arg(scratch.dir(name)).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    command.spawn().expect("lazo mount")
}
