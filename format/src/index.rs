//! The chunk index: which compressed range and which digest stand behind a device address.
//!
//! Four sections back to back: header, blob table, chunk table, prefetch list. All records have a fixed
//! width, so that one is decoded where it lies and parsing costs the same for a thousand chunks as for a
//! million. The byte layout is that of bincode 2 (little-endian, fixed-width integers), which `wire` keeps
//! to itself.

mod validate;
mod wire;

use std::ops::Range;

use thiserror::Error;

use crate::chunk::Encoding;
use crate::cost::step;
use crate::digest::{ChunkDigest, Digest};
use crate::ids::{BLOCK_SIZE, BlobIndex, ChunkIndex, DeviceAddr, MAX_BLOBS, MAX_CHUNK_SIZE};
use wire::{BLOB_SIZE, CHUNK_SIZE, HEADER_SIZE, PREFETCH_SIZE};

/// Version of the index layout. Any change to the bytes raises it.
pub const VERSION: u32 = 1;

/// Largest uncompressed address space of a blob in bytes: EROFS counts blocks in 32 bits and keeps the
/// last number for holes.
pub const MAX_DEVICE_SIZE: u64 = u32::MAX as u64 * BLOCK_SIZE;

/// Bytes from an index's start that hold its header and all records of blobs, however many there are.
pub const MAX_BLOB_TABLE: usize = HEADER_SIZE + MAX_BLOBS * BLOB_SIZE;

/// Most chunks of all blobs of an image: 128 GiB of data in chunks of the smallest size, 8 TiB in those of the default size. A
/// reader needs some bits of memory and 57 bytes of the index for each, and looks at each once.
pub const MAX_CHUNKS: u32 = 1 << 25;

/// The index is damaged, from another version, or was asked for something it does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IndexError {
    /// Not a chunk index.
    #[error("not a chunk index: it does not start with \"lazo-idx\"")]
    Magic,
    /// Written by another version.
    #[error("chunk index version {0}, this program reads version {VERSION}: convert the image again or update lazo")]
    Version(u32),
    /// Flag bits this version does not know.
    #[error("chunk index flags {0:#x}: unknown bits are set, update lazo")]
    Flags(u32),
    /// The file's length is not what its header says.
    #[error("chunk index of {actual} bytes, its header says {expected}: truncated or damaged")]
    Length {
        /// Length at hand.
        actual: u64,
        /// Length by the header.
        expected: u64,
    },
    /// A table is larger than the format allows.
    #[error("chunk index with {count} {what}, the format allows {max}")]
    TooMany {
        /// Which table.
        what: &'static str,
        /// Its length.
        count: u64,
        /// The bound.
        max: u64,
    },
    /// A blob number that is not in the table.
    #[error("blob {0} is not in the chunk index")]
    NoBlob(BlobIndex),
    /// A chunk number that is not in the table.
    #[error("chunk {0} is not in the chunk index")]
    NoChunk(ChunkIndex),
    /// A device address that no chunk covers.
    #[error("no chunk of blob {0} covers device address {1}")]
    NoAddress(BlobIndex, DeviceAddr),
    /// A record of the blob table breaks a rule.
    #[error("blob {0} in the chunk index: {1}")]
    Blob(BlobIndex, &'static str),
    /// A record of the chunk table breaks a rule.
    #[error("chunk {0} in the chunk index: {1}")]
    Chunk(ChunkIndex, &'static str),
    /// An entry of the prefetch list breaks a rule.
    #[error("entry {0} of the prefetch list: {1}")]
    Prefetch(u32, &'static str),
    /// A blob must be named by SHA-256.
    #[error("blob {0} is named by {1}: only sha256 digests can be stored")]
    BlobDigest(usize, Digest),
}

/// One blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRecord {
    /// SHA-256 of the blob as it lies in the registry.
    pub digest: Digest,
    /// Its size in the registry in bytes.
    pub compressed_size: u64,
    /// Size of its uncompressed address space in bytes: whole blocks.
    pub device_size: u64,
    /// Its first chunk.
    pub first_chunk: ChunkIndex,
    /// How many chunks it has, consecutive from the first.
    pub chunk_count: u32,
}

impl BlobRecord {
    /// Its chunks' numbers.
    pub fn chunks(&self) -> Range<u32> {
        self.first_chunk.0..self.first_chunk.0.saturating_add(self.chunk_count)
    }
}

/// One chunk. A blob's chunks tile both its compressed bytes and its device space, in order, without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRecord {
    /// Where its stored bytes begin in the blob.
    pub compressed_offset: u64,
    /// How many stored bytes it has.
    pub compressed_size: u32,
    /// Where it begins in the blob's device space: a multiple of the block size.
    pub device_offset: DeviceAddr,
    /// Its uncompressed length in bytes: whole blocks, at most [`MAX_CHUNK_SIZE`].
    pub device_size: u32,
    /// How it is stored.
    pub encoding: Encoding,
    /// BLAKE3 of its uncompressed bytes.
    pub digest: ChunkDigest,
}

