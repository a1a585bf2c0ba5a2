//! One flipped byte anywhere is an error, never a wrong byte.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::support::{
    Scratch, converted,
    layout::{self, Manifest},
    listing::Listing,
    mounted::Mounted,
    own::Image,
    registry::Registry,
};

/// Reads every file; those that fail must fail with EIO, the others be right. How many failed.
fn failures(mounted: &Mounted<'_>, expected: &Listing) -> usize {
    let mut failed = 0;
    for (path, entry) in expected.0.iter().filter(|(_, entry)| entry.kind == "file") {
        match fs::read(mounted.join(path)) {
            Ok(contents) => {
                assert_eq!(
                    *blake3::hash(&contents).as_bytes(),
                    entry.contents,
                    "wrong bytes in {}",
                    path.escape_ascii()
                );
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
                failed += 1;
            }
        }
    }
    failed
}

/// The small image in a registry, what it should show, and the registry's files to tamper with.
struct Victim {
    scratch: Scratch,
    registry: Registry,
    image: String,
    manifest: Manifest,
    expected: Listing,
}

impl Victim {
    fn new() -> Self {
        let scratch = Scratch::new();
        let registry = Registry::start(&scratch, "registry");
        let layout = converted("small", "gzip");
        let image = registry.push(&layout, "lazo", "app:lazo");
        let opened = Image::open(&layout, "lazo", &scratch.dir("image"));
        let expected = opened.listing();
        Self { scratch, registry, image, manifest: opened.manifest, expected }
    }

    /// The biggest blob's digest and size.
    fn blob(&self) -> (String, u64) {
        self.manifest.blobs().into_iter().max_by_key(|(_, size)| *size).expect("a blob")
    }
}

#[test]
fn flipped_blob_in_the_registry() {
    let victim = Victim::new();
    let (digest, size) = victim.blob();
    for at in [0, size / 2, size - 1] {
        layout::flip(&victim.registry.blob_path(&digest), at);
    }
    let mounted = Mounted::new(&victim.scratch, &victim.image, "mount");
    let failed = failures(&mounted, &victim.expected);
    assert!(failed > 0, "no read noticed");
    assert!(failed < victim.expected.0.len() / 2, "{failed} files failed for three bad chunks");
    mounted.umount();
}

#[test]
fn flipped_bootstrap_layer_in_the_registry() {
    let victim = Victim::new();
    let digest = victim.manifest.bootstrap_layer();
    let path = victim.registry.blob_path(&digest);
    layout::flip(&path, path.metadata().expect("the layer").len() / 2);
    let error = Mounted::failure(&victim.scratch, &victim.image, "mount");
    assert!(error.contains(&digest[..20]), "the error does not name the layer: {error}");
}

#[test]
fn flipped_manifest_in_the_registry() {
    let victim = Victim::new();
    let path = victim.registry.blob_path(&victim.manifest.digest);
    let text = fs::read_to_string(&path).expect("the manifest");
    let at = text.find(&victim.manifest.blobs()[0].0).expect("the blob's digest") + 10;
    let mut bytes = text.into_bytes();
    bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
    fs::write(&path, bytes).expect("the manifest");
    let image = victim.registry.image(&format!("app@{}", victim.manifest.digest));
    Mounted::failure(&victim.scratch, &image, "mount");
}

#[test]
fn missing_blob_in_the_registry() {
    let victim = Victim::new();
    fs::remove_file(victim.registry.blob_path(&victim.blob().0)).expect("the blob");
    let mounted = Mounted::new(&victim.scratch, &victim.image, "mount");
    assert!(failures(&mounted, &victim.expected) > 0, "no read noticed");
    mounted.umount();
}

/// A copy of the small image whose bootstrap layer was changed by `change` (member name, bytes), every digest above it
/// made to fit again.
fn forged(scratch: &Scratch, name: &str, change: impl Fn(&str, &mut Vec<u8>)) -> PathBuf {
    let forged = scratch.join(name);
    layout::copy(&converted("small", "gzip"), &forged);
    let mut manifest = Manifest::of(&forged, "lazo");
    let layer = File::open(layout::blob_path(&forged, &manifest.bootstrap_layer())).expect("the layer");
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(layer));
    let mut rebuilt = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for entry in archive.entries().expect("tar entries") {
        let mut entry = entry.expect("a tar entry");
        let path = entry.path().expect("a path").to_str().expect("a plain path").to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("its data");
        let mut header = entry.header().clone();
        change(&path, &mut bytes);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        rebuilt.append(&header, &bytes[..]).expect("a tar entry");
    }
    let layer = rebuilt.into_inner().expect("the tar").finish().expect("the layer");
    let layers = manifest.document["layers"].as_array_mut().expect("layers");
    let last = layers.last_mut().expect("the bootstrap layer");
    last["digest"] = store(&forged, &layer).into();
    last["size"] = layer.len().into();
    let document = serde_json::to_vec(&manifest.document).expect("JSON");
    let digest = store(&forged, &document);
    let path = forged.join("index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).expect("index.json")).expect("JSON");
    index["manifests"][0]["digest"] = digest.into();
    index["manifests"][0]["size"] = document.len().into();
    fs::write(path, serde_json::to_vec(&index).expect("JSON")).expect("index.json");
    forged
}

