//! How one chunk is stored: its own zstd frame, or raw where zstd does not gain.

use std::fmt;

use thiserror::Error;
use zstd::bulk::{Compressor, Decompressor};

use crate::digest::ChunkDigest;
use crate::ids::{BLOCK_SIZE, MAX_CHUNK_SIZE};
use crate::index::ChunkRecord;

/// How a chunk's bytes are stored in its blob. On disk 1 and 2; 3 is kept for a span of a gzip layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Encoding {
    /// One zstd frame.
    Zstd,
    /// The uncompressed bytes themselves.
    Raw,
}

impl Encoding {
    /// The byte in the chunk table.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Zstd => 1,
            Self::Raw => 2,
        }
    }

    /// From the byte in the chunk table; `None` for one that this version does not know.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Zstd),
            2 => Some(Self::Raw),
            _ => None,
        }
    }
}

/// A chunk could not be encoded, decoded or verified.
#[derive(Debug, Error)]
pub enum ChunkError {
    /// zstd refused its input or level.
    #[error("zstd: {0}")]
    Zstd(#[source] std::io::Error),
    /// An uncompressed chunk must be 1 to [`MAX_CHUNK_SIZE`] / 4096 whole blocks.
    #[error("a chunk of {0} bytes: it must be whole 4096-byte blocks, at least one and at most {MAX_CHUNK_SIZE} bytes")]
    Size(usize),
    /// The stored bytes handed in are not as many as the chunk table says.
    #[error("{actual} stored bytes where the chunk index says {expected}")]
    StoredSize {
        /// Bytes handed in.
        actual: usize,
        /// `compressed_size` of the record.
        expected: u32,
    },
    /// The stored bytes decode to another length than the chunk table says.
    #[error("decodes to {actual} bytes where the chunk index says {expected}")]
    DecodedSize {
        /// Bytes decoded.
        actual: usize,
        /// `device_size` of the record.
        expected: u32,
    },
    /// The content is not what the chunk index says.
    #[error("content is {actual} where the chunk index says {expected}")]
    Digest {
        /// BLAKE3 of the bytes.
        actual: ChunkDigest,
        /// `digest` of the record.
        expected: ChunkDigest,
    },
}

/// A chunk as it goes into a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedChunk {
    /// How `bytes` are stored.
    pub encoding: Encoding,
    /// The stored bytes, never more than the uncompressed ones.
    pub bytes: Vec<u8>,
    /// BLAKE3 of the uncompressed bytes.
    pub digest: ChunkDigest,
}

/// Compresses chunks; keeps one zstd context.
pub struct ChunkEncoder {
    compressor: Compressor<'static>,
    scratch: Vec<u8>,
}

impl ChunkEncoder {
    /// For a zstd level (1 to 22, negative ones too).
    ///
    /// # Errors
    /// [`ChunkError::Zstd`] when zstd cannot make a context.
    pub fn new(level: i32) -> Result<Self, ChunkError> {
        let compressor = Compressor::new(level).map_err(ChunkError::Zstd)?;
        Ok(Self { compressor, scratch: Vec::new() })
    }

    /// Encodes one chunk: raw when zstd does not make it smaller.
    ///
    /// # Errors
    /// [`ChunkError::Size`] when `data` is not whole blocks within [`MAX_CHUNK_SIZE`].
    pub fn encode(&mut self, data: &[u8]) -> Result<EncodedChunk, ChunkError> {
        let blocks = data.len() as u64;
        if data.is_empty() || !blocks.is_multiple_of(BLOCK_SIZE) || blocks > u64::from(MAX_CHUNK_SIZE) {
            return Err(ChunkError::Size(data.len()));
        }
        self.scratch.clear();
        self.scratch.reserve(zstd::zstd_safe::compress_bound(data.len()));
        let size = self.compressor.compress_to_buffer(data, &mut self.scratch).map_err(ChunkError::Zstd)?;
        let (encoding, stored) =
            if size < data.len() { (Encoding::Zstd, &self.scratch[..size]) } else { (Encoding::Raw, data) };
        Ok(EncodedChunk { encoding, bytes: stored.to_vec(), digest: ChunkDigest::of(data) })
    }
}

impl fmt::Debug for ChunkEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkEncoder").finish_non_exhaustive()
    }
}

/// Decodes and verifies chunks; keeps one zstd context.
pub struct ChunkDecoder(Decompressor<'static>);

impl ChunkDecoder {
    /// A decoder.
    ///
    /// # Errors
    /// [`ChunkError::Zstd`] when zstd cannot make a context.
    pub fn new() -> Result<Self, ChunkError> {
        Ok(Self(Decompressor::new().map_err(ChunkError::Zstd)?))
    }

    /// Fills `out` with the chunk's uncompressed bytes, verified; on an error `out` is empty.
    ///
    /// Takes at most `record.device_size` bytes of memory beside zstd's fixed context.
    ///
    /// # Errors
    /// Every variant of [`ChunkError`]: the bytes are not those that the index names.
    pub fn decode(&mut self, record: &ChunkRecord, stored: &[u8], out: &mut Vec<u8>) -> Result<(), ChunkError> {
        out.clear();
        let result = self.fill(record, stored, out).and_then(|()| verify(record, out));
        if result.is_err() {
            out.clear();
        }
        result
    }

    fn fill(&mut self, record: &ChunkRecord, stored: &[u8], out: &mut Vec<u8>) -> Result<(), ChunkError> {
        if stored.len() as u64 != u64::from(record.compressed_size) {
            return Err(ChunkError::StoredSize { actual: stored.len(), expected: record.compressed_size });
        }
        let size = record.device_size.min(MAX_CHUNK_SIZE) as usize;
        match record.encoding {
            Encoding::Raw if stored.len() <= size => out.extend_from_slice(stored),
            Encoding::Raw => {
                return Err(ChunkError::DecodedSize { actual: stored.len(), expected: record.device_size });
            }
            Encoding::Zstd => {
                out.reserve_exact(size);
                self.0.decompress_to_buffer(stored, out).map_err(ChunkError::Zstd)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for ChunkDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkDecoder").finish_non_exhaustive()
    }
}

/// Checks uncompressed bytes, such as those read back from a cache file, against the index.
///
/// # Errors
/// [`ChunkError::DecodedSize`] or [`ChunkError::Digest`].
pub fn verify(record: &ChunkRecord, decoded: &[u8]) -> Result<(), ChunkError> {
    if decoded.len() as u64 != u64::from(record.device_size) {
        return Err(ChunkError::DecodedSize { actual: decoded.len(), expected: record.device_size });
    }
    let actual = ChunkDigest::of(decoded);
    if actual != record.digest {
        return Err(ChunkError::Digest { actual, expected: record.digest });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