impl ChunkRecord {
    /// Device addresses from its first byte to behind its last.
    pub fn device_range(&self) -> Range<u64> {
        self.device_offset.0..self.device_offset.0.saturating_add(u64::from(self.device_size))
    }

    /// Its stored bytes' place in the blob.
    pub fn compressed_range(&self) -> Range<u64> {
        self.compressed_offset..self.compressed_offset.saturating_add(u64::from(self.compressed_size))
    }
}

/// Consecutive chunks of one blob, to be fetched before they are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefetchRange {
    /// The first chunk.
    pub first: ChunkIndex,
    /// How many, at least one.
    pub count: u32,
}

impl PrefetchRange {
    /// The chunks' numbers.
    pub fn chunks(&self) -> Range<u32> {
        self.first.0..self.first.0.saturating_add(self.count)
    }
}

/// What the header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Size of the bootstrap in bytes.
    pub bootstrap_size: u64,
    /// BLAKE3 of the bootstrap.
    pub bootstrap_digest: ChunkDigest,
    /// Paths in the tree, the root among them.
    pub entries: u64,
    /// Sum of the sizes of all regular files in bytes, each inode once.
    pub file_bytes: u64,
    /// Whether any inode has extended attributes.
    pub has_xattrs: bool,
    /// Whether any inode has a POSIX ACL.
    pub has_acls: bool,
}

/// Everything the writer puts into an index; the bootstrap's size and digest are added by [`encode_index`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IndexContents {
    /// Blobs in [`BlobIndex`] order, the order of the bootstrap's devices.
    pub blobs: Vec<BlobRecord>,
    /// All blobs' chunks.
    pub chunks: Vec<ChunkRecord>,
    /// What to fetch first, in order.
    pub prefetch: Vec<PrefetchRange>,
    /// Paths in the tree, the root among them.
    pub entries: u64,
    /// Sum of the sizes of all regular files in bytes, each inode once.
    pub file_bytes: u64,
    /// Whether any inode has extended attributes.
    pub has_xattrs: bool,
    /// Whether any inode has a POSIX ACL.
    pub has_acls: bool,
}

/// Writes an index; equal contents give equal bytes.
///
/// # Errors
/// Whatever [`Index::validate`] would find wrong with the result, and [`IndexError::BlobDigest`].
pub fn encode_index(contents: &IndexContents, bootstrap: &[u8]) -> Result<Vec<u8>, IndexError> {
    let header = Header {
        bootstrap_size: bootstrap.len() as u64,
        bootstrap_digest: ChunkDigest::of(bootstrap),
        entries: contents.entries,
        file_bytes: contents.file_bytes,
        has_xattrs: contents.has_xattrs,
        has_acls: contents.has_acls,
    };
    let counts = wire::Counts {
        blobs: count("blobs", contents.blobs.len(), MAX_BLOBS as u64)?,
        chunks: count("chunks (larger ones are fewer)", contents.chunks.len(), u64::from(MAX_CHUNKS))?,
        prefetch: count("prefetch ranges", contents.prefetch.len(), u64::from(u32::MAX))?,
    };
    let mut out = wire::Writer::new(&header, &counts);
    for (number, blob) in contents.blobs.iter().enumerate() {
        out.blob(blob).ok_or(IndexError::BlobDigest(number, blob.digest))?;
    }
    contents.chunks.iter().for_each(|chunk| out.chunk(chunk));
    contents.prefetch.iter().for_each(|range| out.prefetch(range));
    let bytes = out.finish();
    Index::parse(bytes.as_slice())?.validate()?;
    Ok(bytes)
}

fn count(what: &'static str, count: usize, max: u64) -> Result<u32, IndexError> {
    let count = count as u64;
    u32::try_from(count).ok().filter(|_| count <= max).ok_or(IndexError::TooMany { what, count, max })
}

/// Digests of the blobs that an index is about, in the order of the manifest, from its first [`MAX_BLOB_TABLE`] bytes or all if it has
/// fewer. What lies behind them is not looked at.
///
/// # Errors
/// [`IndexError`] when this is not the start of an index of this version.
pub fn blob_digests(start: &[u8]) -> Result<Vec<Digest>, IndexError> {
    let (_, counts) = wire::header(start)?;
    let count = counts.blobs as usize;
    if count > MAX_BLOBS {
        return Err(IndexError::TooMany { what: "blobs", count: count as u64, max: MAX_BLOBS as u64 });
    }
    let table = start.get(HEADER_SIZE..).and_then(|rest| rest.get(..count * BLOB_SIZE));
    let table = table.ok_or(IndexError::Length { actual: start.len() as u64, expected: counts.chunk_table() })?;
    let records = table.chunks_exact(BLOB_SIZE).zip(0..).map(|(bytes, number)| {
        wire::blob(bytes).map(|record| record.digest).ok_or(IndexError::NoBlob(BlobIndex(number)))
    });
    records.collect()
}

