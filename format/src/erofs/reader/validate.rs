//! The full walk: every inode, every name, every map entry.

use std::hash::{BuildHasher as _, RandomState};

use crate::ids::{BLOCK_SIZE, BlobIndex, Nid};
use crate::tree::MAX_MAP_ENTRIES;

use super::super::ondisk::*;
use super::nids::NidSet;
use super::{Bootstrap, BootstrapError, FileType, Inode, Layout};

/// What an overlay mount above would obey: attributes of the namespace `trusted.` that begin so.
const OVERLAY: &[u8] = b"overlay.";

/// What a full walk counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Names in the tree, the root among them.
    pub entries: u64,
    /// Inodes, hard links counted once.
    pub inodes: u64,
    /// Directories, the root among them.
    pub directories: u64,
    /// Regular files.
    pub regular_files: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Devices, pipes, sockets.
    pub special_files: u64,
    /// Sum of the sizes of all regular files in bytes, each inode once.
    pub file_bytes: u64,
    /// Entries of all chunk maps.
    pub map_entries: u64,
    /// Inodes that have extended attributes.
    pub inodes_with_xattrs: u64,
    /// Inodes that have a POSIX ACL.
    pub inodes_with_acls: u64,
}

impl<B: AsRef<[u8]>> Bootstrap<B> {
    /// Walks the whole image and checks what the accessors cannot see one by one: directories sorted, without
    /// loops, with right `.` and `..`; types and link counts right; every attribute and map entry readable, no
    /// attribute that an overlay would obey; fields without a meaning zero; the superblock's count of inodes.
    ///
    /// Linear in the size of the image, whatever it holds: no byte may be used twice, an image in which inodes
    /// share their content is refused. Memory: two bits per 32 bytes of image.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<Summary, BootstrapError> {
        self.validate_with(|_| ())
    }

    /// The same, telling `spent` how many bytes of the image each step has accounted for: at most its length in all.
    ///
    /// # Errors
    /// As [`Bootstrap::validate`].
    pub fn validate_with(&self, mut spent: impl FnMut(u64)) -> Result<Summary, BootstrapError> {
        self.validate_tables()?;
        let length = self.image().0.len() as u64;
        let mut walk = Walk {
            bootstrap: self,
            seen: NidSet::new(length / INODE_UNIT),
            pending: NidSet::new(length / INODE_UNIT),
            keys: RandomState::new(),
            links: 0,
            budget: length,
            spent: &mut spent,
            summary: Summary { entries: 1, ..Summary::default() },
        };
        walk.enter(self.root(), FileType::Directory, self.root())?;
        while let Some(directory) = walk.pending.pop_first() {
            walk.directory(directory)?;
        }
        if walk.links != 0 {
            return Err(BootstrapError::Image("the link count of some file is not the number of its names"));
        }
        if walk.summary.inodes != self.inode_count() {
            return Err(BootstrapError::Image("the superblock's count of inodes is wrong"));
        }
        Ok(walk.summary)
    }

    /// Superblock and device table.
    fn validate_tables(&self) -> Result<(), BootstrapError> {
        let superblock = self.image().structure(SUPERBLOCK_OFFSET as u64);
        if !superblock.is_some_and(Superblock::is_clean) {
            return Err(BootstrapError::Image("a field of the superblock that has no meaning is set"));
        }
        if self.slots != (SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE) as u64 {
            return Err(BootstrapError::Image("the device table is not behind the superblock"));
        }
        for blob in (0..self.devices).map(BlobIndex) {
            self.slot(blob)?;
            if !self.device_slot(blob).is_some_and(DeviceSlot::is_clean) {
                return Err(BootstrapError::Image("a field of a device that has no meaning is set"));
            }
        }
        Ok(())
    }
}

/// Whether the fields that have no meaning here are zero, so that a kernel which knows one finds none.
trait IsClean {
    fn is_clean(&self) -> bool;
}

