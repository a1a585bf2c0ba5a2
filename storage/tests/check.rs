//! Checking and describing real converted images, whole ones and ones that are broken in each of their parts.
#![allow(clippy::unwrap_used, missing_docs, reason = "test code")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lazo_format::Digest;
use lazo_registry::{ImageRef, Options, Platform, Source};
use lazo_storage::check::{Fault, Part, Progress, Report, check};
use lazo_storage::inspect::{InspectError, contents, entry};
use lazo_storage::{Error, LazoImage};
use serde_json::{Value, json};

/// Bytes that zstd cannot make smaller, the same each time.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let step = |_| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..length).map(step).collect()
}

struct Layout(PathBuf);

impl Layout {
    fn blob(&self, digest: &str) -> PathBuf {
        self.0.join("blobs").join(digest.replace(':', "/"))
    }

    fn put(&self, bytes: &[u8]) -> String {
        let digest = Digest::sha256_of(bytes).to_string();
        fs::create_dir_all(self.0.join("blobs/sha256")).unwrap();
        fs::write(self.blob(&digest), bytes).unwrap();
        digest
    }

    fn json(&self, digest: &str) -> Value {
        serde_json::from_slice(&fs::read(self.blob(digest)).unwrap()).unwrap()
    }

    fn index(&self) -> Value {
        serde_json::from_slice(&fs::read(self.0.join("index.json")).unwrap()).unwrap()
    }

    fn manifest_digest(&self) -> String {
        self.index()["manifests"][0]["digest"].as_str().unwrap().to_owned()
    }

    fn manifest(&self) -> Value {
        self.json(&self.manifest_digest())
    }

    /// Digest of the n-th layer.
    fn layer(&self, number: usize) -> String {
        self.manifest()["layers"][number]["digest"].as_str().unwrap().to_owned()
    }

    /// Replaces the manifest by a changed one, digests put right.
    fn edit_manifest(&self, edit: impl FnOnce(&mut Value)) {
        let mut manifest = self.manifest();
        edit(&mut manifest);
        self.set_manifests(&[manifest]);
    }

    /// Replaces the config by a changed one, digests put right.
    fn edit_config(&self, edit: impl FnOnce(&mut Value)) {
        let mut config = self.json(self.manifest()["config"]["digest"].as_str().unwrap());
        edit(&mut config);
        let bytes = config.to_string().into_bytes();
        let digest = self.put(&bytes);
        self.edit_manifest(|manifest| {
            manifest["config"]["digest"] = json!(digest);
            manifest["config"]["size"] = json!(bytes.len());
        });
    }

    fn set_manifests(&self, manifests: &[Value]) {
        let describe = |(number, manifest): (usize, &Value)| {
            let bytes = manifest.to_string().into_bytes();
            let mut entry = json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": self.put(&bytes), "size": bytes.len(),
            });
            if manifests.len() > 1 {
                entry["platform"] = json!({ "os": "linux", "architecture": format!("arch{number}") });
            }
            entry
        };
        let manifests: Vec<Value> = manifests.iter().enumerate().map(describe).collect();
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        fs::write(self.0.join("index.json"), index.to_string()).unwrap();
    }

    fn flip(&self, digest: &str, offset: usize) {
        let path = self.blob(digest);
        let mut bytes = fs::read(&path).unwrap();
        bytes[offset] ^= 1;
        fs::write(path, bytes).unwrap();
    }

    async fn source(&self) -> Source {
        let reference = ImageRef::OciLayout { path: self.0.clone(), tag: None };
        Source::open(&reference, &Options::default()).await.unwrap()
    }

    async fn check(&self) -> Report {
        check(&self.source().await, &Count::default()).await.unwrap()
    }

    /// The faults of the only image.
    async fn faults(&self) -> Vec<Fault> {
        let mut report = self.check().await;
        assert!(!report.is_good(), "nothing found");
        assert_eq!(report.images.len(), 1);
        report.images.remove(0).faults
    }
}

#[derive(Default)]
struct Count {
    announced: AtomicU64,
    advanced: AtomicU64,
}

impl Progress for Count {
    fn begin(&self, _: &Digest, bytes: u64) {
        self.announced.fetch_add(bytes, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.advanced.fetch_add(bytes, Ordering::Relaxed);
    }
}

type Files<'a> = &'a [(&'a str, tar::EntryType, &'a [u8])];

fn layer(files: Files<'_>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, kind, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o640);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(9);
        header.set_size(0);
        match kind {
            tar::EntryType::Symlink | tar::EntryType::Link => {
                tar.append_link(&mut header, path, std::str::from_utf8(data).unwrap()).unwrap();
            }
            _ => {
                header.set_size(data.len() as u64);
                tar.append_data(&mut header, path, *data).unwrap();
            }
        }
    }
    tar.into_inner().unwrap()
}

