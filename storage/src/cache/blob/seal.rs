//! Sealing: a blob that is there as a whole is verified once more as the disk has it, so that the kernel may read its file by itself.
//!
//! ```text
//! freeze   nobody writes to the file any more, in any process
//! sync     what the page cache has, the disk has
//! verify   every chunk, read past the page cache
//! vouch    nothing was punched meanwhile, it is still the file of this name: the note
//! give     later, to a mount: nobody punches it any more, even if all processes are killed
//! ```
//! Only the last is done when a mount is made. Until then a sealed blob can be evicted like any other.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use nix::libc;
use rustix::fs::{Advice, FsWord, fadvise, fstatfs};

use super::{BLOCK, BlobCache};
use crate::cache::files::{DATA, Files, Stage, StageLock};
use crate::image::stamp::Identity;

/// How long a mount waits for others who change the stage; that takes them less than a millisecond, unless they verify all of it.
const GIVE_PATIENCE: Duration = Duration::from_millis(20);

/// How long a blob that eviction has made open is not sealed again: it would be evicted and verified in turns.
const THAWED_PAUSE: Duration = Duration::from_secs(600);

/// File systems that other machines may write to, or whose server does not keep to what was promised about this boot: NFS, SMB
/// (three of them), 9P, FUSE, Ceph, OCFS2, GFS2, Lustre, AFS (two).
const SHARED_FILE_SYSTEMS: [FsWord; 12] = [
    0x6969,
    0x517B,
    0xFF53_4D42,
    0xFE53_4D42,
    0x0102_1997,
    0x6573_5546,
    0x00C3_6400,
    0x7461_636F,
    0x0116_1970,
    0x0BD0_0BD0,
    0x5346_414F,
    0x6B41_4653,
];

/// A blob's cache file, verified as a whole, for the kernel to read by itself. For as long as this is held, nobody removes it; nobody
/// changes it even after that.
#[derive(Debug)]
pub struct PlainBlob {
    path: PathBuf,
    file: Arc<File>,
    lock: File,
}

impl PlainBlob {
    /// Where the file is, below the state directory as that was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that was verified, open for reading. It is laid out as the blob's device space and exactly as long.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// What keeps others from removing the directory, in whatever process it is.
    #[must_use]
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Whether the path still leads to the file that was verified. To be asked once more when the kernel has been given the path.
    #[must_use]
    pub fn is_at_path(&self) -> bool {
        let (there, file) = (std::fs::metadata(&self.path), self.file.metadata());
        matches!((there, file), (Ok(there), Ok(file)) if (there.dev(), there.ino()) == (file.dev(), file.ino()))
    }
}

/// What became of an attempt to seal a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sealed {
    /// The note is there, and true.
    Yes,
    /// Not everything is there, or this blob has been evicted from of late.
    NotYet,
    /// Others are at it, or something has happened to the files meanwhile.
    Busy,
    /// Some chunks are damaged, and forgotten.
    Damaged,
    /// It cannot be done here.
    Never,
}

impl BlobCache {
    /// Whether all chunks are in the file, as far as is known.
    pub(crate) fn is_complete(&self) -> bool {
        let chunks = self.shape.chunks;
        chunks > 0 && (0..chunks).all(|chunk| self.is_covered(chunk) || self.is_ready(chunk))
    }

    /// Whether the kernel could be given the file now.
    pub(crate) fn is_sealed(&self) -> bool {
        self.files().as_ref().is_some_and(|files| files.is_vouched_for(&self.dir))
    }

