//! Opening images: what is kept, when it is looked at again, and what is refused.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use lazo_format::{DeviceAddr, Digest, FileType};
use lazo_registry::{Options, Platform, Source};
use lazo_storage::{Error, LazoImage};
use support::{Parts, ROOT, TreeBuilder};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    fn layout(&self) -> PathBuf {
        self.0.path().join("layout")
    }

    async fn open(&self, parts: &Parts) -> Result<LazoImage, Error> {
        let (written, _) = parts.write(&self.layout()).await;
        let source = Source::open(&written, &Options::default()).await.unwrap();
        LazoImage::open(&source, &self.state(), &Platform::host()).await
    }
}

fn parts() -> Parts {
    let mut tree = TreeBuilder::new();
    let etc = tree.dir(ROOT, "etc");
    tree.file(etc, "passwd", b"root:x:0:0\n");
    tree.build()
}

fn has_passwd(image: &LazoImage) -> bool {
    let bootstrap = image.bootstrap();
    let root = bootstrap.inode(bootstrap.root()).unwrap();
    let (etc, _) = bootstrap.lookup(&root, b"etc").unwrap().unwrap();
    let etc = bootstrap.inode(etc).unwrap();
    bootstrap.lookup(&etc, b"passwd").unwrap().is_some_and(|(_, kind)| kind == FileType::Regular)
}

