//! What every source must do, whatever it is.

use std::error::Error as _;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use futures_util::{StreamExt as _, future};
use lazo_format::{BlobRecord, ChunkIndex, Digest};
use lazo_storage::{BlobSource, ByteStream, ErrorKind, SourceError};

use super::servers::{KEY_ID, LOGIN, SECRET_KEY};

/// Ranges at random places that each source is asked for.
const RANDOM_RANGES: usize = 60;

/// Random numbers, the same in each run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// xorshift64*.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn range(&mut self, size: u64) -> Range<u64> {
        let (a, b) = (self.next() % size, self.next() % size);
        a.min(b)..a.max(b) + 1
    }
}

/// Three MiB and some bytes: more than a piece of any source.
pub(crate) fn bytes() -> Vec<u8> {
    let mut random = Random::new(7);
    let mut bytes: Vec<u8> = (0..(3 << 20) / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    bytes.extend_from_slice(b"and an end");
    bytes
}

pub(crate) fn record(bytes: &[u8]) -> BlobRecord {
    BlobRecord {
        digest: Digest::sha256_of(bytes),
        compressed_size: bytes.len() as u64,
        device_size: 0,
        first_chunk: ChunkIndex(0),
        chunk_count: 0,
    }
}

/// What of `bytes` a range is.
pub(crate) fn part(bytes: &[u8], range: &Range<u64>) -> Vec<u8> {
    bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].to_vec()
}

/// All that comes, and what it ends with.
pub(crate) async fn drain(mut stream: ByteStream) -> (Vec<u8>, Option<SourceError>) {
    let mut read = Vec::new();
    while let Some(piece) = stream.next().await {
        match piece {
            Ok(piece) => read.extend_from_slice(&piece),
            Err(error) => return (read, Some(error)),
        }
    }
    (read, None)
}

pub(crate) async fn read(source: &dyn BlobSource, blob: &BlobRecord, range: Range<u64>) -> Vec<u8> {
    let (read, error) = drain(source.open_range(blob, range).await.unwrap()).await;
    assert!(error.is_none(), "{error:?}");
    read
}

/// The failure of a request that must fail before any byte comes.
pub(crate) async fn failure(source: &dyn BlobSource, blob: &BlobRecord, range: Range<u64>) -> SourceError {
    match source.open_range(blob, range).await {
        Ok(stream) => panic!("opened; {:?}", drain(stream).await.1),
        Err(error) => told(error),
    }
}

/// An error that was looked at as a user would: it says something, and no secret.
pub(crate) fn told(error: SourceError) -> SourceError {
    let mut text = format!("{error} / {error:?}");
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(text, " / {error}").unwrap();
        cause = error.source();
    }
    assert!(!error.to_string().trim().is_empty());
    let password = LOGIN.split_once(':').unwrap().1;
    for secret in [password, SECRET_KEY, KEY_ID, "X-Amz", "Signature"] {
        assert!(!text.contains(secret), "{text} tells {secret}");
    }
    error
}

/// Every part of a blob, alone and with others.
pub(crate) async fn exact_ranges(source: Arc<dyn BlobSource>) {
    let bytes = bytes();
    let (blob, size) = (record(&bytes), bytes.len() as u64);
    let mib = 1 << 20;
    let fixed =
        [0..1, 0..size, 0..mib, size - 1..size, 1..size, size / 2..size / 2 + 1, mib - 1..mib + 1, mib..2 * mib];
    let mut random = Random::new(1);
    let random = std::iter::repeat_with(|| random.range(size)).take(RANDOM_RANGES);
    for range in fixed.into_iter().chain(random) {
        let read = read(&*source, &blob, range.clone()).await;
        assert!(read == part(&bytes, &range), "bytes {range:?} are {} others", read.len());
    }
    assert_eq!(read(&*source, &blob, 5..5).await, b"");
    for outside in [size - 1..size + 1, size..size + 1, Range { start: 5, end: 4 }] {
        assert_eq!(failure(&*source, &blob, outside).await.kind, ErrorKind::BadAnswer);
    }
}

/// 32 at a time, all open before one is read.
pub(crate) async fn parallel_ranges(source: Arc<dyn BlobSource>) {
    let bytes = bytes();
    let blob = record(&bytes);
    let mut random = Random::new(2);
    let ranges: Vec<_> = std::iter::repeat_with(|| random.range(blob.compressed_size)).take(32).collect();
    let streams =
        future::try_join_all(ranges.iter().map(|range| source.open_range(&blob, range.clone()))).await.unwrap();
    for ((read, error), range) in future::join_all(streams.into_iter().map(drain)).await.into_iter().zip(ranges) {
        assert!(error.is_none(), "{error:?}");
        assert!(read == part(&bytes, &range));
    }
}

/// A blob that is not there, and one that is not as long as the index says: errors, never other bytes.
pub(crate) async fn other_blobs(source: Arc<dyn BlobSource>) {
    let bytes = bytes();
    let (blob, size) = (record(&bytes), bytes.len() as u64);
    let absent = BlobRecord { digest: Digest::sha256_of(b"another"), ..blob.clone() };
    for range in [0..1, 0..size] {
        assert_eq!(failure(&*source, &absent, range).await.kind, ErrorKind::NotFound);
    }
    for wrong in [size - 1, size + 1, size / 2, 2 * size] {
        let blob = BlobRecord { compressed_size: wrong, ..blob.clone() };
        for range in [0..1, 0..wrong, wrong - 1..wrong] {
            assert_eq!(failure(&*source, &blob, range).await.kind, ErrorKind::BadAnswer, "{wrong} bytes");
        }
    }
}

/// What is dropped is over: others are served as ever, although as many were dropped as no source has at a time.
pub(crate) async fn dropped_streams(source: Arc<dyn BlobSource>) {
    let bytes = bytes();
    let blob = record(&bytes);
    for _ in 0..100 {
        let mut stream = source.open_range(&blob, 0..blob.compressed_size).await.unwrap();
        let first = stream.next().await.unwrap().unwrap();
        assert!(bytes.starts_with(&first));
    }
    assert!(read(&*source, &blob, 10..1000).await == part(&bytes, &(10..1000)));
}
