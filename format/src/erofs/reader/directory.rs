//! Directories: blocks of entries sorted by name, searched in place.

use std::cmp::Ordering;

use zerocopy::FromBytes as _;

use crate::cost::step;
use crate::ids::{BLOCK_SIZE, Nid, to_usize};

use super::super::ondisk::{DIRENT_SIZE, Dirent};
use super::{Bootstrap, BootstrapError, FileType, Inode, content};

/// Longest file name in bytes.
const MAX_NAME: usize = crate::tree::MAX_NAME;

/// One name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The name; `.` and `..` come too, at their places in the order of bytes.
    pub name: &'a [u8],
    /// Whom it names.
    pub nid: Nid,
    /// The type of what it names.
    pub file_type: FileType,
    /// Where to go on reading behind this entry.
    pub next_cookie: u64,
}

/// A directory's content.
#[derive(Debug, Clone, Copy)]
struct Directory<'a> {
    nid: Nid,
    blocks: &'a [u8],
    tail: &'a [u8],
}

/// One block of it: entries, then names.
#[derive(Debug, Clone, Copy)]
struct Block<'a> {
    nid: Nid,
    data: &'a [u8],
    entries: &'a [Dirent],
}

impl<'a> Directory<'a> {
    fn block_count(&self) -> u64 {
        (self.blocks.len() as u64).div_ceil(BLOCK_SIZE) + u64::from(!self.tail.is_empty())
    }

    /// `None` behind the last block.
    fn block(&self, number: u64) -> Option<Result<Block<'a>, BootstrapError>> {
        if number >= self.block_count() {
            return None;
        }
        step();
        let start = to_usize(number * BLOCK_SIZE);
        let data = match self.blocks.get(start..) {
            Some(rest) if !rest.is_empty() => &rest[..rest.len().min(to_usize(BLOCK_SIZE))],
            _ => self.tail,
        };
        Some(Block::parse(self.nid, data))
    }
}

impl<'a> Block<'a> {
    fn parse(nid: Nid, data: &'a [u8]) -> Result<Self, BootstrapError> {
        let senseless = BootstrapError::Inode(nid, "a directory block's entries have no sensible number");
        let names_at = Dirent::ref_from_prefix(data).map_or(0, |(entry, _)| usize::from(entry.name_offset));
        if names_at == 0 || !names_at.is_multiple_of(DIRENT_SIZE) {
            return Err(senseless);
        }
        let count = names_at / DIRENT_SIZE;
        let (entries, _) = <[Dirent]>::ref_from_prefix_with_elems(data, count).map_err(|_| senseless)?;
        Ok(Self { nid, data, entries })
    }

    fn count(&self) -> usize {
        self.entries.len()
    }

    /// Fixed part of an entry; `at` is below `count`.
    fn raw(&self, at: usize) -> &'a Dirent {
        step();
        &self.entries[at]
    }

    fn name(&self, at: usize) -> Result<&'a [u8], BootstrapError> {
        let start = usize::from(self.raw(at).name_offset);
        let name = if at + 1 < self.count() {
            self.data.get(start..usize::from(self.raw(at + 1).name_offset))
        } else {
            // The last name ends with the data or at the first padding byte.
            self.data.get(start..).map(|rest| rest.split(|byte| *byte == 0).next().unwrap_or(rest))
        };
        name.filter(|name| (1..=MAX_NAME).contains(&name.len()) && start >= size_of_val(self.entries))
            .ok_or(BootstrapError::Inode(self.nid, "a directory entry's name is not within its block"))
    }

    fn target(&self, at: usize) -> Result<(Nid, FileType), BootstrapError> {
        let raw = self.raw(at);
        let file_type = FileType::from_dirent(raw.file_type)
            .ok_or(BootstrapError::Inode(self.nid, "a directory entry has an unknown file type"))?;
        Ok((Nid(raw.nid.get()), file_type))
    }
}

