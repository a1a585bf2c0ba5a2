use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index as Pick;

use super::*;
use crate::{
    BlobIndex, BlobRecord, Bootstrap, ChunkDigest, ChunkIndex, ChunkRecord, Device, DeviceAddr, Digest, Encoding,
    Extent, Index, IndexContents, Meta, Node, NodeId, NodeKind, PrefetchRange, Tree, encode_index, write_bootstrap,
};

/// A tree of many names of few bytes, which cost most for their size.
fn bootstrap(files: u32) -> Vec<u8> {
    let node = |kind| Node { meta: Meta::default(), kind };
    let name = |number: u32| -> Box<[u8]> { format!("{number:x}").into_bytes().into() };
    // Each file has two names, and every second one is a directory.
    let directories = (0..files / 2).map(|_| node(NodeKind::Directory(BTreeMap::new())));
    let extent = Extent { length: 1, location: Some((BlobIndex(0), DeviceAddr(0))) };
    let regular = (files / 2..files).map(|_| node(NodeKind::Regular { size: 1, extents: vec![extent] }));
    let names = (0..files).chain(files / 2..files).zip(0..).map(|(file, place)| (name(place), NodeId(file + 1)));
    let root = node(NodeKind::Directory(names.collect()));
    let devices = vec![Device { digest: Digest::sha256_of(b"blob"), size: 4096 }];
    let nodes = std::iter::once(root).chain(directories).chain(regular).collect();
    write_bootstrap(&Tree { nodes, root: NodeId(0), devices }.validate().unwrap())
}

/// Blobs of a chunk each, all listed from the last to the first.
fn index(blobs: u16) -> Vec<u8> {
    let chunk = ChunkRecord {
        compressed_offset: 0,
        compressed_size: 1,
        device_offset: DeviceAddr(0),
        device_size: 4096,
        encoding: Encoding::Zstd,
        digest: ChunkDigest::of(b"chunk"),
    };
    let record = |number: u16| BlobRecord {
        digest: Digest::sha256_of(&number.to_le_bytes()),
        compressed_size: 1,
        device_size: 4096,
        first_chunk: ChunkIndex(number.into()),
        chunk_count: 1,
    };
    let prefetch = (0..blobs).rev().map(|number| PrefetchRange { first: ChunkIndex(number.into()), count: 1 });
    let contents = IndexContents {
        blobs: (0..blobs).map(record).collect(),
        chunks: vec![chunk; blobs.into()],
        prefetch: prefetch.collect(),
        ..IndexContents::default()
    };
    encode_index(&contents, b"").unwrap()
}

#[test]
fn what_is_valid_costs_in_proportion_to_its_size() {
    for files in [2, 1000, 20_000] {
        let bytes = bootstrap(files);
        assert!(Bootstrap::parse(bytes.as_slice()).unwrap().validate().is_ok());
        assert_bootstrap_is_cheap(&bytes);
    }
    for blobs in [1, 100, 4096] {
        let bytes = index(blobs);
        assert!(Index::parse(bytes.as_slice()).unwrap().validate().is_ok());
        assert_index_is_cheap(&bytes);
    }
}

fn damaged(mut bytes: Vec<u8>, changes: Vec<(Pick, u8)>, from: usize) -> Vec<u8> {
    let length = bytes.len() - from;
    changes.into_iter().for_each(|(at, value)| bytes[from + at.index(length)] = value);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    // Behind the block that has a checksum.
    #[test]
    fn what_is_damaged_costs_no_more(changes in vec((any::<Pick>(), any::<u8>()), 1..8), files in 100..400_u32) {
        assert_bootstrap_is_cheap(&damaged(bootstrap(files), changes.clone(), 4096));
        assert_index_is_cheap(&damaged(index(60), changes, 84));
    }
}
