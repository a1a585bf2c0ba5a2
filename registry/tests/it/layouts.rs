//! Layout directories and archives.

use std::{fs, path::Path};

use crate::common::{Image, open, read, run, snapshot};
use lazo_format::Algorithm;
use lazo_registry::{Destination, Error, ImageRef, Options, Outcome, Source, digest_of};

fn layout(path: &Path, tag: &str) -> ImageRef {
    format!("oci:{}{tag}", path.display()).parse().unwrap()
}

fn small(name: &str) -> Image {
    Image::new("amd64", &[crate::common::layer(name, name.as_bytes())], Algorithm::Sha256)
}

#[tokio::test]
async fn carries_an_image_there_and_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let image = Image::new(
            "amd64",
            &[crate::common::layer("a", b"a"), crate::common::layer("b", &crate::common::noise(3 << 20, 1))],
            algorithm,
        );
        for reference in [
            layout(&path("layout"), ":v1"),
            layout(&path("untagged"), ""),
            format!("oci-archive:{}:v1", path("a.tar").display()).parse().unwrap(),
        ] {
            image.write(&reference, &Options::default()).await;
            image.check(&open(&reference).await).await;
        }
    }
}

#[tokio::test]
async fn keeps_other_tags() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layout");
    let (one, two, three) = (small("one"), small("two"), small("three"));
    one.write(&layout(&path, ":one"), &Options::default()).await;
    two.write(&layout(&path, ":two"), &Options::default()).await;
    three.write(&layout(&path, ":one"), &Options::default()).await;
    two.check(&open(&layout(&path, ":two")).await).await;
    three.check(&open(&layout(&path, ":one")).await).await;
    let error = open(&layout(&path, "")).await.root().await.unwrap_err().to_string();
    assert!(error.contains("@0 two; @1 one"), "{error}");
    let error = open(&layout(&path, ":none")).await.root().await.unwrap_err();
    assert!(error.is_not_found() && error.to_string().contains("it has: @0 two; @1 one"), "{error}");
    run("skopeo", &["inspect", "--raw", &layout(&path, ":two").to_string()]);
}

#[tokio::test]
async fn shows_nothing_before_the_commit() {
    let directory = tempfile::tempdir().unwrap();
    let fresh = directory.path().join("fresh");
    let image = small("one");
    let destination = Destination::open(&layout(&fresh, ":1"), &Options::default()).await.unwrap();
    image.put(&destination).await;
    assert_eq!(image_files(&fresh), Vec::<String>::new());
    drop(destination);
    assert!(!fresh.exists(), "what was made goes again");

    let old = directory.path().join("old");
    image.write(&layout(&old, ":1"), &Options::default()).await;
    let before = snapshot(&old);
    let other = small("two");
    let destination = Destination::open(&layout(&old, ":1"), &Options::default()).await.unwrap();
    other.put(&destination).await;
    let (descriptor, bytes) = &image.layers[0];
    assert_eq!(destination.put_blob_bytes(bytes.clone(), descriptor).await.unwrap(), Outcome::Existed);
    image.check(&open(&layout(&old, ":1")).await).await;
    drop(destination);
    assert_eq!(snapshot(&old), before);

    let archive = directory.path().join("a.tar");
    let reference: ImageRef = format!("oci-archive:{}", archive.display()).parse().unwrap();
    let destination = Destination::open(&reference, &Options::default()).await.unwrap();
    image.put(&destination).await;
    drop(destination);
    let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["old"]);
}

/// What a reader of a layout would look at: all but the staging directory.
fn image_files(layout: &Path) -> Vec<String> {
    let names = fs::read_dir(layout).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| !n.starts_with(".lazo-")).collect()
}

#[tokio::test]
async fn commits_leave_only_the_layout() {
    let directory = tempfile::tempdir().unwrap();
    small("one").write(&layout(directory.path(), ":1"), &Options::default()).await;
    let mut names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["blobs", "index.json", "oci-layout"]);
}

#[tokio::test]
async fn clears_up_after_killed_runs() {
    let directory = tempfile::tempdir().unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    let staging = |name: &str| {
        let path = directory.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("blob"), "x").unwrap();
        let handle = fs::File::open(&path).unwrap();
        handle.set_modified(old).unwrap();
        handle
    };
    drop(staging(".lazo-killed"));
    let alive = staging(".lazo-alive");
    alive.lock().unwrap();
    small("one").write(&layout(directory.path(), ":1"), &Options::default()).await;
    assert!(!directory.path().join(".lazo-killed").exists());
    assert!(directory.path().join(".lazo-alive/blob").exists());
}

