//! Against a real docker-registry.

use std::{fs, path::Path};

use crate::common::{Image, PASSWORD, Registry, Setup, USER, open, read, run, server::cutting_proxy};
use lazo_format::{Algorithm, Digest};
use lazo_registry::{
    Content, Destination, Document, Error, ImageRef, Options, Outcome, Source, digest_of,
    oci_spec::image::{ImageIndexBuilder, MediaType, PlatformBuilder},
    to_json,
};

#[tokio::test]
async fn carries_an_image_there_and_back() {
    for relative_urls in [false, true] {
        let registry = Registry::with(&Setup { relative_urls, ..Setup::default() });
        let image = Image::sample();
        let reference = registry.reference("team/app:v1");
        image.write(&reference, &Options::default()).await;
        image.check(&open(&reference).await).await;

        let by_digest = registry.reference(&format!("team/app@{}", image.manifest.descriptor.digest()));
        let source = open(&by_digest).await;
        image.check(&source).await;
        assert_eq!(source.root_digest().await.unwrap(), image.manifest.digest().unwrap());
        assert_eq!(open(&reference).await.root_digest().await.unwrap(), image.manifest.digest().unwrap());
    }
}

#[tokio::test]
async fn uploads_nothing_twice() {
    let registry = Registry::start();
    let image = Image::sample();
    let first = registry.reference("a/one:1");
    image.write(&first, &Options::default()).await;

    let again = Destination::open(&first, &Options::default()).await.unwrap();
    let other = Destination::open(&registry.reference("b/two:1"), &Options::default()).await.unwrap();
    let elsewhere: ImageRef = "docker://127.0.0.1:1/a/one:1".parse().unwrap();
    for (descriptor, bytes) in &image.layers {
        let digest = digest_of(descriptor).unwrap();
        let put = async |to: &Destination, from: Option<&ImageRef>| {
            let file = to.staging_dir().join("layer");
            fs::write(&file, bytes).unwrap();
            let outcome = to.put_blob_file(&file, descriptor, from).await.unwrap();
            assert!(!file.exists(), "a staged file is taken over");
            outcome
        };
        assert_eq!(put(&again, None).await, Outcome::Existed);
        assert!(!other.has_blob(&digest, descriptor.size()).await.unwrap());
        assert_eq!(put(&other, Some(&first)).await, Outcome::Mounted);
        assert!(other.has_blob(&digest, descriptor.size()).await.unwrap());
        assert!(matches!(other.has_blob(&digest, 1).await, Err(Error::SizeMismatch { .. })));
        let third = Destination::open(&registry.reference("c/three"), &Options::default()).await.unwrap();
        assert_eq!(put(&third, Some(&elsewhere)).await, Outcome::Uploaded);
    }
    // A repository that has not got the blob cannot lend it: it is uploaded.
    let layer = crate::common::layer("new", b"new");
    let new = Image::new("amd64", &[layer], Algorithm::Sha256);
    let (descriptor, bytes) = &new.layers[0];
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    assert_eq!(other.put_blob_file(file.path(), descriptor, Some(&first)).await.unwrap(), Outcome::Uploaded);
    assert!(file.path().exists(), "a file that is not staged stays");
}

#[tokio::test]
async fn uploads_in_parts_and_goes_on_after_cuts() {
    let registry = Registry::start();
    let image = Image::sample();
    let options = Options { upload_chunk: 1 << 20, ..Options::default() };
    image.write(&registry.reference("parts:1"), &options).await;
    image.check(&open(&registry.reference("parts:1")).await).await;

    // The blob's first connection dies within the second part, the next one in a later one.
    let proxy = cutting_proxy(registry.address.clone(), vec![1_600_000, 2_500_000]).await;
    let reference: ImageRef = format!("docker://{proxy}/cut:1").parse().unwrap();
    image.write(&reference, &options).await;
    image.check(&open(&registry.reference("cut:1")).await).await;
}

