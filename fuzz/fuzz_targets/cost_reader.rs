//! What reading an image costs whose chunk index is valid and as awkward as the fuzzer can make it: many chunks, stored in next to nothing,
//! listed in any order. Nothing of it can be decoded.
#![no_main]

mod memory;

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use lazo_format::{
    BLOCK_SIZE, BlobIndex, BlobRecord, ChunkDigest, ChunkIndex, ChunkRecord, Device, DeviceAddr, Digest, Encoding,
    IndexContents, Meta, Node, NodeId, NodeKind, PrefetchRange, Tree, encode_index, write_bootstrap,
};
use lazo_storage::cache::{Cache, CacheOptions};
use lazo_storage::{BlobSource, ByteStream, LazoImage, Parts, Prefetch, Reader, SourceError};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::Runtime;

/// Most memory that reads and the prefetch list may take beside the image's metadata, bytes: 7000 chunks in flight at some 500 bytes,
/// 9000 staged ones, and buffers.
const MEMORY: usize = 24 << 20;

/// How long a read and the prefetch list are let go on; both end with errors, sooner or later.
const TIME: Duration = Duration::from_millis(50);

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));

/// A source of zeros.
struct Zeros;

impl BlobSource for Zeros {
    fn name(&self) -> &str {
        "zeros"
    }

    fn open_range<'a>(
        &'a self,
        _blob: &'a BlobRecord,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        let length = usize::try_from(range.end - range.start).unwrap();
        let stream: ByteStream = Box::pin(futures_util::stream::once(async move { Ok(vec![0; length].into()) }));
        Box::pin(async { Ok(stream) })
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((head, shapes)) = data.split_first_chunk::<4>().filter(|(_, shapes)| !shapes.is_empty()) else { return };
    let count = 1 + u32::from(u16::from_le_bytes([head[0], head[1]]));
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), count, shapes);
    let image = LazoImage::adopt("fuzz".into(), dir.path(), dir.path()).expect("a valid image");
    let cache = Cache::open(dir.path(), CacheOptions::default(), Arc::default()).expect("a cache");
    let ((), memory) = memory::peak(|| {
        let (index, source) = (Arc::clone(image.index()), Arc::new(Zeros) as Arc<dyn BlobSource>);
        let reader = Arc::new(Reader::new(Parts::new(index, vec![source], cache, RUNTIME.handle().clone())));
        reader.start_prefetch(Prefetch::Hints);
        let at = DeviceAddr(u64::from(head[2]) * u64::from(count) / 256 * BLOCK_SIZE);
        RUNTIME.block_on(async {
            let mut buffer = vec![0; usize::from(head[3]) * 4096];
            let read = reader.read(BlobIndex(0), at, &mut buffer);
            let _ = tokio::time::timeout(TIME, read).await;
        });
    });
    assert!(memory <= MEMORY, "{memory} bytes for {count} chunks");
});

/// An image's files: chunks of one to four blocks, stored in a few bytes, listed from both ends.
fn write(dir: &Path, count: u32, shapes: &[u8]) {
    let (mut stored, mut device) = (0, 0);
    let chunks: Vec<ChunkRecord> = (0..count)
        .map(|number| {
            let shape = u32::from(shapes[number as usize % shapes.len()]);
            let chunk = ChunkRecord {
                compressed_offset: stored,
                compressed_size: 1 + shape % 16,
                device_offset: DeviceAddr(device),
                device_size: 4096 * (1 + shape / 64),
                encoding: Encoding::Zstd,
                digest: ChunkDigest([7; 32]),
            };
            (stored, device) = (chunk.compressed_range().end, chunk.device_range().end);
            chunk
        })
        .collect();
    let digest = Digest::sha256_of(b"fuzz");
    let record = BlobRecord {
        digest,
        compressed_size: stored,
        device_size: device,
        first_chunk: ChunkIndex(0),
        chunk_count: count,
    };
    let root = Node { meta: Meta::default(), kind: NodeKind::Directory(Default::default()) };
    let tree = Tree { nodes: vec![root], root: NodeId(0), devices: vec![Device { digest, size: device }] };
    let bootstrap = write_bootstrap(&tree.validate().unwrap());
    let listed = (0..count).map(|number| if number % 2 == 0 { number / 2 } else { count - 1 - number / 2 });
    let prefetch = listed.map(|first| PrefetchRange { first: ChunkIndex(first), count: 1 }).collect();
    let contents = IndexContents { blobs: vec![record], chunks, prefetch, entries: 1, ..IndexContents::default() };
    std::fs::write(dir.join("index"), encode_index(&contents, &bootstrap).unwrap()).unwrap();
    std::fs::write(dir.join("bootstrap"), &bootstrap).unwrap();
}
