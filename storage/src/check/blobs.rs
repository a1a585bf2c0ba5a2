//! Blobs: each streamed once; its SHA-256 is computed while its chunks are decoded and hashed on all cores.

use std::collections::HashSet;
use std::num::NonZero;
use std::ops::Range;
use std::sync::Arc;

use futures_util::StreamExt;
use lazo_format::{BlobIndex, ChunkDecoder, ChunkIndex, ChunkRecord, Digest, Index};
use lazo_registry::{BlobStream, LazoBlob, Source};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Progress;
use super::report::{ImageReport, MAX_FAULTS, chain};
use crate::mapped::Mapped;
use crate::table::table_of;

/// Stored bytes that one task decodes: some 40 chunks, so that handing over costs nothing beside the work.
const BATCH: usize = 4 << 20;
/// Batches waiting or being decoded at a time, for each core: 16 MiB of stored bytes a core at most, as a batch ends behind
/// the chunk that fills it.
const BATCHES_PER_CORE: usize = 2;

/// Blobs found good, with the digest of their part of the chunk table: another image may describe the same blob otherwise.
pub(super) type Known = HashSet<(Digest, String)>;

/// Something wrong with a blob.
pub(super) struct Bad {
    pub(super) digest: Digest,
    /// Its device number, where the index has the blob.
    pub(super) blob: Option<BlobIndex>,
    /// The chunk and its device addresses; `None` for the blob as a whole.
    pub(super) chunk: Option<(u32, Range<u64>)>,
    pub(super) message: String,
}

/// Checks one blob, and answers what is wrong with it.
pub(super) async fn check(
    source: &Source,
    blob: &LazoBlob,
    index: Option<&Index<Mapped>>,
    known: &mut Known,
    progress: &dyn Progress,
    report: &mut ImageReport,
) -> Vec<Bad> {
    report.blobs += 1;
    let number = index.and_then(|index| find(index, &blob.digest));
    // Of a damaged index, the chunks cannot be checked, but the blob's own digest can.
    let part = index.zip(number).and_then(|(index, number)| Some((index, table_of(index, number).ok()?)));
    let key = part.as_ref().map(|(_, (_, table))| (blob.digest, table.clone()));
    if key.as_ref().is_some_and(|key| known.contains(key)) {
        report.blobs_known += 1;
        return Vec::new();
    }
    progress.begin(&blob.digest, blob.descriptor.size());
    let chunks = part.map(|(index, (record, _))| (index, record.chunks()));
    let mut verifier = Verifier::new(chunks);
    let streamed = match source.blob(&blob.descriptor).await {
        Ok(stream) => verifier.take(stream, progress).await,
        Err(error) => Err(error),
    };
    let found = verifier.finish().await;
    report.stored_bytes += found.stored_bytes;
    report.device_bytes += found.device_bytes;
    report.chunks += found.chunks;
    report.more_faults += found.more;
    let whole = streamed.err().map(|error| (None, chain(&error)));
    let chunks =
        found.bad.into_iter().map(|(number, record, message)| (Some((number, record.device_range())), message));
    let bad = |(chunk, message)| Bad { digest: blob.digest, blob: number, chunk, message };
    let bad: Vec<Bad> = whole.into_iter().chain(chunks).map(bad).collect();
    if bad.is_empty() {
        known.extend(key);
    }
    bad
}

fn find(index: &Index<Mapped>, digest: &Digest) -> Option<BlobIndex> {
    index.blob_numbers().find(|number| index.blob(*number).is_ok_and(|record| record.digest == *digest))
}

/// What became of some chunks.
#[derive(Default)]
struct Found {
    stored_bytes: u64,
    device_bytes: u64,
    chunks: u64,
    /// At most [`MAX_FAULTS`].
    bad: Vec<(u32, ChunkRecord, String)>,
    /// Bad chunks beyond those.
    more: u64,
}

impl Found {
    fn add(&mut self, other: Self) {
        self.stored_bytes += other.stored_bytes;
        self.device_bytes += other.device_bytes;
        self.chunks += other.chunks;
        self.more += other.more;
        let room = MAX_FAULTS - self.bad.len();
        self.more += other.bad.len().saturating_sub(room) as u64;
        self.bad.extend(other.bad.into_iter().take(room));
    }
}

