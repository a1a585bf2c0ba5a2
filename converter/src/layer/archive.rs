//! Iterates over the entries of a layer's tar stream in bounded memory.
//!
//! Headers are decoded by the `tar` crate. The framing is done here because the crate's iterator reads extended headers of
//! any size into memory, cuts PAX records at line feeds (which a binary xattr may hold) and knows no PAX sparse files.

use std::io::{self, Read};

use lazo_format::{Meta, Timestamp};

use super::pax::{self, Pax};
use crate::error::{LayerError, Problem};

const BLOCK: u64 = 512;
const BLOCK_BYTES: usize = 512;
/// Largest extended header or long name: docker and Go's archive/tar stop at the same size.
const MAX_EXTENDED_HEADER: u64 = 1 << 20;
/// Data pieces of one sparse file; the map takes 16 bytes a piece, so 4 MiB at most.
const MAX_SPARSE_PIECES: usize = 1 << 18;

/// One file-system object of a layer, all extensions applied.
#[derive(Debug)]
pub struct Entry {
    /// Path as stored, not normalised.
    pub path: Vec<u8>,
    /// Ownership, permissions, time, xattrs.
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
}

/// Reads entries, and between them the data of the last one.
pub struct Archive<R> {
    inner: R,
    /// Stored data of the current entry that was not read yet, bytes.
    data_left: u64,
    /// Zeros between that data and the next header.
    padding: u64,
}

impl<R: Read> Archive<R> {
    /// Reads from the first byte of an uncompressed archive.
    pub fn new(inner: R) -> Self {
        Self { inner, data_left: 0, padding: 0 }
    }

    /// Takes `size` bytes for the data of a file, with no header before them.
    pub(crate) fn of_data(inner: R, size: u64) -> Self {
        Self { inner, data_left: size, padding: 0 }
    }

