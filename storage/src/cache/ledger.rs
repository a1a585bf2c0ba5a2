//! What the cache takes on disk, kept up to date by all processes that share it.
//!
//! `STATE/cache.use` holds two little-endian 64-bit numbers: the bytes that are used or promised, and how often somebody has looked
//! for room in vain. Whoever writes takes a promise first; whoever evicts takes off what was freed. A killed process leaves
//! its promise behind; that, and whatever else goes wrong, is put right when the files are counted again.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::files::open_or_make;
use super::lock::{self, Kind};

/// Name below the state directory.
const FILE: &str = "cache.use";

/// Bytes of the file that stand for what is locked: the numbers, and the work of eviction.
const NUMBERS: lock::Byte = 0;
const EVICTION: lock::Byte = 1;

/// How long to try for the lock on the numbers, which others hold for three system calls. One who is frozen just then must not
/// hold up everybody's reads.
const PATIENCE: Duration = Duration::from_millis(50);

/// Bytes promised at a time, so that few chunks cost system calls; of a small limit, this part.
const PROMISE: u64 = 1 << 20;
const PROMISE_PART: u64 = 64;

/// There is no room for what was to be written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    own: Mutex<Own>,
}

#[derive(Debug, Default)]
struct Own {
    /// `None` where it cannot be had, as on a read-only disk: then this process counts alone.
    file: Option<File>,
    numbers: Numbers,
    /// Promised to this process and not yet asked for by a write.
    left: u64,
    /// Asked for by writes that are not done.
    writing: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) used: u64,
    /// How often somebody has looked for room in vain.
    pub(super) wanted: u64,
}

impl Ledger {
    pub(super) fn open(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let own = Own { file: open_or_make(&path).ok(), ..Own::default() };
        Self { path, own: Mutex::new(own) }
    }

    /// Takes room for a write of `bytes`, if there is as much below `limit`. Says how much is used then.
    /// [`Ledger::written`] must follow.
    pub(super) fn take(&self, bytes: u64, limit: Option<u64>) -> Result<u64, NoRoom> {
        let mut own = self.lock();
        if own.left < bytes {
            let limit = limit.unwrap_or(u64::MAX);
            let missing = bytes - own.left;
            let promised = own.change(|numbers| {
                let room = limit.saturating_sub(numbers.used);
                let promise = PROMISE.min(limit / PROMISE_PART).max(missing);
                let promise = if promise <= room { promise } else { missing };
                let fits = promise <= room;
                numbers.used += if fits { promise } else { 0 };
                fits.then_some(promise)
            });
            own.left += promised.ok().flatten().ok_or(NoRoom)?;
        }
        own.left -= bytes;
        own.writing += bytes;
        Ok(own.numbers.used)
    }

    /// A write for which room was taken is done, or has failed: then the room is there still.
    pub(super) fn written(&self, bytes: u64, kept: bool) {
        let mut own = self.lock();
        own.writing = own.writing.saturating_sub(bytes);
        own.left += if kept { 0 } else { bytes };
    }

    /// Gives back what was promised to this process and not yet asked for, and says what is used then: all that is written, but for
    /// what other processes have been promised of late. The next write takes a promise again.
    pub(super) fn settle(&self) -> Numbers {
        let mut own = self.lock();
        let promised = own.left;
        if own.change(|numbers| numbers.used = numbers.used.saturating_sub(promised)).is_ok() {
            own.left = 0;
        }
        let mut numbers = own.numbers;
        numbers.used = numbers.used.saturating_sub(own.left);
        numbers
    }

    /// Takes off what somebody has removed who has no cache open, such as `lazo cache`.
    pub(super) fn removed(state_dir: &Path, bytes: u64) {
        Self::open(state_dir).freed(bytes);
    }

    /// Room was made.
    pub(super) fn freed(&self, bytes: u64) {
        let _ = self.lock().change(|numbers| numbers.used = numbers.used.saturating_sub(bytes));
    }

    /// All files have been counted. Says how much that is with what is promised to this process.
    pub(super) fn counted(&self, bytes: u64) -> u64 {
        let mut own = self.lock();
        let lost = own.file.as_ref().is_none_or(|file| file.metadata().is_ok_and(|m| m.nlink() == 0));
        if lost {
            own.file = open_or_make(&self.path).ok();
        }
        let promised = own.left + own.writing;
        let _ = own.change(|numbers| numbers.used = bytes + promised);
        bytes + promised
    }

    /// Room has been looked for in vain: others may be able to make it. Says how often that was by now.
    pub(super) fn want(&self) -> u64 {
        let mut own = self.lock();
        let _ = own.change(|numbers| numbers.wanted = numbers.wanted.wrapping_add(1));
        own.numbers.wanted
    }