/// The layout's file of the bootstrap layer: the one gzip there is.
fn layer_of(layout: &Path) -> PathBuf {
    let blobs = fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|e| e.unwrap().path());
    blobs.into_iter().find(|path| fs::read(path).unwrap().starts_with(&[0x1f, 0x8b])).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_used_again_and_what_is_spoilt_is_fetched_again() {
    let place = Place::new();
    let parts = parts();
    let first = place.open(&parts).await.unwrap();
    assert!(has_passwd(&first));
    assert_eq!(first.index().header().entries, 3);

    // With the layer gone, only what is kept can serve.
    let layer = layer_of(&place.layout());
    let aside = place.0.path().join("aside");
    fs::rename(&layer, &aside).unwrap();
    let dir = place.state().join("images").join(first.manifest_digest().hex());
    let source = Source::open(&reference(&place), &Options::default()).await.unwrap();
    let (state, platform) = (place.state(), Platform::host());
    let open = || LazoImage::open(&source, &state, &platform);
    assert!(has_passwd(&open().await.unwrap()));

    // The same content in another file is hashed, found right, and noted.
    let note = fs::read(dir.join("verified.json")).unwrap();
    let content = fs::read(dir.join("index")).unwrap();
    fs::remove_file(dir.join("index")).unwrap();
    fs::write(dir.join("index"), &content).unwrap();
    assert!(has_passwd(&open().await.unwrap()));
    assert_ne!(fs::read(dir.join("verified.json")).unwrap(), note);

    // One flipped bit in any of the kept files makes it fetch again, which fails now; so does a note that says nothing.
    for name in ["manifest.json", "bootstrap", "index", "verified.json"] {
        let path = dir.join(name);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        fs::write(&path, if name == "verified.json" { b"{}" } else { bad.as_slice() }).unwrap();
        assert!(open().await.is_err(), "{name}");
        fs::write(&path, &good).unwrap();
        assert!(has_passwd(&open().await.unwrap()), "{name}");
    }

    let mut bad = content.clone();
    bad[0] ^= 1;
    fs::write(dir.join("index"), &bad).unwrap();
    fs::rename(&aside, &layer).unwrap();
    assert!(has_passwd(&open().await.unwrap()), "fetched again");
    assert_eq!(fs::read(dir.join("index")).unwrap(), content);
    let left: Vec<_> = fs::read_dir(place.state().join("images")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 1, "nothing temporary stays: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_contradict_each_other_are_refused_and_nothing_is_kept() {
    type Spoil = fn(&mut Parts);
    let spoil: [(&str, Spoil); 10] = [
        ("unpacks to", |p| p.diff_id = Some(Digest::sha256_of(b"other"))),
        ("not the one that its chunk index was made for", |p| {
            p.index = Some(lazo_format::encode_index(&p.contents, &vec![0; p.bootstrap.len()]).unwrap());
        }),
        ("chunk index", |p| p.index = Some(b"short".to_vec())),
        ("bootstrap", |p| p.bootstrap = vec![0; 8192]),
        ("is not blob 0", |p| p.blob.push(0)),
        ("device 0", |p| p.contents.blobs[0].digest = Digest::sha256_of(b"other")),
        ("device 0", |p| {
            p.contents.blobs[0].device_size += 4096;
            let chunk = p.contents.chunks.last_mut().unwrap();
            chunk.device_size += 4096;
        }),
        ("unknown data layout", |p| p.spoil_inode(|inode| inode[0] = 1 | 1 << 1)),
        ("version \"v9\"", |p| p.version = "v9"),
        ("extended header", |p| p.extended_header = Some(32 << 20)),
    ];
    for (expected, spoil) in spoil {
        let place = Place::new();
        let mut parts = parts();
        spoil(&mut parts);
        let error = place.open(&parts).await.unwrap_err();
        let mut text = error.to_string();
        let mut cause: &dyn std::error::Error = &error;
        while let Some(next) = cause.source() {
            text = format!("{text}: {next}");
            cause = next;
        }
        assert!(text.contains(expected), "{expected:?} is not in {text:?}");
        let source = Source::open(&reference(&place), &Options::default()).await.unwrap();
        assert!(
            LazoImage::open(&source, &place.state(), &Platform::host()).await.is_err(),
            "{expected}: the second time"
        );
    }
}

fn reference(place: &Place) -> lazo_registry::ImageRef {
    format!("oci:{}:lazo", place.layout().display()).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_image_is_told_apart() {
    let place = Place::new();
    let mut parts = parts();
    parts.contents.blobs[0].compressed_size = parts.blob.len() as u64;
    parts.write(&place.layout()).await;
    // Without the annotation that makes it a lazo image.
    let manifests = fs::read_dir(place.layout().join("blobs/sha256")).unwrap().map(|e| e.unwrap().path());
    let manifest = manifests.into_iter().find(|p| fs::read(p).unwrap().starts_with(b"{\"schemaVersion\"")).unwrap();
    let text = fs::read_to_string(&manifest).unwrap().replace("containerd.io/snapshot/lazo.bootstrap", "other");
    let digest = Digest::sha256_of(text.as_bytes());
    fs::write(manifest.with_file_name(digest.hex()), &text).unwrap();
    let old = manifest.file_name().unwrap().to_str().unwrap();
    let index = fs::read_to_string(place.layout().join("index.json")).unwrap();
    let size = |text: &str| format!("\"size\":{}", text.len());
    let index = index.replace(old, &digest.hex()).replace(&size(&fs::read_to_string(&manifest).unwrap()), &size(&text));
    fs::write(place.layout().join("index.json"), index).unwrap();
    let source = Source::open(&reference(&place), &Options::default()).await.unwrap();
    let error = LazoImage::open(&source, &place.state(), &Platform::host()).await.unwrap_err();
    assert!(matches!(error, Error::NotLazo { .. }), "{error:?}");
    assert!(error.to_string().contains("lazo convert"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_gets_files_from_a_layout() {
    let place = Place::new();
    let mut tree = TreeBuilder::new();
    let content = support::noise(1, 300_000);
    tree.file(ROOT, "file", &content);
    let parts = tree.build();
    let image = place.open(&parts).await.unwrap();
    let source = Source::open(&reference(&place), &Options::default()).await.unwrap();
    let runtime = tokio::runtime::Handle::current();
    let index = std::sync::Arc::clone(image.index());
    let options = lazo_storage::cache::CacheOptions::default();
    let cache = lazo_storage::cache::Cache::open(&place.state(), options, std::sync::Arc::default()).unwrap();
    let parts = lazo_storage::Parts::new(index, lazo_storage::of_image(&source).unwrap(), cache, runtime);
    let reader = lazo_storage::Reader::new(parts);
    let mut buf = vec![0; content.len()];
    reader.read(lazo_format::BlobIndex(0), DeviceAddr(0), &mut buf).await.unwrap();
    assert!(buf == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_killed_processes_left_behind_is_removed() {
    let place = Place::new();
    let images = place.state().join("images");
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(120);
    let make = |name: &str| {
        fs::create_dir_all(images.join(name)).unwrap();
        fs::write(images.join(name).join("bootstrap"), b"part").unwrap();
        let dir = fs::File::open(images.join(name)).unwrap();
        dir.set_modified(old).unwrap();
        dir
    };
    drop(make(".tmp-killed"));
    make(".tmp-new").set_modified(std::time::SystemTime::now()).unwrap();
    let alive = make(".tmp-alive");
    alive.lock().unwrap();
    assert!(has_passwd(&place.open(&parts()).await.unwrap()));
    let left = |name: &str| images.join(name).exists();
    assert_eq!([".tmp-killed", ".tmp-new", ".tmp-alive"].map(left), [false, true, true]);
}

/// The files of an image's bootstrap layer, as somebody else unpacks them.
fn unpack(parts: &Parts, dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("bootstrap"), &parts.bootstrap).unwrap();
    fs::write(dir.join("index"), parts.encoded_index()).unwrap();
}

#[test]
fn an_image_that_comes_as_files_is_kept_when_they_go() {
    let place = Place::new();
    let files = place.0.path().join("files");
    unpack(&parts(), &files);
    let adopt = |dir: &Path| LazoImage::adopt("h/r:t".into(), &place.state(), dir);
    let first = adopt(&files).unwrap();
    assert!(has_passwd(&first));
    assert_eq!(*first.manifest_digest(), Digest::sha256_of(&fs::read(files.join("index")).unwrap()));
    let kept = || LazoImage::kept("h/r:t".into(), &place.state(), first.manifest_digest());
    assert!(has_passwd(&kept().unwrap()));
    fs::remove_dir_all(&files).unwrap();
    assert!(has_passwd(&kept().unwrap()), "it needs its files no more");

    // On another file system, and what is kept is damaged: it is replaced.
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let dir = place.state().join("images").join(first.manifest_digest().hex());
    let good = fs::read(dir.join("bootstrap")).unwrap();
    let mut bad = good.clone();
    bad[2048] ^= 1;
    fs::write(dir.join("bootstrap"), bad).unwrap();
    assert!(kept().is_err());
    unpack(&parts(), elsewhere.path());
    assert!(has_passwd(&adopt(elsewhere.path()).unwrap()));
    assert_eq!(fs::read(dir.join("bootstrap")).unwrap(), good);

    let inventory = lazo_storage::cache::admin::Inventory::read(&place.state()).unwrap();
    let blobs = [parts().contents.blobs[0].digest.to_string()].into();
    inventory.release(&blobs, &[first.manifest_digest().to_string()]).unwrap();
    assert!(kept().is_ok(), "it is mounted");
    assert_eq!(inventory.release(&blobs, &[]).unwrap().0.images, 1);
    assert!(kept().is_err());
}

/// A note of a version that hashed and did not validate vouches for nothing but the content.
#[test]
fn what_an_older_version_has_kept_is_validated_once() {
    let place = Place::new();
    let files = place.0.path().join("files");
    unpack(&parts(), &files);
    let digest = *LazoImage::adopt("h/r:t".into(), &place.state(), &files).unwrap().manifest_digest();
    let dir = place.state().join("images").join(digest.hex());
    let kept = || LazoImage::kept("h/r:t".into(), &place.state(), &digest);
    let note = || fs::read_to_string(dir.join("verified.json")).unwrap();
    let new = note();
    let old = new.replace("\"version\":2", "\"version\":1");
    assert_ne!(new, old);
    fs::write(dir.join("verified.json"), &old).unwrap();
    assert!(has_passwd(&kept().unwrap()));
    assert_eq!(note(), new, "it is validated now, and the note says so");

    // The same for an image that such a version took, and this one would not.
    let mut broken = parts();
    broken.spoil_inode(|inode| inode[0] = 1 | 1 << 1);
    let index = broken.encoded_index();
    let digest = Digest::sha256_of(&index);
    let bad = place.state().join("images").join(digest.hex());
    fs::create_dir(&bad).unwrap();
    fs::write(bad.join("bootstrap"), &broken.bootstrap).unwrap();
    fs::write(bad.join("index"), &index).unwrap();
    let mut note: serde_json::Value = serde_json::from_str(&old).unwrap();
    for (entry, content) in note["files"].as_array_mut().unwrap().iter_mut().zip([&broken.bootstrap, &index]) {
        entry["blake3"] = blake3::hash(content).to_hex().as_str().into();
    }
    fs::write(bad.join("verified.json"), note.to_string()).unwrap();
    let error = LazoImage::kept("h/r:t".into(), &place.state(), &digest).unwrap_err();
    assert!(matches!(error, Error::NotKept { .. }), "{error:?}");
}

#[test]
fn files_that_are_none_or_not_of_one_image_are_refused() {
    type Spoil = fn(&Path);
    let spoil: [(&str, Spoil); 6] = [
        ("index", |dir| fs::remove_file(dir.join("index")).unwrap()),
        ("bootstrap", |dir| {
            fs::rename(dir.join("bootstrap"), dir.join("other")).unwrap();
            std::os::unix::fs::symlink("other", dir.join("bootstrap")).unwrap();
        }),
        ("no file", |dir| {
            fs::remove_file(dir.join("index")).unwrap();
            rustix::fs::mknodat(
                rustix::fs::CWD,
                dir.join("index"),
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::RUSR,
                0,
            )
            .unwrap();
        }),
        ("no file", |dir| {
            fs::remove_file(dir.join("index")).unwrap();
            fs::create_dir(dir.join("index")).unwrap();
        }),
        ("chunk index", |dir| fs::write(dir.join("index"), b"short").unwrap()),
        ("not the one that its chunk index was made for", |dir| {
            let mut bootstrap = fs::read(dir.join("bootstrap")).unwrap();
            bootstrap[2048] ^= 1;
            fs::write(dir.join("bootstrap"), bootstrap).unwrap();
        }),
    ];
    for (expected, spoil) in spoil {
        let place = Place::new();
        let files = place.0.path().join("files");
        unpack(&parts(), &files);
        spoil(&files);
        for _ in 0..2 {
            let error = LazoImage::adopt("h/r:t".into(), &place.state(), &files).unwrap_err();
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            assert!(format!("{error}: {cause}").contains(expected), "{expected}: {error}: {cause}");
        }
        let left = fs::read_dir(place.state().join("images")).map_or(0, |entries| entries.count());
        assert_eq!(left, 0, "{expected}: nothing is kept");
    }
}
