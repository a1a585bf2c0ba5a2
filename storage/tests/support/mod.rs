//! Builds small lazo images in layout directories, whole or damaged on purpose.
#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses a part of it")]
#![expect(clippy::cast_possible_truncation, reason = "images of a few files")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use lazo_format::media::{
    ANNOTATION_BLOB, ANNOTATION_BOOTSTRAP, BOOTSTRAP_LAYER, BOOTSTRAP_PATH, BOOTSTRAP_VERSION, INDEX_PATH, LAZO_BLOB,
};
use lazo_format::{
    BlobIndex, BlobRecord, Bootstrap, ChunkEncoder, ChunkIndex, ChunkRecord, Device, DeviceAddr, Digest, Extent,
    FileType, IndexContents, Meta, Nid, Node, NodeId, NodeKind, Timestamp, Tree, Xattr, encode_index, write_bootstrap,
};
use lazo_registry::oci_spec::image::{Descriptor, MediaType};
use lazo_registry::{Destination, Document, ImageRef, Options, descriptor};
use serde_json::json;

/// Uncompressed size of the chunks made here, in bytes.
pub(crate) const CHUNK: usize = 64 << 10;

/// A tree in the making; its files' data goes into one blob.
pub(crate) struct TreeBuilder {
    nodes: Vec<Node>,
    space: Vec<u8>,
}

pub(crate) const ROOT: NodeId = NodeId(0);

impl TreeBuilder {
    pub(crate) fn new() -> Self {
        let mut tree = Self { nodes: Vec::new(), space: Vec::new() };
        tree.push(0o755, NodeKind::Directory(BTreeMap::new()));
        tree
    }

    fn push(&mut self, permissions: u16, kind: NodeKind) -> NodeId {
        let mtime = Timestamp { seconds: 1_700_000_000, nanoseconds: 123_456_789 };
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(Node { meta: Meta { permissions, uid: 1000, gid: 70_000, mtime, xattrs: Vec::new() }, kind });
        id
    }

    pub(crate) fn link(&mut self, parent: NodeId, name: &str, node: NodeId) {
        let NodeKind::Directory(entries) = &mut self.nodes[parent.0 as usize].kind else { panic!("no directory") };
        entries.insert(name.as_bytes().into(), node);
    }

    pub(crate) fn add(&mut self, parent: NodeId, name: &str, permissions: u16, kind: NodeKind) -> NodeId {
        let node = self.push(permissions, kind);
        self.link(parent, name, node);
        node
    }

    pub(crate) fn dir(&mut self, parent: NodeId, name: &str) -> NodeId {
        self.add(parent, name, 0o755, NodeKind::Directory(BTreeMap::new()))
    }

    pub(crate) fn file(&mut self, parent: NodeId, name: &str, content: &[u8]) -> NodeId {
        let extents = if content.is_empty() { Vec::new() } else { vec![self.store(content)] };
        self.add(parent, name, 0o644, NodeKind::Regular { size: content.len() as u64, extents })
    }

    /// Puts data at a block of its own.
    pub(crate) fn store(&mut self, content: &[u8]) -> Extent {
        let at = DeviceAddr(self.space.len() as u64);
        self.space.extend_from_slice(content);
        self.space.resize(self.space.len().next_multiple_of(4096), 0);
        Extent { length: content.len() as u64, location: Some((BlobIndex(0), at)) }
    }

    pub(crate) fn xattr(&mut self, node: NodeId, name: &str, value: &[u8]) {
        let xattr = Xattr { name: name.as_bytes().into(), value: value.into() };
        self.nodes[node.0 as usize].meta.xattrs.push(xattr);
    }

    pub(crate) fn build(self) -> Parts {
        let mut encoder = ChunkEncoder::new(3).unwrap();
        let (mut blob, mut chunks) = (Vec::new(), Vec::new());
        for (number, piece) in self.space.chunks(CHUNK).enumerate() {
            let encoded = encoder.encode(piece).unwrap();
            chunks.push(ChunkRecord {
                compressed_offset: blob.len() as u64,
                compressed_size: encoded.bytes.len() as u32,
                device_offset: DeviceAddr((number * CHUNK) as u64),
                device_size: piece.len() as u32,
                encoding: encoded.encoding,
                digest: encoded.digest,
            });
            blob.extend(encoded.bytes);
        }
        let digest = Digest::sha256_of(&blob);
        let size = self.space.len() as u64;
        let record = BlobRecord {
            digest,
            compressed_size: blob.len() as u64,
            device_size: size,
            first_chunk: ChunkIndex(0),
            chunk_count: chunks.len() as u32,
        };
        let tree = Tree { nodes: self.nodes, root: ROOT, devices: vec![Device { digest, size }] }.validate().unwrap();
        let contents = IndexContents {
            blobs: vec![record],
            chunks,
            prefetch: Vec::new(),
            entries: tree.entries(),
            file_bytes: tree.file_bytes(),
            has_xattrs: tree.has_xattrs(),
            has_acls: tree.has_acls(),
        };
        Parts {
            blob,
            contents,
            bootstrap: write_bootstrap(&tree),
            index: None,
            diff_id: None,
            version: BOOTSTRAP_VERSION,
            extended_header: None,
        }
    }
}

