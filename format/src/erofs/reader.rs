//! Reads a bootstrap where it lies. Every number in it is foreign: each access is checked against the slice.

mod directory;
mod map;
mod nids;
mod validate;
mod xattrs;

use std::mem::offset_of;

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::cost::step;
use crate::ids::{BLOCK_SIZE, BlobIndex, MAX_BLOBS, Nid, to_usize};
use crate::index::Index;
use crate::tree::Timestamp;

use super::ondisk::*;
pub use directory::{DirEntries, DirEntry};
pub use map::Mapping;
pub use validate::Summary;
pub use xattrs::Xattrs;

/// The bootstrap is damaged or of another kind, or was asked for something it does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BootstrapError {
    /// The image as a whole.
    #[error("bootstrap: {0}")]
    Image(&'static str),
    /// The image was written in another way than this reader knows.
    #[error("bootstrap: {what} is {value:#x}, this program reads {expected:#x}: damaged, or made by another version")]
    Unsupported {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What it should be.
        expected: u64,
    },
    /// Something about one inode.
    #[error("bootstrap: inode {0}: {1}")]
    Inode(Nid, &'static str),
    /// The inode is of another type than the call is for.
    #[error("bootstrap: inode {0} is not a {1}")]
    Type(Nid, &'static str),
    /// The device table and the chunk index do not describe the same blob.
    #[error("bootstrap: device {0} is not the blob that the chunk index has at its place")]
    Device(BlobIndex),
}

/// Type of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum FileType {
    Regular,
    Directory,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
    Symlink,
}

impl FileType {
    fn from_mode(mode: u16) -> Option<Self> {
        Some(match mode & S_IFMT {
            S_IFREG => Self::Regular,
            S_IFDIR => Self::Directory,
            S_IFCHR => Self::CharDevice,
            S_IFBLK => Self::BlockDevice,
            S_IFIFO => Self::Fifo,
            S_IFSOCK => Self::Socket,
            S_IFLNK => Self::Symlink,
            _ => return None,
        })
    }

    fn from_dirent(byte: u8) -> Option<Self> {
        Some(match byte {
            FT_REGULAR => Self::Regular,
            FT_DIRECTORY => Self::Directory,
            FT_CHAR => Self::CharDevice,
            FT_BLOCK => Self::BlockDevice,
            FT_FIFO => Self::Fifo,
            FT_SOCKET => Self::Socket,
            FT_SYMLINK => Self::Symlink,
            _ => return None,
        })
    }

    /// The type bits of `st_mode`.
    pub fn mode_bits(self) -> u16 {
        match self {
            Self::Regular => S_IFREG,
            Self::Directory => S_IFDIR,
            Self::CharDevice => S_IFCHR,
            Self::BlockDevice => S_IFBLK,
            Self::Fifo => S_IFIFO,
            Self::Socket => S_IFSOCK,
            Self::Symlink => S_IFLNK,
        }
    }
}

/// Where an inode's content lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// In whole blocks from this one on.
    Plain { block: u32 },
    /// Whole blocks from this one on, the rest behind the inode.
    Inline { block: u32 },
    /// In the devices, by a map of chunks of 4096 << bits bytes.
    Chunked { bits: u32 },
}

/// An inode, decoded. Its sizes and places have been checked against the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub nid: Nid,
    /// Its type.
    pub file_type: FileType,
    /// Mode without the file type: `mode & 0o7777`.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Number of links.
    pub nlink: u32,
    /// Size in bytes.
    pub size: u64,
    /// Major and minor number of a device, otherwise zeros.
    pub rdev: (u32, u32),
    layout: Layout,
    /// Bytes of attributes behind the inode.
    xattr_size: u64,
}

impl Inode {
    /// `st_mode`: type and permissions.
    pub fn mode(&self) -> u16 {
        self.file_type.mode_bits() | self.permissions
    }

