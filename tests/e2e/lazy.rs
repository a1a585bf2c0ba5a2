//! Nothing is fetched before it is read, and then little more than what was read; counted at the registry.

use std::{
    fs,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    listing::Listing,
    metrics::{scrape, sum},
    mounted::Mounted,
    own::Image,
    registry::Request,
    run,
    served::Served,
};

/// What a read may fetch beyond the chunks it needs, compressed bytes: the kernel's read-ahead and the daemon's.
const READ_AHEAD: u64 = 4 << 20;

fn blob_requests(served: &Served) -> Vec<Request> {
    let blobs = served.manifest.blobs();
    let requests = served.registry.requests().into_iter();
    requests.filter(|request| blobs.iter().any(|(digest, _)| request.fetched(digest))).collect()
}

fn bytes(requests: &[Request]) -> u64 {
    requests.iter().map(|request| request.bytes).sum()
}

#[test]
fn listing_everything_fetches_no_chunk() {
    let served = Served::new("small");
    let mounted = served.mount(&served.image(), &[]);
    let listed = run("find", [mounted.path().as_os_str(), "-ls".as_ref()]);
    assert!(listed.lines().count() > 3000);
    run("getfattr", ["-R".as_ref(), "-h".as_ref(), "-d".as_ref(), "-m-".as_ref(), mounted.path().as_os_str()]);
    mounted.umount();
    assert_eq!(blob_requests(&served).len(), 0);
}

#[test]
fn reading_a_file_fetches_its_chunks_and_little_more() {
    let served = Served::new("debian");
    let (scratch, total) = (&served.scratch, served.stored_bytes());
    let image = Image::open(&served.layout, "lazo", &scratch.dir("image"));
    for path in [&b"odd/data/noise-4096"[..], b"odd/data/noise-524288", b"usr/bin/perl"] {
        let before = bytes(&blob_requests(&served));
        let mut fresh = scratch.lazo(["mount", &served.image()]);
        let (state, dir) = (tempfile::tempdir_in(scratch.path()).expect("a state directory"), scratch.dir("mount"));
        crate::support::stdout_of(fresh.arg(&dir).env("LAZO_STATE_DIR", state.path()));
        let contents = fs::read(dir.join(std::str::from_utf8(path).expect("a plain path"))).expect("the file");
        scratch.lazo_ok(["umount".as_ref(), dir.as_os_str()]);
        assert_eq!(contents.len() as u64, image.inode(path).size);
        let fetched = bytes(&blob_requests(&served)) - before;
        let needed: u64 = image
            .chunks_of(path)
            .iter()
            .map(|&(_, chunk)| u64::from(image.index.chunk(chunk).expect("a chunk").compressed_size))
            .sum();
        let path = path.escape_ascii();
        assert!(fetched >= needed, "{path}: fetched {fetched} of {needed} bytes");
        assert!(fetched <= needed + READ_AHEAD, "{path}: fetched {fetched} bytes for {needed} of {total}");
    }
}

#[test]
fn many_readers_fetch_a_chunk_once() {
    const READERS: usize = 8;
    let served = Served::new("small");
    let mounted = served.mount(&served.image(), &[]);
    let barrier = Barrier::new(READERS);
    let listings: Vec<Listing> = thread::scope(|scope| {
        let read = || {
            barrier.wait();
            Listing::of_directory(mounted.path())
        };
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(read)).collect();
        readers.into_iter().map(|reader| reader.join().expect("a reader")).collect()
    });
    for listing in &listings[1..] {
        listings[0].assert_same("another reader", listing, &[]);
    }
    mounted.umount();
    let (total, fetched) = (served.stored_bytes(), bytes(&blob_requests(&served)));
    assert!(fetched <= total, "fetched {fetched} bytes of {total}: chunks were fetched twice");
}

#[test]
fn small_reads_are_merged_into_few_requests() {
    let served = Served::new("small");
    let image = Image::open(&served.layout, "lazo", &served.scratch.dir("image"));
    let mounted = served.mount(&served.image(), &[]);
    let _ = Listing::of_directory(mounted.path());
    mounted.umount();
    let requests = blob_requests(&served);
    let chunks = image.index.chunk_count() as usize;
    assert!(requests.len() * 2 < chunks, "{} requests for {chunks} chunks", requests.len());
}

#[test]
fn a_cached_image_needs_no_registry() {
    let Served { scratch, registry, manifest, .. } = Served::new("small");
    let image = registry.image(&format!("app@{}", manifest.digest));
    let mounted = Mounted::new(&scratch, &image, "mount");
    let first = Listing::of_directory(mounted.path());
    mounted.umount();
    drop(registry);
    let mounted = Mounted::new(&scratch, &image, "mount");
    first.assert_same("without a registry", &Listing::of_directory(mounted.path()), &[]);
}

#[test]
fn a_mount_can_fill_its_cache_until_it_needs_no_registry() {
    const LIMIT: Duration = Duration::from_secs(60);
    let served = Served::new("debian");
    let image = served.registry.image(&format!("app@{}", served.manifest.digest));
    let mounted = served.mount(&image, &["--prefetch", "all"]);
    let begin = Instant::now();
    while sum(&scrape(&served.scratch), "lazo_fill_complete") < 1.0 {
        assert!(begin.elapsed() < LIMIT, "the cache is not filled");
        thread::sleep(Duration::from_millis(50));
    }
    mounted.umount();
    let fetched = bytes(&blob_requests(&served));
    assert!(fetched <= served.stored_bytes(), "fetched {fetched} bytes");
    let (scratch, original) = served.without_registry();
    let mounted = Mounted::new(&scratch, &image, "mount");
    original.assert_all_same(mounted.path());
    mounted.umount();
}
