//! The bytes of a small image, pinned: images that exist must stay readable, and equal input must give equal digests.
#![allow(clippy::unwrap_used, missing_docs, reason = "test code")]

mod support;

use lazo_format::*;
use support::{device_contents, devices, directory, meta};

fn xattr(name: &str, value: &[u8]) -> Xattr {
    Xattr { name: name.as_bytes().into(), value: value.into() }
}

/// One of each kind: shared and own attributes, a hard link, a hole, two devices, an inline and a block symlink.
fn tree() -> Tree {
    let at = |device, block: u64| Some((BlobIndex(device), DeviceAddr(block * 4096)));
    let regular =
        |extents: Vec<Extent>| NodeKind::Regular { size: extents.iter().map(|extent| extent.length).sum(), extents };
    let mtime = Timestamp { seconds: -1, nanoseconds: 123_456_789 };
    let owned = Meta {
        permissions: 0o6755,
        uid: 4_000_000_000,
        gid: 1000,
        mtime,
        xattrs: vec![xattr("user.shared", b"value")],
    };
    let xattrs = vec![xattr("user.shared", b"value"), xattr("trusted.own", b"abc")];
    let nodes = [
        (Meta { xattrs, ..meta(0o755) }, directory([(b"dir".to_vec(), NodeId(1)), (b"empty".to_vec(), NodeId(3))])),
        (
            meta(0o1777),
            directory(
                ["file", "link", "sparse", "short", "long", "char", "block", "pipe", "sock"]
                    .iter()
                    .zip([2, 2, 4, 5, 6, 7, 8, 9, 10])
                    .map(|(name, node)| (name.as_bytes().to_vec(), NodeId(node))),
            ),
        ),
        (owned, regular(vec![Extent { length: 3 * 4096 + 17, location: at(0, 2) }])),
        (meta(0o600), regular(vec![])),
        (
            meta(0o644),
            regular(vec![Extent { length: 8192, location: None }, Extent { length: 4097, location: at(1, 5) }]),
        ),
        (meta(0o777), NodeKind::Symlink(b"../target"[..].into())),
        (meta(0o777), NodeKind::Symlink(vec![b'l'; 4095].into())),
        (meta(0o666), NodeKind::CharDevice { major: 1, minor: 3 }),
        (meta(0o660), NodeKind::BlockDevice { major: 259, minor: 70_000 }),
        (meta(0o600), NodeKind::Fifo),
        (meta(0o600), NodeKind::Socket),
    ];
    let nodes = nodes.into_iter().map(|(meta, kind)| Node { meta, kind }).collect();
    Tree { nodes, root: NodeId(0), devices: devices(&device_contents(&[8, 16])) }
}

fn index(tree: &ValidTree, bootstrap: &[u8]) -> Vec<u8> {
    let data = device_contents(&[8, 16]);
    let chunk = |device: usize, blocks: std::ops::Range<usize>, stored: (u64, u32), encoding| ChunkRecord {
        compressed_offset: stored.0,
        compressed_size: stored.1,
        device_offset: DeviceAddr(blocks.start as u64 * 4096),
        device_size: u32::try_from(blocks.len() * 4096).unwrap(),
        encoding,
        digest: ChunkDigest::of(&data[device][blocks.start * 4096..blocks.end * 4096]),
    };
    let blob = |device: usize, compressed_size, first_chunk, chunk_count| BlobRecord {
        digest: tree.tree().devices[device].digest,
        compressed_size,
        device_size: data[device].len() as u64,
        first_chunk: ChunkIndex(first_chunk),
        chunk_count,
    };
    let contents = IndexContents {
        blobs: vec![blob(0, 13_192, 0, 2), blob(1, 777, 2, 1)],
        chunks: vec![
            chunk(0, 0..6, (0, 5000), Encoding::Zstd),
            chunk(0, 6..8, (5000, 8192), Encoding::Raw),
            chunk(1, 0..16, (0, 777), Encoding::Zstd),
        ],
        prefetch: vec![
            PrefetchRange { first: ChunkIndex(2), count: 1 },
            PrefetchRange { first: ChunkIndex(0), count: 2 },
        ],
        entries: tree.entries(),
        file_bytes: tree.file_bytes(),
        has_xattrs: tree.has_xattrs(),
        has_acls: tree.has_acls(),
    };
    encode_index(&contents, bootstrap).unwrap()
}

fn compare(name: &str, actual: &[u8], golden: &[u8], digest: &str) {
    let keep = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&keep, actual).unwrap();
    assert!(actual == golden, "format changed: bump the version ({} has the new bytes)", keep.display());
    assert_eq!(ChunkDigest::of(actual).to_string(), digest, "the golden file was replaced: bump the version");
}

#[test]
fn bytes_are_pinned() {
    let tree = tree().validate().unwrap();
    let bootstrap = write_bootstrap(&tree);
    compare("bootstrap.bin", &bootstrap, include_bytes!("golden/bootstrap.bin"), BOOTSTRAP);
    let index = index(&tree, &bootstrap);
    compare("index.bin", &index, include_bytes!("golden/index.bin"), INDEX);
    let parsed = Index::parse(index.as_slice()).unwrap();
    Bootstrap::parse(bootstrap.as_slice()).unwrap().check_devices(&parsed).unwrap();
}

/// The golden image is one that every reader reads.
#[test]
fn golden_image_is_right() {
    support::check(&tree().validate().unwrap(), &device_contents(&[8, 16]));
}

const BOOTSTRAP: &str = "blake3:6b7f52f12161d562c5470cb62cad619fea84d4273c304d2ce78cf0657909b370";
const INDEX: &str = "blake3:30f3526151ce46a0758b1cd52d6c1c3f23afd31d238fd300d881f3ceb03e1297";
