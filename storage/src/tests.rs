//! The data path against a source that counts, fails and lies.
#![expect(clippy::cast_possible_truncation, reason = "a blob of some megabytes")]

mod costs;
mod leaving;
mod sealing;
mod sharing;
mod sweeping;

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::{self, StreamExt as _};
use lazo_format::{
    BlobIndex, BlobRecord, ChunkEncoder, ChunkIndex, ChunkRecord, DeviceAddr, Digest, Index, IndexContents,
    PrefetchRange, encode_index,
};
use tokio::runtime::Handle;

use crate::cache::{Cache, CacheOptions};
use crate::error::ReadError;
use crate::mapped::Mapped;
use crate::prefetch::Prefetch;
use crate::rate::RateLimiter;
use crate::reader::{Parts, Reader};
use crate::source::{BlobSource, ByteStream, ErrorKind, SourceError};
use crate::table::ImageIndex;
use crate::upstream::{Policy, Upstream};
use crate::window::{MAX_AHEAD, MAX_REQUEST, MAX_WINDOW};

const CHUNK: usize = 64 << 10;
const BLOB: BlobIndex = BlobIndex(0);

/// Longest wait for something that happens in the background.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes that come at a time.
const PIECE: usize = 20_000;

/// Of a process with little patience.
const OUTAGE_LIMIT: Duration = Duration::from_millis(300);

/// A blob, its content and its index.
struct Image {
    content: Vec<u8>,
    blob: Bytes,
    contents: IndexContents,
    dir: tempfile::TempDir,
}

impl Image {
    /// Of some chunks, half as large stored as not.
    fn new(chunks: u32) -> Self {
        Self::with_prefetch(chunks, Vec::new())
    }

    fn with_prefetch(chunks: u32, prefetch: Vec<PrefetchRange>) -> Self {
        let (mut content, mut blob, mut records) = (Vec::new(), Vec::new(), Vec::new());
        let mut encoder = ChunkEncoder::new(1).unwrap();
        for chunk in 0..chunks {
            let plain = noise(chunk);
            let encoded = encoder.encode(&plain).unwrap();
            records.push(ChunkRecord {
                compressed_offset: blob.len() as u64,
                compressed_size: encoded.bytes.len() as u32,
                device_offset: DeviceAddr(content.len() as u64),
                device_size: plain.len() as u32,
                encoding: encoded.encoding,
                digest: encoded.digest,
            });
            content.extend(plain);
            blob.extend(encoded.bytes);
        }
        let record = BlobRecord {
            digest: Digest::sha256_of(&blob),
            compressed_size: blob.len() as u64,
            device_size: content.len() as u64,
            first_chunk: ChunkIndex(0),
            chunk_count: chunks,
        };
        let contents = IndexContents { blobs: vec![record], chunks: records, prefetch, ..IndexContents::default() };
        Self { content, blob: blob.into(), contents, dir: tempfile::tempdir().unwrap() }
    }

    fn index(&self) -> Arc<ImageIndex> {
        // A file of its own for each: an earlier one may still be mapped, and writing it anew would cut it.
        let mut file = tempfile::tempfile_in(self.dir.path()).unwrap();
        file.write_all(&encode_index(&self.contents, b"bootstrap").unwrap()).unwrap();
        Arc::new(ImageIndex::survey(Index::parse(Mapped::new(&file).unwrap()).unwrap()).unwrap())
    }

    fn stored(&self, chunks: Range<usize>) -> Range<u64> {
        let chunks = &self.contents.chunks[chunks];
        chunks[0].compressed_offset..chunks.last().unwrap().compressed_range().end
    }