    /// The next entry, or `None` at the end of the archive. Data of the current one that was not read is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut pax = Pax::default();
        let mut long_path = None;
        let mut long_link = None;
        loop {
            self.skip_data()?;
            let Some(header) = self.read_header()? else { return Ok(None) };
            let stored = header.entry_size().map_err(|_| Problem::Corrupt("a size that is no number"))?;
            match header.entry_type().as_byte() {
                b'x' => pax = pax::parse(&self.read_extension(stored)?, 2 * MAX_SPARSE_PIECES)?,
                b'L' => long_path = Some(until_nul(self.read_extension(stored)?)),
                b'K' => long_link = Some(until_nul(self.read_extension(stored)?)),
                // Global headers hold comments of git archive and the like; no runtime applies them.
                b'g' => drop(self.read_extension(stored)?),
                _ => {
                    let path = name(&mut pax, long_path, &header);
                    let link = pax.link.take().or(long_link).or_else(|| header.link_name_bytes().map(|l| l.to_vec()));
                    return self
                        .finish_entry(&header, &path, link.unwrap_or_default(), pax)
                        .map(Some)
                        .map_err(|problem| LayerError::in_entry(&path, problem));
                }
            }
        }
    }

    fn finish_entry(&mut self, header: &tar::Header, path: &[u8], link: Vec<u8>, pax: Pax) -> Result<Entry, Problem> {
        let meta = meta(header, &pax)?;
        let stored = pax.size.map_or_else(|| header.entry_size(), Ok).map_err(|_| Problem::Corrupt("bad size"))?;
        let kind = match header.entry_type().as_byte() {
            b'0' | 0 | b'7' | b'S' if path.ends_with(b"/") => EntryKind::Directory,
            b'0' | 0 | b'7' => self.file(stored, &pax)?,
            b'S' => self.old_sparse_file(header, stored)?,
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::Symlink(link),
            b'3' => device(header).map(|(major, minor)| EntryKind::CharDevice(major, minor))?,
            b'4' => device(header).map(|(major, minor)| EntryKind::BlockDevice(major, minor))?,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => {
                return Err(Problem::Unsupported(format!("tar entry type '{}'", [other].escape_ascii())));
            }
        };
        Ok(Entry { path: path.to_vec(), meta, kind })
    }

    /// Announces the data of a regular file: all of it, or by a sparse map from the PAX header or the data's beginning.
    fn file(&mut self, stored: u64, pax: &Pax) -> Result<EntryKind, Problem> {
        self.set_data(stored)?;
        let sparse = &pax.sparse;
        if !sparse.is_present() {
            return Ok(EntryKind::File { size: stored, pieces: None });
        }
        let numbers = if sparse.map_in_data() { self.read_sparse_map()? } else { sparse.map.clone() };
        if numbers.len() % 2 != 0 {
            return Err(Problem::Corrupt("a sparse map with an odd count of numbers"));
        }
        let size = sparse.real_size.ok_or(Problem::Corrupt("a sparse file without its size"))?;
        let pieces = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        checked_pieces(pieces, size, self.data_left)
    }

    /// GNU's old format: four pieces in the header, 21 in each further block that follows it.
    fn old_sparse_file(&mut self, header: &tar::Header, stored: u64) -> Result<EntryKind, Problem> {
        const BAD: Problem = Problem::Corrupt("malformed GNU sparse header");
        let gnu = header.as_gnu().ok_or(BAD)?;
        let mut pieces = Vec::new();
        let mut collect = |blocks: &[tar::GnuSparseHeader]| {
            for block in blocks.iter().filter(|b| !b.is_empty()) {
                pieces.push((block.offset().map_err(|_| BAD)?, block.length().map_err(|_| BAD)?));
            }
            match pieces.len() {
                0..=MAX_SPARSE_PIECES => Ok(()),
                _ => Err(Problem::TooMany { what: "pieces in a sparse file", limit: MAX_SPARSE_PIECES as u64 }),
            }
        };
        collect(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut extension = tar::GnuExtSparseHeader::new();
            self.read_exact(extension.as_mut_bytes())?;
            collect(extension.sparse())?;
            more = extension.is_extended();
        }
        self.set_data(stored)?;
        checked_pieces(pieces, gnu.real_size().map_err(|_| BAD)?, stored)
    }

    /// PAX format 1.0: decimal numbers, one a line, a count and then pairs, padded to a block.
    fn read_sparse_map(&mut self) -> Result<Vec<u64>, Problem> {
        const BAD: Problem = Problem::Corrupt("malformed sparse map");
        let mut numbers = Vec::new();
        let mut wanted = None;
        let mut line = Vec::new();
        while wanted.is_none_or(|count| numbers.len() < count) {
            let mut block = [0; BLOCK_BYTES];
            if self.read_data(&mut block)? != block.len() {
                return Err(BAD);
            }
            for byte in block {
                match byte {
                    b'\n' if wanted.is_none() => {
                        let count = usize::try_from(pax::number(&line)?).map_err(|_| BAD)?;
                        if count > MAX_SPARSE_PIECES {
                            let limit = MAX_SPARSE_PIECES as u64;
                            return Err(Problem::TooMany { what: "pieces in a sparse file", limit });
                        }
                        wanted = Some(2 * count);
                        line.clear();
                    }
                    b'\n' if wanted.is_some_and(|count| numbers.len() < count) => {
                        numbers.push(pax::number(&line)?);
                        line.clear();
                    }
                    b'0'..=b'9' if line.len() < 20 => line.push(byte),
                    _ if wanted == Some(numbers.len()) => break,
                    _ => return Err(BAD),
                }
            }
        }
        Ok(numbers)
    }

    /// Reads the current entry's stored data (for a sparse file: its pieces back to back) until `buffer` is full or the data ends.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, Problem> {
        let wanted = usize::try_from(self.data_left).unwrap_or(usize::MAX).min(buffer.len());
        self.read_exact(&mut buffer[..wanted])?;
        self.data_left -= wanted as u64;
        Ok(wanted)
    }

    /// Reads on to the end of the stream, which may hold more than the archive.
    pub fn drain(&mut self) -> Result<(), Problem> {
        io::copy(&mut self.inner, &mut io::sink()).map(drop).map_err(Problem::Read)
    }

    fn read_header(&mut self) -> Result<Option<tar::Header>, Problem> {
        let mut header = tar::Header::new_old();
        let bytes = header.as_mut_bytes();
        let first = self.inner.read(&mut bytes[..1]).map_err(Problem::Read)?;
        if first == 0 {
            return Ok(None);
        }
        self.read_exact(&mut bytes[1..])?;
        if bytes.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let sum: u32 =
            bytes.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
        match header.cksum() {
            Ok(expected) if expected == sum => Ok(Some(header)),
            _ => Err(Problem::Corrupt("a header's checksum does not match")),
        }
    }

    fn read_extension(&mut self, size: u64) -> Result<Vec<u8>, Problem> {
        if size > MAX_EXTENDED_HEADER {
            return Err(Problem::TooMany { what: "bytes in an extended header", limit: MAX_EXTENDED_HEADER });
        }
        self.set_data(size)?;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        self.read_data(&mut bytes)?;
        Ok(bytes)
    }

    fn set_data(&mut self, size: u64) -> Result<(), Problem> {
        if size > i64::MAX as u64 {
            return Err(Problem::Range { field: "size", value: i128::from(size) });
        }
        self.data_left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
        Ok(())
    }

    fn skip_data(&mut self) -> Result<(), Problem> {
        let skip = self.data_left + self.padding;
        let skipped = io::copy(&mut (&mut self.inner).take(skip), &mut io::sink()).map_err(Problem::Read)?;
        (self.data_left, self.padding) = (0, 0);
        if skipped == skip { Ok(()) } else { Err(Problem::Truncated) }
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), Problem> {
        self.inner.read_exact(buffer).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Problem::Truncated,
            _ => Problem::Read(e),
        })
    }
}

