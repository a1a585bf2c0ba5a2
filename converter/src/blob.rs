//! A finished blob: its chunks' places, and the one file that holds it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use lazo_format::{Algorithm, BlobRecord, ChunkIndex, ChunkRecord, DeviceAddr, Digest, Hasher};

use crate::compress::{Spool, SpooledChunk};
use crate::error::Problem;
use crate::pack::{Part, Place};

/// The blob that a layer became.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) path: PathBuf,
    pub(crate) digest: Digest,
    /// Compressed bytes.
    pub(crate) size: u64,
    /// Head first.
    chunks: Vec<SpooledChunk>,
    head_chunks: usize,
    /// Device address of each chunk, and of the end.
    addresses: Vec<u64>,
}

impl Blob {
    /// Puts head and body together.
    pub(crate) fn assemble(head: Option<Spool>, body: Spool) -> Result<Self, Problem> {
        let (path, digest, size, chunks, head_chunks) = match head {
            None => (body.path, body.digest, body.size, body.chunks, 0),
            Some(head) => {
                append(&head.path, &body.path).map_err(Problem::Spool)?;
                let digest = digest_of(&head.path).map_err(Problem::Spool)?;
                let head_chunks = head.chunks.len();
                (head.path, digest, head.size + body.size, [head.chunks, body.chunks].concat(), head_chunks)
            }
        };
        let mut addresses = Vec::with_capacity(chunks.len() + 1);
        let mut end = 0u64;
        addresses.push(end);
        for chunk in &chunks {
            end += u64::from(chunk.device_size);
            addresses.push(end);
        }
        Ok(Self { path, digest, size, chunks, head_chunks, addresses })
    }

    pub(crate) fn chunk_count(&self) -> usize {
        self.chunks.len()
    }

    pub(crate) fn device_size(&self) -> u64 {
        self.addresses.last().copied().unwrap_or(0)
    }

    /// Number within the blob of the chunk that holds a place.
    pub(crate) fn chunk_of(&self, place: Place) -> usize {
        match place.part {
            Part::Head => place.chunk as usize,
            Part::Body => self.head_chunks + place.chunk as usize,
        }
    }

    /// Device address of a place.
    pub(crate) fn address_of(&self, place: Place) -> DeviceAddr {
        DeviceAddr(self.addresses[self.chunk_of(place)] + u64::from(place.block) * lazo_format::BLOCK_SIZE)
    }

    /// Chunks of this blob, by number, that hold `length` bytes from a place on.
    pub(crate) fn chunks_of(&self, place: Place, length: u64) -> std::ops::Range<usize> {
        let end = self.address_of(place).0 + length;
        let first = self.chunk_of(place);
        first..self.addresses.partition_point(|address| *address < end)
    }

    /// The index's records, with chunks numbered from `first_chunk`.
    pub(crate) fn records(&self, first_chunk: u32) -> (BlobRecord, Vec<ChunkRecord>) {
        let mut compressed_offset = 0;
        let records = self.chunks.iter().zip(&self.addresses).map(|(chunk, address)| {
            let record = ChunkRecord {
                compressed_offset,
                compressed_size: chunk.compressed_size,
                device_offset: DeviceAddr(*address),
                device_size: chunk.device_size,
                encoding: chunk.encoding,
                digest: chunk.digest,
            };
            compressed_offset += u64::from(chunk.compressed_size);
            record
        });
        let chunks: Vec<_> = records.collect();
        let blob = BlobRecord {
            digest: self.digest,
            compressed_size: self.size,
            device_size: self.device_size(),
            first_chunk: ChunkIndex(first_chunk),
            chunk_count: u32::try_from(chunks.len()).unwrap_or(u32::MAX),
        };
        (blob, chunks)
    }
}

/// Appends the second file to the first and removes it.
fn append(to: &Path, from: &Path) -> io::Result<()> {
    // Not in append mode, which copy_file_range(2) refuses.
    let mut target = OpenOptions::new().write(true).open(to)?;
    io::Seek::seek(&mut target, io::SeekFrom::End(0))?;
    io::copy(&mut File::open(from)?, &mut target)?;
    std::fs::remove_file(from)
}

fn digest_of(path: &Path) -> io::Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&buffer[..read]),
        }
    }
}
