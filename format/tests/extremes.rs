//! The limits of the format, each looked at through our reader, `fsck.erofs` and the kernel.
#![allow(clippy::unwrap_used, missing_docs, reason = "test code")]

mod support;

use std::collections::BTreeMap;

use lazo_format::*;
use support::{check, device_contents, devices, directory, meta};

/// Collects nodes; node 0 is the root.
struct Builder {
    nodes: Vec<Node>,
    root: BTreeMap<Box<[u8]>, NodeId>,
    contents: Vec<Vec<u8>>,
}

impl Builder {
    fn new(devices: &[u64]) -> Self {
        let root = Node { meta: meta(0o755), kind: NodeKind::Fifo };
        Self { nodes: vec![root], root: BTreeMap::new(), contents: device_contents(devices) }
    }

    fn node(&mut self, meta: Meta, kind: NodeKind) -> NodeId {
        self.nodes.push(Node { meta, kind });
        NodeId(u32::try_from(self.nodes.len() - 1).unwrap())
    }

    fn add(&mut self, name: &str, meta: Meta, kind: NodeKind) -> NodeId {
        let id = self.node(meta, kind);
        self.root.insert(name.as_bytes().into(), id);
        id
    }

    /// A file of one extent.
    fn file(&mut self, blocks: u64, device: u16, block: u64) -> NodeId {
        let location = Some((BlobIndex(device), DeviceAddr(block * 4096)));
        let extents = vec![Extent { length: blocks * 4096 - 1, location }];
        self.node(meta(0o644), NodeKind::Regular { size: blocks * 4096 - 1, extents })
    }

    fn check(mut self) -> Vec<u8> {
        self.nodes[0].kind = NodeKind::Directory(self.root);
        let tree = Tree { nodes: self.nodes, root: NodeId(0), devices: devices(&self.contents) };
        check(&tree.validate().unwrap(), &self.contents)
    }
}

fn xattr(name: &str, value: &[u8]) -> Xattr {
    Xattr { name: name.as_bytes().into(), value: value.into() }
}

fn with_xattrs(permissions: u16, xattrs: Vec<Xattr>) -> Meta {
    Meta { xattrs, ..meta(permissions) }
}

#[test]
fn empty_tree() {
    let image = Builder::new(&[]).check();
    assert_eq!(image.len(), 4096);
}

/// Superblock 1152 bytes, root 64 and its entries 27 + 30 × (12 + 19), each pipe 64: the last one would end with the first block.
#[test]
fn inodes_that_end_with_a_block() {
    let mut builder = Builder::new(&[]);
    for number in 0..30 {
        builder.add(&format!("{number:019}"), meta(0o644), NodeKind::Fifo);
    }
    assert_eq!(builder.check().len(), 8192);
}

#[test]
fn directories_of_every_size() {
    let mut builder = Builder::new(&[1]);
    let file = builder.file(1, 0, 0);
    // `.` and `..` take 27 bytes, an entry 12 and its name: sizes around what fits behind an inode (4032) and
    // around whole blocks.
    for size in (3980..4110).chain(8150..8200) {
        let mut left: usize = size - 27;
        let mut names = Vec::new();
        while left > 0 {
            let length = if left > 400 {
                200
            } else if left > 267 {
                left / 2 - 12
            } else {
                left - 12
            };
            names.push(format!("{:0length$}", names.len()).into_bytes());
            left -= 12 + length;
        }
        builder.add(&format!("directory{size}"), meta(0o755), directory(names.into_iter().map(|name| (name, file))));
    }
    let before_dots = [b"!".to_vec(), b"-".to_vec(), b"+a".to_vec(), b"..!".to_vec(), b"...".to_vec(), vec![0xff; 255]];
    builder.add("before dots", meta(0o755), directory(before_dots.into_iter().map(|name| (name, file))));
    builder.check();
}

#[test]
fn many_names() {
    let mut builder = Builder::new(&[1]);
    let file = builder.file(1, 0, 0);
    // Beyond what 16 bits of links can count.
    let links = (0..70_000).map(|number| (format!("link{number}").into_bytes(), file));
    builder.add("links", meta(0o700), directory(links));
    let subdirectories: Vec<_> =
        (0..3000).map(|number| (format!("{number}").into_bytes(), builder.node(meta(0o1777), directory([])))).collect();
    builder.add("subdirectories", meta(0o711), directory(subdirectories));
    // fsck.erofs recurses, and overflows its stack at a depth of 1000.
    let mut deep = builder.node(meta(0o755), directory([]));
    for _ in 0..200 {
        deep = builder.node(meta(0o755), directory([(b"d".to_vec(), deep)]));
    }
    builder.root.insert(b"deep"[..].into(), deep);
    builder.check();
}

#[test]
fn symlinks_of_every_length() {
    let mut builder = Builder::new(&[]);
    for length in (1..100).chain(3900..=4095) {
        builder.add(&format!("link{length}"), meta(0o777), NodeKind::Symlink(vec![b'x'; length].into()));
        let trusted = with_xattrs(0o777, vec![xattr("trusted.a", &vec![b'v'; length % 50])]);
        builder.add(&format!("link with attribute {length}"), trusted, NodeKind::Symlink(vec![b'y'; length].into()));
    }
    builder.check();
}

