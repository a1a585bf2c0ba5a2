//! The full walk: every inode, every name, every map entry.

use std::collections::HashMap;

use crate::ids::{BLOCK_SIZE, BlobIndex, Nid, to_usize};

use super::super::ondisk::{DIRENT_SIZE, INODE_SIZE, INODE_UNIT, MAP_ENTRY_SIZE};
use super::{Bootstrap, BootstrapError, FileType, Inode};

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
}

impl<B: AsRef<[u8]>> Bootstrap<B> {
    /// Walks the whole image and checks what the accessors cannot see one by one: directories sorted, without
    /// loops, with right `.` and `..`; types and link counts right; every attribute and map entry readable;
    /// the superblock's count of inodes.
    ///
    /// Linear in the size of the image, whatever it holds: no byte may be used twice, an image in which inodes
    /// share their content is refused. Memory: one bit per 32 bytes of image, 16 bytes per directory that waits,
    /// and at most 48 bytes per inode with several links.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<Summary, BootstrapError> {
        for blob in 0..self.device_count() {
            self.slot(BlobIndex(u16::try_from(blob).unwrap_or(u16::MAX)))?;
        }
        let length = self.image().0.len() as u64;
        let mut walk = Walk {
            bootstrap: self,
            seen: vec![0; to_usize(length / INODE_UNIT / 64 + 1)],
            links: HashMap::new(),
            pending: vec![(self.root(), self.root())],
            budget: length,
            summary: Summary { entries: 1, ..Summary::default() },
        };
        walk.enter(self.root(), FileType::Directory)?;
        while let Some((directory, parent)) = walk.pending.pop() {
            walk.directory(directory, parent)?;
        }
        if let Some((nid, _)) = walk.links.iter().find(|(_, links)| links.found != links.promised) {
            return Err(BootstrapError::Inode(*nid, "its link count is not the number of its names"));
        }
        if walk.summary.inodes != self.inode_count() {
            return Err(BootstrapError::Image("the superblock's count of inodes is wrong"));
        }
        Ok(walk.summary)
    }
}

struct Links {
    promised: u32,
    found: u32,
}

struct Walk<'b, B> {
    bootstrap: &'b Bootstrap<B>,
    /// A bit for each place where an inode can begin.
    seen: Vec<u64>,
    /// Files with more than one link.
    links: HashMap<Nid, Links>,
    /// Directories to be read, and what their `..` must be.
    pending: Vec<(Nid, Nid)>,
    /// Bytes of the image that have not been accounted for: bounds the work where content overlaps.
    budget: u64,
    summary: Summary,
}

impl<B: AsRef<[u8]>> Walk<'_, B> {
    fn directory(&mut self, nid: Nid, parent: Nid) -> Result<(), BootstrapError> {
        let inode = self.bootstrap.inode(nid)?;
        let (mut last, mut dots, mut subdirectories): (&[u8], _, u32) = (&[], 0, 0);
        for entry in self.bootstrap.read_dir(&inode, 0)? {
            let entry = entry?;
            if entry.name <= last {
                return Err(inode.error("its entries are not sorted"));
            }
            last = entry.name;
            self.spend(&inode, (DIRENT_SIZE + entry.name.len()) as u64)?;
            let expected = match entry.name {
                b"." => nid,
                b".." => parent,
                _ => {
                    self.summary.entries += 1;
                    self.name(&inode, entry.nid, entry.file_type)?;
                    subdirectories += u32::from(entry.file_type == FileType::Directory);
                    continue;
                }
            };
            dots += 1;
            if entry.nid != expected || entry.file_type != FileType::Directory {
                return Err(inode.error("its . or .. leads elsewhere"));
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
        if !self.is_seen(nid) {
            if file_type == FileType::Directory {
                self.pending.push((nid, directory.nid));
            }
            return self.enter(nid, file_type);
        }
        let inode = self.bootstrap.inode(nid)?;
        if inode.file_type != file_type {
            return Err(inode.error("a directory entry gives it another type"));
        }
        let links = self.links.get_mut(&nid).ok_or_else(|| inode.error("it has more names than links"))?;
        links.found = links.found.saturating_add(1);
        Ok(())
    }

    /// An inode at its first name.
    fn enter(&mut self, nid: Nid, file_type: FileType) -> Result<(), BootstrapError> {
        let inode = self.bootstrap.inode(nid)?;
        if inode.file_type != file_type {
            return Err(inode.error("a directory entry gives it another type"));
        }
        self.mark(nid);
        self.summary.inodes += 1;
        self.spend(&inode, INODE_SIZE as u64)?;
        if inode.has_xattrs() {
            self.summary.inodes_with_xattrs += 1;
            self.spend(&inode, inode.xattr_size)?;
            self.bootstrap.xattrs(&inode)?.try_for_each(|xattr| xattr.map(|_| ()))?;
        }
        match file_type {
            FileType::Directory => {
                self.summary.directories += 1;
                return Ok(());
            }
            FileType::Regular => self.regular(&inode)?,
            FileType::Symlink => {
                self.summary.symlinks += 1;
                self.spend(&inode, inode.size)?;
                self.bootstrap.read_link(&inode)?;
            }
            _ => self.summary.special_files += 1,
        }
        if inode.nlink != 1 {
            self.links.insert(nid, Links { promised: inode.nlink, found: 1 });
        }
        Ok(())
    }

    fn regular(&mut self, inode: &Inode) -> Result<(), BootstrapError> {
        self.summary.regular_files += 1;
        self.summary.file_bytes = self.summary.file_bytes.saturating_add(inode.size);
        if inode.size == 0 {
            return Ok(());
        }
        let map = self.bootstrap.map(inode)?;
        self.spend(inode, map.len() * MAP_ENTRY_SIZE)?;
        self.summary.map_entries += map.len();
        (0..map.len()).try_for_each(|number| self.bootstrap.piece(inode, &map, number).map(|_| ()))
    }

    fn spend(&mut self, inode: &Inode, bytes: u64) -> Result<(), BootstrapError> {
        self.budget =
            self.budget.checked_sub(bytes).ok_or_else(|| inode.error("its content overlaps other inodes'"))?;
        Ok(())
    }

    fn is_seen(&self, nid: Nid) -> bool {
        self.seen.get(to_usize(nid.0 / 64)).is_some_and(|word| word >> (nid.0 % 64) & 1 != 0)
    }

    /// The inode has been read, so its number is within the image.
    fn mark(&mut self, nid: Nid) {
        if let Some(word) = self.seen.get_mut(to_usize(nid.0 / 64)) {
            *word |= 1 << (nid.0 % 64);
        }
    }
}

/// A map entry's chunk is never larger than an offset in a file can say.
const _: () = assert!(BLOCK_SIZE.trailing_zeros() + 31 < 63);
