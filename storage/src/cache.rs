//! The cache of one blob: a sparse file laid out as its device space, and a bitmap of what is in it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::bits::Bits;
use crate::error::ReadError;

/// Mode of what is made below the state directory: an image may hold files that not everybody may read.
const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// Makes a directory below the state directory, and its parents.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(path)
}

/// One blob's cache. Chunks are numbered from 0 within the blob.
///
/// A chunk is *ready* when some process has written it, and *verified* when this process has hashed it, which is the only
/// state that it is read in.
#[derive(Debug)]
pub(crate) struct BlobCache {
    dir: PathBuf,
    /// `None` where no such files can be had: on a full or read-only disk.
    files: Option<Files>,
    ready_bits: Bits,
    verified: Bits,
    /// Serialises the updates of `ready`, so that a thread does not write back a byte without another's bit.
    updating: Mutex<()>,
}

/// A cache's two files.
#[derive(Debug)]
struct Files {
    data: File,
    ready: File,
}

impl Files {
    /// Opens or makes both; on a read-only disk, opens what is there. Also tells which chunks `ready` names.
    fn open(dir: &Path, device_size: u64, chunks: u32) -> io::Result<(Self, Bits)> {
        let made = make_dir(dir).and_then(|()| Self::make(dir, device_size, chunks));
        made.or_else(|error| Self::existing(dir, device_size, chunks).map_err(|_| error))
    }

    fn make(dir: &Path, device_size: u64, chunks: u32) -> io::Result<(Self, Bits)> {
        let open = |name: &str| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(dir.join(name))
        };
        let mut data = open("data")?;
        let length = data.metadata()?.len();
        if length != 0 && length != device_size {
            // Not what it was. Another process may still read what it has verified in there, so that file stays as it is.
            std::fs::remove_file(dir.join("data"))?;
            data = open("data")?;
        }
        let ready = open("ready")?;
        if data.metadata()?.len() != device_size {
            // New: nothing counts. Another process that makes it at the same time does the same.
            data.set_len(device_size)?;
            ready.set_len(0)?;
        }
        let bits = named_ready(&ready, chunks)?;
        Ok((Self { data, ready }, bits))
    }

    fn existing(dir: &Path, device_size: u64, chunks: u32) -> io::Result<(Self, Bits)> {
        let (data, ready) = (File::open(dir.join("data"))?, File::open(dir.join("ready"))?);
        if data.metadata()?.len() != device_size {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let bits = named_ready(&ready, chunks)?;
        Ok((Self { data, ready }, bits))
    }
}

fn named_ready(ready: &File, chunks: u32) -> io::Result<Bits> {
    let mut bytes = vec![0; chunks.div_ceil(8) as usize];
    let present = read_up_to(ready, &mut bytes)?;
    bytes.truncate(present);
    Ok(Bits::from_bytes(chunks, &bytes))
}

