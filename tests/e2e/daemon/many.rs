//! Hundreds of mounts of some images at once, of which two are broken: what each costs, and that nothing of them stays.

use std::{fs, os::unix::fs::FileExt as _, path::PathBuf, thread};

use lazo_daemon::node::{
    client::Client,
    protocol::{ErrorKind, MountRequest},
};
use rustix::{io::Errno, process::Pid};

use super::{errno, mounts_below};
use crate::support::{
    Scratch,
    crafted::{self, Layer},
    layout::{Manifest, blob_path},
    metrics::{sum, until},
    node::{MODES, Node},
};

const IMAGES: usize = 20;
/// Its blob has wrong bytes.
const WRONG_BLOB: usize = 7;
/// Its metadata has wrong bytes.
const WRONG_METADATA: usize = 13;
const MOUNTS: usize = 500;
/// Those who ask at a time.
const CLIENTS: usize = 100;

/// Most memory of the worker that a further mount of an image takes, bytes.
const MEMORY: u64 = 100 << 10;
/// Files of the worker that a mounted image takes at most: its FUSE file, those of its cache and its metadata.
const FILES: usize = 12;
/// Threads of the worker that an image takes at most: those of a FUSE tree.
const THREADS: usize = 4;
/// What the worker has besides.
const BASE: usize = 64;

fn text(image: usize) -> String {
    format!("image {image} ").repeat(20_000)
}

fn images(scratch: &Scratch) -> Vec<String> {
    let make = |image: usize| {
        let layer = Layer::new().file("name", 0o644, text(image).as_bytes());
        let name = format!("image-{image}");
        let reference = crafted::convert(scratch, &name, vec![layer]);
        let layout = scratch.join(&name);
        let manifest = Manifest::of(&layout, "lazo");
        let spoil = |digest: &str| {
            let file = fs::File::options().write(true).open(blob_path(&layout, digest)).expect("a blob");
            let length = file.metadata().expect("its length").len();
            file.write_all_at(b"spoilt bytes", length / 2).expect("a write");
        };
        match image {
            WRONG_BLOB => spoil(&manifest.blobs()[0].0),
            WRONG_METADATA => spoil(&manifest.bootstrap_layer()),
            _ => {}
        }
        reference
    };
    (0..IMAGES).map(make).collect()
}

struct Cost {
    files: usize,
    threads: usize,
    memory: u64,
}

impl Cost {
    fn of(process: Pid) -> Self {
        let path = PathBuf::from(format!("/proc/{}", process.as_raw_nonzero()));
        let count = |name: &str| fs::read_dir(path.join(name)).expect("the process").count();
        let status = fs::read_to_string(path.join("status")).expect("its status");
        // Without what is mapped: metadata that the kernel can drop.
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
        let memory: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        Self { files: count("fd"), threads: count("task"), memory: memory * 1024 }
    }
}

/// Mounts the images in turn at directories of these numbers, by many clients; how many were made.
fn mount(scratch: &Scratch, node: &Node<'_>, images: &[String], numbers: std::ops::Range<usize>) -> usize {
    let part = numbers.len().div_ceil(CLIENTS);
    let numbers: Vec<usize> = numbers.collect();
    let run = |numbers: &[usize]| {
        let client = Client::at(node.socket());
        let made = numbers.iter().filter(|number| {
            let image = *number % IMAGES;
            let request = MountRequest::new(images[image].clone(), scratch.dir(&format!("m/{number}")));
            match client.mount(&request) {
                Ok(_) => true,
                Err(error) => {
                    assert!(image == WRONG_METADATA && error.kind() == Some(ErrorKind::Image), "{number}: {error}");
                    false
                }
            }
        });
        made.count()
    };
    thread::scope(|scope| {
        let threads: Vec<_> = numbers.chunks(part).map(|numbers| scope.spawn(|| run(numbers))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a client")).sum()
    })
}

#[test]
fn five_hundred_mounts() {
    let scratch = Scratch::new();
    let images = images(&scratch);
    for mode in MODES {
        let node = Node::start(&scratch, mode);
        let idle = Cost::of(node.worker());
        assert_eq!(mount(&scratch, &node, &images, 0..IMAGES), IMAGES - 1, "{mode}");
        let once = Cost::of(node.worker());
        mount(&scratch, &node, &images, IMAGES..MOUNTS);
        let all = Cost::of(node.worker());
        let good = (0..MOUNTS).filter(|number| ![WRONG_BLOB, WRONG_METADATA].contains(&(number % IMAGES)));
        for number in good.clone() {
            let read = fs::read_to_string(scratch.join(&format!("m/{number}/name"))).expect("a good image");
            assert!(read == text(number % IMAGES), "{mode}, {number}");
        }
        assert_eq!(good.count(), 450);
        let wrong = scratch.join(&format!("m/{}/name", WRONG_BLOB));
        assert_eq!(errno(fs::read(wrong)), Some(Errno::IO), "{mode}");

        let mounts = MOUNTS - MOUNTS / IMAGES;
        assert_eq!(sum(&node.metrics(), "lazo_mounts"), mounts as f64, "{mode}");
        assert_eq!(sum(&node.metrics(), "lazo_images"), (IMAGES - 1) as f64, "{mode}");
        let further = (mounts - (IMAGES - 1)) as u64;
        let each = all.memory.saturating_sub(once.memory) / further;
        println!(
            "{mode}: {} files and {} threads for {IMAGES} images, {} bytes each further mount; idle {} and {}",
            all.files, all.threads, each, idle.files, idle.threads
        );
        assert!(each < MEMORY, "{mode}: {each} bytes a further mount");
        assert!(all.files < BASE + IMAGES * FILES, "{mode}: {} files", all.files);
        assert!(all.threads < BASE + IMAGES * THREADS, "{mode}: {} threads", all.threads);

        let client = Client::at(node.socket());
        for mounted in client.mounts().expect("the mounts") {
            client.umount(&mounted.mount_point, false).expect("an unmount");
        }
        until("nothing is left", || {
            let text = node.metrics();
            let names = ["lazo_mounts", "lazo_images", "lazo_stalled_readers"];
            (names.iter().map(|name| sum(&text, name)).sum::<f64>() == 0.0).then_some(())
        });
        until("its files and threads are gone", || {
            let now = Cost::of(node.worker());
            // A thread more or less waits for work.
            (now.files <= idle.files + 4 && now.threads <= idle.threads + 8).then_some(())
        });
        node.stop();
        assert_eq!(mounts_below(scratch.path()), [""; 0], "{mode}");
    }
}
