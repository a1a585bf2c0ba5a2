//! One blob of an image: its part of the chunk index, its cache, and its chunks that are on their way.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lazo_format::{BlobIndex, BlobRecord, ChunkIndex, ChunkRecord, IndexError};

use crate::bits::Bits;
use crate::cache::{BlobCache, Cache, Places, PlainBlob, Sealed};
use crate::error::ReadError;
use crate::flight::{Flight, Outcome};
use crate::readahead::Streams;
use crate::table::ImageIndex;

/// What a chunk counts for at least, in stored bytes, wherever stored bytes are bounded. A chunk on its way takes some 500 bytes
/// of memory and a place in each queue, however little is stored of it; and a chunk of one block may be stored in a few bytes. So a
/// request of 4 MiB has at most 1024 chunks.
pub(crate) const MIN_WEIGHT: u64 = 4 << 10;

/// What so many stored bytes of so many chunks count for.
pub(crate) fn weight(stored: u64, chunks: u64) -> u64 {
    stored.max(chunks.saturating_mul(MIN_WEIGHT))
}

/// One blob. Chunks have their numbers in the image's index; within the cache they count from 0.
#[derive(Debug)]
pub(crate) struct Blob {
    index: Arc<ImageIndex>,
    number: BlobIndex,
    record: BlobRecord,
    cache: Arc<BlobCache>,
    flights: Mutex<HashMap<u32, Arc<Flight>>>,
    streams: Mutex<Streams>,
    /// Chunks whose first use means that more should be read ahead.
    marks: Bits,
}

impl Blob {
    /// Opens a blob of a validated index, and its cache. Blocks while files are opened and locked, for a time that hardly depends on the
    /// number of chunks.
    pub(crate) fn open(index: Arc<ImageIndex>, number: BlobIndex, cache: &Arc<Cache>) -> Result<Self, Arc<ReadError>> {
        let record = index.blob(number).map_err(|e| bad_index(number, 0, e))?;
        let key = cache_key(&index, number)?;
        let places = BlobPlaces {
            index: Arc::clone(&index),
            first: record.first_chunk.0,
            chunks: record.chunk_count,
            device_size: record.device_size,
        };
        let cache = cache.blob(&key, Arc::new(places));
        let marks = Bits::new(record.chunk_count);
        let streams = Mutex::new(Streams::new(record.compressed_size));
        Ok(Self { index, number, record, cache, flights: Mutex::default(), streams, marks })
    }

    pub(crate) fn record(&self) -> &BlobRecord {
        &self.record
    }

    /// The chunks that cover a range of device addresses.
    pub(crate) fn chunks_in(&self, range: Range<u64>) -> Result<Range<u32>, Arc<ReadError>> {
        let at = range.start;
        self.index.chunks_in(self.number, range).map_err(|e| bad_index(self.number, at, e))
    }

    pub(crate) fn chunk(&self, chunk: u32) -> Result<ChunkRecord, Arc<ReadError>> {
        self.index.chunk(ChunkIndex(chunk)).map_err(|e| bad_index(self.number, 0, e))
    }

    /// Place of some chunks' stored bytes in the blob.
    pub(crate) fn stored_range(&self, chunks: &Range<u32>) -> Result<Range<u64>, Arc<ReadError>> {
        if chunks.is_empty() {
            return Ok(0..0);
        }
        let (first, last) = (self.chunk(chunks.start)?, self.chunk(chunks.end - 1)?);
        Ok(first.compressed_offset..last.compressed_range().end)
    }

    /// The chunks whose stored bytes begin in a range of the blob's.
    pub(crate) fn chunks_stored_in(&self, stored: &Range<u64>) -> Result<Range<u32>, Arc<ReadError>> {
        Ok(self.first_stored_at(stored.start)?..self.first_stored_at(stored.end)?)
    }

    /// The first chunk whose stored bytes begin at or behind a place in the blob.
    fn first_stored_at(&self, at: u64) -> Result<u32, Arc<ReadError>> {
        let Range { mut start, mut end } = self.record.chunks();
        // At most 32 rounds: the range halves.
        while start < end {
            let middle = start + (end - start) / 2;
            if self.chunk(middle)?.compressed_offset < at {
                start = middle + 1;
            } else {
                end = middle;
            }
        }
        Ok(start)
    }

