//! What the filesystem says: names, attributes and bytes of a read-only tree, straight from the mapped bootstrap.
//!
//! Nothing here knows FUSE. No tree is built: each answer reads the few records that it needs. Whatever a hostile bootstrap
//! holds, the answer is an error of [`FsError`], never a panic.

mod path;
mod xattrs;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lazo_format::{BlobIndex, BootstrapError, ChunkIndex, DeviceAddr, Digest, FileType, Inode, Nid, Timestamp};
use lazo_storage::{LazoImage, ReadError, Reader};
use rustix::io::Errno;

/// Inode number of the root, whatever its place in the bootstrap. All others are known by their EROFS number.
const ROOT: u64 = 1;

/// Block size that `stat` and `statfs` report, in bytes.
pub(crate) const BLOCK_SIZE: u32 = 4096;

/// Longest name, as `statfs` reports it.
pub(crate) const MAX_NAME: u32 = 255;

/// Most entries of a file's chunk map that `stat` counts holes in: 64 GiB in pieces of 1 MiB, at about 0.1 ms, so that a directory of links to
/// one such file costs no more than its size. A larger file is told to take all of its size, as the kernel's EROFS tells of any.
const MAX_COUNTED: u64 = 1 << 16;

/// Most runs that one read may be put together from. A request has at most 1 MiB, and a run at least a block.
const MAX_PIECES: usize = 512;

/// An inode number as users see it: 1 for the root, the EROFS number for everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

/// Why an operation fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FsError {
    /// The caller asked for something that is not there, or not for this kind of file.
    #[error("{0}")]
    Caller(Errno),
    /// The bootstrap is damaged.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// An inode number that must not occur.
    #[error("bootstrap: inode number {0} is not one that a file can have")]
    Number(u64),
    /// The bytes cannot be had.
    #[error(transparent)]
    Data(#[from] Arc<ReadError>),
}

impl FsError {
    /// What the caller gets to see.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Caller(errno) => *errno,
            // "Structure needs cleaning", as the kernel's own filesystems say.
            Self::Bootstrap(_) | Self::Number(_) => Errno::UCLEAN,
            Self::Data(_) => Errno::IO,
        }
    }

    /// Whether it is the image's or the source's fault, and so worth a line in the log.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        !matches!(self, Self::Caller(_))
    }

    /// The chunk that could not be had, where it is one.
    #[must_use]
    pub fn chunk(&self) -> Option<ChunkIndex> {
        match self {
            Self::Data(error) => error.chunk(),
            _ => None,
        }
    }
}

/// What `stat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields of struct stat")]
pub struct Attributes {
    pub ino: Ino,
    pub file_type: FileType,
    pub permissions: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// As `makedev(3)` packs it for the kernel.
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// Of 512 bytes.
    pub blocks: u64,
    pub mtime: SystemTime,
}

/// One name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The name; `.` and `..` come too.
    pub name: &'a [u8],
    /// Whom it names.
    pub ino: Ino,
    /// The type of that.
    pub file_type: FileType,
    /// Where to go on reading behind it.
    pub next: u64,
}

/// What `statfs` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Data of all files, in blocks of 4096 bytes.
    pub blocks: u64,
    /// Entries of the tree.
    pub files: u64,
}

/// What a read is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// A file.
    File(Ino),
    /// A blob's device space.
    Device(BlobIndex),
}

impl Target {
    /// Of a file.
    pub(crate) fn inode(self) -> Option<u64> {
        match self {
            Self::File(ino) => Some(ino.0),
            Self::Device(_) => None,
        }
    }

    /// Number of the blob.
    pub(crate) fn device(self) -> Option<u16> {
        match self {
            Self::File(_) => None,
            Self::Device(blob) => Some(blob.0),
        }
    }
}

/// Where the bytes of one read lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadPlan {
    target: Target,
    offset: u64,
    length: usize,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    length: usize,
    /// `None` for a hole.
    location: Option<(BlobIndex, DeviceAddr)>,
}

impl ReadPlan {
    /// Bytes that the read yields: all that was asked for, up to the end of the file.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }
}

