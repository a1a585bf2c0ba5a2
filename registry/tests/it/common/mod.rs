//! What the tests share: a real docker-registry, a server that misbehaves on purpose, and images to carry.

pub(crate) mod nginx;
pub(crate) mod server;

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use lazo_format::{Algorithm, Digest, Hasher};
use lazo_registry::{
    Destination, Document, ImageRef, Options, Source, descriptor,
    oci_spec::image::{Descriptor, ImageManifestBuilder, MediaType},
    to_json,
};

pub(crate) const USER: &str = "someone";
pub(crate) const PASSWORD: &str = "s3cret-pw";
/// bcrypt of [`PASSWORD`].
const HTPASSWD: &str = "$2b$04$abcdefghijklmnopqrstuufbu7IbsAKnz0sK.RhkuQd5ApLvLcZVy";

/// A docker-registry process on a free loopback port, gone on drop.
pub(crate) struct Registry {
    child: Child,
    pub(crate) address: String,
    pub(crate) directory: tempfile::TempDir,
}

#[derive(Default)]
pub(crate) struct Setup {
    pub(crate) basic_auth: bool,
    /// Certificate and key.
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
    pub(crate) relative_urls: bool,
    /// Realm of a token server, and the certificate that vouches for its tokens.
    pub(crate) token_auth: Option<(String, PathBuf)>,
}

impl Registry {
    pub(crate) fn start() -> Self {
        Self::with(&Setup::default())
    }

    pub(crate) fn with(setup: &Setup) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage:\n  delete: {{enabled: true}}\n  filesystem: {{rootdirectory: {root}/data}}\n"
        );
        config += &format!("http:\n  addr: 127.0.0.1:0\n  relativeurls: {}\n", setup.relative_urls);
        if let Some((certificate, key)) = &setup.tls {
            config += &format!("  tls: {{certificate: {}, key: {}}}\n", certificate.display(), key.display());
        }
        if setup.basic_auth {
            std::fs::write(directory.path().join("htpasswd"), format!("{USER}:{HTPASSWD}\n")).unwrap();
            config += &format!("auth:\n  htpasswd: {{realm: test, path: {root}/htpasswd}}\n");
        }
        if let Some((realm, certificate)) = &setup.token_auth {
            let certificate = certificate.display();
            config += &format!(
                "auth:\n  token: {{realm: \"{realm}\", service: test, issuer: test, rootcertbundle: {certificate}}}\n"
            );
        }
        let file = directory.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let mut child = Command::new("docker-registry")
            .args(["serve", file.to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry (Debian package docker-registry) is installed");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                let rest = line.split("listening on ").nth(1)?;
                Some(rest.split([',', '"', ' ']).next()?.to_owned())
            })
            .expect("the registry says where it listens");
        // Its log must be drained, or it blocks.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address, directory }
    }

    pub(crate) fn reference(&self, rest: &str) -> ImageRef {
        format!("docker://{}/{rest}", self.address).parse().unwrap()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Bytes that do not compress, the same every time.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

pub(crate) fn digest(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    hasher.finish()
}

/// A tar with one file.
pub(crate) fn layer(name: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(1);
    tar.append_data(&mut header, name, content).unwrap();
    tar.into_inner().unwrap()
}

/// An image: layers as bare tars, a config and a manifest.
pub(crate) struct Image {
    pub(crate) layers: Vec<(Descriptor, Vec<u8>)>,
    pub(crate) config: Document,
    pub(crate) manifest: Document,
}

impl Image {
    pub(crate) fn new(architecture: &str, layers: &[Vec<u8>], algorithm: Algorithm) -> Self {
        let layers: Vec<_> = layers
            .iter()
            .map(|l| (descriptor(MediaType::ImageLayer, &digest(algorithm, l), l.len() as u64), l.clone()))
            .collect();
        let diff_ids: Vec<String> = layers.iter().map(|l| digest(Algorithm::Sha256, &l.1).to_string()).collect();
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = Document::new(MediaType::ImageConfig, to_json(&config).unwrap());
        let manifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(config.descriptor.clone())
            .layers(layers.iter().map(|l| l.0.clone()).collect::<Vec<_>>())
            .build()
            .unwrap();
        let manifest = Document::new(MediaType::ImageManifest, to_json(&manifest).unwrap());
        Self { layers, config, manifest }
    }

    /// Two layers: one small, one of several megabytes.
    pub(crate) fn sample() -> Self {
        let layers = [layer("small", b"hello"), layer("large", &noise(6 << 20, 7))];
        Self::new("amd64", &layers, Algorithm::Sha256)
    }

    /// Everything but the root.
    pub(crate) async fn put(&self, destination: &Destination) {
        for (descriptor, bytes) in &self.layers {
            let file = destination.staging_dir().join("layer");
            std::fs::write(&file, bytes).unwrap();
            destination.put_blob_file(&file, descriptor, None).await.unwrap();
        }
        destination.put_blob_bytes(self.config.bytes.clone(), &self.config.descriptor).await.unwrap();
    }

    pub(crate) async fn write(&self, reference: &ImageRef, options: &Options) {
        let destination = Destination::open(reference, options).await.unwrap();
        self.put(&destination).await;
        destination.commit(&self.manifest).await.unwrap();
    }

    /// Reads it all back and compares.
    pub(crate) async fn check(&self, source: &Source) {
        let manifest = source.resolve(&"linux/amd64".parse().unwrap()).await.unwrap();
        assert_eq!(manifest.descriptor.digest(), self.manifest.descriptor.digest());
        assert_eq!(manifest.bytes, self.manifest.bytes);
        assert_eq!(source.document(manifest.manifest.config()).await.unwrap().bytes, self.config.bytes);
        for ((descriptor, bytes), found) in self.layers.iter().zip(manifest.manifest.layers()) {
            assert_eq!(descriptor, found);
            assert_eq!(&read(source, descriptor).await.unwrap(), bytes);
            let digest = lazo_registry::digest_of(descriptor).unwrap();
            let size = bytes.len() as u64;
            for range in [0..1, 3..700, size - 1..size, 0..size, 5..5] {
                let part = source.blob_range(&digest, size, range.clone()).await.unwrap();
                let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
                assert_eq!(part, bytes[range]);
            }
            assert!(source.blob_range(&digest, size, size..size + 1).await.is_err());
            assert!(source.blob_range(&digest, size + 1, 0..1).await.is_err(), "a blob of another size");
        }
    }
}

/// A whole blob.
pub(crate) async fn read(source: &Source, descriptor: &Descriptor) -> lazo_registry::Result<Vec<u8>> {
    use futures_util::TryStreamExt;
    let parts: Vec<_> = source.blob(descriptor).await?.try_collect().await?;
    Ok(parts.concat())
}

/// Runs a program that must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Every file below a directory, sorted, with its content.
pub(crate) fn snapshot(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let content = std::fs::read(&path).unwrap();
                found.push((path, content));
            }
        }
    }
    found.sort();
    found
}

pub(crate) async fn open(reference: &ImageRef) -> Source {
    Source::open(reference, &Options::default()).await.unwrap()
}

/// Writes a program, by another process: one that another thread has just forked may have open what this process writes, and then
/// it cannot be run.
pub(crate) fn write_program(path: &std::path::Path, text: &str) {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(path).stdin(std::process::Stdio::piped());
    let mut shell = command.spawn().unwrap();
    std::io::Write::write_all(&mut shell.stdin.take().unwrap(), text.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
}