#[tokio::test]
async fn refuses_what_does_not_match() {
    let registry = Registry::start();
    let image = Image::sample();
    let reference = registry.reference("app:1");
    let destination = Destination::open(&reference, &Options::default()).await.unwrap();
    let (descriptor, bytes) = &image.layers[1];
    let file = destination.staging_dir().join("layer");
    fs::write(&file, &bytes[1..]).unwrap();
    let error = destination.put_blob_file(&file, descriptor, None).await.unwrap_err();
    assert!(matches!(error, Error::SizeMismatch { .. }), "{error}");
    let mut flipped = bytes.clone();
    flipped[1000] ^= 1;
    fs::write(&file, &flipped).unwrap();
    let error = destination.put_blob_file(&file, descriptor, None).await.unwrap_err();
    assert!(error.to_string().contains("DIGEST_INVALID"), "{error}");
    let error = destination.put_blob_bytes(flipped, descriptor).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    assert!(!destination.has_blob(&digest_of(descriptor).unwrap(), descriptor.size()).await.unwrap());

    image.write(&reference, &Options::default()).await;
    let pinned = registry.reference(&format!("app:1@{}", Digest::sha256_of(b"other")));
    let destination = Destination::open(&pinned, &Options::default()).await.unwrap();
    let error = destination.commit(&image.manifest).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    let missing = open(&registry.reference("app:2")).await.root().await.unwrap_err();
    assert!(missing.is_not_found() && missing.to_string().contains("app:2"), "{missing}");
}