impl BlobCache {
    /// Opens or makes the cache in `dir` for a blob of `device_size` bytes in `chunks` chunks. Where that cannot be done, the
    /// cache is one that holds nothing and keeps nothing.
    pub(crate) fn open(dir: &Path, device_size: u64, chunks: u32) -> Self {
        let (files, ready_bits) = match Files::open(dir, device_size, chunks) {
            Ok((files, bits)) => (Some(files), bits),
            Err(error) => {
                tracing::warn!(cache = %dir.display(), %error, "no cache can be kept here: data is fetched whenever it is read");
                (None, Bits::new(chunks))
            }
        };
        let dir = dir.to_owned();
        Self { dir, files, ready_bits, verified: Bits::new(chunks), updating: Mutex::new(()) }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn is_verified(&self, chunk: u32) -> bool {
        self.verified.get(chunk)
    }

    /// Whether some process says that the chunk is there; looks again at what other processes have done since.
    pub(crate) fn is_ready(&self, chunk: u32) -> bool {
        if !self.ready_bits.get(chunk) && self.ready_byte(chunk) & bit(chunk) != 0 {
            self.ready_bits.set(chunk);
        }
        self.ready_bits.get(chunk)
    }

    /// Says that this process has hashed the chunk and found it right.
    pub(crate) fn set_verified(&self, chunk: u32) {
        self.verified.set(chunk);
    }

    /// Writes a chunk whose bytes have been verified, at their device address.
    ///
    /// # Errors
    /// When the disk is full or read-only: the chunk is not in the cache then.
    pub(crate) fn store(&self, chunk: u32, at: u64, bytes: &[u8]) -> io::Result<()> {
        let files = self.files.as_ref().ok_or(io::ErrorKind::ReadOnlyFilesystem)?;
        files.data.write_all_at(bytes, at)?;
        self.ready_bits.set(chunk);
        // A hint: if it cannot be kept, a later process fetches the chunk once more.
        let _ = self.write_ready(chunk, true);
        self.verified.set(chunk);
        Ok(())
    }

    /// Forgets a chunk that was found damaged.
    pub(crate) fn forget(&self, chunk: u32) {
        self.verified.take(chunk);
        self.ready_bits.take(chunk);
        let _ = self.write_ready(chunk, false);
    }

    /// Reads at a device address; false when the file ends before, because somebody cut it.
    pub(crate) fn read(&self, at: u64, buf: &mut [u8]) -> Result<bool, Arc<ReadError>> {
        let Some(files) = &self.files else { return Ok(false) };
        match files.data.read_exact_at(buf, at) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(ReadError::cache("read the cache file", self.dir.join("data"))(error)),
        }
    }

    fn ready_byte(&self, chunk: u32) -> u8 {
        let mut byte = [0];
        // Missing and unreadable alike mean: not known to be there.
        let Some(files) = &self.files else { return 0 };
        files.ready.read_exact_at(&mut byte, u64::from(chunk / 8)).map_or(0, |()| byte[0])
    }

    fn write_ready(&self, chunk: u32, ready: bool) -> io::Result<()> {
        let Some(files) = &self.files else { return Ok(()) };
        let _updating = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        // From the file and not from memory, so that other processes' bits stay.
        let byte = self.ready_byte(chunk);
        let byte = if ready { byte | bit(chunk) } else { byte & !bit(chunk) };
        files.ready.write_all_at(&[byte], u64::from(chunk / 8))
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

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 4096;

    fn open(dir: &Path) -> BlobCache {
        BlobCache::open(dir, 20 * CHUNK, 20)
    }

    #[test]
    fn what_one_process_stores_the_next_finds_ready_but_not_verified() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path());
        let second = open(dir.path());
        first.store(9, 9 * CHUNK, &[7; 4096]).unwrap();
        first.store(10, 10 * CHUNK, &[8; 4096]).unwrap();
        assert!(first.is_verified(9) && first.is_ready(9));
        assert!(second.is_ready(9) && !second.is_verified(9), "seen by a process that was there before");
        second.store(11, 11 * CHUNK, &[9; 4096]).unwrap();

        let third = open(dir.path());
        let ready: Vec<u32> = (0..20).filter(|&c| third.is_ready(c)).collect();
        assert_eq!(ready, [9, 10, 11], "no process wipes out another's bits");
        let mut buf = [0; 4096];
        assert!(third.read(10 * CHUNK, &mut buf).unwrap());
        assert_eq!(buf, [8; 4096]);
        third.forget(10);
        assert!(!open(dir.path()).is_ready(10));
    }

    #[test]
    fn data_that_is_gone_is_not_ready() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).store(0, 0, &[7; 4096]).unwrap();
        std::fs::remove_file(dir.path().join("data")).unwrap();
        assert!(!open(dir.path()).is_ready(0));
    }

    #[test]
    fn a_cut_file_is_no_short_read() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path());
        cache.store(3, 3 * CHUNK, &[7; 4096]).unwrap();
        cache.files.as_ref().unwrap().data.set_len(3 * CHUNK + 1).unwrap();
        assert!(!cache.read(3 * CHUNK, &mut [0; 4096]).unwrap());
    }
}