/// A converted image of two layers: `a` has 600,000 bytes of noise, `hard` is a hard link to it, `b` was replaced.
async fn image(directory: &Path) -> Layout {
    use tar::EntryType::{Link, Regular, Symlink};
    let source = Layout(directory.join("source"));
    let (a, b) = (noise(600_000, 1), noise(300_000, 2));
    let layers = [
        layer(&[
            ("d/a", Regular, &a),
            ("d/hard", Link, b"d/a"),
            ("b", Regular, &b),
            ("l", Symlink, b"d"),
            ("loop", Symlink, b"/loop"),
        ]),
        layer(&[("b", Regular, b"small"), ("copy", Regular, &a), ("zeros", Regular, &[0; 8192])]),
    ];
    let digests: Vec<String> = layers.iter().map(|layer| source.put(layer)).collect();
    let config = json!({ "os": "linux", "architecture": "amd64", "rootfs": { "type": "layers", "diff_ids": digests } });
    let config = config.to_string().into_bytes();
    let describe = |(layer, digest): (&Vec<u8>, &String)| json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": layer.len() });
    source.set_manifests(&[json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": source.put(&config), "size": config.len(),
        },
        "layers": layers.iter().zip(&digests).map(describe).collect::<Vec<_>>(),
    })]);
    fs::write(source.0.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let converted = Layout(directory.join("converted"));
    let reference = |layout: &Layout| ImageRef::OciLayout { path: layout.0.clone(), tag: None };
    let options = lazo_converter::Options::default();
    let progress = Arc::new(lazo_converter::Silent);
    let (from, to) = (reference(&source), reference(&converted));
    lazo_converter::convert(&from, &to, &options, &Options::default(), progress).await.unwrap();
    converted
}

