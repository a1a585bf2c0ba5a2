//! Many readers at once: nothing is fetched or decoded twice, and memory stays within its bound.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use lazo_storage::cache::{LIMIT_SLACK, MIN_LIMIT};
use rustix::fs::{Advice, fadvise};

use crate::support::{
    faults::{Exchange, Proxy},
    metrics::{scrape, sum, until},
    own::Image,
    random::Random,
    served::{NAME, Served},
};

const READERS: usize = 64;
const READS: usize = 40;
/// Largest read, bytes.
const LARGEST: u64 = 64 << 10;
/// What the serving process may take at most, bytes.
const MEMORY: u64 = 96 << 20;

/// Reads at random offsets of a mount, compared with the original.
fn read_at_random(served: &Served, root: &Path, seed: u64) {
    let mut random = Random::new(seed);
    for _ in 0..READS {
        let path = random.pick(served.original().large());
        let (file, original) = (File::open(root.join(path)).expect("a file"), served.original().open(path));
        let size = original.metadata().expect("its size").len();
        let offset = random.below(size);
        let length = usize::try_from((1 + random.below(LARGEST)).min(size - offset)).expect("a length");
        let (mut found, mut expected) = (vec![0; length], vec![0; length]);
        file.read_exact_at(&mut found, offset).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        original.read_exact_at(&mut expected, offset).expect("the original");
        assert!(found == expected, "{}: wrong bytes in {length} at {offset}", path.display());
    }
}

fn assert_nothing_twice(requests: &[Exchange]) {
    let mut ranges: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
    for request in requests {
        let range = request.range.as_ref().expect("a range");
        ranges.entry(&request.path).or_default().push((range.start, range.end));
    }
    for (path, mut ranges) in ranges {
        ranges.sort_unstable();
        let twice = ranges.windows(2).find(|pair| pair[0].1 > pair[1].0);
        assert_eq!(twice, None, "{path}: fetched twice");
    }
}

#[test]
fn many_readers_at_random_offsets() {
    let served = Served::new("debian");
    let proxy = Proxy::start(&served.registry.host);
    let device_bytes: u64 = {
        let image = Image::open(&served.layout, "lazo", &served.scratch.dir("image"));
        image.devices.iter().map(|device| device.metadata().expect("a device").len()).sum()
    };
    let mounted = served.mount(&proxy.image(NAME), &["--prefetch", "none"]);
    let barrier = Barrier::new(READERS);
    thread::scope(|scope| {
        for seed in 0..READERS as u64 {
            let (served, root, barrier) = (&served, mounted.path(), &barrier);
            scope.spawn(move || {
                barrier.wait();
                read_at_random(served, root, seed);
            });
        }
    });
    // What was read ahead may still be under way.
    for gauge in ["lazo_in_flight_requests", "lazo_in_flight_bytes", "lazo_stalled_readers"] {
        until(gauge, || (sum(&scrape(&served.scratch), gauge) == 0.0).then_some(()));
    }
    let metrics = scrape(&served.scratch);
    assert_nothing_twice(&proxy.data_requests());
    let decoded = sum(&metrics, "lazo_decoded_bytes_total");
    assert!(decoded <= device_bytes as f64, "decoded {decoded} of {device_bytes} bytes");
    let peak = mounted.peak_memory();
    assert!(peak < MEMORY, "the serving process took {peak} bytes");
    mounted.umount();
}

/// Bytes that all files below a directory take on the disk.
fn disk_usage(directory: &Path) -> u64 {
    /// The unit of `st_blocks`.
    const BLOCK: u64 = 512;
    // What is removed meanwhile takes nothing.
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        Some(if metadata.is_dir() { disk_usage(&entry.path()) } else { metadata.blocks() * BLOCK })
    });
    sizes.sum()
}

/// Reads everything `rounds` times with a cache that has no room for it.
fn read_in_a_small_cache(served: &Served, limit: u64, rounds: usize) {
    let blobs = served.scratch.join("state/blobs");
    let mounted = served.mount(&served.image(), &["--cache-limit", &limit.to_string()]);
    let done = AtomicBool::new(false);
    let (most, samples) = thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let (mut most, mut samples) = (0, 0_u64);
            while !done.load(Ordering::Relaxed) {
                most = disk_usage(&blobs).max(most);
                samples += 1;
                // All the time, but not all of a processor's time.
                thread::sleep(Duration::from_millis(1));
            }
            (most, samples)
        });
        let reader = scope.spawn(|| {
            // In order, as whoever reads everything does.
            let mut files = served.original().large().to_vec();
            files.sort();
            for _ in 0..rounds {
                for path in &files {
                    served.original().assert_same(mounted.path(), path);
                    // The kernel keeps it no longer: the next round asks the serving process again.
                    let file = File::open(mounted.path().join(path)).expect("a file");
                    fadvise(&file, 0, None, Advice::DontNeed).expect("advice");
                }
            }
        });
        let read = reader.join();
        done.store(true, Ordering::Relaxed);
        read.expect("the reader");
        sampler.join().expect("the sampler")
    });
    assert!(samples > 100, "{samples} looks at the cache");
    assert!(most <= limit + LIMIT_SLACK, "{most} bytes in the cache with a limit of {limit}");
    assert!(most > limit / 2, "{most} bytes in the cache: the limit of {limit} was never in sight");
    let evicted = sum(&scrape(&served.scratch), "lazo_cache_evicted_bytes_total");
    assert!(evicted > 0.0, "nothing was evicted");
    mounted.umount();
}

#[test]
fn a_cache_that_holds_a_part_of_the_image() {
    read_in_a_small_cache(&Served::new("debian"), MIN_LIMIT, 2);
}

#[test]
#[ignore = "needs the large corpus; part of make bench"]
fn a_cache_that_holds_a_tenth_of_the_image() {
    let served = Served::new("large");
    let image = Image::open(&served.layout, "lazo", &served.scratch.dir("image"));
    let bytes: u64 = image.devices.iter().map(|device| device.metadata().expect("a device").len()).sum();
    read_in_a_small_cache(&served, bytes / 10, 3);
}
