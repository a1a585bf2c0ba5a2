//! A lazo image read with the format library alone: bootstrap and index parsed, blobs decompressed, tree listed.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use lazo_format::{BlobIndex, Bootstrap, ChunkDecoder, ChunkIndex, FileType, Index, Inode, Nid};

use super::{
    layout::{self, Manifest},
    listing::{Entry, Listing, join},
};

/// An image of a layout, unpacked into `bootstrap` and a device file for each blob.
pub(crate) struct Image {
    pub(crate) manifest: Manifest,
    pub(crate) bootstrap_path: PathBuf,
    pub(crate) devices: Vec<PathBuf>,
    pub(crate) bootstrap: Bootstrap<Vec<u8>>,
    pub(crate) index: Index<Vec<u8>>,
}

impl Image {
    /// Every chunk is decoded, with its digest checked. Files go to `directory`.
    pub(crate) fn open(layout: &Path, tag: &str, directory: &Path) -> Self {
        let manifest = Manifest::of(layout, tag);
        let (bootstrap, index) = read_bootstrap_layer(&layout::blob_path(layout, &manifest.bootstrap_layer()));
        let bootstrap_path = directory.join("bootstrap");
        fs::write(&bootstrap_path, &bootstrap).expect("the bootstrap file");
        let index = Index::parse(index).expect("a valid index");
        index.validate().expect("a valid index");
        let bootstrap = Bootstrap::parse(bootstrap).expect("a valid bootstrap");
        bootstrap.validate().expect("a valid bootstrap");
        let blobs = manifest.blobs();
        assert_eq!(index.blob_count(), blobs.len(), "blobs in the index and layers in the manifest");
        let devices = blobs.iter().enumerate().map(|(number, (digest, size))| {
            let number = BlobIndex(u16::try_from(number).expect("a blob number"));
            let record = index.blob(number).expect("a blob record");
            assert_eq!((record.digest.to_string(), record.compressed_size), (digest.clone(), *size));
            let device = directory.join(format!("device-{}", number.0));
            decode(&index, number, &layout::blob_path(layout, digest), &device);
            device
        });
        let devices = devices.collect();
        Self { manifest, bootstrap_path, devices, bootstrap, index }
    }

    /// The tree as the library reads it.
    pub(crate) fn listing(&self) -> Listing {
        let devices = self.devices.iter().map(|path| File::open(path).expect("a device")).collect();
        let mut walk = Walk { bootstrap: &self.bootstrap, devices, listing: Listing::default(), nids: BTreeMap::new() };
        walk.visit(self.bootstrap.root(), b".");
        walk.listing
    }

    /// The inode at a path below the root.
    pub(crate) fn inode(&self, path: &[u8]) -> Inode {
        let root = self.bootstrap.inode(self.bootstrap.root()).expect("the root");
        path.split(|&byte| byte == b'/').fold(root, |directory, name| {
            let found = self.bootstrap.lookup(&directory, name).expect("a lookup");
            let (nid, _) = found.unwrap_or_else(|| panic!("no {}", path.escape_ascii()));
            self.bootstrap.inode(nid).expect("an inode")
        })
    }

    /// The chunks that hold a file's data, without holes.
    pub(crate) fn chunks_of(&self, path: &[u8]) -> Vec<(BlobIndex, ChunkIndex)> {
        let inode = self.inode(path);
        let mut chunks = Vec::new();
        let mut offset = 0;
        while offset < inode.size {
            let mapping = self.bootstrap.extent(&inode, offset).expect("an extent");
            if let Some((blob, at)) = mapping.location {
                let within = self.index.chunks_in(blob, at.0..at.0 + mapping.length).expect("chunks");
                chunks.extend(within.map(|chunk| (blob, ChunkIndex(chunk))));
            }
            offset += mapping.length;
        }
        chunks.dedup();
        chunks
    }
}

fn read_bootstrap_layer(path: &Path) -> (Vec<u8>, Vec<u8>) {
    let file = File::open(path).expect("the bootstrap layer");
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let mut members = BTreeMap::new();
    for entry in archive.entries().expect("tar entries") {
        let mut entry = entry.expect("a tar entry");
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("a member's data");
        members.insert(entry.path_bytes().into_owned(), bytes);
    }
    let mut take =
        |name: &[u8]| members.remove(name).unwrap_or_else(|| panic!("no {} in the layer", name.escape_ascii()));
    (take(b"image/bootstrap"), take(b"image/index"))
}