    /// Verifies all chunks and seals the file. `check` says whether a chunk's bytes are right, and `go_on` whether to go on at all.
    pub(crate) fn seal(&self, check: impl Fn(u32, &[u8]) -> bool, go_on: impl Fn() -> bool) -> Sealed {
        match self.try_seal(check, go_on) {
            Ok(sealed) => sealed,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                tracing::info!(cache = %self.dir.display(), %error, "a blob is not sealed");
                Sealed::Never
            }
            Err(error) => {
                tracing::warn!(cache = %self.dir.display(), %error, "a blob cannot be sealed");
                Sealed::Busy
            }
        }
    }

    fn try_seal(&self, check: impl Fn(u32, &[u8]) -> bool, go_on: impl Fn() -> bool) -> io::Result<Sealed> {
        if !self.is_complete() || self.was_thawed_of_late() {
            return Ok(Sealed::NotYet);
        }
        let Some((lock, frozen, changes)) = self.freeze()? else {
            return Ok(if self.is_sealed() { Sealed::Yes } else { Sealed::Busy });
        };
        let verified = self.verify_all(&lock, check, go_on);
        let _alone = self.alone();
        if let Ok(Verified::Damaged(chunk)) = verified {
            self.cache.damaged.write(|left_out| {
                tracing::warn!(cache = %self.dir.display(), chunk, left_out, "a chunk in the cache is damaged, it is fetched again");
            });
            self.cache.metrics.cache_damaged_chunks.inc();
            lock.give_up()?;
            self.forget_in(self.files().as_ref(), chunk);
            return Ok(Sealed::Damaged);
        }
        if verified? != Verified::Whole || self.changes.load(Ordering::Acquire) != changes {
            return Ok(Sealed::Busy);
        }
        let whole = match self.files().as_ref() {
            Some(files) => files.is_same_file(lock.data()) && files.harm(&self.shape)?.is_none(),
            None => false,
        };
        if !whole || !lock.vouch(&self.dir, &frozen)? {
            return Ok(Sealed::Busy);
        }
        (0..self.shape.chunks).for_each(|chunk| self.verified.set(chunk));
        self.cache.metrics.cache_sealed.inc();
        tracing::debug!(cache = %self.dir.display(), "a blob is sealed");
        Ok(Sealed::Yes)
    }

    /// Sees that nobody writes any more. `None` if others are just writing or sealing, or have done it.
    fn freeze(&self) -> io::Result<Option<(StageLock, Identity, u64)>> {
        let _alone = self.alone();
        let files = self.files();
        let Some(files) = files.as_ref().filter(|files| files.is_writable()) else { return Ok(None) };
        if files.harm(&self.shape)?.is_some() || files.is_vouched_for(&self.dir) {
            return Ok(None);
        }
        let Some(lock) = files.lock_stage(&self.dir, Duration::ZERO)? else { return Ok(None) };
        check_file_system(lock.data())?;
        // Another process may have sealed it before the lock was had.
        if files.is_vouched_for(&self.dir) {
            return Ok(None);
        }
        let frozen = lock.freeze(&self.dir)?;
        Ok(Some((lock, frozen, self.changes.load(Ordering::Acquire))))
    }

    /// Reads everything as the disk has it.
    fn verify_all(
        &self,
        lock: &StageLock,
        check: impl Fn(u32, &[u8]) -> bool,
        go_on: impl Fn() -> bool,
    ) -> io::Result<Verified> {
        // What cannot be written would be gone when the kernel has dropped its pages.
        lock.data().sync_data()?;
        let file = Uncached::open(&self.dir, lock.data())?;
        let mut buffer = Vec::new();
        for chunk in 0..self.shape.chunks {
            if !go_on() {
                return Ok(Verified::Stopped);
            }
            let range = self.range(chunk);
            let bytes = file.read(&mut buffer, range.start, usize::try_from(range.end - range.start).unwrap_or(0))?;
            if !check(chunk, bytes) {
                return Ok(Verified::Damaged(chunk));
            }
        }
        Ok(Verified::Whole)
    }

    /// The file, for the kernel, if it is sealed. From then on nobody changes it, as long as this boot lasts.
    pub(crate) fn plain(&self) -> io::Result<Option<PlainBlob>> {
        let _alone = self.alone();
        let files = self.files();
        let Some(files) = files.as_ref().filter(|files| files.is_vouched_for(&self.dir)) else { return Ok(None) };
        if files.harm(&self.shape)?.is_some() {
            return Ok(None);
        }
        // Before it is given, so that it is never without a lock that keeps it.
        let Some((data, lock)) = files.hold(&self.dir)? else { return Ok(None) };
        if files.stage()? != Stage::Given {
            let Some(stage) = files.lock_stage(&self.dir, GIVE_PATIENCE)? else { return Ok(None) };
            if !stage.give(&self.dir)? {
                return Ok(None);
            }
        }
        // Once more, of the very file that goes out.
        if !files.is_same_file(&data) || !files.is_vouched_for(&self.dir) {
            return Ok(None);
        }
        let file = Arc::new(data);
        self.cache.trimmer.sweep(&file);
        Ok(Some(PlainBlob { path: self.dir.join(DATA), file, lock }))
    }

    /// Whether nothing can be punched, as the kernel may be reading the file by itself.
    pub(super) fn is_given(&self) -> bool {
        self.files().as_ref().is_some_and(|files| files.is_given(&self.dir))
    }

    /// Whether a file that has been seized may be punched. A sealed one that was not given away is open from then on.
    pub(super) fn may_change(&self, files: &Files) -> bool {
        let sealed = files.stage().ok() != Some(Stage::Open);
        let open = files.thaw(&self.dir).unwrap_or_else(|error| {
            tracing::debug!(cache = %self.dir.display(), %error, "a sealed blob cannot be evicted from");
            false
        });
        if sealed && open {
            *self.thawed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        open
    }

    fn was_thawed_of_late(&self) -> bool {
        let thawed = *self.thawed.lock().unwrap_or_else(PoisonError::into_inner);
        thawed.is_some_and(|thawed| thawed.elapsed() < THAWED_PAUSE)
    }

    /// To a file that is sealed, or is just being: nothing is written. Whether it has these bytes already. If not, it is damaged, and a
    /// new one is to be made.
    pub(super) fn has_already(&self, files: &Files, chunk: u32, bytes: &[u8]) -> io::Result<bool> {
        let mut there = vec![0; bytes.len()];
        if files.read(&mut there, self.range(chunk).start).is_ok() && there == bytes {
            return Ok(true);
        }
        files.discard(&self.dir)?;
        self.told.store(true, Ordering::Relaxed);
        tracing::warn!(cache = %self.dir.display(), chunk, "the sealed file of a blob is damaged: it is made anew");
        Ok(false)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verified {
    Whole,
    Damaged(u32),
    Stopped,
}

fn check_file_system(file: &File) -> io::Result<()> {
    if SHARED_FILE_SYSTEMS.contains(&fstatfs(file)?.f_type) {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "other machines may share the file system of the cache",
        ));
    }
    Ok(())
}

