//! The files of one blob's cache, opened under a shared lock on its directory.

pub(crate) mod stage;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{
    Advice, FallocateFlags, SeekFrom, Timespec, Timestamps, UTIME_NOW, fadvise, fallocate, futimens, seek,
};
use rustix::io::Errno;

use super::lock::{self, Kind};
use stage::Writers;
pub(super) use stage::{Stage, StageLock};

use crate::bits::Bits;

/// Mode of what is made below the state directory: an image may hold files that not everybody may read.
const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// Names of the files.
pub(super) const DATA: &str = "data";
pub(super) const READY: &str = "ready";
pub(super) const LOCK: &str = "lock";

/// The byte of the lock file that stands for the directory.
pub(super) const WHOLE: lock::Byte = 0;

/// What of it is locked by the process that fetches the whole blob.
pub(super) const FILL: lock::Byte = 1;

/// What of it is locked by the process that makes a new data file.
const MAKE: lock::Byte = 2;

/// How long to try for a lock that others hold while they make or remove files or punch a few holes; all take milliseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// How often a directory may be removed between the opening and the locking of its lock file.
const OPEN_ATTEMPTS: u32 = 100;

/// Bytes of a block, the unit of `st_blocks`.
const STAT_BLOCK: u64 = 512;

/// Makes a directory below the state directory, and its parents.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(path)
}

/// Opens a file for reading and writing, made if it is not there.
pub(super) fn open_or_make(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(path)
}

/// Real disk space of a file.
pub(super) fn disk_bytes(metadata: &std::fs::Metadata) -> u64 {
    metadata.blocks() * STAT_BLOCK
}

/// A directory's lock file, with a shared lock, which keeps others from removing or punching what is in the directory.
fn lock_shared(dir: &Path, open: impl Fn(&Path) -> io::Result<File>) -> io::Result<File> {
    let path = dir.join(LOCK);
    for _ in 0..OPEN_ATTEMPTS {
        let file = open(&path)?;
        if !lock::lock(&file, WHOLE, Kind::Shared, LOCK_PATIENCE)? {
            return Err(locked_for_too_long());
        }
        // It may have been removed before it was locked: then the lock protects nothing.
        match path.metadata() {
            Ok(there) if is_same(&there, &file.metadata()?) => return Ok(file),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Err(io::Error::other("it is removed again and again"))
}

fn locked_for_too_long() -> io::Error {
    io::Error::new(io::ErrorKind::WouldBlock, "another process has locked it for too long")
}

/// The data and ready files of a directory whose lock file is `lock`: those that are there, or new ones if the data is not whole.
///
/// A data file gets its length once, from the process that created it and before anybody else takes it. One of another length has been
/// cut: who has verified chunks in it may still read there, and would find zeros if it grew again; so it is left alone.
fn whole_files(dir: &Path, shape: &Shape, lock: &File) -> io::Result<(File, File)> {
    if let Some(there) = open_whole(dir, shape)? {
        return Ok(there);
    }
    if !lock::lock(lock, MAKE, Kind::Exclusive, LOCK_PATIENCE)? {
        return Err(locked_for_too_long());
    }
    // Another process may have made them before the lock was had.
    let made = open_whole(dir, shape).and_then(|there| there.map_or_else(|| make_new(dir, shape), Ok));
    // If it fails, closing the file does it.
    let _ = lock::try_lock(lock, MAKE, Kind::Unlocked);
    made
}

/// `None` if the data file is not there or not whole.
fn open_whole(dir: &Path, shape: &Shape) -> io::Result<Option<(File, File)>> {
    let data = match OpenOptions::new().read(true).write(true).open(dir.join(DATA)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        data => data?,
    };
    if data.metadata()?.len() != shape.device_size {
        return Ok(None);
    }
    Ok(Some((data, open_or_make(&dir.join(READY))?)))
}

/// Makes both files anew. The data is whole last, so that nobody takes it with an old bitmap.
fn make_new(dir: &Path, shape: &Shape) -> io::Result<(File, File)> {
    // It speaks of another file; and that one's name is about to be free.
    Stage::forget(dir)?;
    let data = create_anew(&dir.join(DATA))?;
    let ready = create_anew(&dir.join(READY))?;
    write_empty_ready(&ready, shape.chunks)?;
    data.set_len(shape.device_size)?;
    Ok((data, ready))
}

/// Creates a file in place of one that others may have open.
fn create_anew(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(path),
    }
}

/// Locks the data file, shared. Should the directory's lock file be removed, this keeps others from punching all the same.
fn lock_data(data: &File) -> io::Result<()> {
    if lock::lock(data, WHOLE, Kind::Shared, LOCK_PATIENCE)? { Ok(()) } else { Err(locked_for_too_long()) }
}

/// A file opened anew for reading; `None` if another one has its name.
fn same_file(file: &File, path: &Path) -> io::Result<Option<File>> {
    let again = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        again => again?,
    };
    Ok(is_same(&file.metadata()?, &again.metadata()?).then_some(again))
}