/// The parts at fault, in order.
fn parts(faults: &[Fault]) -> Vec<Part> {
    faults.iter().map(|fault| fault.part).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_image_is_good() {
    let temporary = tempfile::tempdir().unwrap();
    let layout = image(temporary.path()).await;
    let count = Count::default();
    let report = check(&layout.source().await, &count).await.unwrap();
    assert!(report.is_good(), "{report:#?}");
    let [image] = report.images.as_slice() else { panic!("{report:#?}") };
    let sizes = [0, 1].map(|number| fs::metadata(layout.blob(&layout.layer(number))).unwrap().len());
    assert_eq!(image.platform.as_deref(), Some("linux/amd64"));
    // The root, d, d/a, d/hard, b, l, loop, copy, zeros.
    assert_eq!((image.entries, image.blobs, image.blobs_known), (9, 2, 0));
    assert_eq!(image.stored_bytes, sizes.iter().sum::<u64>());
    assert_eq!(count.announced.into_inner(), image.stored_bytes);
    assert_eq!(count.advanced.into_inner(), image.stored_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_found_wherever_it_is() {
    let temporary = tempfile::tempdir().unwrap();
    let layout = image(temporary.path()).await;
    layout.flip(&layout.layer(0), 400_000);
    let faults = layout.faults().await;
    assert_eq!(parts(&faults), [Part::Blob, Part::Blob], "{faults:#?}");
    assert!(faults[0].message.contains("digest mismatch"), "{faults:#?}");
    assert_eq!(faults[0].chunk, None);
    assert_eq!(faults[0].paths, ["/copy", "/d/a", "/d/hard"]);
    assert_eq!(faults[1].blob, Some(layout.layer(0).parse().unwrap()));
    assert!(faults[1].chunk.is_some());
    assert!(faults[1].message.contains("where the chunk index says"), "{faults:#?}");
    assert_eq!(faults[1].paths, ["/copy", "/d/a", "/d/hard"]);
    layout.flip(&layout.layer(0), 400_000);
    assert!(layout.check().await.is_good());

    // Data that an upper layer hides is checked too, but no file is concerned.
    let hidden = fs::metadata(layout.blob(&layout.layer(0))).unwrap().len() - 1;
    layout.flip(&layout.layer(0), usize::try_from(hidden).unwrap());
    let faults = layout.faults().await;
    assert_eq!(parts(&faults), [Part::Blob, Part::Blob], "{faults:#?}");
    assert!(faults[1].paths.is_empty(), "{faults:#?}");
    layout.flip(&layout.layer(0), usize::try_from(hidden).unwrap());

    layout.flip(&layout.layer(2), 100);
    let faults = layout.faults().await;
    assert_eq!(parts(&faults), [Part::BootstrapLayer]);
    assert!(faults[0].message.contains("digest mismatch"), "{faults:#?}");
    layout.flip(&layout.layer(2), 100);

    layout.flip(layout.manifest()["config"]["digest"].as_str().unwrap(), 10);
    assert_eq!(parts(&layout.faults().await), [Part::Config]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_manifest_and_missing_blobs_are_found() {
    let temporary = tempfile::tempdir().unwrap();
    let layout = image(temporary.path()).await;
    let (first, second) = (layout.layer(0), layout.layer(1));
    let bytes = fs::read(layout.blob(&first)).unwrap();
    fs::write(layout.blob(&first), &bytes[..bytes.len() - 1]).unwrap();
    fs::remove_file(layout.blob(&second)).unwrap();
    let faults = layout.faults().await;
    assert_eq!(parts(&faults), [Part::Blob, Part::Blob], "{faults:#?}");
    assert!(faults[0].message.contains("size mismatch"), "{faults:#?}");
    assert_eq!(faults[1].blob, Some(second.parse().unwrap()));
    assert!(faults[1].message.contains("not found"), "{faults:#?}");

    layout.flip(&layout.manifest_digest(), 30);
    let error = check(&layout.source().await, &Count::default()).await.unwrap_err();
    assert!(error.to_string().contains("digest mismatch"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn contradictions_are_found() {
    let temporary = tempfile::tempdir().unwrap();
    let layout = image(temporary.path()).await;
    let original = layout.index();
    let blob_annotation = "containerd.io/snapshot/lazo.blob";
    let bootstrap_annotation = "containerd.io/snapshot/lazo.bootstrap";
    type Edit = Box<dyn Fn(&mut Value)>;
    let manifest_edits: Vec<(&str, Edit, Vec<Part>)> = vec![
        (
            "lacks the annotation",
            Box::new(move |m| m["layers"][0]["annotations"][blob_annotation] = json!("x")),
            vec![Part::Manifest],
        ),
        (
            "media type",
            Box::new(|m| m["layers"][1]["mediaType"] = json!("application/octet-stream")),
            vec![Part::Manifest],
        ),
        (
            "version",
            Box::new(move |m| m["layers"][2]["annotations"][bootstrap_annotation] = json!("v9")),
            vec![Part::Manifest],
        ),
        ("not the last layer", Box::new(|m| m["layers"].as_array_mut().unwrap().swap(1, 2)), vec![Part::Manifest]),
        (
            "the manifest's is",
            Box::new(|m| m["layers"].as_array_mut().unwrap().swap(0, 1)),
            vec![Part::Config, Part::Config, Part::Index, Part::Index],
        ),
        // The diff_ids no longer match, nor does the blob table.
        (
            "3 diff_ids, the manifest 2 layers",
            Box::new(|m| _ = m["layers"].as_array_mut().unwrap().remove(0)),
            vec![Part::Config, Part::Config, Part::Index, Part::Index],
        ),
    ];
    for (text, edit, expected) in manifest_edits {
        layout.edit_manifest(edit);
        let faults = layout.faults().await;
        assert_eq!(parts(&faults), expected, "{text}: {faults:#?}");
        assert!(faults.iter().any(|fault| fault.message.contains(text)), "{text}: {faults:#?}");
        fs::write(layout.0.join("index.json"), original.to_string()).unwrap();
    }
    let digest = Digest::sha256_of(b"other").to_string();
    let config_edits: Vec<(&str, Edit, Vec<Part>)> = vec![
        (
            "the diff_id of blob",
            Box::new({
                let digest = digest.clone();
                move |c| c["rootfs"]["diff_ids"][0] = json!(digest)
            }),
            vec![Part::Config],
        ),
        ("unpacks to", Box::new(move |c| c["rootfs"]["diff_ids"][2] = json!(digest)), vec![Part::BootstrapLayer]),
        ("expected", Box::new(|c| c["rootfs"] = json!([])), vec![Part::Config]),
    ];
    for (text, edit, expected) in config_edits {
        layout.edit_config(edit);
        let faults = layout.faults().await;
        assert_eq!(parts(&faults), expected, "{text}: {faults:#?}");
        assert!(faults[0].message.contains(text), "{text}: {faults:#?}");
        fs::write(layout.0.join("index.json"), original.to_string()).unwrap();
    }
    assert!(layout.check().await.is_good());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_lazo_images_of_an_index_are_checked() {
    let temporary = tempfile::tempdir().unwrap();
    let layout = image(temporary.path()).await;
    let good = layout.manifest();
    let mut annotated = good.clone();
    annotated["annotations"] = json!({ "another": "manifest" });
    let mut plain = good.clone();
    plain["layers"] = json!([]);
    layout.set_manifests(&[good, plain.clone(), annotated]);
    let report = layout.check().await;
    assert!(report.is_good(), "{report:#?}");
    assert_eq!((report.images.len(), report.not_checked.len()), (2, 1));
    // The second image's blobs are the first one's.
    assert_eq!((report.images[0].blobs_known, report.images[1].blobs_known), (0, 2));
    assert_eq!(report.images[1].platform.as_deref(), Some("linux/arch2"));

    layout.set_manifests(&[plain]);
    let error = check(&layout.source().await, &Count::default()).await.unwrap_err();
    assert!(matches!(error, Error::NotLazo { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_described() {
    let temporary = tempfile::tempdir().unwrap();
    let layout = image(temporary.path()).await;
    let state = temporary.path().join("state");
    let source = layout.source().await;
    let image = LazoImage::open(&source, &state, &Platform::host()).await.unwrap();
    let all = contents(image.bootstrap(), image.index()).unwrap();
    let types = BTreeMap::from([("directory", 2), ("regular file", 5), ("symbolic link", 2)]);
    assert_eq!((all.entries, all.hard_links), (9, 1));
    assert_eq!(all.types, types);
    assert_eq!(all.file_bytes, 600_000 + 600_000 + 5 + 8192);
    assert_eq!(all.file_bytes, image.index().header().file_bytes);
    assert_eq!(all.hole_bytes, 8192);
    // 600,000 bytes are 147 blocks, found in two files.
    assert_eq!(all.block_bytes, (147 + 147 + 1) * 4096);
    assert_eq!(all.shared_bytes, 147 * 4096);
    // Replaced by the upper layer: 300,000 bytes are 74 blocks.
    assert_eq!(all.hidden_bytes, 74 * 4096);
    assert_eq!(all.device_bytes, all.referenced_bytes + all.hidden_bytes);
    assert!(all.hidden_compressed > 0 && all.hidden_compressed <= 300_000 + 4096, "{all:#?}");
    assert_eq!(all.compressed_bytes, all.blobs.iter().map(|blob| blob.compressed_size).sum::<u64>());
    assert_eq!(all.chunks, u64::from(image.index().chunk_count()));

    let describe = |path: &str| entry(image.bootstrap(), image.index(), path.as_bytes());
    let file = describe("l/../d/./hard").unwrap();
    assert_eq!((file.file_type, file.size, file.links), ("regular file", 600_000, 2));
    assert_eq!((file.mode.as_str(), file.uid, file.gid, file.mtime), ("0640", 7, 8, 9));
    assert_eq!(file.pieces.iter().map(|piece| piece.length).sum::<u64>(), 600_000);
    assert!(file.pieces.is_sorted_by_key(|piece| piece.offset));
    let place = file.pieces[1].place.as_ref().unwrap();
    assert_eq!(place.encoding, "raw");
    assert_eq!(place.blob.to_string(), layout.layer(0));
    let hole = describe("/zeros").unwrap();
    assert!(matches!(hole.pieces.as_slice(), [piece] if piece.place.is_none() && piece.length == 8192), "{hole:#?}");
    assert_eq!(describe("/l").unwrap().target.as_deref(), Some("d"));
    let names = |path: &str| -> Vec<String> {
        describe(path).unwrap().children.unwrap().into_iter().map(|child| child.name).collect()
    };
    assert_eq!(names(""), ["b", "copy", "d", "l", "loop", "zeros"]);
    assert_eq!(names("/l/../../d"), ["a", "hard"]);
    assert_eq!(describe("/loop").unwrap().target.as_deref(), Some("/loop"));
    for (path, expected) in [
        ("/x", "no such file or directory"),
        ("/b/x", "a component is not a directory"),
        ("/loop/x", "too many levels of symbolic links"),
    ] {
        let error = describe(path).unwrap_err();
        assert!(matches!(error, InspectError::Path(_)), "{error:?}");
        assert_eq!(error.to_string(), expected);
    }
}
