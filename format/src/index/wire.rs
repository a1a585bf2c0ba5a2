//! The index's bytes. The only place that knows bincode: pinned to its last release, 2.0.1.

use bincode::config::{self, Configuration, Fixint, LittleEndian};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{BlobRecord, ChunkRecord, Header, IndexError, PrefetchRange, VERSION};
use crate::chunk::Encoding;
use crate::digest::{Algorithm, ChunkDigest, Digest};
use crate::ids::{ChunkIndex, DeviceAddr};

const MAGIC: [u8; 8] = *b"lazo-idx";
const FLAG_XATTRS: u32 = 1;
const FLAG_ACLS: u32 = 2;

// Widths in bytes of the records below under fixed-width encoding; a test holds them to it.
pub(super) const HEADER_SIZE: usize = 84;
pub(super) const BLOB_SIZE: usize = 56;
pub(super) const CHUNK_SIZE: usize = 57;
pub(super) const PREFETCH_SIZE: usize = 8;

const CONFIG: Configuration<LittleEndian, Fixint> = config::standard().with_little_endian().with_fixed_int_encoding();

#[derive(Serialize, Deserialize)]
struct WireHeader {
    magic: [u8; 8],
    version: u32,
    flags: u32,
    bootstrap_size: u64,
    bootstrap_digest: [u8; 32],
    entries: u64,
    file_bytes: u64,
    counts: Counts,
}

/// Records in each table.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) blobs: u32,
    pub(super) chunks: u32,
    pub(super) prefetch: u32,
}

impl Counts {
    // Three 32-bit counts of records below 64 bytes: no sum here comes near 2^64.

    /// Offset of the chunk table.
    pub(super) fn chunk_table(&self) -> u64 {
        HEADER_SIZE as u64 + u64::from(self.blobs) * BLOB_SIZE as u64
    }

    /// Offset of the prefetch list.
    pub(super) fn prefetch_list(&self) -> u64 {
        self.chunk_table() + u64::from(self.chunks) * CHUNK_SIZE as u64
    }

    /// Length of the whole file.
    pub(super) fn length(&self) -> u64 {
        self.prefetch_list() + u64::from(self.prefetch) * PREFETCH_SIZE as u64
    }
}

#[derive(Serialize, Deserialize)]
struct WireBlob {
    digest: [u8; 32],
    compressed_size: u64,
    device_size: u64,
    first_chunk: u32,
    chunk_count: u32,
}

#[derive(Serialize, Deserialize)]
struct WireChunk {
    compressed_offset: u64,
    compressed_size: u32,
    device_offset: u64,
    device_size: u32,
    encoding: u8,
    digest: [u8; 32],
}

#[derive(Serialize, Deserialize)]
struct WirePrefetch {
    first: u32,
    count: u32,
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    bincode::serde::decode_from_slice(bytes, CONFIG).ok().map(|(value, _)| value)
}

/// Decodes and checks the header at the start of `bytes`.
pub(super) fn header(bytes: &[u8]) -> Result<(Header, Counts), IndexError> {
    if !bytes.starts_with(&MAGIC) {
        return Err(IndexError::Magic);
    }
    // The version first: all behind it may differ in another one.
    let version = bytes.get(8..12).and_then(decode).ok_or_else(|| too_short(bytes))?;
    if version != VERSION {
        return Err(IndexError::Version(version));
    }
    let wire: WireHeader = decode(bytes).ok_or_else(|| too_short(bytes))?;
    if wire.flags & !(FLAG_XATTRS | FLAG_ACLS) != 0 {
        return Err(IndexError::Flags(wire.flags));
    }
    let header = Header {
        bootstrap_size: wire.bootstrap_size,
        bootstrap_digest: ChunkDigest(wire.bootstrap_digest),
        entries: wire.entries,
        file_bytes: wire.file_bytes,
        has_xattrs: wire.flags & FLAG_XATTRS != 0,
        has_acls: wire.flags & FLAG_ACLS != 0,
    };
    Ok((header, wire.counts))
}

fn too_short(bytes: &[u8]) -> IndexError {
    IndexError::Length { actual: bytes.len() as u64, expected: HEADER_SIZE as u64 }
}

pub(super) fn blob(bytes: &[u8]) -> Option<BlobRecord> {
    let wire: WireBlob = decode(bytes)?;
    Some(BlobRecord {
        digest: Digest::sha256(wire.digest),
        compressed_size: wire.compressed_size,
        device_size: wire.device_size,
        first_chunk: ChunkIndex(wire.first_chunk),
        chunk_count: wire.chunk_count,
    })
}

/// `None` for an encoding this version does not know.
pub(super) fn chunk(bytes: &[u8]) -> Option<ChunkRecord> {
    let wire: WireChunk = decode(bytes)?;
    Some(ChunkRecord {
        compressed_offset: wire.compressed_offset,
        compressed_size: wire.compressed_size,
        device_offset: DeviceAddr(wire.device_offset),
        device_size: wire.device_size,
        encoding: Encoding::from_byte(wire.encoding)?,
        digest: ChunkDigest(wire.digest),
    })
}

pub(super) fn prefetch(bytes: &[u8]) -> Option<PrefetchRange> {
    let wire: WirePrefetch = decode(bytes)?;
    Some(PrefetchRange { first: ChunkIndex(wire.first), count: wire.count })
}

/// Appends records in the order of the sections.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn new(header: &Header, counts: &Counts) -> Self {
        let mut writer = Self(Vec::with_capacity(usize::try_from(counts.length()).unwrap_or(0)));
        let flags = |set: bool, flag: u32| if set { flag } else { 0 };
        writer.put(&WireHeader {
            magic: MAGIC,
            version: VERSION,
            flags: flags(header.has_xattrs, FLAG_XATTRS) | flags(header.has_acls, FLAG_ACLS),
            bootstrap_size: header.bootstrap_size,
            bootstrap_digest: header.bootstrap_digest.0,
            entries: header.entries,
            file_bytes: header.file_bytes,
            counts: *counts,
        });
        writer
    }

    /// `None` when the blob's digest is not a SHA-256.
    pub(super) fn blob(&mut self, blob: &BlobRecord) -> Option<()> {
        let digest = blob.digest.as_bytes().try_into().ok().filter(|_| blob.digest.algorithm() == Algorithm::Sha256)?;
        self.put(&WireBlob {
            digest,
            compressed_size: blob.compressed_size,
            device_size: blob.device_size,
            first_chunk: blob.first_chunk.0,
            chunk_count: blob.chunk_count,
        });
        Some(())
    }

    pub(super) fn chunk(&mut self, chunk: &ChunkRecord) {
        self.put(&WireChunk {
            compressed_offset: chunk.compressed_offset,
            compressed_size: chunk.compressed_size,
            device_offset: chunk.device_offset.0,
            device_size: chunk.device_size,
            encoding: chunk.encoding.to_byte(),
            digest: chunk.digest.0,
        });
    }

    pub(super) fn prefetch(&mut self, range: &PrefetchRange) {
        self.put(&WirePrefetch { first: range.first.0, count: range.count });
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }

    fn put(&mut self, record: &impl Serialize) {
        // Structs of integers and byte arrays into a Vec: bincode has nothing to fail on.
        let _ = bincode::serde::encode_into_std_write(record, &mut self.0, CONFIG);
    }
}