fn is_same(one: &std::fs::Metadata, other: &std::fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// What a blob's files look like.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) device_size: u64,
    pub(super) chunks: u32,
}

/// What is wrong with files that somebody else has touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Harm {
    Removed,
    Cut,
    /// The lock file was removed: others do not see that the directory is in use.
    Unlocked,
}

/// The files, and the shared lock on their directory and on the data.
#[derive(Debug)]
pub(super) struct Files {
    lock: File,
    data: File,
    ready: File,
    writable: bool,
    writers: Writers,
    /// The data once more, without a lock that would stay for as long as somebody has it.
    cached: Option<Arc<File>>,
}

impl Files {
    /// Opens or makes all; on a read-only disk, opens what is there. Also tells which chunks `ready` names.
    pub(super) fn open(dir: &Path, shape: &Shape) -> io::Result<(Self, Bits)> {
        Self::make(dir, shape).or_else(|error| Self::existing(dir, shape).map_err(|_| error))
    }

    /// Opens or makes all, for writing.
    pub(super) fn make(dir: &Path, shape: &Shape) -> io::Result<(Self, Bits)> {
        let lock = lock_shared(dir, |path| {
            make_dir(dir)?;
            open_or_make(path)
        })?;
        let (data, ready) = whole_files(dir, shape, &lock)?;
        let files = Self::locked(dir, lock, data, ready, true)?;
        files.touch();
        let bits = files.ready_bits(shape)?;
        Ok((files, bits))
    }

    fn existing(dir: &Path, shape: &Shape) -> io::Result<(Self, Bits)> {
        let lock = lock_shared(dir, |path| File::open(path))?;
        let (data, ready) = (File::open(dir.join(DATA))?, File::open(dir.join(READY))?);
        if data.metadata()?.len() != shape.device_size {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let files = Self::locked(dir, lock, data, ready, false)?;
        let bits = files.ready_bits(shape)?;
        Ok((files, bits))
    }

    fn locked(dir: &Path, lock: File, data: File, ready: File, writable: bool) -> io::Result<Self> {
        lock_data(&data)?;
        // The kernel's own read-ahead, of megabytes on some disks, would stay in the page cache: nobody knows what it was.
        let _ = fadvise(&data, 0, None, Advice::Random);
        let cached = same_file(&data, &dir.join(DATA))?.map(Arc::new);
        Ok(Self { lock, data, ready, writable, writers: Writers::default(), cached })
    }

    /// What some process says is there. All, in a sealed file: the bitmap may be older, as it is not synced.
    fn ready_bits(&self, shape: &Shape) -> io::Result<Bits> {
        if self.stage()? == Stage::Open {
            return Ok(Bits::from_bytes(shape.chunks, &self.ready_bytes(shape.chunks)?));
        }
        let bits = Bits::new(shape.chunks);
        (0..shape.chunks).for_each(|chunk| bits.set(chunk));
        Ok(bits)
    }

    /// The data, for what concerns the page cache alone.
    pub(super) fn cached(&self) -> Option<&Arc<File>> {
        self.cached.as_ref()
    }

    /// The data file and the lock file opened anew and locked as here, to be held when this is gone. `None` if they are no longer those in
    /// `dir`.
    pub(super) fn hold(&self, dir: &Path) -> io::Result<Option<(File, File)>> {
        let (Some(data), Some(lock)) =
            (same_file(&self.data, &dir.join(DATA))?, same_file(&self.lock, &dir.join(LOCK))?)
        else {
            return Ok(None);
        };
        // This process has both locks shared, so that nobody's can be in the way.
        let held = lock::try_lock(&data, WHOLE, Kind::Shared)? && lock::try_lock(&lock, WHOLE, Kind::Shared)?;
        Ok(held.then_some((data, lock)))
    }

    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }

    pub(super) fn is_same_data(&self, other: &Self) -> bool {
        self.is_same_file(&other.data)
    }

    /// Whether a file is the data file.
    pub(super) fn is_same_file(&self, other: &File) -> bool {
        match (self.data.metadata(), other.metadata()) {
            (Ok(one), Ok(other)) => is_same(&one, &other),
            _ => false,
        }
    }

