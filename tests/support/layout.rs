//! An OCI layout directory as it lies there, for looking into and for tampering with.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// The layer media type of blobs, as docs/FORMAT.md gives it.
pub(crate) const BLOB_TYPE: &str = "application/vnd.oci.image.layer.lazo.blob.v1";

pub(crate) fn blob_path(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

pub(crate) fn json(layout: &Path, digest: &str) -> Value {
    let bytes = fs::read(blob_path(layout, digest)).unwrap_or_else(|error| panic!("{digest}: {error}"));
    serde_json::from_slice(&bytes).expect("JSON")
}

/// The digest that a tag of index.json names.
pub(crate) fn digest_of(layout: &Path, tag: &str) -> String {
    let index = fs::read(layout.join("index.json")).expect("index.json");
    let index: Value = serde_json::from_slice(&index).expect("JSON");
    let manifests = index["manifests"].as_array().expect("manifests");
    let named = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == tag;
    let entry = manifests.iter().find(named).unwrap_or_else(|| panic!("no tag {tag} in {}", layout.display()));
    text(&entry["digest"])
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}")).to_owned()
}

/// An image manifest of a layout.
pub(crate) struct Manifest {
    pub(crate) digest: String,
    pub(crate) document: Value,
}

impl Manifest {
    pub(crate) fn of(layout: &Path, tag: &str) -> Self {
        let digest = digest_of(layout, tag);
        let document = json(layout, &digest);
        Self { digest, document }
    }

    fn layers(&self) -> impl Iterator<Item = &Value> {
        self.document["layers"].as_array().expect("layers").iter()
    }

    /// The blobs' digests and sizes, in order.
    pub(crate) fn blobs(&self) -> Vec<(String, u64)> {
        let blobs = self.layers().filter(|layer| layer["mediaType"] == BLOB_TYPE);
        blobs.map(|layer| (text(&layer["digest"]), layer["size"].as_u64().expect("a size"))).collect()
    }

    /// The digest of the bootstrap layer.
    pub(crate) fn bootstrap_layer(&self) -> String {
        let layer = self.layers().last().expect("a layer");
        assert_eq!(layer["annotations"]["containerd.io/snapshot/lazo.bootstrap"], "v1", "{layer}");
        text(&layer["digest"])
    }
}

/// All files of a tree and their contents, to see whether anything changed.
pub(crate) fn snapshot(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                pending.push(path);
            } else {
                files.push((path.clone(), fs::read(&path).expect("a file")));
            }
        }
    }
    files.sort();
    files
}

/// Flips one bit of a file.
pub(crate) fn flip(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::options().read(true).write(true).open(path).expect("a file to flip");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("the byte");
    file.write_all_at(&[byte[0] ^ 0x04], at).expect("the flipped byte");
}

/// Recursive copy with `cp -a`.
pub(crate) fn copy(from: &Path, to: &Path) {
    super::run("cp", ["-a".as_ref(), from.as_os_str(), to.as_os_str()]);
}