    /// Whether it has extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.xattr_size != 0
    }

    fn error(&self, what: &'static str) -> BootstrapError {
        BootstrapError::Inode(self.nid, what)
    }

    /// Byte offset of what follows inode and attributes. An `Inode` exists only where this lies in the image.
    fn head_end(&self) -> u64 {
        self.nid.0 * INODE_UNIT + INODE_SIZE as u64 + self.xattr_size
    }
}

/// One device as the bootstrap knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot<'a> {
    /// Label: the 64 hex digits of the blob's SHA-256.
    pub tag: &'a [u8],
    /// Size of the device space in bytes.
    pub size: u64,
}

/// The image, with checked access to it.
#[derive(Debug, Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn get(self, at: u64, length: u64) -> Option<&'a [u8]> {
        step();
        let start = usize::try_from(at).ok()?;
        self.0.get(start..start.checked_add(usize::try_from(length).ok()?)?)
    }

    /// The structure there.
    fn structure<T: FromBytes + KnownLayout + Immutable + Unaligned>(self, at: u64) -> Option<&'a T> {
        T::ref_from_bytes(self.get(at, size_of::<T>() as u64)?).ok()
    }
}

/// A bootstrap in memory or mapped.
#[derive(Debug, Clone)]
pub struct Bootstrap<B> {
    bytes: B,
    root: Nid,
    inodes: u64,
    devices: u16,
    /// Byte offset of the device table.
    slots: u64,
}

impl<B: AsRef<[u8]>> Bootstrap<B> {
    /// Checks the superblock, the device table's place and the root; the cost does not depend on the tree.
    ///
    /// # Errors
    /// [`BootstrapError`] when this is not an EROFS image of the kind that [`crate::write_bootstrap`] makes.
    pub fn parse(bytes: B) -> Result<Self, BootstrapError> {
        let image = Bytes(bytes.as_ref());
        let length = image.0.len() as u64;
        let superblock: &Superblock =
            image.structure(SUPERBLOCK_OFFSET as u64).ok_or(BootstrapError::Image("shorter than a superblock"))?;
        check_superblock(superblock)?;
        if length < BLOCK_SIZE || u64::from(superblock.blocks) * BLOCK_SIZE != length {
            return Err(BootstrapError::Image("its length is not what the superblock says: truncated or damaged"));
        }
        check_checksum(image.0, superblock.checksum.get())?;
        let (devices, slots) = (superblock.devices.get(), u64::from(superblock.device_table) * SLOT_SIZE as u64);
        if usize::from(devices) > MAX_BLOBS || image.get(slots, u64::from(devices) * SLOT_SIZE as u64).is_none() {
            return Err(BootstrapError::Image("the device table is too long, or not within the image"));
        }
        let root = Nid(superblock.root_nid.into());
        let inodes = superblock.inodes.get();
        let bootstrap = Self { bytes, root, inodes, devices, slots };
        match bootstrap.inode(root)?.file_type {
            FileType::Directory => Ok(bootstrap),
            _ => Err(BootstrapError::Type(root, "directory, but the root")),
        }
    }

    /// The root directory.
    pub fn root(&self) -> Nid {
        self.root
    }

    /// Number of inodes by the superblock; [`Bootstrap::validate`] counts them.
    pub fn inode_count(&self) -> u64 {
        self.inodes
    }

    /// Number of devices: one a blob.
    pub fn device_count(&self) -> usize {
        usize::from(self.devices)
    }

