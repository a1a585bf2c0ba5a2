//! What `lazo convert` makes: the same bytes every time, blobs that images share, hidden data where it belongs.

use std::{fs, io::Read as _, io::Write as _, path::Path, process::Stdio};

use serde_json::Value;

use crate::support::{
    Corpus, Scratch, converted,
    layout::{self, Manifest, digest_of},
    mounted::Mounted,
    own::Image,
    registry::Registry,
};

fn convert(scratch: &Scratch, source: &str, layout: &Path, tag: &str, options: &[&str]) -> Manifest {
    let destination = format!("oci:{}:{tag}", layout.display());
    scratch.lazo_ok(["convert", source, &destination].iter().chain(options));
    Manifest::of(layout, tag)
}

#[test]
fn reproducible_at_any_number_of_jobs() {
    let (scratch, corpus) = (Scratch::new(), Corpus::get("small"));
    let expected = digest_of(&converted("small", "gzip"), "lazo");
    for jobs in ["1", "2", "8"] {
        let manifest = convert(&scratch, &corpus.image("gzip"), &scratch.join(jobs), "lazo", &["--jobs", jobs]);
        assert_eq!(manifest.digest, expected, "--jobs {jobs}");
    }
    for option in [&["--chunk-size", "64"][..], &["--compression-level", "1"]] {
        let manifest = convert(&scratch, &corpus.image("gzip"), &scratch.join("other"), "lazo", option);
        assert_ne!(manifest.digest, expected, "{option:?} changes nothing");
        scratch.lazo_ok(["check", &format!("oci:{}:lazo", scratch.join("other").display())]);
    }
}

#[test]
fn images_with_the_same_base_share_its_blob() {
    let (scratch, corpus) = (Scratch::new(), Corpus::get("small"));
    let layout = scratch.join("layout");
    let one = convert(&scratch, &corpus.image("app-one"), &layout, "one", &[]).blobs();
    let two = convert(&scratch, &corpus.image("app-two"), &layout, "two", &[]).blobs();
    let full = convert(&scratch, &corpus.image("gzip"), &layout, "full", &[]).blobs();
    assert_eq!(one[0], two[0]);
    assert_eq!(one[0], full[0]);
    assert_ne!(one[1], two[1]);

    let registry = Registry::start(&scratch, "registry");
    scratch.lazo_ok(["convert", &corpus.image("app-one"), &registry.image("app:one")]);
    let uploads = |from: usize| {
        registry.requests()[from..]
            .iter()
            .filter(|request| request.method == "PUT" && request.path.contains("/blobs/"))
            .count()
    };
    let (before, first) = (registry.requests().len(), uploads(0));
    scratch.lazo_ok(["convert", &corpus.image("app-two"), &registry.image("app:two")]);
    assert_eq!(uploads(before), first - 1, "the shared blob was uploaded again");
    let before = registry.requests().len();
    scratch.lazo_ok(["convert", &corpus.image("app-two"), &registry.image("app:again")]);
    assert_eq!(uploads(before), 0, "a second run uploads nothing");
}

/// A file of a source layer, read from its tar.
fn source_file(corpus: &Corpus, layer: usize, path: &str) -> Vec<u8> {
    let manifest = Manifest::of(&corpus.layout(), "tar");
    let digest = layout::text(&manifest.document["layers"][layer]["digest"]);
    let mut archive = tar::Archive::new(fs::File::open(layout::blob_path(&corpus.layout(), &digest)).expect("a layer"));
    let entries = archive.entries().expect("tar entries").map(|entry| entry.expect("a tar entry"));
    let mut entry = { entries }.find(|entry| &*entry.path_bytes() == path.as_bytes()).expect("the entry");
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).expect("its data");
    bytes
}

fn devices_hold(image: &Image, needle: &[u8]) -> bool {
    let blocks = |path: &Path| fs::read(path).expect("a device");
    image.devices.iter().any(|path| blocks(path).chunks(4096).any(|block| block == needle))
}

#[test]
fn compact_leaves_hidden_data_out() {
    let (scratch, corpus) = (Scratch::new(), Corpus::get("small"));
    let hidden = source_file(&corpus, 1, "odd/hidden-secret");
    convert(&scratch, &corpus.image("gzip"), &scratch.join("compact"), "lazo", &["--compact"]);
    let plain = Image::open(&converted("small", "gzip"), "lazo", &scratch.dir("plain-image"));
    let compact = Image::open(&scratch.join("compact"), "lazo", &scratch.dir("compact-image"));
    plain.listing().assert_same("--compact", &compact.listing(), &[]);
    assert!(devices_hold(&plain, &hidden[4096..8192]), "a layer's blob is a function of that layer and those below");
    for block in hidden.chunks_exact(4096) {
        assert!(!devices_hold(&compact, block), "hidden data in a compact image");
    }
    let bytes = |image: &Image| image.manifest.blobs().iter().map(|(_, size)| size).sum::<u64>();
    assert!(bytes(&compact) + 500_000 < bytes(&plain));
}

