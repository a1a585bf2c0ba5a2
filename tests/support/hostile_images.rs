//! Lazo images that a hostile author would make, in layout directories with the tag `lazo`: whole as far as digests go.
//!
//! [`Parts::write`] gives the image as `lazo mount` takes it; [`Registry::push`](super::registry::Registry::push) brings the layout's
//! `lazo` into a registry, and [`Parts::unpack`] makes the files that containerd would have unpacked.

use std::{collections::BTreeMap, fs, io::Write, path::Path};

use lazo_format::{
    BlobIndex, BlobRecord, Bootstrap, ChunkEncoder, ChunkIndex, ChunkRecord, Device, DeviceAddr, Digest, Extent,
    IndexContents, Meta, Node, NodeId, NodeKind, PrefetchRange, Tree, ValidTree, Xattr, encode_index, write_bootstrap,
};
use serde_json::json;

use super::{crafted, layout};

/// A block.
const BLOCK: u32 = 4096;

/// What is refused when it is mounted, and why.
pub(crate) struct Broken {
    pub(crate) name: &'static str,
    /// What the error says of the rule.
    pub(crate) says: &'static str,
    pub(crate) parts: Parts,
}

/// What an image is put together from.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) blob: Vec<u8>,
    pub(crate) bootstrap: Vec<u8>,
    pub(crate) index: Vec<u8>,
}

impl Parts {
    /// Writes the image into a new layout directory. Its name for `lazo mount`.
    pub(crate) fn write(&self, directory: &Path) -> String {
        fs::create_dir_all(directory).expect("a directory");
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Tee::default(), flate2::Compression::fast()));
        let mut plain = tar::Builder::new(Hash(ring::digest::Context::new(&ring::digest::SHA256)));
        for (path, content) in [("image/index", &self.index), ("image/bootstrap", &self.bootstrap)] {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header.clone(), path, content.as_slice()).expect("a member");
            plain.append_data(&mut header, path, content.as_slice()).expect("a member");
        }
        let layer = tar.into_inner().and_then(flate2::write::GzEncoder::finish).expect("the layer").0;
        let diff_id = plain.into_inner().expect("the tar").0.finish();
        let diff_id: String = diff_id.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let mut blob = crafted::blob(directory, layout::BLOB_TYPE, &self.blob);
        blob["annotations"] = json!({"containerd.io/snapshot/lazo.blob": blob["digest"]});
        let mut layer = crafted::blob(directory, "application/vnd.oci.image.layer.v1.tar+gzip", &layer);
        layer["annotations"] = json!({"containerd.io/snapshot/lazo.bootstrap": "v1"});
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture, "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [blob["digest"], format!("sha256:{diff_id}")]},
        });
        let config =
            crafted::blob(directory, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [blob, layer]});
        let manifest = crafted::blob(directory, kind, manifest.to_string().as_bytes());
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).expect("the mark");
        fs::write(directory.join("index.json"), r#"{"schemaVersion": 2, "manifests": []}"#).expect("the index");
        crafted::name(directory, manifest, "lazo");
        format!("oci:{}:lazo", directory.display())
    }

    /// The files of the bootstrap layer, in a new directory.
    pub(crate) fn unpack(&self, directory: &Path) {
        fs::create_dir_all(directory).expect("a directory");
        fs::write(directory.join("bootstrap"), &self.bootstrap).expect("the bootstrap");
        fs::write(directory.join("index"), &self.index).expect("the index");
    }

    fn of(blob: Vec<u8>, tree: &ValidTree, index: IndexContents) -> Self {
        let bootstrap = write_bootstrap(tree);
        let index = IndexContents {
            entries: tree.entries(),
            file_bytes: tree.file_bytes(),
            has_xattrs: tree.has_xattrs(),
            has_acls: tree.has_acls(),
            ..index
        };
        let index = encode_index(&index, &bootstrap).expect("an index");
        Self { blob, bootstrap, index }
    }

    /// Makes the superblock's checksum right, and what the index says of the bootstrap.
    fn mend(&mut self) {
        if let Some(block) = self.bootstrap.get_mut(1024..4096) {
            block[4..8].fill(0);
            let checksum = crc32c(block);
            block[4..8].copy_from_slice(&checksum.to_le_bytes());
        }
        self.index[16..24].copy_from_slice(&(self.bootstrap.len() as u64).to_le_bytes());
        self.index[24..56].copy_from_slice(blake3::hash(&self.bootstrap).as_bytes());
    }

    /// The place in the bootstrap of the inode at a path.
    fn inode(&self, path: &[&str]) -> usize {
        let bootstrap = Bootstrap::parse(self.bootstrap.as_slice()).expect("a bootstrap");
        let nid = path.iter().fold(bootstrap.root(), |at, name| {
            let directory = bootstrap.inode(at).expect("a directory");
            bootstrap.lookup(&directory, name.as_bytes()).expect("a lookup").expect("a name").0
        });
        usize::try_from(nid.0 * 32).expect("an offset")
    }

    /// The place of the directory entry that leads to an inode.
    fn entry(&self, path: &[&str], kind: u8) -> usize {
        let nid = (self.inode(path) as u64 / 32).to_le_bytes();
        let found = self.bootstrap.windows(12).position(|window| window[..8] == nid && window[10] == kind);
        found.expect("an entry")
    }
}