/// A file read past the page cache where the file system can do that, and else as nearly so as it can.
struct Uncached(File);

/// What O_DIRECT wants of addresses, in memory and in the file.
const ALIGN: usize = 4096;

impl Uncached {
    /// Opens the same file as `data` in `dir`.
    fn open(dir: &Path, data: &File) -> io::Result<Self> {
        // Pages that are dropped now are those that the kernel will not take from memory later.
        fadvise(data, 0, None, Advice::DontNeed)?;
        let open = |flags| OpenOptions::new().read(true).custom_flags(flags).open(dir.join(DATA));
        let file = match open(libc::O_DIRECT) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => open(0)?,
            file => file?,
        };
        if Identity::of(&file)? != Identity::of(data)? {
            return Err(io::Error::other("another file has taken its name"));
        }
        Ok(Self(file))
    }

    /// Fills a part of `buffer`. Both `at` and `length` are whole blocks.
    fn read<'a>(&self, buffer: &'a mut Vec<u8>, at: u64, length: usize) -> io::Result<&'a [u8]> {
        const { assert!(BLOCK.is_multiple_of(ALIGN as u64)) };
        buffer.resize(buffer.len().max(length + ALIGN), 0);
        let start = buffer.as_ptr().align_offset(ALIGN);
        let part = buffer.get_mut(start..start.saturating_add(length)).ok_or(io::ErrorKind::OutOfMemory)?;
        self.0.read_exact_at(part, at)?;
        Ok(part)
    }
}