    /// A process that reads the image: what is verified is its own, the cache is shared.
    fn process(&self, source: &Arc<Registry>) -> Process<'_> {
        let source: Arc<dyn BlobSource> = Arc::<Registry>::clone(source);
        let parts = Parts::new(self.index(), vec![source], self.cache(), Handle::current());
        Process { image: self, reader: Arc::new(Reader::new(parts)) }
    }

    /// The same for one that fetches nothing but what is wanted, and has little patience.
    fn frugal_process(&self, source: &Arc<Registry>) -> Process<'_> {
        let sources: Vec<Arc<dyn BlobSource>> = vec![Arc::<Registry>::clone(source)];
        let mut parts = Parts::new(self.index(), sources.clone(), self.cache(), Handle::current());
        let policy = Policy { outage_limit: OUTAGE_LIMIT, ..Policy::default() };
        parts.upstream = Upstream::new(sources, policy, Arc::clone(&parts.metrics));
        parts.rate = RateLimiter::new(NonZeroU64::new(1), None);
        assert!(parts.rate.try_admit(1 << 40), "and no more for a long time");
        Process { image: self, reader: Arc::new(Reader::new(parts)) }
    }

    fn registry(&self) -> Arc<Registry> {
        Arc::new(Registry { blob: self.blob.clone(), requests: Mutex::default(), script: Mutex::default() })
    }

    fn cache(&self) -> Arc<Cache> {
        Cache::open(&self.state(), CacheOptions::default(), Arc::default()).unwrap()
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn cache_file(&self, name: &str) -> PathBuf {
        let mut dirs = std::fs::read_dir(self.state().join("blobs")).unwrap();
        dirs.next().unwrap().unwrap().path().join(name)
    }
}

/// A chunk whose first half is random and whose second is not.
fn noise(seed: u32) -> Vec<u8> {
    let mut state = u64::from(seed) + 0x9E37_79B9_7F4A_7C15;
    let mut bytes = vec![seed as u8; CHUNK];
    for word in bytes[..CHUNK / 2].chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    bytes
}

struct Process<'a> {
    image: &'a Image,
    reader: Arc<Reader>,
}