/// What an image is put together from; a test may spoil any of it.
pub(crate) struct Parts {
    pub(crate) blob: Vec<u8>,
    pub(crate) contents: IndexContents,
    pub(crate) bootstrap: Vec<u8>,
    /// In place of the one that follows from `contents` and `bootstrap`.
    pub(crate) index: Option<Vec<u8>>,
    /// In place of the bootstrap layer's own.
    pub(crate) diff_id: Option<Digest>,
    pub(crate) version: &'static str,
    /// An extended tar header of so many bytes, before the files of the bootstrap layer.
    pub(crate) extended_header: Option<u64>,
}

impl Parts {
    /// The chunk index as it goes into the image.
    pub(crate) fn encoded_index(&self) -> Vec<u8> {
        self.index.clone().unwrap_or_else(|| encode_index(&self.contents, &self.bootstrap).unwrap())
    }

    /// Changes the inode of a regular file, with all digests right.
    pub(crate) fn spoil_inode(&mut self, spoil: impl FnOnce(&mut [u8])) {
        let bootstrap = Bootstrap::parse(self.bootstrap.as_slice()).unwrap();
        let regular = (1..self.bootstrap.len() as u64 / 32).map(Nid).find(|nid| {
            bootstrap.inode(*nid).is_ok_and(|inode| inode.file_type == FileType::Regular && inode.size > 0)
        });
        let at = regular.unwrap().0 as usize * 32;
        spoil(&mut self.bootstrap[at..at + 64]);
        let block = &mut self.bootstrap[1024..4096];
        block[4..8].fill(0);
        // CRC32C as EROFS has it: without the final inversion.
        let checksum = block.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
        });
        block[4..8].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Writes the image into a layout directory, and gives the digest of its manifest with the reference.
    pub(crate) async fn write(&self, dir: &Path) -> (ImageRef, Digest) {
        let reference = ImageRef::OciLayout { path: dir.to_owned(), tag: Some("lazo".to_owned()) };
        let destination = Destination::open(&reference, &Options::default()).await.unwrap();
        let index = self.encoded_index();
        let mut tar = self.extended_header.map_or_else(Vec::new, long_name);
        tar.extend(tar_of(&[(INDEX_PATH, &index), (BOOTSTRAP_PATH, &self.bootstrap)]));
        let diff_id = self.diff_id.unwrap_or_else(|| Digest::sha256_of(&tar));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        let blob = Digest::sha256_of(&self.blob);
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": [blob.to_string(), diff_id.to_string()] },
        });
        let config = put(&destination, MediaType::ImageConfig, config.to_string().into_bytes(), &[]).await;
        let own = blob.to_string();
        let blob = put(&destination, LAZO_BLOB.into(), self.blob.clone(), &[(ANNOTATION_BLOB, &own)]).await;
        let layer = gzip.finish().unwrap();
        let layer = put(&destination, BOOTSTRAP_LAYER.into(), layer, &[(ANNOTATION_BOOTSTRAP, self.version)]).await;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MediaType::ImageManifest.as_ref(),
            "config": config, "layers": [blob, layer],
        });
        let root = Document::new(MediaType::ImageManifest, manifest.to_string().into_bytes());
        destination.commit(&root).await.unwrap();
        (reference, root.digest().unwrap())
    }
}

async fn put(destination: &Destination, kind: MediaType, bytes: Vec<u8>, annotations: &[(&str, &str)]) -> Descriptor {
    let mut result = descriptor(kind, &Digest::sha256_of(&bytes), bytes.len() as u64);
    destination.put_blob_bytes(bytes, &result).await.unwrap();
    if !annotations.is_empty() {
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        result.set_annotations(Some(annotations.collect()));
    }
    result
}

/// A GNU long name in a tar, made of so many zeros.
fn long_name(length: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(length);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize(bytes.len() + length.next_multiple_of(512) as usize, 0);
    bytes
}

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Bytes that do not compress and differ from seed to seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(word).flatten().take(length).collect()
}
