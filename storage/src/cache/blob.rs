//! One blob's cache, as a process uses it.
//!
//! Reads take no lock that an eviction holds. An eviction clears the chunks' bits, then counts `changes` up, then punches; a read
//! looks at `changes`, at the bits, reads, and looks at `changes` again. If the count is the same, then either the bits were
//! cleared before the read looked at them, or nothing was punched before it was done. What sets bits, storing and verifying,
//! shares the lock `changing`, which an eviction holds alone for one batch; so that no bit is set for what is just being
//! punched. `files` is replaced only when somebody else has removed or cut them.

mod seal;

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

pub use seal::PlainBlob;
pub(crate) use seal::Sealed;

use super::files::{Files, Harm, Shape, Stage};
use super::lock;
use super::pause::Pause;
use super::{Cache, say_paused};
use crate::bits::Bits;
use crate::metrics::Evicted;
use crate::overflow::Key;
use crate::trim;

/// Device addresses and chunk sizes are multiples of this.
const BLOCK: u64 = 4096;

/// Most bytes that are punched while `changing` is held, which is how long a store or a verification may have to wait: 16 chunks
/// of the usual size take about a millisecond.
const BATCH: u64 = 4 << 20;

/// How far the disk reads ahead of who verifies chunks in order: a few of the usual size, which hide its latency.
const DISK_AHEAD: u64 = 2 << 20;

/// How often a read that an eviction has overtaken is made again before it keeps evictions out.
const FREE_READS: u32 = 3;

thread_local! {
    /// Where a chunk from the cache is hashed. One buffer of at most the largest chunk for each thread that reads.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One blob's cache. Chunks are numbered from 0 within the blob.
///
/// A chunk is *ready* when some process has written it, and *verified* when this process has hashed it, which is the only
/// state that it is read in. What the disk does not take is kept in the overflow memory for a while, and is verified there.
#[derive(Debug)]
pub(crate) struct BlobCache {
    cache: Arc<Cache>,
    id: u64,
    dir: PathBuf,
    shape: Shape,
    places: Arc<dyn Places>,
    /// `None` where no such files can be had: on a full or read-only disk.
    files: RwLock<Option<Files>>,
    ready: Bits,
    verified: Bits,
    /// Read or stored since the last eviction came by.
    used: Bits,
    changes: AtomicU64,
    changing: RwLock<()>,
    /// Serialises the updates of the ready bitmap's file.
    updating: Mutex<()>,
    /// Something was read or stored since the directory's time was set.
    active: AtomicBool,
    /// The file may hold bytes of chunks that are not ready.
    unswept: AtomicBool,
    /// What is wrong with the files has been said.
    told: AtomicBool,
    /// Holes cannot be punched here.
    solid: AtomicBool,
    /// After a failure of these files alone.
    pause: Pause,
    /// When an eviction has last made a sealed file one that can be punched.
    thawed: Mutex<Option<Instant>>,
}

/// Where a blob's chunks lie in its device space, which they tile. Looked up in the chunk index, so that it takes no memory.
pub(crate) trait Places: std::fmt::Debug + Send + Sync {
    /// Number of chunks.
    fn chunks(&self) -> u32;

    /// Bytes of the device space.
    fn device_size(&self) -> u64;

    /// Device addresses of a chunk; empty for one that there is not.
    fn range(&self, chunk: u32) -> Range<u64>;
}

/// How far an eviction came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes given back to the disk.
    pub(super) freed: u64,
    /// The chunk to go on with; `None` at the end of the blob, or where nothing can be evicted.
    pub(super) next: Option<u32>,
}