/// Work on images is handed to other tasks.
#[test]
fn futures_can_be_sent() {
    fn sent<T: Send>(value: T) -> T {
        value
    }
    drop(sent(async {
        let reference: ImageRef = "oci:x".parse().unwrap();
        let source = open(&reference).await;
        let manifest = source.resolve(&"linux/amd64".parse().unwrap()).await.unwrap();
        let digest = source.root_digest().await.unwrap();
        source.images().await.unwrap();
        source.document(&manifest.descriptor).await.unwrap();
        source.blob_range(&digest, 1, 0..1).await.unwrap();
        let mut reader = source.blob(&manifest.descriptor).await.unwrap().into_async_read();
        tokio::io::copy(&mut reader, &mut tokio::io::sink()).await.unwrap();
        let destination = Destination::open(&reference, &Options::default()).await.unwrap();
        destination.put_blob_file(Path::new("x"), &manifest.descriptor, None).await.unwrap();
        destination.put_blob_bytes(vec![], &manifest.descriptor).await.unwrap();
        let root = source.root().await.unwrap();
        destination.put_manifest(&root).await.unwrap();
        destination.commit(&root).await.unwrap();
    }));
}

#[tokio::test]
async fn archives_are_reproducible() {
    let directory = tempfile::tempdir().unwrap();
    let image = Image::sample();
    let mut written = Vec::new();
    for name in ["a.tar", "b.tar"] {
        let path = directory.path().join(name);
        image.write(&format!("oci-archive:{}:v1", path.display()).parse().unwrap(), &Options::default()).await;
        written.push(fs::read(path).unwrap());
    }
    assert!(written[0] == written[1]);
    let names = run("tar", &["-tf", directory.path().join("a.tar").to_str().unwrap()]);
    assert!(names.starts_with("blobs/\nblobs/sha256/\nblobs/sha256/") && names.ends_with("index.json\noci-layout\n"));
}

#[tokio::test]
async fn refuses_what_does_not_match() {
    let directory = tempfile::tempdir().unwrap();
    let reference = layout(&directory.path().join("layout"), ":1");
    let image = Image::sample();
    let destination = Destination::open(&reference, &Options::default()).await.unwrap();
    let (descriptor, bytes) = &image.layers[0];
    let outside = directory.path().join("outside");
    let mut flipped = bytes.clone();
    flipped[9] ^= 1;
    fs::write(&outside, &flipped).unwrap();
    let error = destination.put_blob_file(&outside, descriptor, None).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    let staged = destination.staging_dir().join("x");
    for wrong in [&bytes[1..], &[bytes, bytes.as_slice()].concat()] {
        for file in [&outside, &staged] {
            fs::write(file, wrong).unwrap();
            let error = destination.put_blob_file(file, descriptor, None).await.unwrap_err();
            assert!(matches!(error, Error::SizeMismatch { .. }), "{error}");
        }
    }
    fs::write(&outside, bytes).unwrap();
    assert_eq!(destination.put_blob_file(&outside, descriptor, None).await.unwrap(), Outcome::Uploaded);
    assert!(outside.exists());
}

#[tokio::test]
async fn notices_damage() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layout");
    let image = Image::sample();
    image.write(&layout(&path, ":1"), &Options::default()).await;
    let blob = |d: &lazo_registry::oci_spec::image::Descriptor| path.join("blobs/sha256").join(d.digest().digest());
    let (layer, bytes) = &image.layers[1];
    let spoil = |file: &Path, bytes: &[u8]| fs::write(file, bytes).unwrap();
    let mut flipped = bytes.clone();
    flipped[123] ^= 1;
    spoil(&blob(layer), &flipped);
    let source = open(&layout(&path, ":1")).await;
    assert!(matches!(read(&source, layer).await, Err(Error::DigestMismatch { .. })));
    spoil(&blob(layer), &bytes[1..]);
    let source = open(&layout(&path, ":1")).await;
    assert!(matches!(read(&source, layer).await, Err(Error::SizeMismatch { .. })));
    fs::remove_file(blob(layer)).unwrap();
    let source = open(&layout(&path, ":1")).await;
    assert!(read(&source, layer).await.unwrap_err().is_not_found());
    // A FIFO must not be waited for.
    run("mkfifo", &[blob(layer).to_str().unwrap()]);
    assert!(read(&source, layer).await.is_err());
    let mut manifest = image.manifest.bytes.clone();
    manifest[5] ^= 1;
    spoil(&blob(&image.manifest.descriptor), &manifest);
    assert!(matches!(source.root().await, Err(Error::DigestMismatch { .. })));
    spoil(&path.join("index.json"), &vec![b' '; (4 << 20) + 1]);
    assert!(matches!(source.root().await, Err(Error::TooLarge { .. })));
    spoil(&path.join("oci-layout"), br#"{"imageLayoutVersion":"2.0.0"}"#);
    assert!(source.root().await.unwrap_err().to_string().contains("2.0.0"));
    fs::remove_file(path.join("oci-layout")).unwrap();
    assert!(source.root().await.unwrap_err().to_string().contains("no OCI image layout"));
}

#[tokio::test]
async fn refuses_strange_destinations() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("precious"), "data").unwrap();
    let fails = async |reference: &str| {
        Destination::open(&reference.parse().unwrap(), &Options::default()).await.unwrap_err().to_string()
    };
    let here = directory.path().display();
    assert!(fails(&format!("oci:{here}")).await.contains("neither empty nor an OCI image layout"));
    assert!(fails(&format!("oci-archive:{here}")).await.contains("is a directory"));
    assert!(fails(&format!("oci-archive:{here}/none/a.tar")).await.contains("none"));
    assert!(fails("docker-archive:x.tar").await.contains("oci-archive"));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    let missing: ImageRef = format!("oci-archive:{here}/none.tar").parse().unwrap();
    assert!(Source::open(&missing, &Options::default()).await.unwrap_err().to_string().contains("none.tar"));
}

