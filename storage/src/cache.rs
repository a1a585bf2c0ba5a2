//! The cache of chunks, shared by all processes that use a state directory.
//!
//! ```text
//! STATE/version                      of this layout; another one is refused
//! STATE/cache.use                    bytes in use, counted by all processes together (`ledger`)
//! STATE/blobs/<blob>.<table>/data    sparse file laid out as the blob's device space
//!                            ready   bitmap of the chunks that some process has written
//!                            sealed  note that `data` was verified as a whole, in this boot, and as which file
//!                            lock    locked, shared, by each process that uses the blob; its time is that of the last use
//! ```
//! Crash-only: nothing is synced, the bitmap is a hint, and each process hashes each chunk before its first use. What is written to
//! `data` is the same verified bytes at the same place whoever writes it, so that processes share a blob without more
//! agreement than the lock: who gets it exclusively may remove the directory or punch holes, as nobody else has verified anything
//! in it. `data` is locked in the same way by who uses or punches it, in case `lock` is removed; and it is never made longer.
//! A sealed file, which the kernel may read by itself, is changed by nobody: see `files/stage.rs` and `blob/seal.rs`. Removing or cutting files under a reader costs fetches and is no wrong byte.
//!
//! The disk space of all blobs stays within a [`Limit`]: room is taken before a chunk is written, and a thread (`evict`) makes
//! room. What finds none, because of the limit or a full or read-only disk, is served from a bounded memory (`overflow`), and storing
//! is tried again after a pause.

pub mod admin;
mod blob;
mod dirs;
mod evict;
pub(crate) mod files;
mod ledger;
mod limit;
mod lock;
mod pause;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use lazo_base::lines::Lines;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

pub use blob::PlainBlob;
pub(crate) use blob::{BlobCache, Places, Sealed};
pub(crate) use files::make_dir;
pub use limit::{LIMIT_SLACK, Limit, LimitError, MIN_LIMIT, parse_size};

use crate::error::{Error, Result};
use crate::metrics::{Evicted, Metrics};
use crate::overflow::Overflow;
use crate::trim::Trimmer;
use evict::{Desk, Marks, Need};
use ledger::{Ledger, NoRoom};
use pause::Pause;

/// Version of the state directory's layout, and the file that says so.
const VERSION: &str = "2";

/// The layout before there were sealed files. This one is the same otherwise, so that such a directory is taken over; who knows only that
/// one must not, as it would punch them.
const UNSEALED_VERSION: &str = "1";

const VERSION_FILE: &str = "version";

/// The overflow's memory is given back when nobody has used it for so long.
const OVERFLOW_IDLE: Duration = Duration::from_secs(30);

/// How often a store asks for room that other processes have taken when it comes.
const TAKE_ATTEMPTS: u32 = 3;

/// Stands for no limit.
const UNLIMITED: u64 = u64::MAX;

/// How the cache is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheOptions {
    /// How much disk space it may take.
    pub limit: Limit,
}

/// A process's view of the cache below a state directory; one for all images that the process serves.
#[derive(Debug)]
pub struct Cache {
    blobs_dir: PathBuf,
    options: CacheOptions,
    /// The limit in bytes, as it was when last looked at, or [`UNLIMITED`].
    limit: AtomicU64,
    open: Mutex<Open>,
    ledger: Ledger,
    desk: Arc<Desk>,
    /// The files have been counted at least once.
    counted: AtomicBool,
    /// Stores that wait for room, and whose turn it is.
    waiting: AtomicU32,
    turn: Mutex<()>,
    pause: Pause,
    overflow: Overflow,
    trimmer: Arc<Trimmer>,
    /// Told when a blob's last chunk has been stored.
    completed: Notify,
    /// Held by who verifies a whole blob: one at a time, as it takes the disk and a core.
    sealing: tokio::sync::Mutex<()>,
    metrics: Arc<Metrics>,
    /// Lines of chunks that were found damaged, and of what cannot be evicted.
    damaged: Lines,
    cannot_evict: Lines,
}

/// The blobs that this process uses, by the name of their directories.
#[derive(Debug, Default)]
struct Open {
    blobs: BTreeMap<String, Slot>,
    opened: u64,
}

/// A blob's cache, if it is open. Locked by who opens it.
type Slot = Arc<Mutex<Weak<BlobCache>>>;