/// Chunks that lie back to back in `stored`.
struct Batch {
    stored: Vec<u8>,
    records: Vec<(u32, ChunkRecord)>,
}

impl Batch {
    fn verify(self) -> Found {
        let mut found = Found::default();
        let mut decoder = ChunkDecoder::new();
        let mut decoded = Vec::new();
        let mut start = 0;
        for (number, record) in self.records {
            let end = start + record.compressed_size as usize;
            let stored = self.stored.get(start..end).unwrap_or_default();
            start = end;
            found.stored_bytes += u64::from(record.compressed_size);
            let result = match &mut decoder {
                Ok(decoder) => decoder.decode(&record, stored, &mut decoded).map_err(|error| chain(&error)),
                Err(error) => Err(chain(error)),
            };
            match result {
                Ok(()) => {
                    found.chunks += 1;
                    found.device_bytes += u64::from(record.device_size);
                }
                Err(message) => found.add(Found { bad: vec![(number, record, message)], ..Found::default() }),
            }
        }
        found
    }
}

/// Cuts a blob's bytes into chunks, which other threads decode.
struct Verifier<'a> {
    /// The chunks still to come; `None` where there is no index to tell.
    chunks: Option<(&'a Index<Mapped>, Range<u32>)>,
    batch: Batch,
    /// Bytes that the batch's chunks take.
    wanted: usize,
    permits: Arc<Semaphore>,
    tasks: JoinSet<Found>,
    found: Found,
}

impl<'a> Verifier<'a> {
    fn new(chunks: Option<(&'a Index<Mapped>, Range<u32>)>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let mut verifier = Self {
            chunks,
            batch: Batch { stored: Vec::new(), records: Vec::new() },
            wanted: 0,
            permits: Arc::new(Semaphore::new(cores * BATCHES_PER_CORE)),
            tasks: JoinSet::new(),
            found: Found::default(),
        };
        verifier.plan();
        verifier
    }

    /// Decides which chunks make the next batch.
    fn plan(&mut self) {
        self.batch = Batch { stored: Vec::new(), records: Vec::new() };
        self.wanted = 0;
        let Some((index, chunks)) = &mut self.chunks else { return };
        while self.wanted < BATCH
            && let Some(number) = chunks.next()
        {
            // Validated before, so that every record can be read.
            let Ok(record) = index.chunk(ChunkIndex(number)) else { continue };
            self.wanted += record.compressed_size as usize;
            self.batch.records.push((number, record));
        }
        self.batch.stored.reserve_exact(self.wanted);
    }

    /// Takes the whole stream.
    async fn take(&mut self, mut stream: BlobStream, progress: &dyn Progress) -> Result<(), lazo_registry::Error> {
        while let Some(bytes) = stream.next().await {
            let mut bytes = bytes?;
            progress.advance(bytes.len() as u64);
            while !bytes.is_empty() && self.wanted > 0 {
                let missing = self.wanted - self.batch.stored.len();
                let part = bytes.split_to(missing.min(bytes.len()));
                self.batch.stored.extend_from_slice(&part);
                if self.batch.stored.len() == self.wanted {
                    self.dispatch().await;
                }
            }
        }
        Ok(())
    }

    /// Hands the full batch over, as soon as fewer than the bound are under way.
    async fn dispatch(&mut self) {
        while let Some(done) = self.tasks.try_join_next() {
            self.found.add(done.unwrap_or_default());
        }
        let batch = std::mem::replace(&mut self.batch, Batch { stored: Vec::new(), records: Vec::new() });
        // The semaphore is never closed.
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        self.tasks.spawn_blocking(move || {
            let found = batch.verify();
            drop(permit);
            found
        });
        self.plan();
    }

    async fn finish(mut self) -> Found {
        while let Some(done) = self.tasks.join_next().await {
            self.found.add(done.unwrap_or_default());
        }
        self.found.bad.sort_by_key(|(number, _, _)| *number);
        self.found
    }
}