/// The entry's path: PAX sparse name, PAX path, GNU long name, header; in that order.
fn name(pax: &mut Pax, long_path: Option<Vec<u8>>, header: &tar::Header) -> Vec<u8> {
    let from_pax = pax.sparse.name.take().filter(|_| pax.sparse.is_present()).or_else(|| pax.path.take());
    from_pax.or(long_path).unwrap_or_else(|| header.path_bytes().to_vec())
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len()));
    bytes
}

fn device(header: &tar::Header) -> Result<(u32, u32), Problem> {
    let number = |n: io::Result<Option<u32>>| n.ok().flatten().ok_or(Problem::Corrupt("a device without its number"));
    Ok((number(header.device_major())?, number(header.device_minor())?))
}

fn meta(header: &tar::Header, pax: &Pax) -> Result<Meta, Problem> {
    let id = |field, from_pax: Option<u64>, from_header: io::Result<u64>| {
        let value = from_pax.map_or(from_header, Ok).map_err(|_| Problem::Corrupt("an owner that is no number"))?;
        u32::try_from(value).map_err(|_| Problem::Range { field, value: i128::from(value) })
    };
    let mode = header.mode().map_err(|_| Problem::Corrupt("a mode that is no number"))?;
    Ok(Meta {
        permissions: u16::try_from(mode & 0o7777).unwrap_or_default(),
        uid: id("uid", pax.uid, header.uid())?,
        gid: id("gid", pax.gid, header.gid())?,
        mtime: pax.mtime.map_or_else(|| header_mtime(header), Ok)?,
        xattrs: pax.xattrs.clone(),
    })
}

/// The header's own mtime: octal, or GNU's base-256 number, which may be negative.
fn header_mtime(header: &tar::Header) -> Result<Timestamp, Problem> {
    let field = &header.as_old().mtime;
    let seconds = if field[0] == 0xff {
        field[4..].iter().fold(-1i64, |n, b| (n << 8) | i64::from(*b))
    } else {
        let seconds = header.mtime().map_err(|_| Problem::Corrupt("an mtime that is no number"))?;
        i64::try_from(seconds).map_err(|_| Problem::Range { field: "mtime", value: i128::from(seconds) })?
    };
    Ok(Timestamp { seconds, nanoseconds: 0 })
}

/// Checks that pieces ascend, lie in the file and add up to the stored data.
fn checked_pieces(mut pieces: Vec<(u64, u64)>, size: u64, stored: u64) -> Result<EntryKind, Problem> {
    const BAD: Problem = Problem::Corrupt("a sparse map that does not fit its file");
    pieces.retain(|(_, length)| *length > 0);
    let mut end = 0u64;
    let mut total = 0u64;
    for (offset, length) in &pieces {
        if *offset < end {
            return Err(BAD);
        }
        end = offset.checked_add(*length).ok_or(BAD)?;
        total += length;
    }
    if end > size || total != stored || size > i64::MAX as u64 {
        return Err(BAD);
    }
    Ok(EntryKind::File { size, pieces: Some(pieces) })
}

#[cfg(test)]
mod tests;