impl Cache {
    /// Opens the cache below `state_dir`; there should be one for each process and state directory. Nothing needs to be there. Where
    /// nothing can be written either, all is served from memory.
    ///
    /// # Errors
    /// When the state directory is of another version, or the thread that evicts cannot be started.
    pub fn open(state_dir: &Path, options: CacheOptions, metrics: Arc<Metrics>) -> Result<Arc<Self>> {
        if !check_version(state_dir)? {
            mark_version(state_dir);
        }
        let cache = Arc::new(Self {
            blobs_dir: state_dir.join("blobs"),
            options,
            limit: AtomicU64::new(UNLIMITED),
            open: Mutex::default(),
            ledger: Ledger::open(state_dir),
            desk: Arc::default(),
            counted: AtomicBool::new(false),
            waiting: AtomicU32::new(0),
            turn: Mutex::default(),
            pause: Pause::default(),
            overflow: Overflow::default(),
            trimmer: Arc::new(Trimmer::start().map_err(Error::io("start a thread for", state_dir))?),
            completed: Notify::new(),
            sealing: tokio::sync::Mutex::default(),
            metrics,
            damaged: Lines::new(),
            cannot_evict: Lines::new(),
        });
        cache.renew_limit();
        evict::start(&cache).map_err(Error::io("start a thread for", state_dir))?;
        // Counts, and evicts what is over a limit that has become lower.
        cache.desk.ask();
        Ok(cache)
    }

    /// The cache of a blob in the directory `key`, whose chunks have these places in device space. The same one for all who use the
    /// blob in this process. Blocks while files are opened and locks are waited for; of other blobs, nobody waits meanwhile.
    pub(crate) fn blob(self: &Arc<Self>, key: &str, places: Arc<dyn Places>) -> Arc<BlobCache> {
        let (slot, id) = {
            let mut open = self.lock_open();
            open.opened += 1;
            (Arc::clone(open.blobs.entry(key.to_owned()).or_default()), open.opened)
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(blob) = slot.upgrade() {
            return blob;
        }
        let blob = Arc::new(BlobCache::open(Arc::clone(self), id, self.blobs_dir.join(key), places));
        *slot = Arc::downgrade(&blob);
        blob
    }

    /// Whether there is a directory of this key.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.blobs_dir.join(key).exists()
    }

