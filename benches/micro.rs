//! What every lookup and every chunk costs, apart from files, mounts and networks.

use std::{collections::BTreeMap, hint::black_box};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lazo_format::{
    BlobIndex, BlobRecord, Bootstrap, ChunkDecoder, ChunkDigest, ChunkEncoder, ChunkIndex, ChunkRecord,
    DEFAULT_CHUNK_SIZE, DeviceAddr, Digest, Encoding, Index, IndexContents, Meta, Node, NodeId, NodeKind, Timestamp,
    Tree, encode_index, write_bootstrap,
};

/// Entries of the directory and chunks of the index: a large image's.
const MANY: u32 = 100_000;

fn meta() -> Meta {
    Meta { permissions: 0o755, uid: 0, gid: 0, mtime: Timestamp { seconds: 0, nanoseconds: 0 }, xattrs: Vec::new() }
}

fn name(number: u32) -> Box<[u8]> {
    format!("file-{:08x}", number.wrapping_mul(2_654_435_761)).into_bytes().into()
}

fn lookup(criterion: &mut Criterion) {
    let files = (1..=MANY).map(|_| Node { meta: meta(), kind: NodeKind::Regular { size: 0, extents: Vec::new() } });
    let children: BTreeMap<_, _> = (1..=MANY).map(|number| (name(number), NodeId(number))).collect();
    let root = Node { meta: meta(), kind: NodeKind::Directory(children) };
    let tree = Tree { nodes: std::iter::once(root).chain(files).collect(), root: NodeId(0), devices: Vec::new() };
    let bootstrap = write_bootstrap(&tree.validate().expect("a valid tree"));
    let bootstrap = Bootstrap::parse(bootstrap).expect("a valid bootstrap");
    criterion.bench_function("validate a tree of 100,000", |bencher| {
        bencher.iter(|| bootstrap.validate().expect("a valid tree"));
    });
    let root = bootstrap.inode(bootstrap.root()).expect("the root");
    let names: Vec<_> = (1..=MANY).map(name).collect();
    let mut next = names.iter().cycle().step_by(7919);
    criterion.bench_function("lookup in a directory of 100,000", |bencher| {
        bencher.iter(|| bootstrap.lookup(&root, black_box(next.next().expect("a name"))).expect("a lookup"));
    });
    criterion.bench_function("list a directory of 100,000", |bencher| {
        bencher.iter(|| bootstrap.read_dir(&root, 0).expect("a directory").count());
    });
}

fn decode(criterion: &mut Criterion) {
    let lines = (0..)
        .flat_map(|number: u32| format!("{:x} lazy chunk {number}\n", number.wrapping_mul(2_654_435_761)).into_bytes());
    let data: Vec<u8> = lines.take(DEFAULT_CHUNK_SIZE as usize).collect();
    let encoded = ChunkEncoder::new(3).expect("an encoder").encode(&data).expect("a chunk");
    let record = ChunkRecord {
        compressed_offset: 0,
        compressed_size: u32::try_from(encoded.bytes.len()).expect("a size"),
        device_offset: DeviceAddr(0),
        device_size: DEFAULT_CHUNK_SIZE,
        encoding: encoded.encoding,
        digest: encoded.digest,
    };
    let (mut decoder, mut out) = (ChunkDecoder::new().expect("a decoder"), Vec::new());
    let mut group = criterion.benchmark_group("chunk");
    group.throughput(Throughput::Bytes(u64::from(DEFAULT_CHUNK_SIZE)));
    group.bench_function("decode and verify 256 KiB", |bencher| {
        bencher.iter(|| decoder.decode(black_box(&record), &encoded.bytes, &mut out).expect("a chunk"));
    });
    group.bench_function("digest 256 KiB", |bencher| bencher.iter(|| ChunkDigest::of(black_box(&data))));
    group.finish();
}

fn index(criterion: &mut Criterion) {
    let chunks = (0..MANY).map(|number| ChunkRecord {
        compressed_offset: u64::from(number) * 1000,
        compressed_size: 1000,
        device_offset: DeviceAddr(u64::from(number) * u64::from(DEFAULT_CHUNK_SIZE)),
        device_size: DEFAULT_CHUNK_SIZE,
        encoding: Encoding::Zstd,
        digest: ChunkDigest::of(&number.to_le_bytes()),
    });
    let device_size = u64::from(MANY) * u64::from(DEFAULT_CHUNK_SIZE);
    let blob = BlobRecord {
        digest: Digest::sha256_of(b"blob"),
        compressed_size: u64::from(MANY) * 1000,
        device_size,
        first_chunk: ChunkIndex(0),
        chunk_count: MANY,
    };
    let contents = IndexContents { blobs: vec![blob], chunks: chunks.collect(), ..IndexContents::default() };
    let bytes = encode_index(&contents, b"bootstrap").expect("an index");
    criterion.bench_function("open an index of 100,000 chunks", |bencher| {
        bencher.iter(|| Index::parse(black_box(&bytes[..])).expect("a valid index"));
    });
    let index = Index::parse(bytes).expect("a valid index");
    criterion.bench_function("validate an index of 100,000 chunks", |bencher| {
        bencher.iter(|| index.validate().expect("a valid index"));
    });
    let mut at = 0;
    criterion.bench_function("find a chunk among 100,000", |bencher| {
        bencher.iter(|| {
            at = (at + 7919 * 4096) % device_size;
            index.chunk_at(BlobIndex(0), DeviceAddr(black_box(at))).expect("a chunk")
        });
    });
}

criterion_group!(benches, lookup, decode, index);
criterion_main!(benches);