/// A chunk index in memory or mapped, read in place.
#[derive(Debug, Clone)]
pub struct Index<B> {
    bytes: B,
    header: Header,
    counts: wire::Counts,
}

impl<B: AsRef<[u8]>> Index<B> {
    /// Reads the header and checks the length; the cost does not depend on the number of records.
    ///
    /// # Errors
    /// [`IndexError`] when this is not an index of this version or its length is not the header's.
    pub fn parse(bytes: B) -> Result<Self, IndexError> {
        let (header, counts) = wire::header(bytes.as_ref())?;
        if counts.blobs as usize > MAX_BLOBS {
            let count = u64::from(counts.blobs);
            return Err(IndexError::TooMany { what: "blobs", count, max: MAX_BLOBS as u64 });
        }
        // Each range names a chunk at least, and no chunk is named twice.
        let bounds = [
            ("chunks (larger ones are fewer)", counts.chunks, MAX_CHUNKS),
            ("prefetch ranges", counts.prefetch, counts.chunks),
        ];
        if let Some((what, count, max)) = bounds.into_iter().find(|(_, count, max)| count > max) {
            return Err(IndexError::TooMany { what, count: count.into(), max: max.into() });
        }
        let (actual, expected) = (bytes.as_ref().len() as u64, counts.length());
        if actual != expected {
            return Err(IndexError::Length { actual, expected });
        }
        Ok(Self { bytes, header, counts })
    }

    /// What the header says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Size of the index in bytes.
    pub fn size(&self) -> u64 {
        self.counts.length()
    }

    /// Number of blobs.
    pub fn blob_count(&self) -> usize {
        self.counts.blobs as usize
    }

    /// Number of chunks of all blobs.
    pub fn chunk_count(&self) -> u32 {
        self.counts.chunks
    }

    /// One blob's record, checked by itself.
    ///
    /// # Errors
    /// [`IndexError::NoBlob`], or [`IndexError::Blob`] when the record cannot be right.
    pub fn blob(&self, blob: BlobIndex) -> Result<BlobRecord, IndexError> {
        let record = self
            .record(u64::from(blob.0), self.counts.blobs, HEADER_SIZE as u64, BLOB_SIZE)
            .and_then(wire::blob)
            .ok_or(IndexError::NoBlob(blob))?;
        let bad = |what| Err(IndexError::Blob(blob, what));
        if !record.device_size.is_multiple_of(BLOCK_SIZE) || record.device_size > MAX_DEVICE_SIZE {
            return bad("its device size is not whole blocks, or beyond 2^32 - 1 of them");
        }
        if u64::from(record.first_chunk.0) + u64::from(record.chunk_count) > u64::from(self.counts.chunks) {
            return bad("its chunks reach beyond the chunk table");
        }
        if (record.device_size == 0) != (record.chunk_count == 0) {
            return bad("it has space without chunks, or chunks without space");
        }
        Ok(record)
    }

    /// One chunk's record, checked by itself.
    ///
    /// # Errors
    /// [`IndexError::NoChunk`], or [`IndexError::Chunk`] when the record cannot be right.
    pub fn chunk(&self, chunk: ChunkIndex) -> Result<ChunkRecord, IndexError> {
        let bytes = self
            .record(u64::from(chunk.0), self.counts.chunks, self.counts.chunk_table(), CHUNK_SIZE)
            .ok_or(IndexError::NoChunk(chunk))?;
        let bad = |what| Err(IndexError::Chunk(chunk, what));
        let Some(record) = wire::chunk(bytes) else {
            return bad("unknown encoding, update lazo");
        };
        let size = u64::from(record.device_size);
        if size == 0 || !size.is_multiple_of(BLOCK_SIZE) || record.device_size > MAX_CHUNK_SIZE {
            return bad("its size is not whole blocks, or beyond the largest chunk");
        }
        let end = record.device_offset.0.checked_add(size);
        if !record.device_offset.0.is_multiple_of(BLOCK_SIZE) || end.is_none_or(|end| end > MAX_DEVICE_SIZE) {
            return bad("its device offset is not on a block, or beyond 2^32 - 1 of them");
        }
        let plausible = match record.encoding {
            Encoding::Zstd => record.compressed_size < record.device_size,
            Encoding::Raw => record.compressed_size == record.device_size,
        };
        if !plausible || record.compressed_size == 0 {
            return bad("its stored size does not fit its encoding");
        }
        if record.compressed_offset.checked_add(u64::from(record.compressed_size)).is_none() {
            return bad("its stored bytes end beyond 2^64");
        }
        Ok(record)
    }