#[tokio::test]
async fn commits_in_parallel_keep_every_tag() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layout");
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let reference = layout(&path, &format!(":t{n}"));
            tokio::spawn(async move { small(&format!("file{n}")).write(&reference, &Options::default()).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for n in 0..8 {
        small(&format!("file{n}")).check(&open(&layout(&path, &format!(":t{n}"))).await).await;
    }
}

#[tokio::test]
async fn reads_what_umoci_makes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layout");
    let shown = path.to_str().unwrap();
    run("umoci", &["init", "--layout", shown]);
    run("umoci", &["new", "--image", &format!("{shown}:new")]);
    let content = directory.path().join("content");
    fs::create_dir(&content).unwrap();
    fs::write(content.join("file"), "text").unwrap();
    run("umoci", &["insert", "--image", &format!("{shown}:new"), content.to_str().unwrap(), "/content"]);
    let source = open(&layout(&path, ":new")).await;
    let manifest = source.resolve(&"linux/amd64".parse().unwrap()).await.unwrap();
    let [layer] = manifest.manifest.layers().as_slice() else { panic!("one layer") };
    assert_eq!(read(&source, layer).await.unwrap().len() as u64, layer.size());
    // And what is added to it is still umoci's.
    Image::sample().write(&layout(&path, ":ours"), &Options::default()).await;
    assert_eq!(run("umoci", &["list", "--layout", shown]).split_whitespace().count(), 2);
    assert!(digest_of(layer).is_ok());
}

/// As old versions of `docker save` did: a repeated layer is a symbolic link.
#[tokio::test]
async fn reads_docker_archives() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("saved.tar");
    let reference = |rest: &str| -> ImageRef { format!("docker-archive:{}{rest}", path.display()).parse().unwrap() };
    let layer = crate::common::layer("file", b"content");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, &layer).unwrap();
    let gz = gz.finish().unwrap();
    let image = Image::new("amd64", &[layer.clone(), layer.clone(), layer.clone()], Algorithm::Sha256);
    let write = |manifest: serde_json::Value| {
        let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
        let mut add = |name: &str, data: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            tar.append_data(&mut header, name, data).unwrap();
        };
        add("1/layer.tar", &layer);
        add("3/layer.tar", &gz);
        add("config.json", &image.config.bytes);
        add("manifest.json", manifest.to_string().as_bytes());
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        tar.append_link(&mut link, "2/layer.tar", "../1/layer.tar").unwrap();
        tar.finish().unwrap();
    };
    let entry = |tags: &[&str], layers: &[&str]| serde_json::json!({"Config": "config.json", "RepoTags": tags, "Layers": layers});
    let three = ["1/layer.tar", "2/layer.tar", "3/layer.tar"];
    write(serde_json::json!([entry(&["app:1"], &three), entry(&[], &three)]));
    for rest in [":app:1", ":docker.io/library/app:1", ":@1"] {
        let source = open(&reference(rest)).await;
        let manifest = source.resolve(&"linux/amd64".parse().unwrap()).await.unwrap();
        let layers = manifest.manifest.layers();
        let types: Vec<_> =
            layers.iter().map(|l| l.media_type().to_string().replace("application/vnd.oci.image.", "")).collect();
        assert_eq!(types, ["layer.v1.tar", "layer.v1.tar", "layer.v1.tar+gzip"]);
        for (l, expected) in layers.iter().zip([&layer, &layer, &gz]) {
            assert_eq!(&read(&source, l).await.unwrap(), expected);
            let part = source.blob_range(&digest_of(l).unwrap(), l.size(), 10..20).await.unwrap();
            assert_eq!(part, expected[10..20]);
        }
        assert_eq!(source.root().await.unwrap(), open(&reference(rest)).await.root().await.unwrap());
        assert!(read(&source, &image.config.descriptor).await.unwrap_err().is_not_found());
    }
    write(serde_json::json!([entry(&["app:1"], &three), entry(&[], &three[..2])]));
    let fails = async |rest: &str| Source::open(&reference(rest), &Options::default()).await.unwrap_err().to_string();
    assert!(fails("").await.contains("2 images"));
    assert!(fails(":@2").await.contains("no image @2"));
    write(serde_json::json!([entry(&[], &three[..2])]));
    assert!(fails("").await.contains("2 layers, but 3 diff_ids"));
    write(serde_json::json!([entry(&[], &["1/layer.tar", "2/layer.tar", "none"])]));
    assert!(fails("").await.contains("(none)"));
    // A layer that is not what the config says is noticed when it is read.
    write(serde_json::json!([entry(&[], &["1/layer.tar", "2/layer.tar", "manifest.json"])]));
    let source = open(&reference("")).await;
    let manifest = source.resolve(&"linux/amd64".parse().unwrap()).await.unwrap();
    assert!(read(&source, &manifest.manifest.layers()[2]).await.is_err());
}