/// CRC32C as EROFS has it: without the final inversion.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

/// What was written.
#[derive(Default)]
struct Tee(Vec<u8>);

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The digest of what was written.
struct Hash(ring::digest::Context);

impl Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn node(kind: NodeKind) -> Node {
    Node { meta: Meta { permissions: 0o755, ..Meta::default() }, kind }
}

fn directory<const N: usize>(children: [(&str, u32); N]) -> Node {
    let children = children.into_iter().map(|(name, node)| (name.as_bytes().into(), NodeId(node)));
    node(NodeKind::Directory(children.collect::<BTreeMap<_, _>>()))
}

fn regular(size: u64, at: Option<u64>) -> Extent {
    Extent { length: size, location: at.map(|at| (BlobIndex(0), DeviceAddr(at))) }
}

/// The content of [`many_small_chunks`]: each byte of the file `file`.
pub(crate) const SMALL: u8 = 0x5a;

/// An image of one file, in so many chunks of one block each, stored in a few bytes: whole and right in everything.
pub(crate) fn many_small_chunks(chunks: u32) -> Parts {
    with_prefetch(chunks, Vec::new())
}

/// An image with the longest prefetch list that the format allows for so many chunks: each alone, the last first.
pub(crate) fn longest_prefetch_list(chunks: u32) -> Parts {
    with_prefetch(chunks, (0..chunks).rev().map(|first| PrefetchRange { first: ChunkIndex(first), count: 1 }).collect())
}

/// An image with a prefetch list of so many ranges, all of its one chunk: against the rules.
pub(crate) fn endless_prefetch_list(ranges: u32) -> Parts {
    let mut parts = many_small_chunks(1);
    parts.index[80..84].copy_from_slice(&ranges.to_le_bytes());
    let length = parts.index.len() + 8 * ranges as usize;
    parts.index.reserve_exact(length - parts.index.len());
    while parts.index.len() < length {
        parts.index.extend_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0]);
    }
    parts
}