    pub(super) fn numbers(&self) -> Numbers {
        let mut own = self.lock();
        let _ = own.change(|_| ());
        own.numbers
    }

    /// Waits for the right to evict, so that two processes do not make twice the room. After `patience` it goes on without: only
    /// thrift depends on it.
    pub(super) fn begin_eviction(&self, patience: Duration) -> Eviction {
        let file = open_or_make(&self.path).ok();
        if let Some(file) = &file {
            let _ = lock::lock(file, EVICTION, Kind::Exclusive, patience);
        }
        Eviction { _file: file }
    }

    fn lock(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to evict; given up when dropped.
#[derive(Debug)]
pub(super) struct Eviction {
    _file: Option<File>,
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let own = self.own.get_mut().unwrap_or_else(PoisonError::into_inner);
        let promised = std::mem::take(&mut own.left);
        if promised > 0 {
            let _ = own.change(|numbers| numbers.used = numbers.used.saturating_sub(promised));
        }
    }
}

impl Own {
    /// Reads the numbers, changes and writes them, under their lock.
    fn change<T>(&mut self, change: impl FnOnce(&mut Numbers) -> T) -> io::Result<T> {
        let Some(file) = &self.file else { return Ok(change(&mut self.numbers)) };
        if !lock::lock(file, NUMBERS, Kind::Exclusive, PATIENCE)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut bytes = [[0; 8]; 2];
        // A new file is empty.
        let before = match file.read_exact_at(bytes.as_flattened_mut(), 0) {
            Ok(()) => bytes.map(u64::from_le_bytes),
            Err(_) => [0, 0],
        };
        self.numbers = Numbers { used: before[0], wanted: before[1] };
        let result = change(&mut self.numbers);
        let after = [self.numbers.used, self.numbers.wanted];
        let written =
            if after == before { Ok(()) } else { file.write_all_at(after.map(u64::to_le_bytes).as_flattened(), 0) };
        lock::try_lock(file, NUMBERS, Kind::Unlocked)?;
        if written.is_err() {
            // A full disk, perhaps. This process counts alone until the files are counted again.
            self.file = None;
        }
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_share_the_room_below_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (Ledger::open(dir.path()), Ledger::open(dir.path()));
        let limit = Some(10 << 20);
        one.counted(8 << 20);
        assert_eq!(two.numbers().used, 8 << 20);
        assert!(one.take(1 << 20, limit).is_ok());
        assert!(two.take(1 << 19, limit).is_ok());
        one.written(1 << 20, true);
        two.written(1 << 19, true);
        assert_eq!(two.take(1 << 20, limit), Err(NoRoom), "in all it would be more than the limit");
        assert!(two.take(1 << 19, limit).is_ok(), "just as much as there is room for");
        two.written(1 << 19, false);
        drop(two);
        let used = one.numbers().used;
        assert!(used < 10 << 20, "what was promised and not used is given back: {used}");
        one.freed(1 << 20);
        assert!(one.take(1 << 20, limit).is_ok());
        assert!(one.take(u64::from(u32::MAX), None).is_ok(), "no limit");
    }

    #[test]
    fn a_count_keeps_promises() {
        let dir = tempfile::tempdir().unwrap();
        let one = Ledger::open(dir.path());
        one.take(4096, Some(64 << 20)).unwrap();
        one.counted(100);
        assert_eq!(one.numbers().used, 100 + (1 << 20));
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        one.counted(200);
        assert_eq!(Ledger::open(dir.path()).numbers().used, 200 + (1 << 20), "a removed file is made again");
        one.want();
        assert_eq!(Ledger::open(dir.path()).numbers().wanted, 1);
    }

    #[test]
    fn what_was_promised_and_not_written_is_not_counted_as_used() {
        let dir = tempfile::tempdir().unwrap();
        let one = Ledger::open(dir.path());
        one.take(4096, Some(64 << 20)).unwrap();
        one.written(4096, true);
        assert_eq!(one.settle().used, 4096);
        assert_eq!(Ledger::open(dir.path()).numbers().used, 4096);
        Ledger::removed(dir.path(), 4096);
        assert_eq!(one.settle().used, 0);
        assert!(one.take(4096, Some(64 << 20)).is_ok());
    }

    #[test]
    fn counts_alone_where_nothing_can_be_written() {
        let ledger = Ledger::open(Path::new("/proc/nowhere"));
        ledger.counted(10);
        assert_eq!(ledger.take(5, Some(15)), Ok(15));
        assert_eq!(ledger.take(5, Some(15)), Err(NoRoom));
    }
}