impl BlobCache {
    /// Opens or makes the cache in `dir`. Where that cannot be done, the cache is one that holds nothing and keeps nothing.
    pub(super) fn open(cache: Arc<Cache>, id: u64, dir: PathBuf, places: Arc<dyn Places>) -> Self {
        let shape = Shape { device_size: places.device_size(), chunks: places.chunks() };
        let chunks = shape.chunks;
        let (files, ready, failure) = match Files::open(&dir, &shape) {
            Ok((files, bits)) => (Some(files), bits, None),
            Err(error) => (None, Bits::new(chunks), Some(error)),
        };
        let blob = Self {
            cache,
            id,
            dir,
            shape,
            places,
            files: RwLock::new(files),
            ready,
            verified: Bits::new(chunks),
            used: Bits::new(chunks),
            changes: AtomicU64::new(0),
            changing: RwLock::default(),
            updating: Mutex::default(),
            active: AtomicBool::new(false),
            unswept: AtomicBool::new(true),
            told: AtomicBool::new(false),
            solid: AtomicBool::new(false),
            pause: Pause::default(),
            thawed: Mutex::default(),
        };
        if let Some(error) = failure {
            blob.cannot_store(&error);
        }
        blob
    }

    /// Takes on the fetching of the whole blob, for as long as what is returned is held; one process does it at a time.
    pub(crate) fn begin_fill(&self) -> Option<File> {
        let file = File::options().read(true).write(true).open(self.dir.join(super::files::LOCK)).ok()?;
        lock::try_lock(&file, super::files::FILL, lock::Kind::Exclusive).ok()?.then_some(file)
    }

    /// Whether the cache has taken what it was given of late: if not, only what somebody waits for should be fetched.
    pub(crate) fn has_room(&self) -> bool {
        self.cache.has_room() && self.pause.is_over()
    }

    /// Limit of the cache.
    pub(crate) fn limit(&self) -> Option<u64> {
        self.cache.limit()
    }

    /// Whether a chunk can be read at this moment; does no I/O.
    pub(crate) fn is_verified(&self, chunk: u32) -> bool {
        self.verified.get(chunk) || self.cache.overflow.has(self.key(chunk))
    }

    /// Whether some process says that the chunk is there; looks again at what other processes have done since.
    pub(crate) fn is_ready(&self, chunk: u32) -> bool {
        self.ready.get(chunk) || self.is_ready_in(self.files().as_ref(), chunk)
    }

    fn is_ready_in(&self, files: Option<&Files>, chunk: u32) -> bool {
        if !self.ready.get(chunk) && files.is_some_and(|files| files.is_ready(chunk)) {
            self.ready.set(chunk);
        }
        self.ready.get(chunk)
    }