fn store(layout: &Path, bytes: &[u8]) -> String {
    let digest = lazo_format::Digest::sha256_of(bytes).to_string();
    fs::write(layout::blob_path(layout, &digest), bytes).expect("a blob");
    digest
}

#[test]
fn flipped_index_under_fitting_digests() {
    const POSITIONS: usize = 24;
    let scratch = Scratch::new();
    let expected = Image::open(&converted("small", "gzip"), "lazo", &scratch.dir("image")).listing();
    let mut noticed = 0;
    for position in 0..POSITIONS {
        let flip = |name: &str, bytes: &mut Vec<u8>| {
            if name == "image/index" {
                let at = (bytes.len() - 1) * position / (POSITIONS - 1);
                bytes[at] ^= 1 << (position % 8);
            }
        };
        let layout = forged(&scratch, &format!("forged-{position}"), flip);
        let image = format!("oci:{}:lazo", layout.display());
        let dir = scratch.dir(&format!("mount-{position}"));
        let output = crate::support::output_of(scratch.lazo(["mount", &image]).arg(&dir));
        if output.status.success() {
            let mounted = Mounted::adopt(&scratch, dir);
            noticed += usize::from(failures(&mounted, &expected) > 0);
            mounted.umount();
        } else {
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            assert!(!stderr.contains("panicked"), "{stderr}");
            noticed += 1;
        }
    }
    assert!(noticed * 2 > POSITIONS, "{noticed} of {POSITIONS} flips in the index were noticed");
}

#[test]
fn flipped_bootstrap_under_fitting_digests() {
    let scratch = Scratch::new();
    for part in [3, 7, 11] {
        let flip = |name: &str, bytes: &mut Vec<u8>| {
            if name == "image/bootstrap" {
                let at = bytes.len() * part / 12;
                bytes[at] ^= 0x20;
            }
        };
        let layout = forged(&scratch, &format!("forged-{part}"), flip);
        Mounted::failure(&scratch, &format!("oci:{}:lazo", layout.display()), "mount");
    }
}

#[test]
fn flipped_cache_between_two_mounts() {
    let victim = Victim::new();
    let mounted = Mounted::new(&victim.scratch, &victim.image, "mount");
    assert_eq!(failures(&mounted, &victim.expected), 0);
    mounted.umount();

    let cache = victim.scratch.join("state/blobs");
    let files = files_below(&cache);
    let biggest =
        files.iter().max_by_key(|path| path.metadata().expect("a cache file").blocks()).expect("a cache file");
    corrupt_data(biggest);

    let before = victim.registry.requests().len();
    let mounted = Mounted::new(&victim.scratch, &victim.image, "mount");
    assert_eq!(failures(&mounted, &victim.expected), 0, "a bad cache is refetched, not an error");
    mounted.umount();
    let requests = victim.registry.requests();
    let refetched = requests[before..]
        .iter()
        .any(|request| victim.manifest.blobs().iter().any(|(digest, _)| request.fetched(digest)));
    assert!(refetched, "nothing was refetched");
}

#[test]
fn flipped_metadata_between_two_mounts() {
    let victim = Victim::new();
    Mounted::new(&victim.scratch, &victim.image, "mount").umount();
    for path in files_below(&victim.scratch.join("state/images")) {
        let size = path.metadata().expect("a kept file").len();
        if size > 0 {
            layout::flip(&path, size / 2);
        }
    }
    let dir = victim.scratch.dir("mount");
    let output = crate::support::output_of(victim.scratch.lazo(["mount", &victim.image]).arg(&dir));
    if output.status.success() {
        let mounted = Mounted::adopt(&victim.scratch, dir);
        victim.expected.assert_same("after the flip", &Listing::of_directory(mounted.path()), &[]);
        mounted.umount();
    } else {
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    layout::snapshot(directory).into_iter().map(|(path, _)| path).collect()
}

/// Flips a byte in every 64 KiB of what a sparse file holds.
fn corrupt_data(path: &Path) {
    const STEP: usize = 64 << 10;
    let contents = fs::read(path).expect("a cache file");
    let file = File::options().write(true).open(path).expect("a cache file");
    for (number, piece) in contents.chunks(STEP).enumerate() {
        if let Some(at) = piece.iter().position(|&byte| byte != 0) {
            file.write_all_at(&[piece[at] ^ 0x80], (number * STEP + at) as u64).expect("a flipped byte");
        }
    }
}