fn with_prefetch(chunks: u32, prefetch: Vec<PrefetchRange>) -> Parts {
    let chunk = ChunkEncoder::new(3).expect("an encoder").encode(&[SMALL; BLOCK as usize]).expect("a chunk");
    let stored = u32::try_from(chunk.bytes.len()).expect("a few bytes");
    let mut blob = Vec::with_capacity(chunk.bytes.len() * chunks as usize);
    (0..chunks).for_each(|_| blob.extend_from_slice(&chunk.bytes));
    let size = u64::from(chunks) * u64::from(BLOCK);
    let digest = Digest::sha256_of(&blob);
    let records = (0..chunks).map(|number| ChunkRecord {
        compressed_offset: u64::from(number) * u64::from(stored),
        compressed_size: stored,
        device_offset: DeviceAddr(u64::from(number) * u64::from(BLOCK)),
        device_size: BLOCK,
        encoding: chunk.encoding,
        digest: chunk.digest,
    });
    let record = BlobRecord {
        digest,
        compressed_size: blob.len() as u64,
        device_size: size,
        first_chunk: ChunkIndex(0),
        chunk_count: chunks,
    };
    let contents =
        IndexContents { blobs: vec![record], chunks: records.collect(), prefetch, ..IndexContents::default() };
    let file = node(NodeKind::Regular { size, extents: vec![regular(size, Some(0))] });
    let tree =
        Tree { nodes: vec![directory([("file", 1)]), file], root: NodeId(0), devices: vec![Device { digest, size }] };
    Parts::of(blob, &tree.validate().expect("a tree"), contents)
}

/// A small image with something of each kind.
pub(crate) fn sound() -> Parts {
    let mut encoder = ChunkEncoder::new(3).expect("an encoder");
    let (mut blob, mut chunks) = (Vec::new(), Vec::new());
    for number in 0..2_u8 {
        let chunk = encoder.encode(&[number + 1; 4 * BLOCK as usize]).expect("a chunk");
        chunks.push(ChunkRecord {
            compressed_offset: blob.len() as u64,
            compressed_size: u32::try_from(chunk.bytes.len()).expect("a few bytes"),
            device_offset: DeviceAddr(u64::from(number) * 4 * u64::from(BLOCK)),
            device_size: 4 * BLOCK,
            encoding: chunk.encoding,
            digest: chunk.digest,
        });
        blob.extend(chunk.bytes);
    }
    let (digest, size) = (Digest::sha256_of(&blob), 8 * u64::from(BLOCK));
    let record = BlobRecord {
        digest,
        compressed_size: blob.len() as u64,
        device_size: size,
        first_chunk: ChunkIndex(0),
        chunk_count: 2,
    };
    let prefetch = [1, 0].map(|first| PrefetchRange { first: ChunkIndex(first), count: 1 }).to_vec();
    let contents = IndexContents { blobs: vec![record], chunks, prefetch, ..IndexContents::default() };
    let mut nodes = vec![
        directory([("device", 5), ("dir", 1), ("file", 3), ("hard", 3), ("link", 4), ("sparse", 6)]),
        directory([("alpha", 2), ("beta", 7)]),
        node(NodeKind::Regular { size: 0, extents: Vec::new() }),
        node(NodeKind::Regular { size: 9000, extents: vec![regular(9000, Some(0))] }),
        node(NodeKind::Symlink(b"dir/alpha".as_slice().into())),
        node(NodeKind::CharDevice { major: 1, minor: 3 }),
        node(NodeKind::Regular { size: 12288, extents: vec![regular(8192, None), regular(4096, Some(16384))] }),
        directory([]),
    ];
    let xattr = Xattr { name: b"trusted.covered.opaque".as_slice().into(), value: b"y".as_slice().into() };
    nodes[1].meta.xattrs.push(xattr);
    let tree = Tree { nodes, root: NodeId(0), devices: vec![Device { digest, size }] };
    Parts::of(blob, &tree.validate().expect("a tree"), contents)
}

/// Images each of which breaks one rule of the format.
pub(crate) fn broken() -> Vec<Broken> {
    let in_bootstrap = bootstrap_faults().into_iter().map(|(name, says, spoil)| {
        let mut parts = sound();
        spoil(&mut parts);
        parts.mend();
        Broken { name, says, parts }
    });
    let in_index = index_faults().into_iter().map(|(name, says, spoil)| {
        let mut parts = sound();
        spoil(&mut parts);
        Broken { name, says, parts }
    });
    in_bootstrap.chain(in_index).collect()
}

type Fault = (&'static str, &'static str, fn(&mut Parts));

/// Bytes of the bootstrap from a place on.
fn put(parts: &mut Parts, at: usize, bytes: &[u8]) {
    parts.bootstrap[at..at + bytes.len()].copy_from_slice(bytes);
}