/// Flips a byte of a blob in the registry's storage.
fn damage(registry: &Registry, digest: &Digest) {
    let hex = digest.hex();
    let path = registry.directory.path().join("data/docker/registry/v2/blobs/sha256");
    let path = path.join(&hex[..2]).join(&hex).join("data");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn notices_damage_in_the_registry() {
    let registry = Registry::start();
    let image = Image::sample();
    let reference = registry.reference("app:1");
    image.write(&reference, &Options::default()).await;
    let (layer, _) = &image.layers[1];
    damage(&registry, &digest_of(layer).unwrap());
    let source = open(&reference).await;
    let error = read(&source, layer).await.unwrap_err();
    assert!(matches!(&error, Error::DigestMismatch { what, .. } if what.contains("app")), "{error}");
    damage(&registry, &image.config.digest().unwrap());
    let error = source.document(&image.config.descriptor).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    damage(&registry, &image.manifest.digest().unwrap());
    let by_digest = registry.reference(&format!("app@{}", image.manifest.descriptor.digest()));
    assert!(open(&by_digest).await.root().await.is_err());
    assert!(source.root().await.is_err());
}

#[tokio::test]
async fn walks_indexes() {
    let registry = Registry::start();
    let platforms = [("linux", "amd64"), ("linux", "arm64"), ("unknown", "unknown")];
    let images: Vec<Image> = platforms
        .iter()
        .map(|(_, a)| Image::new(a, &[crate::common::layer(a, a.as_bytes())], Algorithm::Sha256))
        .collect();
    let reference = registry.reference("multi:1");
    let destination = Destination::open(&reference, &Options::default()).await.unwrap();
    let mut entries = Vec::new();
    for (image, (os, architecture)) in images.iter().zip(platforms) {
        image.put(&destination).await;
        destination.put_manifest(&image.manifest).await.unwrap();
        let platform = PlatformBuilder::default().os(os).architecture(architecture).build().unwrap();
        let mut entry = image.manifest.descriptor.clone();
        entry.set_platform(Some(platform));
        entries.push(entry);
    }
    let index = |entries: Vec<_>| {
        let index = ImageIndexBuilder::default().schema_version(2_u32).media_type(MediaType::ImageIndex);
        Document::new(MediaType::ImageIndex, to_json(&index.manifests(entries).build().unwrap()).unwrap())
    };
    let inner = index(entries.clone());
    destination.put_manifest(&inner).await.unwrap();
    let outer = index(vec![inner.descriptor.clone(), entries[0].clone()]);
    destination.commit(&inner).await.unwrap();

    let source = open(&reference).await;
    assert!(matches!(source.root().await.unwrap().content().unwrap(), Content::Index(_)));
    for (image, architecture) in images.iter().zip(["amd64", "arm64"]) {
        let platform = format!("linux/{architecture}").parse().unwrap();
        assert_eq!(source.resolve(&platform).await.unwrap().bytes, image.manifest.bytes);
    }
    let error = source.resolve(&"linux/s390x".parse().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("linux/s390x") && error.contains("linux/amd64, linux/arm64"), "{error}");
    assert_eq!(descriptors(source.images().await.unwrap()), entries[..2]);

    let nested = registry.reference("multi:nested");
    Destination::open(&nested, &Options::default()).await.unwrap().commit(&outer).await.unwrap();
    assert_eq!(descriptors(open(&nested).await.images().await.unwrap()), entries[..2]);
}

fn descriptors(images: lazo_registry::Images) -> Vec<lazo_registry::oci_spec::image::Descriptor> {
    images.images.into_iter().map(|(descriptor, manifest)| manifest.map(|_| descriptor).unwrap()).collect()
}

fn auth_file(directory: &Path, host: &str, user: &str, password: &str) -> Options {
    let file = directory.join("auth.json");
    let entry = serde_json::json!({"auths": {host: {"username": user, "password": password}}});
    fs::write(&file, entry.to_string()).unwrap();
    Options { auth_file: Some(file), ..Options::default() }
}

#[tokio::test]
async fn logs_in_by_basic_auth() {
    let registry = Registry::with(&Setup { basic_auth: true, ..Setup::default() });
    let directory = tempfile::tempdir().unwrap();
    let image = Image::sample();
    let reference = registry.reference("private:1");
    let options = auth_file(directory.path(), &registry.address, USER, PASSWORD);
    image.write(&reference, &options).await;
    image.check(&Source::open(&reference, &options).await.unwrap()).await;

    let refused = async |options: Options| {
        let error = Source::open(&reference, &options).await.unwrap().root().await.unwrap_err();
        assert!(matches!(&error, Error::Denied { what, .. } if what.contains(&registry.address)), "{error}");
        format!("{error} {error:?}")
    };
    let none = auth_file(directory.path(), "other.example", USER, PASSWORD);
    assert!(refused(none).await.contains("docker login"));
    let wrong = refused(auth_file(directory.path(), &registry.address, USER, "wrong-secret")).await;
    assert!(wrong.contains("refuses the user name and password") && !wrong.contains("wrong-secret"), "{wrong}");
}

/// A certificate authority and a certificate for 127.0.0.1.
pub(crate) fn certificates(directory: &Path) {
    certificates_for(directory, "IP:127.0.0.1");
}

/// A certificate authority and a certificate for these names.
pub(crate) fn certificates_for(directory: &Path, names: &str) {
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let (ca, ca_key, key, request, certificate) =
        (path("ca.pem"), path("ca.key"), path("key.pem"), path("request.pem"), path("cert.pem"));
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout"];
    run(
        "openssl",
        &[&["req", "-x509", "-subj", "/CN=test authority", "-days", "2", "-out", &ca][..], &new_key, &[&ca_key]]
            .concat(),
    );
    run("openssl", &[&["req", "-new", "-subj", "/CN=127.0.0.1", "-out", &request][..], &new_key, &[&key]].concat());
    let extensions = path("extensions");
    fs::write(&extensions, format!("subjectAltName={names}\nbasicConstraints=CA:FALSE\n")).unwrap();
    let sign = ["x509", "-req", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial", "-days", "2"];
    run("openssl", &[&sign[..], &["-extfile", &extensions, "-out", &certificate]].concat());
}

#[tokio::test]
async fn speaks_tls_with_an_extra_authority() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let file = |name: &str| directory.path().join(name);
    let registry = Registry::with(&Setup { tls: Some((file("cert.pem"), file("key.pem"))), ..Setup::default() });
    let image = Image::sample();
    let reference = registry.reference("app:1");
    let tls = Options { loopback_tls: true, ..Options::default() };
    let trusting = Options { extra_ca: vec![file("ca.pem")], ..tls.clone() };
    image.write(&reference, &trusting).await;
    image.check(&Source::open(&reference, &trusting).await.unwrap()).await;

    let fails = async |reference: &ImageRef, options: &Options| {
        Source::open(reference, options).await.unwrap().root().await.unwrap_err().to_string()
    };
    let untrusted = fails(&reference, &tls).await;
    assert!(untrusted.contains("not trusted") && untrusted.contains("--ca"), "{untrusted}");
    let plain = Registry::start();
    let no_tls = fails(&plain.reference("app:1"), &trusting).await;
    assert!(no_tls.contains("does not speak TLS") && no_tls.contains("--plain-http"), "{no_tls}");
    let empty = fails(&reference, &Options { extra_ca: vec![file("key.pem")], ..tls.clone() }).await;
    assert!(empty.contains("key.pem"), "{empty}");
    let missing = fails(&reference, &Options { extra_ca: vec![file("none")], ..tls }).await;
    assert!(missing.contains("none"), "{missing}");
}

#[tokio::test]
async fn agrees_with_skopeo() {
    let registry = Registry::start();
    let image = Image::sample();
    let ours = registry.reference("ours:1");
    image.write(&ours, &Options::default()).await;
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let copy = |from: &str, to: &str, extra: &[&str]| {
        let options = ["--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"];
        run("skopeo", &[&options[..], extra, &[from, to]].concat());
    };
    // Registry to layout, archive and other repository: digests unchanged.
    let layout = format!("oci:{}:v1", path("layout"));
    let archive = format!("oci-archive:{}:v1", path("archive.tar"));
    copy(&ours.to_string(), &layout, &["--preserve-digests"]);
    copy(&ours.to_string(), &archive, &["--preserve-digests"]);
    copy(&layout, &registry.reference("theirs:1").to_string(), &["--preserve-digests"]);
    for reference in [layout.parse().unwrap(), archive.parse().unwrap(), registry.reference("theirs:1")] {
        image.check(&open(&reference).await).await;
    }
    // Docker's media types, and an archive as `docker save` writes it.
    copy(&ours.to_string(), &registry.reference("docker:1").to_string(), &["--format", "v2s2"]);
    copy(&layout, &format!("docker-archive:{}:app:v1", path("saved.tar")), &[]);
    let platform = "linux/amd64".parse().unwrap();
    for (reference, compressed) in [
        (registry.reference("docker:1"), true),
        (format!("docker-archive:{}", path("saved.tar")).parse().unwrap(), false),
        (format!("docker-archive:{}:app:v1", path("saved.tar")).parse().unwrap(), false),
        (format!("docker-archive:{}:@0", path("saved.tar")).parse().unwrap(), false),
    ] {
        let source = open(&reference).await;
        let manifest = source.resolve(&platform).await.unwrap();
        assert_eq!(manifest.manifest.layers().len(), 2);
        for (layer, (_, bytes)) in manifest.manifest.layers().iter().zip(&image.layers) {
            let kind = lazo_registry::media::layer_kind(layer.media_type()).unwrap();
            let read = read(&source, layer).await.unwrap();
            if kind.compression == lazo_registry::media::Compression::None {
                assert_eq!(&read, bytes, "{reference}");
            }
            assert!(compressed || read == *bytes);
        }
        let config = source.document(manifest.manifest.config()).await.unwrap();
        assert!(String::from_utf8(config.bytes).unwrap().contains("amd64"));
    }
    let other: ImageRef = format!("docker-archive:{}:app:v2", path("saved.tar")).parse().unwrap();
    let error = Source::open(&other, &Options::default()).await.unwrap_err().to_string();
    assert!(error.contains("no image app:v2") && error.contains("app:v1"), "{error}");
}