/// A directory's entries from a cookie on, in the order of the names' bytes; ends after an error.
#[derive(Debug, Clone)]
pub struct DirEntries<'a> {
    directory: Directory<'a>,
    number: u64,
    at: usize,
    block: Option<Block<'a>>,
    done: bool,
}

impl<'a> DirEntries<'a> {
    fn step(&mut self) -> Option<Result<DirEntry<'a>, BootstrapError>> {
        // Each round but the last goes on by a block.
        loop {
            let block = match self.block {
                Some(block) => block,
                None => match self.directory.block(self.number)? {
                    Ok(block) => block,
                    Err(error) => return Some(Err(error)),
                },
            };
            if self.at < block.count() {
                self.block = Some(block);
                return Some(self.entry(block));
            }
            (self.block, self.number, self.at) = (None, self.number + 1, 0);
        }
    }

    fn entry(&mut self, block: Block<'a>) -> Result<DirEntry<'a>, BootstrapError> {
        let name = block.name(self.at)?;
        if name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return Err(BootstrapError::Inode(block.nid, "a directory entry's name holds a slash or a NUL"));
        }
        let (nid, file_type) = block.target(self.at)?;
        self.at += 1;
        let in_block = if self.at < block.count() { (self.at * DIRENT_SIZE) as u64 } else { BLOCK_SIZE };
        Ok(DirEntry { name, nid, file_type, next_cookie: self.number * BLOCK_SIZE + in_block })
    }
}

impl<'a> Iterator for DirEntries<'a> {
    type Item = Result<DirEntry<'a>, BootstrapError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.step();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

impl<B: AsRef<[u8]>> Bootstrap<B> {
    /// Finds a name by binary search, first over the blocks, then in one.
    ///
    /// # Errors
    /// [`BootstrapError::Type`] when the inode is not a directory, [`BootstrapError::Inode`] when an entry
    /// that was looked at is damaged.
    pub fn lookup(&self, directory: &Inode, name: &[u8]) -> Result<Option<(Nid, FileType)>, BootstrapError> {
        let directory = self.directory(directory)?;
        // The last block whose first name is not behind the one sought. At most 52 rounds: the range halves.
        let (mut start, mut end) = (0, directory.block_count());
        let mut candidate = None;
        while start < end {
            let middle = start + (end - start) / 2;
            let Some(block) = directory.block(middle).transpose()? else { break };
            if block.name(0)? <= name {
                candidate = Some(block);
                start = middle + 1;
            } else {
                end = middle;
            }
        }
        let Some(block) = candidate else { return Ok(None) };
        let (mut start, mut end) = (0, block.count());
        while start < end {
            let middle = start + (end - start) / 2;
            match block.name(middle)?.cmp(name) {
                Ordering::Equal => return block.target(middle).map(Some),
                Ordering::Less => start = middle + 1,
                Ordering::Greater => end = middle,
            }
        }
        Ok(None)
    }

    /// Lists a directory, `.` and `..` included, from a cookie on; 0 is the start, others are
    /// [`DirEntry::next_cookie`]s. Any number may come, as programs seek where they like: one that no entry has means the entry
    /// that comes next, as for the kernel's EROFS, or the end.
    ///
    /// # Errors
    /// [`BootstrapError::Type`] when the inode is not a directory; the iterator's items fail where an entry is damaged.
    pub fn read_dir(&self, directory: &Inode, cookie: u64) -> Result<DirEntries<'_>, BootstrapError> {
        let directory = self.directory(directory)?;
        let (number, at) = (cookie / BLOCK_SIZE, to_usize(cookie % BLOCK_SIZE).div_ceil(DIRENT_SIZE));
        Ok(DirEntries { directory, number, at, block: None, done: false })
    }

    fn directory(&self, inode: &Inode) -> Result<Directory<'_>, BootstrapError> {
        if inode.file_type != FileType::Directory {
            return Err(BootstrapError::Type(inode.nid, "directory"));
        }
        let (blocks, tail) =
            content(self.image(), inode).ok_or_else(|| inode.error("its entries are not in the image"))?;
        Ok(Directory { nid: inode.nid, blocks, tail })
    }
}
