//! What images made of very many or very small chunks may cost.

use lazo_format::{ChunkDigest, Encoding};

use super::*;
use crate::blob::{Blob, MIN_WEIGHT};
use crate::flight::Flight;

/// Chunks of one block each, of which one byte is stored.
const TINY: u32 = 300_000;

/// An image of tiny chunks that nobody can decode.
fn tiny(prefetch: Vec<PrefetchRange>) -> Image {
    let chunks = (0..TINY).map(|number| ChunkRecord {
        compressed_offset: number.into(),
        compressed_size: 1,
        device_offset: DeviceAddr(u64::from(number) * 4096),
        device_size: 4096,
        encoding: Encoding::Zstd,
        digest: ChunkDigest([0; 32]),
    });
    let blob = Bytes::from(vec![7; TINY as usize]);
    let record = BlobRecord {
        digest: Digest::sha256_of(&blob),
        compressed_size: TINY.into(),
        device_size: u64::from(TINY) * 4096,
        first_chunk: ChunkIndex(0),
        chunk_count: TINY,
    };
    let contents =
        IndexContents { blobs: vec![record], chunks: chunks.collect(), prefetch, ..IndexContents::default() };
    Image { content: Vec::new(), blob, contents, dir: tempfile::tempdir().unwrap() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_a_bounded_number_of_chunks_however_small_they_are() {
    let image = tiny(Vec::new());
    let blob = Arc::new(Blob::open(image.index(), BLOB, &image.cache()).unwrap());
    let most = |limit: u64| u32::try_from(limit / MIN_WEIGHT).unwrap();
    let part = blob.first_part(&(5..TINY), MAX_REQUEST).unwrap();
    assert_eq!(part, 5..5 + most(MAX_REQUEST));
    assert_eq!(blob.first_part(&(TINY - 3..TINY), MAX_REQUEST).unwrap(), TINY - 3..TINY);

    let mut joined: Vec<Arc<Flight>> = Vec::new();
    let mut claims = blob.claim(TINY / 2..TINY / 2 + 1, &mut joined);
    claims[0].widen(MAX_WINDOW, MAX_WINDOW, |_| false).unwrap();
    assert_eq!(claims[0].chunks().len() as u32, 2 * most(MAX_WINDOW) + 1);
    assert_eq!(claims[0].weight().unwrap(), u64::from(2 * most(MAX_WINDOW) + 1) * MIN_WEIGHT);
    let flights = blob.flights_of(0..TINY).len();
    assert_eq!(flights as u32, 2 * most(MAX_WINDOW) + 1, "and no more is on its way");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_that_answers_reads_opens_no_blob() {
    let image = Image::new(3);
    let registry = image.registry();
    image.process(&registry).read(0..3 * CHUNK).await.unwrap();
    let process = image.process(&registry);
    let mut byte = [0];
    assert!(!process.reader.read_cached(BLOB, DeviceAddr(0), &mut byte).unwrap(), "it is there, but not open");
    assert!(process.reader.open(BLOB).await.unwrap());
    assert!(!process.reader.open(BLOB).await.unwrap());
    assert!(process.reader.read_cached(BLOB, DeviceAddr(0), &mut byte).unwrap());
    assert_eq!(byte[0], image.content[0]);
    assert!(process.reader.open(BlobIndex(1)).await.is_err());
}

/// Each range is one of the last chunks first, so that none is joined with another.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_prefetch_list_leaves_the_threads_to_others() {
    let ranges = (0..TINY).rev().map(|number| PrefetchRange { first: ChunkIndex(number), count: 1 });
    let image = tiny(ranges.collect());
    let registry = image.registry();
    let process = image.process(&registry);
    process.reader.start_prefetch(Prefetch::Hints);
    let metrics = Arc::clone(&process.reader.metrics);
    process.until("a part of the list was taken", |_| metrics.prefetch_chunks.get() > 0).await;
    // What is counted is asked for soon after: far less than the list when the first requests are under way.
    assert!(metrics.prefetch_chunks.get() <= 3 * 4096, "{}", metrics.prefetch_chunks.get());
    let begin = Instant::now();
    drop(process);
    assert!(begin.elapsed() < PATIENCE);
}