    /// What some chunks count for.
    pub(crate) fn weight(&self, chunks: &Range<u32>) -> Result<u64, Arc<ReadError>> {
        let stored = self.stored_range(chunks)?;
        Ok(weight(stored.end.saturating_sub(stored.start), chunks.len() as u64))
    }

    /// The first part of a run of chunks that counts for at most `limit`: a chunk at least.
    pub(crate) fn first_part(&self, chunks: &Range<u32>, limit: u64) -> Result<Range<u32>, Arc<ReadError>> {
        let most = u32::try_from(limit / MIN_WEIGHT).unwrap_or(u32::MAX);
        let last = chunks.end.min(chunks.start.saturating_add(most));
        let begins = self.chunk(chunks.start)?.compressed_offset;
        let mut end = chunks.start + 1;
        while end < last && self.chunk(end)?.compressed_range().end.saturating_sub(begins) <= limit {
            end += 1;
        }
        Ok(chunks.start..end)
    }

    /// Whether a chunk can be read from the cache. Hashes it if that has not been done in this process.
    pub(crate) fn is_usable(&self, chunk: u32) -> Result<bool, Arc<ReadError>> {
        if self.is_verified(chunk) {
            return Ok(true);
        }
        if !self.cache.is_ready(self.local(chunk)) {
            return Ok(false);
        }
        let record = self.chunk(chunk)?;
        Ok(self.cache.verify(self.local(chunk), |bytes| lazo_format::chunk::verify(&record, bytes).is_ok()))
    }

    /// Whether a chunk is verified already; does no I/O.
    pub(crate) fn is_verified(&self, chunk: u32) -> bool {
        self.cache.is_verified(self.local(chunk))
    }

    /// Whether all of it is in the cache's file, as far as is known.
    pub(crate) fn is_complete(&self) -> bool {
        self.cache.is_complete()
    }

    /// Whether the kernel could be given the cache's file now.
    pub(crate) fn is_sealed(&self) -> bool {
        self.cache.is_sealed()
    }

    /// Verifies the whole blob in the cache and seals it, for as long as `go_on` says so.
    pub(crate) fn seal(&self, go_on: impl Fn() -> bool) -> Sealed {
        let check = |chunk: u32, bytes: &[u8]| {
            let record = self.record.first_chunk.0.checked_add(chunk).map(|chunk| self.chunk(chunk));
            matches!(record, Some(Ok(record)) if lazo_format::chunk::verify(&record, bytes).is_ok())
        };
        self.cache.seal(check, go_on)
    }

    /// The cache's file, for the kernel, if it is sealed.
    pub(crate) fn plain(&self) -> io::Result<Option<PlainBlob>> {
        self.cache.plain()
    }

    /// Takes on the fetching of the whole blob, unless another process does it.
    pub(crate) fn begin_fill(&self) -> Option<File> {
        self.cache.begin_fill()
    }

    /// Whether the cache takes what it is given: if not, only what somebody waits for should be fetched.
    pub(crate) fn has_room(&self) -> bool {
        self.cache.has_room()
    }

    /// Whether the cache may hold all of it.
    pub(crate) fn fits(&self) -> bool {
        self.cache.limit().is_none_or(|limit| self.record.device_size <= limit)
    }

    /// Keeps a chunk's verified bytes: in the cache, or for a while in memory.
    pub(crate) fn store(&self, chunk: u32, bytes: &[u8]) {
        self.cache.store(self.local(chunk), bytes);
    }

    /// Reads at a device address in `chunks`, which are usable; false if they have gone after all.
    pub(crate) fn read(&self, at: u64, buf: &mut [u8], chunks: Range<u32>) -> bool {
        self.cache.read(at, buf, self.local(chunks.start)..self.local(chunks.end))
    }

    pub(crate) fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn mark(&self, chunk: u32) {
        self.marks.set(self.local(chunk));
    }