#[test]
fn equal_contents_are_stored_once() {
    let scratch = Scratch::new();
    let image = Image::open(&converted("small", "gzip"), "lazo", &scratch.dir("image"));
    let same = [
        (&b"odd/data/noise-262144"[..], &b"odd/data/copy-262144"[..]),
        (b"odd/shared-content", b"odd/data/same-as-lower"),
    ];
    for (left, right) in same {
        let location = |path: &[u8]| image.bootstrap.extent(&image.inode(path), 0).expect("an extent").location;
        assert_eq!(location(left), location(right), "{}", right.escape_ascii());
        assert!(location(left).is_some());
    }
    let zero = image.bootstrap.extent(&image.inode(b"odd/data/zero-1048576"), 0).expect("an extent");
    assert_eq!(zero.location, None, "zeros are a hole");
}

#[test]
fn prefetch_list_comes_first_and_is_fetched_at_mount() {
    let (scratch, corpus) = (Scratch::new(), Corpus::get("small"));
    let registry = Registry::start(&scratch, "registry");
    let list = "/usr/lib/file-39*\nusr/lib/file-010\n/no/such/file\n";
    let layout = scratch.join("layout");
    let destination = format!("oci:{}:lazo", layout.display());
    let mut command = scratch.lazo(["convert", "--prefetch", "-", &corpus.image("app-one"), &destination]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("lazo");
    child.stdin.take().expect("its stdin").write_all(list.as_bytes()).expect("the list");
    let output = child.wait_with_output().expect("lazo's end");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::write(scratch.join("list"), list).expect("the list");
    let by_file = scratch.join("list").display().to_string();
    let again = convert(&scratch, &corpus.image("app-one"), &scratch.join("again"), "lazo", &["--prefetch", &by_file]);
    assert_eq!(again.digest, digest_of(&layout, "lazo"));

    let image = Image::open(&layout, "lazo", &scratch.dir("image"));
    let listed: Vec<Vec<u8>> = (390..400)
        .map(|number| format!("usr/lib/file-{number}").into_bytes())
        .chain([b"usr/lib/file-010".to_vec()])
        .collect();
    let ranges: Vec<_> = image.index.prefetch().map(|range| range.expect("a range").chunks()).collect();
    assert!(!ranges.is_empty());
    let mut last = 0;
    for path in &listed {
        for (_, chunk) in image.chunks_of(path) {
            assert!(ranges.iter().any(|range| range.contains(&chunk.0)), "{} is not in the list", path.escape_ascii());
        }
        let Some((_, at)) = image.bootstrap.extent(&image.inode(path), 0).expect("an extent").location else {
            continue;
        };
        assert!(at.0 >= last, "{} does not lie in the order of the list", path.escape_ascii());
        assert!(at.0 < 4 << 20, "{} does not lie at the front", path.escape_ascii());
        last = at.0;
    }

    let reference = registry.push(&layout, "lazo", "app:lazo");
    let mounted = Mounted::new(&scratch, &reference, "mount");
    let wanted: u64 = ranges
        .iter()
        .flat_map(Clone::clone)
        .map(|chunk| u64::from(image.index.chunk(lazo_format::ChunkIndex(chunk)).expect("a chunk").compressed_size))
        .sum();
    let blob = image.manifest.blobs()[0].0.clone();
    let fetched = || {
        registry.requests().iter().filter(|request| request.fetched(&blob)).map(|request| request.bytes).sum::<u64>()
    };
    let start = std::time::Instant::now();
    while fetched() < wanted {
        assert!(start.elapsed().as_secs() < 20, "prefetched {} of {wanted} bytes", fetched());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    mounted.umount();
}

#[test]
fn summary_as_json() {
    let (scratch, corpus) = (Scratch::new(), Corpus::get("small"));
    let destination = format!("oci:{}:lazo", scratch.join("layout").display());
    let output = scratch.lazo_ok(["convert", "--json", &corpus.image("gzip"), &destination]);
    let summary: Value = serde_json::from_str(&output).expect("stdout is JSON and nothing else");
    assert!(
        summary.to_string().contains(&digest_of(&scratch.join("layout"), "lazo")),
        "no digest of the result: {summary}"
    );
}

#[test]
fn several_tags_in_one_layout() {
    let (scratch, corpus) = (Scratch::new(), Corpus::get("small"));
    let layout = scratch.join("layout");
    let one = convert(&scratch, &corpus.image("app-one"), &layout, "one", &[]);
    convert(&scratch, &corpus.image("app-two"), &layout, "two", &[]);
    assert_eq!(digest_of(&layout, "one"), one.digest, "the first tag is gone");
    let replaced = convert(&scratch, &corpus.image("app-two"), &layout, "one", &[]);
    assert_eq!(replaced.digest, digest_of(&layout, "two"));
}