fn bootstrap_faults() -> Vec<Fault> {
    vec![
        ("a compressed inode", "unknown data layout", |p| put(p, p.inode(&["file"]), &[1 | 1 << 1])),
        ("a compactly compressed inode", "unknown data layout", |p| put(p, p.inode(&["file"]), &[1 | 3 << 1])),
        ("a short inode", "not an extended inode", |p| put(p, p.inode(&["file"]), &[4 << 1])),
        ("a compressed image", "set of incompatible features", |p| put(p, 1024 + 80, &[0xd])),
        ("fragments", "set of incompatible features", |p| put(p, 1024 + 80, &[0x2c])),
        ("an attribute filter", "set of compatible features", |p| put(p, 1024 + 8, &[7])),
        ("small blocks", "block size", |p| put(p, 1024 + 12, &[9])),
        ("an inode for fragments", "a field of the superblock that has no meaning", |p| put(p, 1024 + 96, &[40])),
        ("a volume name", "a field of the superblock that has no meaning", |p| put(p, 1024 + 64, b"name")),
        ("another length", "its length is not what the superblock says", |p| p.bootstrap.extend([0; 4096])),
        ("a root that is a file", "not a directory, but the root", |p| {
            let nid = u16::try_from(p.inode(&["file"]) / 32).expect("a small image");
            put(p, 1024 + 14, &nid.to_le_bytes());
        }),
        ("a wrong count of inodes", "count of inodes", |p| put(p, 1024 + 16, &[99])),
        ("a flat device", "device 0 is not the blob", |p| put(p, 1152 + 68, &[1])),
        ("a device of 48 bits", "a field of a device", |p| put(p, 1152 + 72, &[1])),
        ("another device", "device 0 is not the blob", |p| put(p, 1152, b"00")),
        ("a larger device", "device 0 is not the blob", |p| put(p, 1152 + 64, &[9])),
        ("data beyond the device", "reaches beyond a device", |p| put(p, p.inode(&["file"]) + 64 + 4, &[6])),
        ("data of no device", "a device that does not exist", |p| put(p, p.inode(&["file"]) + 64 + 2, &[2])),
        ("data of a masked device", "a device that does not exist", |p| put(p, p.inode(&["file"]) + 64 + 3, &[0x80])),
        ("a map entry of 48 bits", "its chunk map that has no meaning", |p| put(p, p.inode(&["file"]) + 64, &[1])),
        ("an endless map", "its chunk map is not in the image", |p| put(p, p.inode(&["file"]) + 8 + 5, &[1])),
        ("a loop of directories", "a second name leads to the directory", |p| {
            let root = (p.inode(&[]) as u64 / 32).to_le_bytes();
            put(p, p.entry(&["dir", "beta"], 2), &root);
        }),
        ("a directory above another", ". or .. leads elsewhere", |p| {
            let (root, dir) = (p.inode(&[]) as u64 / 32, p.inode(&["dir", "beta"]));
            put(p, dir + 64 + 12, &(root + 100).to_le_bytes());
        }),
        ("names out of order", "its entries are not sorted", |p| {
            let at = p.bootstrap.windows(9).position(|window| window == b"alphabeta").expect("the names");
            put(p, at, b"zlpha");
        }),
        ("a name with a slash", "holds a slash or a NUL", |p| {
            let at = p.bootstrap.windows(9).position(|window| window == b"alphabeta").expect("the names");
            put(p, at + 1, b"/");
        }),
        ("an entry of another type", "gives it another type", |p| put(p, p.entry(&["link"], 7) + 10, &[1])),
        ("an entry of no type", "an unknown file type", |p| put(p, p.entry(&["link"], 7) + 10, &[9])),
        ("an inode outside", "it is not in the image", |p| put(p, p.entry(&["link"], 7), &[0xff; 8])),
        ("too many links", "not the number of its names", |p| put(p, p.inode(&["file"]) + 44, &[3])),
        ("too few links", "more names than links", |p| put(p, p.inode(&["file"]) + 44, &[1])),
        ("links of a directory", "2 and one for each subdirectory", |p| put(p, p.inode(&["dir"]) + 44, &[9])),
        ("a link that ends early", "its target holds a NUL", |p| put(p, p.inode(&["link"]) + 64 + 3, &[0])),
        ("a link beyond its block", "its target is not in the image", |p| {
            put(p, p.inode(&["link"]) + 8, &4000_u16.to_le_bytes());
        }),
        ("a device with content", "a device, pipe or socket with content", |p| put(p, p.inode(&["device"]) + 8, &[1])),
        ("a device with a map", "not one for its type", |p| {
            let at = p.inode(&["device"]);
            put(p, at, &[1 | 4 << 1]);
            put(p, at + 16, &[0x20, 0, 0, 0]);
        }),
        ("a time of no second", "too many nanoseconds", |p| put(p, p.inode(&["file"]) + 40, &[0xff; 4])),
        ("an inode of 48 bits", "a field that has no meaning", |p| put(p, p.inode(&["file"]) + 48, &[1])),
        ("an attribute for overlays", "an overlay mount would obey", |p| {
            let at = p.bootstrap.windows(14).position(|window| window == b"covered.opaque").expect("the name");
            put(p, at, b"overlay.opaque");
        }),
        ("attributes cut off", "attribute is damaged", |p| {
            let at = p.bootstrap.windows(14).position(|window| window == b"covered.opaque").expect("the name");
            put(p, at - 2, &[0xff, 0xff]);
        }),
        ("an attribute of no namespace", "of an unknown namespace", |p| {
            let at = p.bootstrap.windows(14).position(|window| window == b"covered.opaque").expect("the name");
            put(p, at - 3, &[9]);
        }),
    ]
}