#[test]
fn attributes() {
    let mut builder = Builder::new(&[]);
    let file = || NodeKind::Regular { size: 0, extents: vec![] };
    // More than an inode can share, and shared ones that cross blocks.
    let many: Vec<_> = (0..300).map(|number| xattr(&format!("user.number{number:03}"), &[b'v'; 90])).collect();
    builder.add("many 1", with_xattrs(0o644, many.clone()), file());
    builder.add("many 2", with_xattrs(0o644, many), directory([]));
    builder.add("large", with_xattrs(0o644, vec![xattr("user.large", &vec![b'L'; 65_535])]), file());
    let full = (0..3).map(|number| xattr(&format!("trusted.{number}"), &vec![b'0' + number; 65_500])).collect();
    builder.add("full", with_xattrs(0o644, full), directory([]));
    builder.add("empty value", with_xattrs(0o644, vec![xattr("user.empty", b"")]), file());
    builder.add("long name", with_xattrs(0o644, vec![xattr(&format!("user.{}", "n".repeat(250)), b"v")]), file());
    let capability = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    builder.add("capability", with_xattrs(0o4755, vec![xattr("security.capability", capability)]), file());
    let acl = acl(&[(1, 7, u32::MAX), (2, 5, 1234), (4, 5, u32::MAX), (16, 5, u32::MAX), (32, 0, u32::MAX)]);
    let acls = vec![xattr("system.posix_acl_access", &acl), xattr("system.posix_acl_default", &acl)];
    builder.add("acl", with_xattrs(0o750, acls.clone()), directory([]));
    builder.add("acl again", with_xattrs(0o750, acls), directory([]));
    builder.check();
}

/// A POSIX ACL of tag, permissions, id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[test]
fn owners_and_times() {
    let mut builder = Builder::new(&[]);
    let times = [i64::from(i32::MIN), -1, 0, 1, i64::from(i32::MAX) + 1, 253_402_300_799, -3_155_673_600];
    for (number, seconds) in times.into_iter().enumerate() {
        let mtime = Timestamp { seconds, nanoseconds: 999_999_999 };
        let meta = Meta { permissions: 0o7777, uid: u32::MAX - 1, gid: 4_000_000_000, mtime, xattrs: vec![] };
        builder.add(&format!("file{number}"), meta, NodeKind::Socket);
    }
    for (major, minor) in [(0, 0), (1, 3), (8, 255), (8, 256), (4095, 1_048_575)] {
        builder.add(&format!("char {major} {minor}"), meta(0o600), NodeKind::CharDevice { major, minor });
        builder.add(&format!("block {major} {minor}"), meta(0o600), NodeKind::BlockDevice { major, minor });
    }
    builder.check();
}

#[test]
fn large_and_sparse_files() {
    const TIB: u64 = 1 << 40;
    let mut builder = Builder::new(&[1024, 64]);
    let at = |device, block: u64| Some((BlobIndex(device), DeviceAddr(block * 4096)));
    let extent = |length, location| Extent { length, location };
    let files = [
        vec![extent(1024 * 4096, at(0, 0))],
        vec![extent(1022 * 4096 + 1, at(0, 1))],
        vec![extent(TIB, None)],
        vec![extent(i64::MAX.cast_unsigned(), None)],
        vec![extent(TIB, None), extent(64 * 4096, at(1, 0))],
        vec![extent(4 << 20, None), extent(64 * 4096, at(1, 0)), extent(4 << 20, None)],
        vec![extent(4096, at(0, 7)), extent(4096, None), extent(5, at(0, 8))],
        vec![extent(4096, at(0, 7)), extent(4096, at(1, 8)), extent(4096, at(1, 9)), extent(4096, at(0, 10))],
    ];
    for (number, extents) in files.into_iter().enumerate() {
        let size = extents.iter().map(|extent| extent.length).sum();
        builder.add(&format!("file{number}"), meta(0o644), NodeKind::Regular { size, extents });
    }
    builder.check();
}

#[test]
fn many_devices() {
    let mut builder = Builder::new(&vec![1; 400]);
    for device in 0..400 {
        let id = builder.file(1, device, 0);
        builder.root.insert(format!("file{device}").into_bytes().into(), id);
    }
    builder.check();
}

/// The root's number has 16 bits: the largest device table must leave it in reach.
#[test]
fn most_devices() {
    let device = Device { digest: Digest::sha256_of(b""), size: 4096 };
    let root = Node { meta: meta(0o755), kind: directory([]) };
    let tree = Tree { nodes: vec![root], root: NodeId(0), devices: vec![device; MAX_BLOBS] };
    let image = write_bootstrap(&tree.clone().validate().unwrap());
    assert_eq!(Bootstrap::parse(image.as_slice()).unwrap().validate().unwrap().entries, 1);
    let devices = vec![tree.devices[0].clone(); MAX_BLOBS + 1];
    assert!(Tree { devices, ..tree }.validate().is_err());
}