impl Process<'_> {
    /// Reads, and never accepts a wrong byte.
    async fn read(&self, range: Range<usize>) -> Result<(), Arc<ReadError>> {
        let mut buf = vec![0xEE; range.len()];
        self.reader.read(BLOB, DeviceAddr(range.start as u64), &mut buf).await?;
        assert!(buf == self.image.content[range], "wrong bytes");
        Ok(())
    }

    async fn read_chunk(&self, chunk: usize) -> Result<(), Arc<ReadError>> {
        self.read(chunk * CHUNK..(chunk + 1) * CHUNK).await
    }

    async fn until(&self, what: &str, done: impl Fn(&Reader) -> bool) {
        let begin = Instant::now();
        while !done(&self.reader) {
            assert!(begin.elapsed() < PATIENCE, "{what}: {:?}", self.reader.stats());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// What a request gets, in place of what was asked for.
enum Trick {
    Refuse,
    /// No answer ever.
    Hang,
    /// A byte each time that so long has passed.
    Drip(Duration),
    /// One bit of the byte at this offset of the reply is wrong.
    Flip(usize),
    Cut,
}

struct Registry {
    blob: Bytes,
    requests: Mutex<Vec<Range<u64>>>,
    script: Mutex<VecDeque<Trick>>,
}

impl Registry {
    fn requests(&self) -> Vec<Range<u64>> {
        self.requests.lock().unwrap().clone()
    }

    fn play(&self, tricks: impl IntoIterator<Item = Trick>) {
        self.script.lock().unwrap().extend(tricks);
    }

    /// Asserts that no byte was asked for twice, and gives how many were.
    fn bytes_once(&self) -> u64 {
        let mut requests = self.requests();
        requests.sort_by_key(|r| r.start);
        assert!(requests.is_sorted_by(|a, b| a.end <= b.start), "bytes asked for twice: {requests:?}");
        requests.iter().map(|r| r.end - r.start).sum()
    }
}

impl BlobSource for Registry {
    fn name(&self) -> &str {
        "test"
    }

    fn open_range<'a>(
        &'a self,
        _: &'a BlobRecord,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        self.requests.lock().unwrap().push(range.clone());
        let bytes = self.blob.slice(range.start as usize..range.end as usize);
        let trick = self.script.lock().unwrap().pop_front();
        let (piece, pause) = match &trick {
            Some(Trick::Drip(every)) => (1, Some(*every)),
            _ => (PIECE, None),
        };
        Box::pin(async move {
            // Long enough for others to join.
            tokio::time::sleep(Duration::from_millis(3)).await;
            let bytes = match trick {
                None | Some(Trick::Drip(_)) => Ok(bytes),
                Some(Trick::Refuse) => Err(SourceError::new(ErrorKind::Unreachable, "connection refused")),
                Some(Trick::Hang) => std::future::pending().await,
                Some(Trick::Cut) => Ok(bytes.slice(..bytes.len() - 1)),
                Some(Trick::Flip(at)) => {
                    let mut bytes = bytes.to_vec();
                    bytes[at] ^= 0x10;
                    Ok(bytes.into())
                }
            }?;
            // In pieces, as from a network.
            let pieces = stream::unfold(bytes, move |mut rest| async move {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => tokio::task::yield_now().await,
                }
                let piece = rest.split_to(rest.len().min(piece));
                (!piece.is_empty()).then_some((Ok(piece), rest))
            });
            Ok(pieces.boxed())
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scattered_read_is_one_request_for_exactly_its_chunks() {
    let image = Image::new(200);
    let registry = image.registry();
    let process = image.frugal_process(&registry);
    process.read(100 * CHUNK + 5..100 * CHUNK + 6).await.unwrap();
    process.read(150 * CHUNK + 1000..153 * CHUNK + 1000).await.unwrap();
    process.read(20 * CHUNK..21 * CHUNK).await.unwrap();
    assert_eq!(registry.requests(), [image.stored(100..101), image.stored(150..154), image.stored(20..21)]);
    process.read(150 * CHUNK..154 * CHUNK).await.unwrap();
    assert_eq!(registry.requests().len(), 3, "what is cached needs no request");
    assert_eq!(process.reader.stats().chunks, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_brings_its_neighbours_along_which_are_decoded_when_they_are_read() {
    let image = Image::new(200);
    let registry = image.registry();
    let process = image.process(&registry);
    process.read_chunk(100).await.unwrap();
    let first = registry.requests();
    assert!(
        matches!(&first[..], [one] if one.start <= image.stored(99..100).start && one.end >= image.stored(101..105).end)
    );
    for chunk in [103, 99, 101] {
        process.read_chunk(chunk).await.unwrap();
    }
    let first_only =
        |request: &Range<u64>| request.start >= first[0].end || request.end <= first[0].start || *request == first[0];
    assert!(
        registry.requests().iter().all(first_only),
        "what is staged is not fetched again: {:?}",
        registry.requests()
    );
    process.read(0..200 * CHUNK).await.unwrap();
    assert_eq!(registry.bytes_once(), image.blob.len() as u64);
    assert_eq!(process.reader.stats().chunks, 200, "nothing is decoded twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_number_of_readers_of_a_chunk_share_one_flight() {
    let image = Image::new(100);
    let registry = image.registry();
    let process = image.process(&registry);
    let reads = (0..64).map(|n| process.read((40 + n % 8) * CHUNK..50 * CHUNK));
    for result in join_all(reads).await {
        result.unwrap();
    }
    // Readers that begin at neighbouring chunks may look sequential: read-ahead is allowed, a second fetch is not.
    assert!(registry.bytes_once() >= image.stored(40..50).end - image.stored(40..50).start);
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_in_order_takes_few_requests_and_no_byte_twice() {
    let image = Image::new(1024);
    let registry = image.registry();
    let process = image.process(&registry);
    for chunk in 0..1024 {
        process.read_chunk(chunk).await.unwrap();
    }
    assert_eq!(registry.bytes_once(), image.blob.len() as u64);
    let requests = registry.requests();
    assert!(requests.iter().all(|r| r.end - r.start <= MAX_REQUEST));
    let ideal = image.blob.len() as u64 / MAX_REQUEST;
    assert!((requests.len() as u64) < ideal + 32, "{} requests for {} bytes", requests.len(), image.blob.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_a_part_in_order_fetches_no_more_than_that_much_ahead() {
    let image = Image::new(1024);
    let registry = image.registry();
    let process = image.process(&registry);
    for chunk in 300..340 {
        process.read_chunk(chunk).await.unwrap();
    }
    let read = image.stored(300..340);
    let size = read.end - read.start;
    // Whatever was planned has at least been asked for when it is all there.
    let mut before = u64::MAX;
    while before != registry.bytes_once() {
        before = registry.bytes_once();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let ahead = registry.bytes_once() - size;
    assert!(ahead > 0 && ahead <= size.min(MAX_AHEAD) + MAX_WINDOW, "{ahead} bytes ahead after {size}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_process_needs_no_source() {
    let image = Image::new(50);
    let registry = image.registry();
    image.process(&registry).read(0..50 * CHUNK).await.unwrap();
    let requests = registry.requests().len();
    let later = image.process(&registry);
    later.read(0..50 * CHUNK).await.unwrap();
    assert_eq!(registry.requests().len(), requests);
    assert_eq!(later.reader.stats().requests, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_at_the_same_time_share_a_cache() {
    let image = Image::new(200);
    let registry = image.registry();
    let processes = [image.process(&registry), image.process(&registry), image.process(&registry)];
    let reads = processes.iter().enumerate().map(|(number, process)| async move {
        for chunk in 0..200 {
            process.read_chunk((chunk + number * 67) % 200).await.unwrap();
        }
    });
    join_all(reads).await;
    let later = image.process(&registry);
    later.read(0..200 * CHUNK).await.unwrap();
    assert_eq!(later.reader.stats().requests, 0, "nobody's chunks are forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_the_cache_is_noticed_and_fetched_again() {
    let image = Image::new(20);
    let registry = image.registry();
    image.process(&registry).read(0..20 * CHUNK).await.unwrap();
    let before = registry.requests().len();
    let data = OpenOptions::new().read(true).write(true).open(image.cache_file("data")).unwrap();
    let mut byte = [0];
    data.read_exact_at(&mut byte, 7 * CHUNK as u64 + 99).unwrap();
    data.write_all_at(&[byte[0] ^ 1], 7 * CHUNK as u64 + 99).unwrap();

    let process = image.process(&registry);
    process.read(0..20 * CHUNK).await.unwrap();
    assert_eq!(registry.requests()[before..], [image.stored(7..8)]);
    let later = image.process(&registry);
    later.read(0..20 * CHUNK).await.unwrap();
    assert_eq!(later.reader.stats().requests, 0, "the cache is whole again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_cut_or_removed_under_a_reader_is_no_wrong_byte() {
    let image = Image::new(20);
    let registry = image.registry();
    let process = image.process(&registry);
    process.read(0..20 * CHUNK).await.unwrap();
    OpenOptions::new().write(true).open(image.cache_file("data")).unwrap().set_len(5 * CHUNK as u64).unwrap();
    process.read(0..5 * CHUNK).await.unwrap();
    process.read(10 * CHUNK..12 * CHUNK).await.unwrap();
    std::fs::remove_dir_all(image.state()).unwrap();
    process.read(0..20 * CHUNK).await.unwrap();
    image.process(&registry).read(0..20 * CHUNK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_once_are_fetched_again_alone() {
    let image = Image::new(20);
    let registry = image.registry();
    let process = image.frugal_process(&registry);
    let wrong = image.stored(0..3).end as usize + 10;
    registry.play([Trick::Flip(wrong)]);
    process.read(0..10 * CHUNK).await.unwrap();
    assert_eq!(registry.requests(), [image.stored(0..10), image.stored(3..4)]);
    assert_eq!(process.reader.stats().wrong_chunks, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_each_time_are_an_error_for_that_chunk_only() {
    let image = Image::new(20);
    let registry = image.registry();
    let process = image.frugal_process(&registry);
    registry.play([Trick::Flip(10), Trick::Flip(10), Trick::Flip(10)]);
    let error = process.read_chunk(6).await.unwrap_err();
    assert!(matches!(&*error, ReadError::Verify { attempts: 3, chunk: ChunkIndex(6), .. }), "{error:?}");
    assert_eq!(registry.requests().len(), 3);
    process.read_chunk(15).await.unwrap();
    process.read_chunk(6).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_wait_through_a_short_outage_and_fail_in_a_long_one() {
    let image = Image::new(20);
    let registry = image.registry();
    let process = image.frugal_process(&registry);
    registry.play([Trick::Refuse]);
    for read in join_all((0..8).map(|_| process.read_chunk(6))).await {
        read.unwrap();
    }
    assert_eq!(registry.requests().len(), 2, "one for all who wait, and once more");

    registry.play((0..1000).map(|_| Trick::Refuse));
    let begin = Instant::now();
    let reads = join_all((0..8).map(|_| process.read_chunk(7))).await;
    assert!(reads.iter().all(|r| matches!(r, Err(e) if e.chunk() == Some(ChunkIndex(7)))), "{reads:?}");
    assert!(begin.elapsed() >= OUTAGE_LIMIT);
    registry.script.lock().unwrap().clear();
    // Reads go on failing at once for some seconds, except for those that probe.
    while process.read_chunk(7).await.is_err() {
        assert!(begin.elapsed() < PATIENCE, "the source is back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_answer_that_breaks_off_only_the_rest_is_fetched_again() {
    let image = Image::new(20);
    let registry = image.registry();
    let process = image.frugal_process(&registry);
    registry.play([Trick::Cut]);
    process.read(3 * CHUNK..9 * CHUNK).await.unwrap();
    let all = image.stored(3..9);
    assert_eq!(registry.requests(), [all.clone(), all.end - 1..all.end]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_beyond_the_blob_is_an_error() {
    let image = Image::new(2);
    let registry = image.registry();
    let process = image.process(&registry);
    let mut buf = [0; 10];
    for (blob, at) in [(BLOB, 2 * CHUNK as u64), (BLOB, u64::MAX - 5), (BlobIndex(1), 0)] {
        let error = process.reader.read(blob, DeviceAddr(at), &mut buf).await.unwrap_err();
        assert!(matches!(*error, ReadError::Index { .. }), "{error:?}");
    }
    process.read(2 * CHUNK..2 * CHUNK).await.unwrap();
    assert!(registry.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prefetch_list_is_fetched_in_large_requests() {
    let range = |first, count| PrefetchRange { first: ChunkIndex(first), count };
    let image = Image::with_prefetch(600, vec![range(400, 200), range(3, 1)]);
    let registry = image.registry();
    let process = image.process(&registry);
    process.reader.start_prefetch(Prefetch::Hints);
    process.until("all of the list arrives", |r| r.stats().chunks == 201).await;
    let listed =
        image.stored(3..4).end - image.stored(3..4).start + image.stored(400..600).end - image.stored(400..600).start;
    assert_eq!(registry.bytes_once(), listed);
    let made = registry.requests();
    assert!(made.len() < 16, "6.5 MiB and a chunk: {made:?}");
    process.read(400 * CHUNK..600 * CHUNK).await.unwrap();
    process.read_chunk(3).await.unwrap();
    assert_eq!(registry.requests().len(), made.len());

    let later = image.process(&registry);
    later.reader.start_prefetch(Prefetch::Hints);
    later.read_chunk(3).await.unwrap();
    assert_eq!(registry.requests().len(), made.len(), "what is cached is not fetched again");
}

#[test]
fn who_describes_a_blob_differently_has_another_cache() {
    let image = Image::new(4);
    let name = |contents: &IndexContents, dir: &Path| {
        let path = dir.join("other");
        std::fs::write(&path, encode_index(contents, b"bootstrap").unwrap()).unwrap();
        let index = Index::parse(Mapped::new(&std::fs::File::open(path).unwrap()).unwrap()).unwrap();
        let cache = Cache::open(dir, CacheOptions::default(), Arc::default()).unwrap();
        crate::blob::Blob::open(Arc::new(ImageIndex::survey(index).unwrap()), BLOB, &cache).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(dir.join("blobs")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let one = name(&image.contents, image.dir.path());
    assert_eq!(one, name(&image.contents, image.dir.path()), "the same index, the same cache");
    let mut other = image.contents.clone();
    other.chunks[1].digest.0[0] ^= 1;
    assert_eq!(name(&other, image.dir.path()).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cache_reads_go_on() {
    let image = Image::new(40);
    std::fs::create_dir(image.state()).unwrap();
    std::fs::write(image.state().join("blobs"), "in the way").unwrap();
    let registry = image.registry();
    let process = image.process(&registry);
    for chunk in [0, 1, 2, 3, 30, 3] {
        process.read_chunk(chunk).await.unwrap();
    }
    process.read(CHUNK / 2..5 * CHUNK + 77).await.unwrap();
    let all = (0..40).map(|chunk| process.read_chunk(chunk));
    assert!(join_all(all).await.into_iter().all(|read| read.is_ok()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_stops_no_reads() {
    let image = Image::new(64);
    let state = image.state();
    std::fs::create_dir(&state).unwrap();
    // Room for about a third of the blob.
    let size = format!("size={}", 20 * CHUNK);
    let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&state).status();
    assert!(mounted.unwrap().success(), "mount a tmpfs, as root");
    let _unmount = Unmount(state);
    let registry = image.registry();
    {
        let process = image.process(&registry);
        for round in 0..2 {
            for chunk in 0..64 {
                process.read_chunk(chunk).await.unwrap_or_else(|e| panic!("round {round}, chunk {chunk}: {e}"));
            }
        }
        process.read(0..64 * CHUNK).await.unwrap();
        let again = registry.requests().len();
        process.read_chunk(0).await.unwrap();
        assert_eq!(registry.requests().len(), again, "what the disk took is not fetched again");
    }
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