fn index_faults() -> Vec<Fault> {
    /// Where the sound image's blob record, chunk records and prefetch list lie.
    const BLOB: usize = 84;
    const CHUNKS: usize = BLOB + 56;
    const PREFETCH: usize = CHUNKS + 2 * 57;
    vec![
        ("another bootstrap", "not the one that its chunk index was made for", |p| p.index[24] ^= 1),
        ("a checksum that is wrong", "superblock checksum", |p| {
            p.mend();
            put(p, 1024 + 4, &[0; 4]);
            p.index[24..56].copy_from_slice(blake3::hash(&p.bootstrap).as_bytes());
        }),
        ("chunks with a gap", "does not begin where the one before it ends", |p| p.index[CHUNKS + 57 + 13] ^= 0x10),
        ("chunks that overlap", "does not begin where the one before it ends", |p| p.index[CHUNKS + 57] -= 1),
        ("a blob of another size", "do not add up", |p| p.index[BLOB + 32] += 1),
        ("a blob of fewer chunks", "do not add up", |p| p.index[BLOB + 52] = 1),
        ("a chunk of no bytes", "stored size does not fit", |p| p.index[CHUNKS + 8..CHUNKS + 12].fill(0)),
        ("a chunk of no size", "not whole blocks", |p| p.index[CHUNKS + 20..CHUNKS + 24].fill(0)),
        ("a chunk of a later version", "unknown encoding", |p| p.index[CHUNKS + 24] = 3),
        ("chunks without end", "chunks (larger ones are fewer), the format allows", |p| p.index[79] = 0xff),
        ("a list longer than the chunks", "prefetch ranges, the format allows 2", |p| {
            p.index[80] = 3;
            p.index.extend([0, 0, 0, 0, 1, 0, 0, 0]);
        }),
        ("a list that repeats itself", "an earlier one names", |p| p.index[PREFETCH] = 0),
        ("a list of what there is not", "beyond the chunk table", |p| p.index[PREFETCH + 4] = 2),
        ("a wrong count of entries", "it counts", |p| p.index[56] += 1),
        ("a wrong sum of sizes", "bytes of files", |p| p.index[64] ^= 1),
        ("attributes that are hidden", "no file has extended attributes", |p| p.index[12] = 0),
    ]
}