    /// The chunk that covers a device address, found by binary search.
    ///
    /// # Errors
    /// [`IndexError::NoAddress`] behind the end of the blob or where damaged records leave a gap, and what
    /// [`Index::blob`] and [`Index::chunk`] find.
    pub fn chunk_at(&self, blob: BlobIndex, at: DeviceAddr) -> Result<(ChunkIndex, ChunkRecord), IndexError> {
        let record = self.blob(blob)?;
        self.search(blob, &record, at)
    }

    /// Numbers of the chunks that together cover a range of device addresses; empty for an empty range.
    ///
    /// # Errors
    /// As [`Index::chunk_at`], for both ends.
    pub fn chunks_in(&self, blob: BlobIndex, range: Range<u64>) -> Result<Range<u32>, IndexError> {
        let record = self.blob(blob)?;
        if range.is_empty() {
            return Ok(0..0);
        }
        let (first, _) = self.search(blob, &record, DeviceAddr(range.start))?;
        let (last, _) = self.search(blob, &record, DeviceAddr(range.end - 1))?;
        if last < first {
            return Err(IndexError::Chunk(last, "it lies before its predecessor"));
        }
        Ok(first.0..last.0 + 1)
    }

    fn search(
        &self,
        blob: BlobIndex,
        record: &BlobRecord,
        at: DeviceAddr,
    ) -> Result<(ChunkIndex, ChunkRecord), IndexError> {
        let Range { mut start, mut end } = record.chunks();
        // At most 32 rounds: the range halves.
        while start < end {
            let middle = start + (end - start) / 2;
            let chunk = self.chunk(ChunkIndex(middle))?;
            let space = chunk.device_range();
            if at.0 < space.start {
                end = middle;
            } else if at.0 >= space.end {
                start = middle + 1;
            } else {
                let fits = space.end <= record.device_size && chunk.compressed_range().end <= record.compressed_size;
                let found = (ChunkIndex(middle), chunk);
                return if fits { Ok(found) } else { Err(IndexError::Chunk(found.0, "it reaches beyond its blob")) };
            }
        }
        Err(IndexError::NoAddress(blob, at))
    }

    /// The blob that a chunk belongs to, found by binary search.
    ///
    /// # Errors
    /// [`IndexError::NoChunk`] when no blob has it, and what [`Index::blob`] finds.
    pub fn blob_of(&self, chunk: ChunkIndex) -> Result<BlobIndex, IndexError> {
        let (mut start, mut end) = (0, self.blob_count());
        // At most 13 rounds, as there are at most MAX_BLOBS blobs.
        while start < end {
            let middle = start + (end - start) / 2;
            let blob = BlobIndex(u16::try_from(middle).map_err(|_| IndexError::NoChunk(chunk))?);
            let chunks = self.blob(blob)?.chunks();
            if chunk.0 >= chunks.end {
                start = middle + 1;
            } else if chunk.0 < chunks.start {
                end = middle;
            } else {
                return Ok(blob);
            }
        }
        Err(IndexError::NoChunk(chunk))
    }

    /// The prefetch list in its order, each range checked to lie in the chunk table.
    pub fn prefetch(&self) -> impl ExactSizeIterator<Item = Result<PrefetchRange, IndexError>> + '_ {
        self.prefetch_from(0)
    }

    /// The prefetch list from its range `first` on; none of the earlier ones is looked at.
    pub fn prefetch_from(&self, first: u32) -> impl ExactSizeIterator<Item = Result<PrefetchRange, IndexError>> + '_ {
        (first..self.counts.prefetch).map(|number| {
            let range = self
                .record(u64::from(number), self.counts.prefetch, self.counts.prefetch_list(), PREFETCH_SIZE)
                .and_then(wire::prefetch)
                .ok_or(IndexError::Prefetch(number, "it is not in the file"))?;
            let end = u64::from(range.first.0) + u64::from(range.count);
            if range.count == 0 || end > u64::from(self.counts.chunks) {
                return Err(IndexError::Prefetch(number, "it is empty or reaches beyond the chunk table"));
            }
            Ok(range)
        })
    }

    /// The numbers of all blobs, in order.
    pub fn blob_numbers(&self) -> impl Iterator<Item = BlobIndex> + use<B> {
        (0..self.blob_count()).map_while(|number| u16::try_from(number).ok()).map(BlobIndex)
    }

    /// The bytes of record `number` of the table that starts at `table`.
    fn record(&self, number: u64, count: u32, table: u64, width: usize) -> Option<&[u8]> {
        step();
        if number >= u64::from(count) {
            return None;
        }
        let start = usize::try_from(table + number * width as u64).ok()?;
        self.bytes.as_ref().get(start..start.checked_add(width)?)
    }
}

#[cfg(test)]
mod tests;