impl IsClean for Superblock {
    fn is_clean(&self) -> bool {
        is_zero(&self.unused_times)
            && is_zero(&self.unused_volume_name)
            && self.unused_compression == 0
            && (self.directory_block_bits, self.xattr_prefixes) == (0, 0)
            && is_zero(&self.unused_end)
    }
}

impl IsClean for DeviceSlot {
    fn is_clean(&self) -> bool {
        self.flat_block == 0 && is_zero(&self.unused_end)
    }
}

impl IsClean for ExtendedInode {
    fn is_clean(&self) -> bool {
        self.unused_block_high == 0 && self.unused_number == 0 && is_zero(&self.unused_end)
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

struct Walk<'b, B> {
    bootstrap: &'b Bootstrap<B>,
    /// Inodes that a name has led to.
    seen: NidSet,
    /// Directories to be read.
    pending: NidSet,
    /// Gives each inode a number that nobody can foresee, so that an image cannot be made to fit them.
    keys: RandomState,
    /// Over the files with several links: the inode's number, as often as it promises names, less as often as it has some. Zero
    /// when all counts are right, and with a probability of about 2^-64 when not; it takes no memory for each file.
    links: u64,
    /// Bytes of the image that have not been accounted for: bounds the work where content overlaps.
    budget: u64,
    spent: &'b mut dyn FnMut(u64),
    summary: Summary,
}

impl<B: AsRef<[u8]>> Walk<'_, B> {
    fn directory(&mut self, nid: Nid) -> Result<(), BootstrapError> {
        let inode = self.bootstrap.inode(nid)?;
        let (mut last, mut dots, mut subdirectories): (&[u8], _, u32) = (&[], 0, 0);
        for entry in self.bootstrap.read_dir(&inode, 0)? {
            let entry = entry?;
            if entry.name <= last {
                return Err(inode.error("its entries are not sorted"));
            }
            last = entry.name;
            self.spend(&inode, (DIRENT_SIZE + entry.name.len()) as u64)?;
            match entry.name {
                b"." if entry.nid != nid || entry.file_type != FileType::Directory => {
                    return Err(inode.error("its . or .. leads elsewhere"));
                }
                // Where .. leads has been looked at when a name first led here.
                b"." | b".." => dots += 1,
                _ => {
                    self.summary.entries += 1;
                    self.name(&inode, entry.nid, entry.file_type)?;
                    subdirectories += u32::from(entry.file_type == FileType::Directory);
                }
            }
        }
        if dots != 2 {
            return Err(inode.error("it has no . or no .."));
        }
        if inode.nlink != subdirectories.saturating_add(2) {
            return Err(inode.error("its link count is not 2 and one for each subdirectory"));
        }
        Ok(())
    }

    /// A name in `directory` other than its dots.
    fn name(&mut self, directory: &Inode, nid: Nid, file_type: FileType) -> Result<(), BootstrapError> {
        if !self.seen.contains(nid) {
            return self.enter(nid, file_type, directory.nid);
        }
        let inode = self.bootstrap.inode(nid)?;
        if inode.file_type != file_type {
            return Err(inode.error("a directory entry gives it another type"));
        }
        if file_type == FileType::Directory {
            return Err(inode.error("a second name leads to the directory"));
        }
        if inode.nlink == 1 {
            return Err(inode.error("it has more names than links"));
        }
        self.links = self.links.wrapping_sub(self.keys.hash_one(nid.0));
        Ok(())
    }