    /// One entry of the device table.
    ///
    /// # Errors
    /// [`BootstrapError::Image`] for a number that is not in it, or an entry that the kernel would map elsewhere.
    pub fn slot(&self, blob: BlobIndex) -> Result<Slot<'_>, BootstrapError> {
        if blob.0 >= self.devices {
            return Err(BootstrapError::Image("a device is not in the device table"));
        }
        let slot = self.device_slot(blob).ok_or(BootstrapError::Image("truncated device table"))?;
        if slot.flat_block != 0 {
            return Err(BootstrapError::Image("a device has a flat address"));
        }
        Ok(Slot { tag: &slot.tag, size: u64::from(slot.blocks) * BLOCK_SIZE })
    }

    fn device_slot(&self, blob: BlobIndex) -> Option<&DeviceSlot> {
        self.image().structure(self.slots + u64::from(blob.0) * SLOT_SIZE as u64)
    }

    /// Checks that the device table names the blobs of a chunk index, in order and with their sizes.
    ///
    /// # Errors
    /// [`BootstrapError::Device`] for the first that differs, or that only one of them has.
    pub fn check_devices<I: AsRef<[u8]>>(&self, index: &Index<I>) -> Result<(), BootstrapError> {
        let count = u16::try_from(index.blob_count().max(self.device_count())).unwrap_or(u16::MAX);
        for blob in (0..count).map(BlobIndex) {
            let slot = self.slot(blob).map_err(|_| BootstrapError::Device(blob))?;
            let record = index.blob(blob).map_err(|_| BootstrapError::Device(blob))?;
            if slot.tag != record.digest.hex().as_bytes() || slot.size != record.device_size {
                return Err(BootstrapError::Device(blob));
            }
        }
        Ok(())
    }

    /// Decodes an inode.
    ///
    /// # Errors
    /// [`BootstrapError::Inode`] when there is none, or it breaks a rule of the format.
    pub fn inode(&self, nid: Nid) -> Result<Inode, BootstrapError> {
        decode_inode(self.image(), nid).map_err(|what| BootstrapError::Inode(nid, what))
    }

    /// A symlink's target.
    ///
    /// # Errors
    /// [`BootstrapError::Type`] when the inode is not a symlink, [`BootstrapError::Inode`] when its target
    /// holds a NUL.
    pub fn read_link(&self, inode: &Inode) -> Result<&[u8], BootstrapError> {
        if inode.file_type != FileType::Symlink {
            return Err(BootstrapError::Type(inode.nid, "symlink"));
        }
        let (blocks, tail) =
            content(self.image(), inode).ok_or_else(|| inode.error("its target is not in the image"))?;
        let target = if blocks.is_empty() { tail } else { blocks };
        if target.contains(&0) {
            return Err(inode.error("its target holds a NUL"));
        }
        Ok(target)
    }

    fn image(&self) -> Bytes<'_> {
        Bytes(self.bytes.as_ref())
    }
}