    pub(crate) fn take_mark(&self, chunk: u32) -> bool {
        self.marks.take(self.local(chunk))
    }

    /// Takes charge of those chunks that are neither verified nor on their way, as runs of neighbours. Pushes to `joined` the
    /// flights of all chunks that are not verified, the new ones and those of others, all of them wanted now.
    pub(crate) fn claim(self: &Arc<Self>, chunks: Range<u32>, joined: &mut Vec<Arc<Flight>>) -> Vec<Claim> {
        let mut claims = Vec::new();
        let mut flights = self.flights();
        for chunk in chunks {
            let flight = if let Some(flight) = flights.get(&chunk) {
                Arc::clone(flight)
            } else if self.is_verified(chunk) {
                // A chunk becomes verified before its flight lands, so that it cannot be missed in both places.
                continue;
            } else {
                self.begin(&mut flights, &mut claims, chunk)
            };
            flight.want();
            joined.push(flight);
        }
        claims
    }

    /// The same for chunks that nobody waits for. Those that an earlier process left in the cache are not fetched: if
    /// they turn out damaged, that is soon enough.
    pub(crate) fn claim_absent(self: &Arc<Self>, chunks: Range<u32>) -> Vec<Claim> {
        let mut claims = Vec::new();
        let mut flights = self.flights();
        for chunk in chunks {
            if !flights.contains_key(&chunk) && !self.is_present(chunk) {
                self.begin(&mut flights, &mut claims, chunk);
            }
        }
        claims
    }

    /// Whether a chunk is in the cache, verified or as some process left it.
    pub(crate) fn is_present(&self, chunk: u32) -> bool {
        self.is_verified(chunk) || self.cache.is_ready(self.local(chunk))
    }

    fn begin(
        self: &Arc<Self>,
        flights: &mut HashMap<u32, Arc<Flight>>,
        claims: &mut Vec<Claim>,
        chunk: u32,
    ) -> Arc<Flight> {
        match claims.last_mut() {
            Some(claim) if claim.chunks.end == chunk => claim.chunks.end += 1,
            _ => claims.push(Claim { blob: Arc::clone(self), chunks: chunk..chunk + 1 }),
        }
        let flight = Arc::<Flight>::default();
        flights.insert(chunk, Arc::clone(&flight));
        flight
    }

    /// The flights of those of some chunks that are on their way; nobody is said to wait for them.
    pub(crate) fn flights_of(&self, chunks: Range<u32>) -> Vec<Arc<Flight>> {
        let flights = self.flights();
        chunks.filter_map(|chunk| flights.get(&chunk).cloned()).collect()
    }

    /// Whether somebody waits for one of some chunks that are on their way.
    pub(crate) fn is_any_wanted(&self, mut chunks: Range<u32>) -> bool {
        let flights = self.flights();
        chunks.any(|chunk| flights.get(&chunk).is_some_and(|flight| flight.is_wanted()))
    }

    /// Ends the flight of a chunk that nobody waits for, with `keep` called first. False, and nothing done, if somebody does.
    pub(crate) fn park(&self, claim: Claim, keep: impl FnOnce()) -> Result<(), Claim> {
        let mut flights = self.flights();
        let chunk = claim.chunks.start;
        if flights.get(&chunk).is_some_and(|flight| flight.is_wanted()) {
            return Err(claim);
        }
        // Under the lock, so that who wants the chunk next finds it either on its way or kept.
        keep();
        let flight = flights.remove(&chunk);
        drop(flights);
        claim.forget();
        if let Some(flight) = flight {
            flight.land(Outcome::Landed);
        }
        Ok(())
    }

    fn land(&self, chunk: u32, outcome: Outcome) {
        let flight = self.flights().remove(&chunk);
        if let Some(flight) = flight {
            flight.land(outcome);
        }
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<u32, Arc<Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn local(&self, chunk: u32) -> u32 {
        chunk.wrapping_sub(self.record.first_chunk.0)
    }
}

/// The charge of fetching some neighbouring chunks. Dropped before they have landed, it tells those who wait.
#[derive(Debug)]
pub(crate) struct Claim {
    blob: Arc<Blob>,
    chunks: Range<u32>,
}

impl Claim {
    pub(crate) fn blob(&self) -> &Arc<Blob> {
        &self.blob
    }