/// What a read waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Awaited {
    /// The blob.
    pub blob: Digest,
    /// The first chunk of the read that is not in the cache.
    pub chunk: ChunkIndex,
    /// Whence it is to come.
    pub source: String,
}

/// A mounted image's tree.
#[derive(Debug)]
pub struct FileSystem {
    image: LazoImage,
    reader: Arc<Reader>,
}

impl FileSystem {
    /// The tree of `image`, its data by `reader`.
    #[must_use]
    pub fn new(image: LazoImage, reader: Arc<Reader>) -> Self {
        Self { image, reader }
    }

    /// The image.
    #[must_use]
    pub fn image(&self) -> &LazoImage {
        &self.image
    }

    /// Whether any file has extended attributes.
    #[must_use]
    pub fn has_xattrs(&self) -> bool {
        self.image.index().header().has_xattrs
    }

    /// Whether any file has a POSIX ACL.
    #[must_use]
    pub fn has_acls(&self) -> bool {
        self.image.index().header().has_acls
    }

    /// Attributes of a file.
    ///
    /// # Errors
    /// [`FsError::Bootstrap`] when there is no such inode.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes, FsError> {
        let inode = self.inode(ino)?;
        let data = match inode.file_type {
            FileType::Regular => self.image.bootstrap().data_bytes(&inode, MAX_COUNTED)?,
            _ => None,
        };
        Ok(attributes(ino, &inode, data.unwrap_or(inode.size)))
    }

    /// Finds a name in a directory.
    ///
    /// # Errors
    /// `ENOTDIR`, `ENAMETOOLONG`; a damaged bootstrap.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Attributes>, FsError> {
        if name.len() > MAX_NAME as usize {
            return Err(FsError::Caller(Errno::NAMETOOLONG));
        }
        let directory = self.directory(parent)?;
        match self.image.bootstrap().lookup(&directory, name)? {
            None => Ok(None),
            Some((nid, _)) => {
                let ino = self.ino(nid)?;
                Ok(Some(self.attributes(ino)?))
            }
        }
    }

    /// Lists a directory from `offset` on, 0 being the start and others an [`Entry::next`], until `take` says false.
    ///
    /// # Errors
    /// `ENOTDIR`; a damaged bootstrap; what `take` returns.
    pub fn read_dir(
        &self,
        ino: Ino,
        offset: u64,
        mut take: impl FnMut(&Entry<'_>) -> Result<bool, FsError>,
    ) -> Result<(), FsError> {
        let directory = self.directory(ino)?;
        for entry in self.image.bootstrap().read_dir(&directory, offset)? {
            let entry = entry?;
            let ino = self.ino(entry.nid)?;
            let entry = Entry { name: entry.name, ino, file_type: entry.file_type, next: entry.next_cookie };
            if !take(&entry)? {
                break;
            }
        }
        Ok(())
    }

    /// Where a symlink points.
    ///
    /// # Errors
    /// `EINVAL` for anything else; a damaged bootstrap.
    pub fn read_link(&self, ino: Ino) -> Result<&[u8], FsError> {
        let inode = self.inode(ino)?;
        if inode.file_type != FileType::Symlink {
            return Err(FsError::Caller(Errno::INVAL));
        }
        Ok(self.image.bootstrap().read_link(&inode)?)
    }

    /// Totals of the image; nothing is free.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let header = self.image.index().header();
        Totals { blocks: header.file_bytes.div_ceil(u64::from(BLOCK_SIZE)), files: header.entries }
    }

    /// The first data (`hole` false) or hole at or behind an offset; the end of the file counts as a hole.
    ///
    /// # Errors
    /// `ENXIO` at or behind the end, or when no data follows; `EINVAL` for what is no regular file.
    pub fn seek(&self, ino: Ino, offset: u64, hole: bool) -> Result<u64, FsError> {
        let inode = self.regular(ino)?;
        if offset >= inode.size {
            return Err(FsError::Caller(Errno::NXIO));
        }
        let mut at = offset;
        // Every run is at least a byte long, and most are long; a file has at most as many as its map has entries.
        while at < inode.size {
            let run = self.image.bootstrap().extent(&inode, at)?;
            if run.location.is_none() == hole {
                return Ok(at);
            }
            at += run.length.max(1);
        }
        if hole { Ok(inode.size) } else { Err(FsError::Caller(Errno::NXIO)) }
    }

    /// Finds out where the bytes of a read lie. Does no I/O.
    ///
    /// # Errors
    /// `EISDIR` or `EINVAL` for what has no bytes; a damaged bootstrap.
    pub fn plan_read(&self, ino: Ino, offset: u64, size: u32) -> Result<ReadPlan, FsError> {
        let inode = self.regular(ino)?;
        let end = offset.saturating_add(u64::from(size)).min(inode.size);
        let mut pieces = Vec::with_capacity(1);
        let mut at = offset;
        while at < end {
            let run = self.image.bootstrap().extent(&inode, at)?;
            let length = run.length.min(end - at);
            if length == 0 || pieces.len() == MAX_PIECES {
                return Err(BootstrapError::Inode(inode.nid, "its chunk map ends before the file").into());
            }
            pieces.push(Piece { length: to_usize(length), location: run.location });
            at += length;
        }
        Ok(ReadPlan { target: Target::File(ino), offset, length: to_usize(end.saturating_sub(offset)), pieces })
    }

    /// The same for a blob's device space, which ends at its device size.
    ///
    /// # Errors
    /// A blob that the image does not have.
    pub fn plan_device_read(&self, blob: BlobIndex, at: DeviceAddr, size: u32) -> Result<ReadPlan, FsError> {
        let device_size = self.device_size(blob)?;
        let length = to_usize(device_size.saturating_sub(at.0).min(u64::from(size)));
        let pieces = if length == 0 { Vec::new() } else { vec![Piece { length, location: Some((blob, at)) }] };
        Ok(ReadPlan { target: Target::Device(blob), offset: at.0, length, pieces })
    }

    /// Bytes of a blob's device space.
    ///
    /// # Errors
    /// A blob that the image does not have.
    pub fn device_size(&self, blob: BlobIndex) -> Result<u64, FsError> {
        Ok(self.image.index().blob(blob).map_err(|_| FsError::Caller(Errno::NOENT))?.device_size)
    }

    /// What reads its data.
    #[must_use]
    pub fn reader(&self) -> &Arc<Reader> {
        &self.reader
    }

    /// Opens the blobs that a read needs. Whether one of them had not been open before, so that [`FileSystem::read_cached`] may do more
    /// than it did.
    ///
    /// # Errors
    /// [`FsError::Data`].
    pub async fn open(&self, plan: &ReadPlan) -> Result<bool, FsError> {
        let mut opened = false;
        for (blob, _) in plan.pieces.iter().filter_map(|piece| piece.location) {
            opened |= self.reader.open(blob).await?;
        }
        Ok(opened)
    }

    /// Fills `buf`, which has the plan's length, if no byte of it must be fetched. Never waits, neither for the network nor for a blob to
    /// be opened.
    ///
    /// # Errors
    /// [`FsError::Data`].
    pub fn read_cached(&self, plan: &ReadPlan, buf: &mut [u8]) -> Result<bool, FsError> {
        let mut rest = buf;
        for piece in &plan.pieces {
            let Some((now, later)) = rest.split_at_mut_checked(piece.length) else { break };
            rest = later;
            match piece.location {
                None => now.fill(0),
                Some((blob, at)) => {
                    if !self.reader.read_cached(blob, at, now)? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// The bytes of a read, fetched where they are not in the cache: always the plan's length.
    ///
    /// # Errors
    /// [`FsError::Data`].
    pub async fn read(&self, plan: &ReadPlan) -> Result<Vec<u8>, FsError> {
        // All of them are under way before the first is waited for, and there is no buffer until then.
        let fetches = plan.pieces.iter().filter_map(|piece| {
            let (blob, at) = piece.location?;
            Some(self.reader.fetch(blob, at, piece.length))
        });
        futures_util::future::try_join_all(fetches).await?;
        let mut buf = vec![0; plan.length];
        let mut rest = buf.as_mut_slice();
        for piece in &plan.pieces {
            let Some((now, later)) = rest.split_at_mut_checked(piece.length) else { break };
            rest = later;
            if let Some((blob, at)) = piece.location {
                self.reader.read(blob, at, now).await?;
            }
        }
        Ok(buf)
    }

    /// What a read waits for. Does no I/O beyond looking into the cache.
    #[must_use]
    pub fn awaited(&self, plan: &ReadPlan) -> Option<Awaited> {
        let (blob, chunk) = plan.pieces.iter().find_map(|piece| {
            let (blob, at) = piece.location?;
            self.missing(blob, at.0..at.0 + piece.length as u64).map(|chunk| (blob, chunk))
        })?;
        let record = self.image.index().blob(blob).ok()?;
        Some(Awaited { blob: record.digest, chunk, source: self.reader.waiting_for().to_string() })
    }

    /// The first chunk of some that is not in the cache.
    fn missing(&self, blob: BlobIndex, range: Range<u64>) -> Option<ChunkIndex> {
        let mut chunks = self.image.index().chunks_in(blob, range.clone()).ok()?.map(ChunkIndex);
        chunks.find(|&chunk| {
            let record = self.image.index().chunk(chunk);
            let at = record.map_or(range.start, |record| record.device_offset.0.max(range.start));
            !self.reader.read_cached(blob, DeviceAddr(at), &mut [0]).unwrap_or(false)
        })
    }

    fn inode(&self, ino: Ino) -> Result<Inode, FsError> {
        let nid = if ino.0 == ROOT { self.image.bootstrap().root() } else { Nid(ino.0) };
        Ok(self.image.bootstrap().inode(nid)?)
    }

    fn directory(&self, ino: Ino) -> Result<Inode, FsError> {
        let inode = self.inode(ino)?;
        match inode.file_type {
            FileType::Directory => Ok(inode),
            _ => Err(FsError::Caller(Errno::NOTDIR)),
        }
    }

    fn regular(&self, ino: Ino) -> Result<Inode, FsError> {
        let inode = self.inode(ino)?;
        match inode.file_type {
            FileType::Regular => Ok(inode),
            FileType::Directory => Err(FsError::Caller(Errno::ISDIR)),
            _ => Err(FsError::Caller(Errno::INVAL)),
        }
    }

    /// The number that users see. 0 means "nothing" to the kernel and 1 the root, so no other inode may have them.
    fn ino(&self, nid: Nid) -> Result<Ino, FsError> {
        match nid {
            nid if nid == self.image.bootstrap().root() => Ok(Ino(ROOT)),
            Nid(number) if number <= ROOT => Err(FsError::Number(number)),
            Nid(number) => Ok(Ino(number)),
        }
    }
}

/// `data`: bytes that are not in holes.
fn attributes(ino: Ino, inode: &Inode, data: u64) -> Attributes {
    Attributes {
        ino,
        file_type: inode.file_type,
        permissions: inode.permissions,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: encode_device(inode.rdev),
        size: inode.size,
        blocks: data.div_ceil(u64::from(BLOCK_SIZE)) * u64::from(BLOCK_SIZE / 512),
        mtime: system_time(inode.mtime),
    }
}

/// `new_encode_dev` of the kernel: 12 bits of major number, 20 of minor.
fn encode_device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

/// A time stamp; one beyond what can be told is the epoch.
fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let seconds = if time.seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    let nanoseconds = Duration::from_nanos(u64::from(time.nanoseconds.min(999_999_999)));
    seconds.and_then(|s| s.checked_add(nanoseconds)).unwrap_or(UNIX_EPOCH)
}

/// Lengths of reads, which came as 32 bits.
fn to_usize(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_and_beyond_all_bounds() {
        let at = |seconds, nanoseconds| system_time(Timestamp { seconds, nanoseconds });
        assert_eq!(at(5, 7), UNIX_EPOCH + Duration::new(5, 7));
        assert_eq!(at(-2, 750_000_000), UNIX_EPOCH - Duration::from_millis(1250));
        assert_eq!(at(0, u32::MAX), UNIX_EPOCH + Duration::from_nanos(999_999_999));
        for extreme in [i64::MIN, i64::MAX] {
            at(extreme, 999_999_999);
        }
    }

    #[test]
    fn device_numbers_are_packed_as_the_kernel_does() {
        assert_eq!(encode_device((8, 1)), 0x801);
        assert_eq!(encode_device((0xabc, 0x12345)), 0x123a_bc45);
    }
}