fn check_superblock(superblock: &Superblock) -> Result<(), BootstrapError> {
    let fields: [(&'static str, u64, u64); 9] = [
        ("magic number", superblock.magic.into(), MAGIC.into()),
        ("block size (log2)", superblock.block_bits.into(), BLOCK_BITS.into()),
        ("set of incompatible features", superblock.feature_incompat.into(), FEATURE_INCOMPAT.into()),
        ("set of compatible features", superblock.feature_compat.into(), FEATURE_COMPAT.into()),
        ("superblock extension", superblock.extension_slots.into(), 0),
        ("metadata block address", superblock.meta_block.into(), 0),
        ("attribute block address", superblock.xattr_block.into(), 0),
        ("directory block size", superblock.directory_block_bits.into(), 0),
        ("number of attribute prefixes", superblock.xattr_prefixes.into(), 0),
    ];
    match fields.into_iter().find(|(_, value, expected)| value != expected) {
        Some((what, value, expected)) => Err(BootstrapError::Unsupported { what, value, expected }),
        None => Ok(()),
    }
}

/// `image` has at least a block.
fn check_checksum(image: &[u8], value: u32) -> Result<(), BootstrapError> {
    let mut block = image[SUPERBLOCK_OFFSET..to_usize(BLOCK_SIZE)].to_vec();
    block[offset_of!(Superblock, checksum)..][..size_of::<u32>()].fill(0);
    let expected = superblock_checksum(&block);
    if value != expected {
        let (value, expected) = (value.into(), expected.into());
        return Err(BootstrapError::Unsupported { what: "superblock checksum", value, expected });
    }
    Ok(())
}

fn decode_inode(image: Bytes<'_>, nid: Nid) -> Result<Inode, &'static str> {
    let at = nid.0.checked_mul(INODE_UNIT).ok_or("it is not in the image")?;
    let raw: &ExtendedInode = image.structure(at).ok_or("it is not in the image")?;
    let (format, mode, u) = (raw.format.get(), raw.mode.get(), raw.u.get());
    if format & EXTENDED == 0 || raw.unused_block_high != 0 {
        return Err("it is not an extended inode of 32-bit block addresses");
    }
    let file_type = FileType::from_mode(mode).ok_or("unknown file type")?;
    let layout = match format >> 1 {
        FLAT_PLAIN => Layout::Plain { block: u },
        FLAT_INLINE => Layout::Inline { block: u },
        CHUNK_BASED if u & !CHUNK_BITS_MASK == CHUNK_INDEXES => Layout::Chunked { bits: u & CHUNK_BITS_MASK },
        _ => return Err("unknown data layout"),
    };
    let inode = Inode {
        nid,
        file_type,
        permissions: mode & !S_IFMT,
        uid: raw.uid.get(),
        gid: raw.gid.get(),
        mtime: Timestamp { seconds: raw.mtime.get(), nanoseconds: raw.mtime_nanoseconds.get() },
        nlink: raw.nlink.get(),
        size: raw.size.get(),
        rdev: match file_type {
            FileType::CharDevice | FileType::BlockDevice => decode_device(u),
            _ => (0, 0),
        },
        layout,
        xattr_size: xattrs::area_size(raw.xattr_count.get()),
    };
    image.get(at + INODE_SIZE as u64, inode.xattr_size).ok_or("its attributes are not in the image")?;
    if inode.mtime.nanoseconds >= 1_000_000_000 {
        return Err("its modification time has too many nanoseconds");
    }
    check_content(image, &inode)?;
    Ok(inode)
}

/// Whether size, layout and type agree, and the content or its map lies in the image.
fn check_content(image: Bytes<'_>, inode: &Inode) -> Result<(), &'static str> {
    let flat = !matches!(inode.layout, Layout::Chunked { .. });
    match inode.file_type {
        FileType::Regular if inode.size == 0 => Ok(()),
        FileType::Regular => map::check(image, inode),
        FileType::Directory if flat && inode.size > 0 => {
            content(image, inode).map(|_| ()).ok_or("its entries are not in the image")
        }
        FileType::Symlink if flat && (1..BLOCK_SIZE).contains(&inode.size) => {
            content(image, inode).map(|_| ()).ok_or("its target is not in the image")
        }
        FileType::Directory | FileType::Symlink => Err("its size or data layout is not one for its type"),
        _ if inode.size == 0 => Ok(()),
        _ => Err("a device, pipe or socket with content"),
    }
}

/// The two parts of a flat inode's content: in blocks, and behind the inode.
fn content<'a>(image: Bytes<'a>, inode: &Inode) -> Option<(&'a [u8], &'a [u8])> {
    let (block, tail) = match inode.layout {
        Layout::Plain { block } => (block, 0),
        Layout::Inline { block } => (block, inode.size % BLOCK_SIZE),
        Layout::Chunked { .. } => return None,
    };
    let at = inode.head_end();
    // The kernel refuses an inode whose tail lies in another block.
    if tail != 0 && inode.nid.0 * INODE_UNIT / BLOCK_SIZE != (at + tail - 1) / BLOCK_SIZE {
        return None;
    }
    // A block number nobody uses may be anything.
    let whole = inode.size - tail;
    let blocks = if whole == 0 { &[] } else { image.get(u64::from(block) * BLOCK_SIZE, whole)? };
    Some((blocks, image.get(at, tail)?))
}