    /// Makes a chunk that some process has left in the cache verified, if `check` finds its bytes right. False if there is no such
    /// chunk, or a damaged one, which is forgotten.
    pub(crate) fn verify(&self, chunk: u32, check: impl FnOnce(&[u8]) -> bool) -> bool {
        if self.is_verified(chunk) {
            return true;
        }
        if !self.is_ready(chunk) {
            return false;
        }
        let _unchanged = self.unchanged();
        let files = self.files();
        // Looked at once more: it may have been evicted before the lock was had.
        if !self.is_ready_in(files.as_ref(), chunk) {
            return false;
        }
        let range = self.range(chunk);
        self.read_ahead(files.as_ref(), chunk, range.end);
        let intact = SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(usize::try_from(range.end - range.start).unwrap_or_default(), 0);
            files.as_ref().is_some_and(|files| files.read(scratch, range.start).is_ok()) && check(scratch)
        });
        self.read_was_served(files.as_ref(), &range);
        if intact {
            self.used.set(chunk);
            self.verified.set(chunk);
        } else {
            self.cache.damaged.write(|left_out| {
                tracing::warn!(cache = %self.dir.display(), chunk, left_out, "a chunk in the cache is damaged, it is fetched again");
            });
            self.cache.metrics.cache_damaged_chunks.inc();
            self.forget_in(files.as_ref(), chunk);
        }
        intact
    }

    /// Reads at a device address. False if not all of `chunks`, which cover the range, are verified any more: evicted, or lost as
    /// somebody has touched the files. `buf` holds nothing of use then.
    ///
    /// Chunks that are being read by others, and just now, may be evicted all the same, if there is more that is read than the limit
    /// has room for. Who asks for one chunk at a time will get on whatever others do.
    pub(crate) fn read(&self, at: u64, buf: &mut [u8], chunks: Range<u32>) -> bool {
        for _ in 0..FREE_READS {
            let before = self.changes.load(Ordering::Acquire);
            if let Err(lost) = self.try_read(at, buf, chunks.clone()) {
                return self.lost(lost);
            }
            // What was read is older than what is loaded next.
            fence(Ordering::Acquire);
            if self.changes.load(Ordering::Relaxed) == before {
                return true;
            }
        }
        let unchanged = self.unchanged();
        let done = self.try_read(at, buf, chunks);
        drop(unchanged);
        done.map_or_else(|lost| self.lost(lost), |()| true)
    }

    /// The error is what is verified and cannot be read; an empty range if something is not verified.
    fn try_read(&self, at: u64, buf: &mut [u8], chunks: Range<u32>) -> Result<(), Range<u32>> {
        if !chunks.clone().all(|chunk| self.verified.get(chunk)) {
            return self.read_by_chunk(at, buf, chunks);
        }
        chunks.clone().for_each(|chunk| self.used.set_if_clear(chunk));
        self.active.store(true, Ordering::Relaxed);
        if self.read_file(at, buf) { Ok(()) } else { Err(chunks) }
    }

    /// The same from overflow and file.
    fn read_by_chunk(&self, at: u64, buf: &mut [u8], chunks: Range<u32>) -> Result<(), Range<u32>> {
        let end = at + buf.len() as u64;
        for chunk in chunks {
            let range = self.range(chunk);
            let part = range.start.max(at)..range.end.min(end);
            let offset = |address: u64, base: u64| usize::try_from(address.saturating_sub(base)).unwrap_or(usize::MAX);
            let Some(target) = buf.get_mut(offset(part.start, at)..offset(part.end, at)) else { return Err(0..0) };
            if let Some(bytes) = self.cache.overflow.get(self.key(chunk)) {
                let Some(bytes) = bytes.get(offset(part.start, range.start)..offset(part.end, range.start)) else {
                    return Err(0..0);
                };
                target.copy_from_slice(bytes);
            } else if !self.verified.get(chunk) {
                return Err(0..0);
            } else {
                self.used.set_if_clear(chunk);
                if !self.read_file(part.start, target) {
                    return Err(chunk..chunk + 1);
                }
            }
        }
        Ok(())
    }

    fn read_file(&self, at: u64, buf: &mut [u8]) -> bool {
        let files = self.files();
        match files.as_ref().map(|files| files.read(buf, at)) {
            Some(Ok(())) => {
                self.read_was_served(files.as_ref(), &(at..at + buf.len() as u64));
                true
            }
            // Cut. The next store finds out, and says so.
            Some(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => false,
            Some(Err(error)) => {
                drop(files);
                // Not to be written there at once.
                self.cannot_store(&error);
                false
            }
            None => false,
        }
    }

    /// Chunks that were left in the cache are verified in order: has the disk begin with the next, as far as they are not verified yet.
    /// What is verified has been read, and would stay in the page cache.
    fn read_ahead(&self, files: Option<&Files>, chunk: u32, end: u64) {
        if chunk.checked_sub(1).is_none_or(|before| !self.verified.get(before)) {
            return;
        }
        let most = end.saturating_add(DISK_AHEAD).min(self.shape.device_size);
        let next = (chunk + 1..self.shape.chunks).take_while(|next| !self.verified.get(*next));
        let ahead = next.map(|next| self.range(next).end).take_while(|end| *end <= most).last();
        if let (Some(files), Some(ahead)) = (files, ahead) {
            files.read_ahead(&(end..ahead));
        }
    }

    /// Who has asked for it keeps it, so that the file's own pages can go.
    fn read_was_served(&self, files: Option<&Files>, range: &Range<u64>) {
        if let Some(file) = files.and_then(Files::cached) {
            self.cache.trimmer.served(file, range.clone());
        }
    }

    /// Forgets chunks that could not be read. False, for the reader.
    fn lost(&self, chunks: Range<u32>) -> bool {
        chunks.for_each(|chunk| self.forget(chunk));
        false
    }

    /// Keeps a chunk whose bytes have been verified: in the file, or for a while in memory.
    pub(crate) fn store(&self, chunk: u32, bytes: &[u8]) {
        if self.verified.get(chunk) {
            return;
        }
        if !self.has_room() || !self.store_on_disk(chunk, bytes) {
            self.cache.metrics.cache_store_failures.inc();
            self.cache.overflow.keep(self.key(chunk), bytes);
            self.cache.show_overflow();
        }
    }

    fn store_on_disk(&self, chunk: u32, bytes: &[u8]) -> bool {
        let length = bytes.len() as u64;
        if !self.cache.take_room(&self.dir, length) {
            return false;
        }
        let mut stored = self.try_store(chunk, bytes);
        if stored.as_ref().is_err_and(is_full) {
            // What was written of it stays until it is swept.
            self.unswept.store(true, Ordering::Relaxed);
            if self.cache.make_room_on_disk(length) {
                stored = self.try_store(chunk, bytes);
            }
        }
        self.cache.ledger.written(length, stored.is_ok());
        if let Err(error) = &stored {
            self.cannot_store(error);
            return false;
        }
        self.cache.has_stored();
        if self.pause.end() {
            tracing::info!(cache = %self.dir.display(), "the cache can be written again");
        }
        true
    }

    fn cannot_store(&self, error: &io::Error) {
        if is_full(error) || error.kind() == io::ErrorKind::ReadOnlyFilesystem {
            self.cache.no_room(&self.dir, error);
        } else if self.pause.begin() {
            say_paused(&self.dir, error);
        }
    }

    fn try_store(&self, chunk: u32, bytes: &[u8]) -> io::Result<()> {
        if !self.write(chunk, bytes)? {
            self.reopen()?;
            if !self.write(chunk, bytes)? {
                return Err(io::Error::other("the cache's files are removed or cut again and again"));
            }
        }
        Ok(())
    }

    /// Writes a chunk and sets its bits. False if there are no whole files to write to.
    fn write(&self, chunk: u32, bytes: &[u8]) -> io::Result<bool> {
        let _unchanged = self.unchanged();
        let files = self.files();
        let Some(files) = files.as_ref().filter(|files| files.is_writable()) else { return Ok(false) };
        // A cut file would grow again by this write, with zeros where verified chunks were.
        if files.harm(&self.shape)?.is_some() {
            return Ok(false);
        }
        if let Some(_writing) = files.begin_write()? {
            let range = self.range(chunk);
            files.write(bytes, range.start)?;
            if files.harm(&self.shape)?.is_some() {
                return Ok(false);
            }
            if let Some(file) = files.cached() {
                self.cache.trimmer.written(file, range);
            }
        } else if !self.has_already(files, chunk, bytes)? {
            return Ok(false);
        }
        self.used.set(chunk);
        self.ready.set(chunk);
        {
            let _updating = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
            // A hint: if it cannot be kept, a later process fetches the chunk once more.
            let _ = files.write_ready(chunk, true);
        }
        self.verified.set(chunk);
        self.active.store(true, Ordering::Relaxed);
        if (0..self.shape.chunks).all(|chunk| self.is_covered(chunk)) {
            self.cache.completed.notify_waiters();
        }
        Ok(true)
    }

    /// Forgets a chunk that was found damaged.
    pub(crate) fn forget(&self, chunk: u32) {
        // Not while an eviction looks at what is ready: it must not punch what a reader has just seen verified.
        let _unchanged = self.unchanged();
        self.forget_in(self.files().as_ref(), chunk);
    }

    /// For those who keep evictions out.
    fn forget_in(&self, files: Option<&Files>, chunk: u32) {
        self.verified.take(chunk);
        self.ready.take(chunk);
        if let Some(files) = files {
            files.withdraw(&self.dir);
            let _updating = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = files.write_ready(chunk, false);
        }
    }

    /// Opens the files anew, after somebody has removed or cut them, or when there were none that could be written.
    fn reopen(&self) -> io::Result<()> {
        let _alone = self.alone();
        if let Some(before) = self.files().as_ref() {
            match before.harm(&self.shape)? {
                // Somebody else has done it.
                None if before.is_writable() => return Ok(()),
                None => {}
                Some(harm) => self.tell(harm),
            }
        }
        let (new, ready) = Files::make(&self.dir, &self.shape)?;
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        if !files.as_ref().is_some_and(|before| before.is_same_data(&new)) {
            self.verified.clear();
            self.ready.replace(&ready);
            self.changes.fetch_add(1, Ordering::AcqRel);
        }
        self.told.store(false, Ordering::Relaxed);
        *files = Some(new);
        Ok(())
    }

    /// Looks after the files now and then: says so if they are gone, locks them again if only the lock is gone, and notes the time if
    /// they were used.
    pub(super) fn look_after(&self) {
        let harm = self.files().as_ref().and_then(|files| files.harm(&self.shape).ok().flatten());
        if let Some(harm) = harm {
            self.tell(harm);
        }
        // What is verified stays so. With other harm it would not: that waits until something is to be stored.
        if harm == Some(Harm::Unlocked)
            && let Err(error) = self.reopen()
        {
            tracing::debug!(cache = %self.dir.display(), %error, "cannot lock the cache of a blob again");
        }
        let files = self.files();
        let Some(files) = files.as_ref() else { return };
        if self.active.swap(false, Ordering::Relaxed) {
            files.touch();
        }
    }

    fn tell(&self, harm: Harm) {
        if self.told.swap(true, Ordering::Relaxed) {
            return;
        }
        let cache = self.dir.display();
        match harm {
            Harm::Removed => {
                tracing::error!(%cache, "the cache of a blob in use was removed: its space is free only when \
                the blob is fetched again or unmounted; to make room, use `lazo cache prune`, which leaves what is in use")
            }
            Harm::Cut => {
                tracing::error!(%cache, "the cache file of a blob in use was cut: what it held is fetched again; \
                leave the files in the state directory alone, and use `lazo cache prune` to make room")
            }
            Harm::Unlocked => {
                tracing::error!(%cache, "the lock file of a blob in use was removed: it is made again; \
                leave the files in the state directory alone, and use `lazo cache prune` to make room")
            }
        }
    }

    /// Evicts some of `chunks` until `want` bytes are freed: those that have not been used since an eviction last came by. Nothing if
    /// another process uses the blob.
    pub(super) fn evict(&self, chunks: Range<u32>, want: u64) -> Progress {
        let end = chunks.end.min(self.shape.chunks);
        if self.is_given() {
            return Progress { freed: 0, next: None };
        }
        let (mut freed, mut next) = (self.sweep(), chunks.start);
        while next < end && freed < want {
            let (victims, behind) = self.victims(next..end, want - freed);
            if !victims.is_empty() {
                let Some(bytes) = self.punch(&victims) else { return Progress { freed, next: None } };
                freed += bytes;
            }
            next = behind;
        }
        Progress { freed, next: (next < self.shape.chunks).then_some(next) }
    }

    /// The next cold chunks, as many as one batch may take, and where to go on.
    fn victims(&self, chunks: Range<u32>, want: u64) -> (Vec<u32>, u32) {
        let (mut victims, mut bytes) = (Vec::new(), 0);
        if self.solid.load(Ordering::Relaxed) {
            return (victims, chunks.end);
        }
        for chunk in chunks.clone() {
            if !self.is_covered(chunk) || self.used.take(chunk) {
                continue;
            }
            victims.push(chunk);
            let range = self.range(chunk);
            bytes += range.end - range.start;
            if bytes >= want.min(BATCH) {
                return (victims, chunk + 1);
            }
        }
        (victims, chunks.end)
    }

    /// Punches chunks, given in order, out of the file. `None` if that cannot be done, as another process uses them.
    fn punch(&self, victims: &[u32]) -> Option<u64> {
        self.alone_with_files(|files| {
            for chunk in victims {
                self.verified.take(*chunk);
                self.ready.take(*chunk);
            }
            self.changes.fetch_add(1, Ordering::AcqRel);
            // Whoever sees a hole sees the count.
            fence(Ordering::SeqCst);
            for chunk in victims {
                files.write_ready(*chunk, false)?;
            }
            for run in victims.chunk_by(|one, next| one + 1 == *next) {
                let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
                files.punch(self.range(*first).start, self.range(*last).end - self.range(*first).start)?;
            }
            Ok(())
        })
    }

    /// Whether the file may hold the chunk. One that is forgotten while it is stored or verified may stay verified and not be ready.
    fn is_covered(&self, chunk: u32) -> bool {
        self.ready.get(chunk) || self.verified.get(chunk)
    }

    /// Punches what no chunk covers: a killed process's last write, or what did not fit on a full disk. Once for each of these.
    fn sweep(&self) -> u64 {
        if !self.unswept.load(Ordering::Relaxed) || self.solid.load(Ordering::Relaxed) {
            return 0;
        }
        // All of a sealed file is covered.
        if self.files().as_ref().is_some_and(|files| files.stage().ok() != Some(Stage::Open)) {
            return 0;
        }
        let swept = self.alone_with_files(|files| {
            // A read under way may have seen a chunk verified that has been forgotten since.
            self.changes.fetch_add(1, Ordering::AcqRel);
            fence(Ordering::SeqCst);
            // Other processes may have added to it.
            let ready = Bits::from_bytes(self.shape.chunks, &files.ready_bytes(self.shape.chunks)?);
            let mut chunk = 0;
            while chunk < self.shape.chunks {
                if ready.get(chunk) {
                    self.ready.set(chunk);
                }
                if self.is_covered(chunk) {
                    chunk += 1;
                    continue;
                }
                let end = (chunk..self.shape.chunks).find(|c| ready.get(*c) || self.is_covered(*c));
                let end = end.unwrap_or(self.shape.chunks);
                let range = self.range(chunk).start..self.range(end - 1).end;
                if files.has_data(range.start, range.end) {
                    files.punch(range.start, range.end - range.start)?;
                }
                chunk = end;
            }
            self.unswept.store(false, Ordering::Relaxed);
            Ok(())
        });
        swept.unwrap_or(0)
    }

    /// Runs `change` when no thread stores or verifies and no other process uses the blob; bytes that it freed. `None` if that is
    /// not so, or if it failed.
    fn alone_with_files(&self, change: impl FnOnce(&Files) -> io::Result<()>) -> Option<u64> {
        let _alone = self.alone();
        let files = self.files();
        let files = files.as_ref()?;
        if !files.seize().unwrap_or(false) {
            return None;
        }
        if !self.may_change(files) {
            files.share();
            return None;
        }
        let before = files.disk_bytes();
        let changed = change(files);
        let after = files.disk_bytes();
        files.share();
        if let Err(error) = changed {
            self.unswept.store(true, Ordering::Relaxed);
            self.solid.store(error.kind() == io::ErrorKind::Unsupported, Ordering::Relaxed);
            self.cache.cannot_evict.write(|left_out| {
                let cache = self.dir.display();
                tracing::warn!(%cache, %error, left_out, "cannot punch holes into a blob's cache to make room");
            });
            return None;
        }
        let freed = before.ok()?.saturating_sub(after.ok()?);
        self.cache.freed(Evicted::Chunks, freed);
        Some(freed)
    }

    fn key(&self, chunk: u32) -> Key {
        Key { blob: self.id, chunk }
    }

    /// Device addresses of a chunk.
    fn range(&self, chunk: u32) -> Range<u64> {
        self.places.range(chunk)
    }

    /// Keeps evictions out. Always before `files`.
    fn unchanged(&self) -> RwLockReadGuard<'_, ()> {
        self.changing.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.changing.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> RwLockReadGuard<'_, Option<Files>> {
        self.files.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for BlobCache {
    fn drop(&mut self) {
        if let Some(files) = self.files().as_ref() {
            files.touch();
            files.cached().into_iter().for_each(|file| trim::drop_all(file));
        }
        self.cache.closed(&self.dir);
    }
}

/// Whether there is no room for what was written.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
