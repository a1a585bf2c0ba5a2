//! The entries of a layer: the members of its archive, in a container's terms.
//!
//! Which members there are, [`lazo_base::tar`] knows. This file knows what containerd and umoci make of one: where both of
//! them refuse a member, it is refused; where both take a number modulo what Linux can store, so does this.

use std::io::{self, Read};

use lazo_base::tar::{self, Member, Stream, kind};
use lazo_format::{Meta, Timestamp, Xattr};

use crate::error::{LayerError, Problem};

/// One file-system object of a layer, all extensions applied.
#[derive(Debug)]
pub struct Entry {
    /// Path as stored, not normalised.
    pub path: Vec<u8>,
    /// Ownership, permissions, time, xattrs. An owner of 2^32 - 1 means: the one that it has anyway.
    pub meta: Meta,
    /// What it is.
    pub kind: EntryKind,
}

/// The kinds of objects that a layer can hold.
#[derive(Debug)]
pub enum EntryKind {
    /// A regular file.
    File {
        /// Length in bytes, holes included.
        size: u64,
        /// Offset and length of each piece of data, ascending; `None` when all of the file is data.
        pieces: Option<Vec<(u64, u64)>>,
    },
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A further name of the file at this path.
    HardLink(Vec<u8>),
    /// Character device: major, minor.
    CharDevice(u32, u32),
    /// Block device: major, minor.
    BlockDevice(u32, u32),
    /// Named pipe.
    Fifo,
    /// A global PAX header, which is no object.
    Comment,
}

/// The stored data of an entry.
pub(crate) type Data<R> = tar::Reader<Stream<R>>;

/// Reads entries, and between them the data of the last one.
pub struct Archive<R> {
    reader: Data<R>,
    /// Where the current entry's header begins, and its path: for errors.
    current: (u64, Option<Vec<u8>>),
}

impl<R: Read> Archive<R> {
    /// Reads from the first byte of an uncompressed archive.
    pub fn new(inner: R) -> Self {
        Self { reader: tar::Reader::new(Stream(inner)), current: (0, None) }
    }

    /// The next entry, or `None` at the end of the archive. Data of the current one that was not read is skipped.
    ///
    /// # Errors
    /// The archive is damaged, or no runtime unpacks the entry.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        let member = self.reader.next_member().map_err(|error| {
            // Without a name it is the header behind the current entry.
            let after = if error.member.is_none() { self.current.1.take() } else { None };
            LayerError::from_archive(error, after)
        })?;
        let Some(member) = member else { return Ok(None) };
        self.current = (member.position, Some(member.name.clone()));
        entry(member).map(Some).map_err(|problem| self.in_current(problem))
    }

    /// A problem with the entry that was read last.
    pub fn in_current(&self, problem: Problem) -> LayerError {
        match &self.current {
            (position, Some(path)) => LayerError::in_entry(path, *position, problem),
            (_, None) => problem.into(),
        }
    }

    /// The current entry's stored data (for a sparse file: its pieces back to back).
    pub(crate) fn data(&mut self) -> &mut Data<R> {
        &mut self.reader
    }

    /// Reads on to the end of the stream, which may hold more than the archive.
    ///
    /// # Errors
    /// The stream's own.
    pub fn drain(self) -> Result<(), Problem> {
        io::copy(&mut self.reader.into_inner().0, &mut io::sink()).map(drop).map_err(Problem::Read)
    }
}

fn entry(member: Member) -> Result<Entry, Problem> {
    let meta = meta(&member);
    let (major, minor) = device(member.device);
    let kind = match member.kind {
        kind::FILE => EntryKind::File { size: member.size, pieces: member.pieces },
        kind::DIRECTORY => EntryKind::Directory,
        kind::SYMLINK => EntryKind::Symlink(member.link),
        kind::HARD_LINK => EntryKind::HardLink(member.link),
        kind::CHAR_DEVICE => EntryKind::CharDevice(major, minor),
        kind::BLOCK_DEVICE => EntryKind::BlockDevice(major, minor),
        kind::FIFO => EntryKind::Fifo,
        kind::PAX_GLOBAL => EntryKind::Comment,
        // Among them GNU's old sparse files and contiguous files. Whoever scans images does not see them either.
        other => {
            let flag = [other].escape_ascii().to_string();
            return Err(Problem::Unsupported(format!("tar entry type '{flag}', which no runtime unpacks")));
        }
    };
    Ok(Entry { path: member.name, meta, kind })
}

/// Owners are cut to 32 bits, as the system call does it: -2 is 4294967294.
fn meta(member: &Member) -> Meta {
    let Member { mode, uid, gid, mtime, xattrs, .. } = member;
    Meta {
        permissions: u16::try_from(mode & 0o7777).unwrap_or_default(),
        uid: low_bits(*uid, 32),
        gid: low_bits(*gid, 32),
        mtime: Timestamp { seconds: mtime.seconds, nanoseconds: mtime.nanoseconds },
        xattrs: xattrs
            .iter()
            .map(|(name, value)| Xattr { name: name.as_slice().into(), value: value.as_slice().into() })
            .collect(),
    }
}

/// Linux device numbers have 12 bits of major and 20 of minor; mknod drops the rest.
fn device((major, minor): (i64, i64)) -> (u32, u32) {
    (low_bits(major, 12), low_bits(minor, 20))
}

fn low_bits(number: i64, bits: u32) -> u32 {
    u32::try_from(number.rem_euclid(1 << bits)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