    pub(crate) fn chunks(&self) -> Range<u32> {
        self.chunks.clone()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// What the chunks count for.
    pub(crate) fn weight(&self) -> Result<u64, Arc<ReadError>> {
        self.blob.weight(&self.chunks)
    }

    /// Stored bytes of the chunks.
    pub(crate) fn stored(&self) -> Result<u64, Arc<ReadError>> {
        let range = self.blob.stored_range(&self.chunks)?;
        Ok(range.end - range.start)
    }

    /// Takes the chunks before `at` out of the charge.
    pub(crate) fn split_to(&mut self, at: u32) -> Self {
        let at = at.clamp(self.chunks.start, self.chunks.end);
        let first = Self { blob: Arc::clone(&self.blob), chunks: self.chunks.start..at };
        self.chunks.start = at;
        first
    }

    /// Adds the charge of neighbours that are neither here nor `at_hand`: of those before as many as count for `before`, and of those
    /// behind for `after`; what one side cannot give, the other may.
    pub(crate) fn widen(
        &mut self,
        before: u64,
        after: u64,
        at_hand: impl Fn(u32) -> bool,
    ) -> Result<(), Arc<ReadError>> {
        let all = self.blob.record.chunks();
        let (mut before, mut after) = (before, after);
        let blob = Arc::clone(&self.blob);
        let mut flights = blob.flights();
        let mut take = |chunk: u32, room: &mut u64| -> Result<bool, Arc<ReadError>> {
            let size = weight(blob.chunk(chunk)?.compressed_size.into(), 1);
            if size > *room || flights.contains_key(&chunk) || blob.is_present(chunk) || at_hand(chunk) {
                return Ok(false);
            }
            *room -= size;
            flights.insert(chunk, Arc::default());
            Ok(true)
        };
        while self.chunks.end < all.end && take(self.chunks.end, &mut after)? {
            self.chunks.end += 1;
        }
        before += after;
        while self.chunks.start > all.start && take(self.chunks.start - 1, &mut before)? {
            self.chunks.start -= 1;
        }
        Ok(())
    }

    /// All chunks have become `outcome`.
    pub(crate) fn land(mut self, outcome: &Outcome) {
        for chunk in std::mem::take(&mut self.chunks) {
            self.blob.land(chunk, outcome.clone());
        }
    }

    /// The chunks have landed already.
    fn forget(mut self) {
        self.chunks = 0..0;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        for chunk in self.chunks.clone() {
            let stopped = ReadError::Stopped { digest: self.blob.record.digest, chunk: ChunkIndex(chunk) };
            self.blob.land(chunk, Outcome::Failed(Arc::new(stopped)));
        }
    }
}

fn bad_index(blob: BlobIndex, at: u64, source: IndexError) -> Arc<ReadError> {
    Arc::new(ReadError::Index { blob, at, source })
}

/// The name of a blob's directory in the cache.
pub(crate) fn cache_key(index: &ImageIndex, number: BlobIndex) -> Result<String, Arc<ReadError>> {
    let record = index.blob(number).map_err(|e| bad_index(number, 0, e))?;
    let table = index.table(number).ok_or_else(|| bad_index(number, 0, IndexError::NoBlob(number)))?;
    Ok(format!("{}.{table}", record.digest.hex()))
}

/// Where the index says that a blob's chunks lie.
#[derive(Debug)]
struct BlobPlaces {
    index: Arc<ImageIndex>,
    first: u32,
    chunks: u32,
    device_size: u64,
}

impl Places for BlobPlaces {
    fn chunks(&self) -> u32 {
        self.chunks
    }

    fn device_size(&self) -> u64 {
        self.device_size
    }

    fn range(&self, chunk: u32) -> Range<u64> {
        let number = self.first.checked_add(chunk).filter(|_| chunk < self.chunks);
        let record = number.and_then(|number| self.index.chunk(ChunkIndex(number)).ok());
        record.map_or(self.device_size..self.device_size, |record| record.device_range())
    }
}