    /// Bytes that the blobs may take on disk; `None` without a limit.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit != UNLIMITED)
    }

    /// Whether the cache has taken what it was given of late: if not, only what somebody waits for should be fetched.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.pause.is_over()
    }

    /// Shows what is used after somebody has taken blobs out by [`admin`] in this process. What other processes take out is noticed within
    /// some seconds.
    pub fn look_again(&self) {
        if self.is_counted() {
            self.show_used(self.ledger.settle().used);
        }
    }

    /// What keeps the page cache free of the copies that this process would leave there.
    #[must_use]
    pub fn trimmer(&self) -> &Arc<Trimmer> {
        &self.trimmer
    }

    #[cfg(test)]
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Told when a blob's last chunk has been stored.
    pub(crate) fn completed(&self) -> &Notify {
        &self.completed
    }

    /// The right to verify a whole blob.
    pub(crate) async fn begin_sealing(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.sealing.lock().await
    }

    /// Looks up what the limit is in bytes: a file system can be resized.
    fn renew_limit(&self) {
        let limit = self.blobs_dir.ancestors().find(|dir| dir.exists()).and_then(|dir| self.options.limit.bytes(dir));
        self.limit.store(limit.unwrap_or(UNLIMITED), Ordering::Relaxed);
        set(&self.metrics.cache_limit, limit.unwrap_or(0));
    }

    /// Takes room for a chunk, waiting for eviction where there is none. False if none can be had.
    fn take_room(&self, dir: &Path, bytes: u64) -> bool {
        let limit = self.limit();
        // Not past those who wait: what is freed would be taken before they wake.
        let at_once = self.waiting.load(Ordering::Acquire) == 0 && (limit.is_none() || self.is_counted());
        let taken = if at_once { self.ledger.take(bytes, limit) } else { Err(NoRoom) };
        match taken.or_else(|NoRoom| self.wait_for_room(dir, bytes, limit)) {
            Ok(used) => {
                if limit.is_some_and(|limit| used > Marks::of(limit).high) {
                    self.desk.ask();
                }
                true
            }
            Err(NoRoom) => false,
        }
    }

    fn wait_for_room(&self, dir: &Path, bytes: u64, limit: Option<u64>) -> std::result::Result<u64, NoRoom> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // Who had the turn before may have waited in vain: the others do not then, one after the other.
        let taken = if self.has_room() { self.take_in_turn(dir, bytes, limit) } else { Err(NoRoom) };
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        drop(turn);
        taken
    }

    /// For who has the turn. A failure begins the pause before the next one gets it.
    fn take_in_turn(&self, dir: &Path, bytes: u64, limit: Option<u64>) -> std::result::Result<u64, NoRoom> {
        if !self.is_counted() {
            self.desk.ask_and_wait(Need::default());
        }
        let mut taken = self.ledger.take(bytes, limit);
        for _ in 0..TAKE_ATTEMPTS {
            if taken.is_ok() {
                break;
            }
            let there_is = self.desk.ask_and_wait(Need { below_limit: bytes, on_disk: 0 });
            taken = self.ledger.take(bytes, limit);
            if !there_is {
                break;
            }
        }
        if taken.is_err() {
            self.ledger.want();
            self.no_room(dir, &io::Error::other("it is at its limit, and all that it holds is in use"));
        }
        taken
    }

    fn is_counted(&self) -> bool {
        self.counted.load(Ordering::Acquire)
    }

    /// The disk is full: evicts. False if nothing could go.
    fn make_room_on_disk(&self, bytes: u64) -> bool {
        let there_is = self.desk.ask_and_wait(Need { below_limit: 0, on_disk: bytes });
        if !there_is {
            self.ledger.want();
        }
        there_is
    }

    /// There is no room for what a blob was to keep.
    fn no_room(&self, dir: &Path, error: &io::Error) {
        if self.pause.begin() {
            say_paused(dir, error);
        }
    }

    fn has_stored(&self) {
        if self.pause.end() {
            tracing::info!(cache = %self.blobs_dir.display(), "the cache can be written again");
        }
    }

    /// Bytes were given back to the disk.
    fn freed(&self, how: Evicted, bytes: u64) {
        self.ledger.freed(bytes);
        self.metrics.cache_evicted_bytes[how].inc_by(bytes);
    }

    /// Gives the overflow's memory back when it is no longer needed.
    fn tidy(&self) {
        self.overflow.clear_unused(OVERFLOW_IDLE);
        self.show_overflow();
    }

    fn show_used(&self, bytes: u64) {
        self.counted.store(true, Ordering::Release);
        set(&self.metrics.cache_bytes, bytes);
    }

    fn show_overflow(&self) {
        set(&self.metrics.cache_overflow_bytes, self.overflow.bytes() as u64);
    }

    /// The blobs that this process uses, without those that are just being opened.
    fn open_blobs(&self) -> BTreeMap<String, Arc<BlobCache>> {
        let slots: Vec<_> = {
            let mut open = self.lock_open();
            // One that was closed while somebody looked at it here has stayed.
            open.blobs.retain(|_, slot| {
                Arc::strong_count(slot) > 1 || slot.try_lock().map_or(true, |blob| blob.strong_count() > 0)
            });
            open.blobs.iter().map(|(name, slot)| (name.clone(), Arc::clone(slot))).collect()
        };
        let opened = |slot: &Slot| slot.try_lock().ok()?.upgrade();
        slots.into_iter().filter_map(|(name, slot)| Some((name, opened(&slot)?))).collect()
    }

    /// A blob is used no more.
    fn closed(&self, dir: &Path) {
        let mut open = self.lock_open();
        if let Some(name) = dir.file_name().and_then(|name| name.to_str())
            // Somebody may have opened it anew meanwhile, or be about to.
            && let Some(slot) = open.blobs.get(name)
            && Arc::strong_count(slot) == 1
            && slot.try_lock().is_ok_and(|blob| blob.strong_count() == 0)
        {
            open.blobs.remove(name);
        }
    }

    fn lock_open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.desk.stop();
    }
}

fn say_paused(dir: &Path, error: &io::Error) {
    tracing::warn!(cache = %dir.display(), %error,
        "the cache cannot be written: what it has no room for is fetched whenever it is read");
}

fn set(gauge: &Gauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// Refuses a state directory that another version of this program has made. Says whether it has a mark.
fn check_version(state_dir: &Path) -> Result<bool> {
    let path = state_dir.join(VERSION_FILE);
    match fs::read_to_string(&path) {
        Ok(version) if version.trim() == VERSION => Ok(true),
        // Another process has made it and not yet written to it, or was killed then.
        Ok(version) if version.is_empty() || version.trim() == UNSEALED_VERSION => Ok(false),
        Ok(version) => Err(Error::OtherVersion { path, version: version.trim().to_owned() }),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        Err(source) => Err(Error::Io { what: "read", path, source }),
    }
}

/// Marks a state directory as this version's. What cannot be written does not need a mark.
fn mark_version(state_dir: &Path) {
    let path = state_dir.join(VERSION_FILE);
    if let Err(error) = make_dir(state_dir).and_then(|()| fs::write(&path, format!("{VERSION}\n"))) {
        tracing::debug!(path = %path.display(), %error, "cannot mark the state directory with its version");
    }
}