    /// An inode at its first name, which is in `parent`.
    fn enter(&mut self, nid: Nid, file_type: FileType, parent: Nid) -> Result<(), BootstrapError> {
        let inode = self.bootstrap.inode(nid)?;
        if inode.file_type != file_type {
            return Err(inode.error("a directory entry gives it another type"));
        }
        self.seen.insert(nid);
        self.summary.inodes += 1;
        self.spend(&inode, INODE_SIZE as u64)?;
        self.fields(&inode)?;
        self.xattrs(&inode)?;
        match file_type {
            FileType::Directory => return self.enter_directory(&inode, parent),
            FileType::Regular => self.regular(&inode)?,
            FileType::Symlink => {
                self.summary.symlinks += 1;
                self.spend(&inode, inode.size)?;
                self.bootstrap.read_link(&inode)?;
            }
            _ => self.summary.special_files += 1,
        }
        if inode.nlink != 1 {
            let key = self.keys.hash_one(nid.0);
            self.links = self.links.wrapping_add(key.wrapping_mul(u64::from(inode.nlink).wrapping_sub(1)));
        }
        Ok(())
    }

    fn enter_directory(&mut self, inode: &Inode, parent: Nid) -> Result<(), BootstrapError> {
        self.summary.directories += 1;
        self.pending.insert(inode.nid);
        match self.bootstrap.lookup(inode, b"..")? {
            Some(up) if up != (parent, FileType::Directory) => Err(inode.error("its . or .. leads elsewhere")),
            // If it is not found, the directory is not sorted or lacks it: that is seen when it is read.
            _ => Ok(()),
        }
    }

    /// What the kernel may take for something that this reader does not know.
    fn fields(&self, inode: &Inode) -> Result<(), BootstrapError> {
        let raw = self.bootstrap.image().structure(inode.nid.0 * INODE_UNIT);
        if !raw.is_some_and(ExtendedInode::is_clean) {
            return Err(inode.error("a field that has no meaning is set"));
        }
        let has_content = !matches!(
            inode.file_type,
            FileType::CharDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket
        ) && inode.size != 0;
        match inode.layout {
            _ if has_content => Ok(()),
            // A device has its number in the place of the block.
            Layout::Plain { block } if block == 0 || inode.rdev != (0, 0) => Ok(()),
            _ => Err(inode.error("its size or data layout is not one for its type")),
        }
    }

    fn xattrs(&mut self, inode: &Inode) -> Result<(), BootstrapError> {
        if !inode.has_xattrs() {
            return Ok(());
        }
        self.summary.inodes_with_xattrs += 1;
        self.spend(inode, inode.xattr_size)?;
        let mut has_acl = false;
        for xattr in self.bootstrap.xattr_entries(inode)? {
            let xattr = xattr?;
            if xattr.prefix == b"trusted." && xattr.name.starts_with(OVERLAY) {
                return Err(inode.error("it has an extended attribute that an overlay mount would obey"));
            }
            has_acl |= xattr.prefix.starts_with(b"system.posix_acl_");
        }
        self.summary.inodes_with_acls += u64::from(has_acl);
        Ok(())
    }

    fn regular(&mut self, inode: &Inode) -> Result<(), BootstrapError> {
        self.summary.regular_files += 1;
        self.summary.file_bytes = self.summary.file_bytes.saturating_add(inode.size);
        if inode.size == 0 {
            return Ok(());
        }
        let map = self.bootstrap.map(inode)?;
        if map.len() > MAX_MAP_ENTRIES {
            return Err(inode.error("its chunk map has more entries than the format allows"));
        }
        self.spend(inode, map.len() * MAP_ENTRY_SIZE)?;
        self.summary.map_entries += map.len();
        for number in 0..map.len() {
            self.bootstrap.piece(inode, &map, number)?;
            if !map.is_clean(number) {
                return Err(inode.error("a field of its chunk map that has no meaning is set"));
            }
        }
        Ok(())
    }

    fn spend(&mut self, inode: &Inode, bytes: u64) -> Result<(), BootstrapError> {
        self.budget =
            self.budget.checked_sub(bytes).ok_or_else(|| inode.error("its content overlaps other inodes'"))?;
        (self.spent)(bytes);
        Ok(())
    }
}

/// A map entry's chunk is never larger than an offset in a file can say.
const _: () = assert!(BLOCK_SIZE.trailing_zeros() + 31 < 63);