    /// Whether the files are what they were made as.
    pub(super) fn harm(&self, shape: &Shape) -> io::Result<Option<Harm>> {
        let metadata = self.data.metadata()?;
        Ok(match metadata.nlink() {
            0 => Some(Harm::Removed),
            _ if metadata.len() != shape.device_size => Some(Harm::Cut),
            _ if self.lock.metadata()?.nlink() == 0 => Some(Harm::Unlocked),
            _ => None,
        })
    }

    pub(super) fn disk_bytes(&self) -> io::Result<u64> {
        Ok(disk_bytes(&self.data.metadata()?))
    }

    pub(super) fn read(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        self.data.read_exact_at(buf, at)
    }

    /// Has the disk begin to read what is likely to be read next.
    pub(super) fn read_ahead(&self, range: &Range<u64>) {
        let _ = fadvise(&self.data, range.start, NonZeroU64::new(range.end - range.start), Advice::WillNeed);
    }

    pub(super) fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.data.write_all_at(bytes, at)
    }

    /// Notes the time as that of the last use.
    pub(super) fn touch(&self) {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        // It only decides what goes first.
        let _ = futimens(&self.lock, &Timestamps { last_access: now, last_modification: now });
    }

    /// All of the ready bitmap.
    pub(super) fn ready_bytes(&self, chunks: u32) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; chunks.div_ceil(8) as usize];
        let present = read_up_to(&self.ready, &mut bytes)?;
        bytes.truncate(present);
        Ok(bytes)
    }

    /// Whether some process says that the chunk is there. Missing and unreadable alike mean: not known to be.
    pub(super) fn is_ready(&self, chunk: u32) -> bool {
        self.ready_byte(chunk) & bit(chunk) != 0
    }

    fn ready_byte(&self, chunk: u32) -> u8 {
        let mut byte = [0];
        self.ready.read_exact_at(&mut byte, u64::from(chunk / 8)).map_or(0, |()| byte[0])
    }

    /// Not for two threads at a time.
    pub(super) fn write_ready(&self, chunk: u32, ready: bool) -> io::Result<()> {
        // From the file and not from memory, so that other processes' bits stay.
        let before = self.ready_byte(chunk);
        let after = if ready { before | bit(chunk) } else { before & !bit(chunk) };
        if after == before { Ok(()) } else { self.ready.write_all_at(&[after], u64::from(chunk / 8)) }
    }

    /// Tries to become the only one who uses the directory; [`Files::share`] ends it.
    pub(super) fn seize(&self) -> io::Result<bool> {
        // Files that are not open for writing cannot be locked so.
        if !self.writable || !lock::try_lock(&self.lock, WHOLE, Kind::Exclusive)? {
            return Ok(false);
        }
        let seized = lock::try_lock(&self.data, WHOLE, Kind::Exclusive);
        if !matches!(seized, Ok(true)) {
            self.share();
        }
        seized
    }

    pub(super) fn share(&self) {
        // Nobody can have a lock that is in the way. Should the kernel fail, others wait until this process ends.
        let _ = lock::try_lock(&self.data, WHOLE, Kind::Shared);
        let _ = lock::try_lock(&self.lock, WHOLE, Kind::Shared);
    }

    /// Gives a range of the data file back to the disk.
    pub(super) fn punch(&self, at: u64, length: u64) -> io::Result<()> {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        loop {
            match fallocate(&self.data, how, at, length) {
                Err(Errno::INTR) => {}
                done => return Ok(done?),
            }
        }
    }

    /// Whether a range of the data file takes disk space. True where the file system cannot tell.
    pub(super) fn has_data(&self, at: u64, end: u64) -> bool {
        match seek(&self.data, SeekFrom::Data(at)) {
            Ok(found) => found < end,
            Err(Errno::NXIO) => false,
            Err(_) => true,
        }
    }
}

/// Makes the bitmap of a blob of which nothing is there; it takes no disk space. The last byte's bits beyond the last chunk are set, so
/// that all bits are set when all chunks are there.
fn write_empty_ready(ready: &File, chunks: u32) -> io::Result<()> {
    let length = u64::from(chunks.div_ceil(8));
    ready.set_len(length)?;
    match length.checked_sub(1) {
        Some(last) if !chunks.is_multiple_of(8) => ready.write_all_at(&[u8::MAX << (chunks % 8)], last),
        _ => Ok(()),
    }
}

fn bit(chunk: u32) -> u8 {
    1 << (chunk % 8)
}

/// Fills `buf` as far as the file goes and says how far that was.
fn read_up_to(file: &File, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    // Each round reads at least a byte or is the last.
    while filled < buf.len() {
        match file.read_at(&mut buf[filled..], filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