fn decode(index: &Index<Vec<u8>>, blob: BlobIndex, stored: &Path, device: &Path) {
    let record = index.blob(blob).expect("a blob record");
    let (stored, device) = (File::open(stored).expect("a blob"), File::create(device).expect("a device file"));
    let mut decoder = ChunkDecoder::new().expect("a decoder");
    let mut out = Vec::new();
    for chunk in record.chunks() {
        let chunk = index.chunk(ChunkIndex(chunk)).expect("a chunk record");
        let mut bytes = vec![0; chunk.compressed_size as usize];
        stored.read_exact_at(&mut bytes, chunk.compressed_offset).expect("a chunk's bytes");
        decoder.decode(&chunk, &bytes, &mut out).expect("a chunk as its digest says");
        device.write_all_at(&out, chunk.device_offset.0).expect("a chunk on its device");
    }
    assert_eq!(device.metadata().expect("the device's size").len(), record.device_size);
}

struct Walk<'a> {
    bootstrap: &'a Bootstrap<Vec<u8>>,
    devices: Vec<File>,
    listing: Listing,
    nids: BTreeMap<u64, Vec<u8>>,
}

impl Walk<'_> {
    fn visit(&mut self, nid: Nid, path: &[u8]) {
        let inode = self.bootstrap.inode(nid).unwrap_or_else(|error| panic!("{}: {error}", path.escape_ascii()));
        let known = self.nids.get(&nid.0).cloned();
        self.nids.entry(nid.0).or_insert_with(|| path.to_vec());
        let kind = inode.file_type;
        let xattrs = self.bootstrap.xattrs(&inode).expect("xattrs").map(|xattr| {
            let (name, value) = xattr.expect("an xattr");
            assert_eq!(self.bootstrap.xattr(&inode, &name).expect("an xattr by name"), Some(value));
            (name, value.to_vec())
        });
        let entry = Entry {
            kind: name_of(kind),
            mode: u32::from(inode.permissions),
            uid: inode.uid,
            gid: inode.gid,
            size: if kind == FileType::Directory { 0 } else { inode.size },
            mtime: (inode.mtime.seconds, inode.mtime.nanoseconds),
            target: match kind {
                FileType::Symlink => self.bootstrap.read_link(&inode).expect("a link target").to_vec(),
                _ => Vec::new(),
            },
            device: inode.rdev,
            nlink: u64::from(inode.nlink),
            xattrs: xattrs.collect(),
            contents: match (&known, kind) {
                (Some(first), _) => self.listing.0[first].contents,
                (None, FileType::Regular) => self.contents(&inode),
                _ => [0; 32],
            },
            first_path: known.unwrap_or_else(|| path.to_vec()),
        };
        self.listing.0.insert(path.to_vec(), entry);
        if kind == FileType::Directory {
            let entries = self.bootstrap.read_dir(&inode, 0).expect("a directory");
            let mut children: Vec<(Vec<u8>, Nid)> = entries
                .map(|entry| entry.expect("a directory entry"))
                .filter(|entry| entry.name != b"." && entry.name != b"..")
                .map(|entry| (entry.name.to_vec(), entry.nid))
                .collect();
            children.sort_by(|left, right| left.0.cmp(&right.0));
            for (name, child) in children {
                assert_eq!(self.bootstrap.lookup(&inode, &name).expect("a lookup").map(|found| found.0), Some(child));
                self.visit(child, &join(path, &name));
            }
        }
    }

    fn contents(&self, inode: &Inode) -> [u8; 32] {
        /// Largest piece read at once.
        const PIECE: u64 = 1 << 20;
        let mut hasher = blake3::Hasher::new();
        let (mut offset, mut buffer) = (0, Vec::new());
        while offset < inode.size {
            let mapping = self.bootstrap.extent(inode, offset).expect("an extent");
            assert!(
                mapping.offset == offset && mapping.length > 0,
                "an extent that does not begin where it was asked for"
            );
            let length = mapping.length.min(PIECE).min(inode.size - offset);
            buffer.clear();
            buffer.resize(usize::try_from(length).expect("a length"), 0);
            if let Some((blob, at)) = mapping.location {
                self.devices[usize::from(blob.0)].read_exact_at(&mut buffer, at.0).expect("bytes of a device");
            }
            hasher.update(&buffer);
            offset += length;
        }
        *hasher.finalize().as_bytes()
    }
}

fn name_of(kind: FileType) -> &'static str {
    match kind {
        FileType::Regular => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::CharDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
    }
}
