//! Reading a layer: fetched, verified, decompressed and parsed as one stream, each stage on a thread of its own.
//!
//! The inflating thread hashes the compressed bytes as they arrive (inside the blob stream), a second one hashes the
//! uncompressed bytes for the diffID, and the caller's thread parses the archive. What travels between them is bounded.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use futures_util::{StreamExt, TryStreamExt};
use lazo_base::compression::{self, Compression, Decoder, ZstdWindow};
use lazo_format::{Digest, Hasher};
use tokio::runtime::Handle;

pub(crate) mod archive;
pub(crate) mod content;

pub use archive::{Archive, Entry, EntryKind};

use crate::error::{LayerError, Problem};

/// Uncompressed bytes handed on at a time.
const BLOCK_SIZE: usize = 256 * 1024;
/// Blocks waiting between two stages: 2 MiB each way.
const BLOCKS_WAITING: usize = 8;
/// Read buffer in front of the decompressor.
const COMPRESSED_BUFFER: usize = 128 * 1024;

/// One layer, about to be read.
pub(crate) struct LayerStream<'a> {
    pub(crate) stream: lazo_registry::BlobStream,
    /// Largest window of a zstd stream.
    pub(crate) window: ZstdWindow,
    /// What the config says that the uncompressed bytes hash to.
    pub(crate) diff_id: &'a Digest,
    /// Told of compressed bytes as they come.
    pub(crate) advance: &'a (dyn Fn(u64) + Sync),
    /// Set when the conversion shall stop.
    pub(crate) cancel: &'a AtomicBool,
}

/// What a layer turned out to be.
pub(crate) struct Inflated {
    /// Uncompressed bytes.
    pub(crate) size: u64,
    /// How it was packed, whatever its media type says.
    pub(crate) compression: Compression,
}

impl LayerStream<'_> {
    /// Reads the layer to its end: `parse` gets the archive, and every digest is checked after it.
    pub(crate) fn read(
        self,
        runtime: &Handle,
        parse: impl FnOnce(&mut Archive<BlockReader>) -> Result<(), LayerError>,
    ) -> Result<Inflated, LayerError> {
        let Self { stream, window, diff_id, advance, cancel } = self;
        let (to_parser, parser_blocks) = crossbeam_channel::bounded(BLOCKS_WAITING);
        let (to_hasher, hasher_blocks) = crossbeam_channel::bounded(BLOCKS_WAITING);
        std::thread::scope(|scope| {
            let inflater = scope.spawn(move || {
                let source =
                    StreamReader { stream, runtime: runtime.clone(), block: Bytes::new(), read: 0, advance, cancel };
                inflate(source, window, &to_parser, &to_hasher)
            });
            let algorithm = diff_id.algorithm();
            let hasher = scope.spawn(move || {
                let mut hasher = Hasher::new(algorithm);
                hasher_blocks.iter().for_each(|block: Bytes| hasher.update(&block));
                hasher.finish()
            });
            let mut archive = Archive::new(BlockReader { blocks: parser_blocks, block: Bytes::new() });
            let parsed = parse(&mut archive).and_then(|()| archive.drain().map_err(LayerError::from));
            let inflated = inflater.join().map_err(|_| Problem::Panicked)?;
            let actual = hasher.join().map_err(|_| Problem::Panicked)?;
            // A stream that broke off makes the parser see a truncated archive: the cause is what counts.
            let inflated = match (inflated, parsed) {
                (Err(Stopped::Failed(problem)), _) => return Err(problem.into()),
                (_, Err(error)) => return Err(error),
                (Err(Stopped::NobodyReads), Ok(())) => return Err(Problem::Truncated.into()),
                (Ok(inflated), Ok(())) => inflated,
            };
            if actual != *diff_id {
                return Err(Problem::DiffId { expected: Box::new(*diff_id), actual: Box::new(actual) }.into());
            }
            Ok(inflated)
        })
    }
}

enum Stopped {
    NobodyReads,
    Failed(Problem),
}

fn inflate(
    source: StreamReader<'_>,
    window: ZstdWindow,
    to_parser: &Sender<Bytes>,
    to_hasher: &Sender<Bytes>,
) -> Result<Inflated, Stopped> {
    let mut source = BufReader::with_capacity(COMPRESSED_BUFFER, source);
    let sent = send_unpacked(&mut source, window, to_parser, to_hasher);
    let position = source.get_ref().read - source.buffer().len() as u64;
    // The blob's own digest is checked at its last byte, so go there: wrong bytes explain a decompressor's complaint.
    match (sent, io::copy(&mut source, &mut io::sink())) {
        (Err(Stopped::NobodyReads), _) => Err(Stopped::NobodyReads),
        (_, Err(error)) => Err(Stopped::Failed(fetch_problem(error))),
        (Err(Stopped::Failed(Problem::Unpack { compression, source, .. })), _) => {
            Err(Stopped::Failed(match fetch_problem(source) {
                Problem::Read(source) => Problem::Unpack { compression, position, source },
                other => other,
            }))
        }
        (sent, Ok(_)) => sent,
    }
}

fn send_unpacked(
    source: impl BufRead,
    window: ZstdWindow,
    to_parser: &Sender<Bytes>,
    to_hasher: &Sender<Bytes>,
) -> Result<Inflated, Stopped> {
    let failed = |compression| move |source| Stopped::Failed(Problem::Unpack { compression, position: 0, source });
    let (compression, source) = compression::detect(source).map_err(failed(Compression::None))?;
    let decoder = Decoder::new(source, compression, window).map_err(failed(compression))?;
    let size = send_blocks(decoder, failed(compression), to_parser, to_hasher)?;
    Ok(Inflated { size, compression })
}

/// Takes a registry's error out of the I/O error that carried it through the decompressor.
fn fetch_problem(error: io::Error) -> Problem {
    match error.downcast::<Carried>() {
        Ok(Carried::Registry(error)) => Problem::Fetch(Box::new(error)),
        Ok(Carried::Interrupted) => Problem::Interrupted,
        Err(error) => Problem::Read(error),
    }
}

fn send_blocks(
    mut from: impl Read,
    failed: impl Fn(io::Error) -> Stopped,
    to_parser: &Sender<Bytes>,
    to_hasher: &Sender<Bytes>,
) -> Result<u64, Stopped> {
    let mut total = 0;
    loop {
        let mut block = Vec::with_capacity(BLOCK_SIZE);
        let read = from.by_ref().take(BLOCK_SIZE as u64).read_to_end(&mut block);
        read.map_err(&failed)?;
        if block.is_empty() {
            return Ok(total);
        }
        total += block.len() as u64;
        let block = Bytes::from(block);
        to_hasher.send(block.clone()).map_err(|_| Stopped::NobodyReads)?;
        to_parser.send(block).map_err(|_| Stopped::NobodyReads)?;
    }
}

/// An error of ours on its way through a decompressor, which only knows I/O errors.
#[derive(Debug, thiserror::Error)]
enum Carried {
    #[error(transparent)]
    Registry(lazo_registry::Error),
    #[error("interrupted")]
    Interrupted,
}

/// The blob's verified stream, read from a thread.
struct StreamReader<'a> {
    stream: lazo_registry::BlobStream,
    runtime: Handle,
    block: Bytes,
    /// Bytes handed out.
    read: u64,
    advance: &'a (dyn Fn(u64) + Sync),
    cancel: &'a AtomicBool,
}

impl Read for StreamReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.block.is_empty() {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(io::Error::other(Carried::Interrupted));
            }
            let next = self.runtime.block_on(self.stream.by_ref().try_next());
            match next.map_err(|e| io::Error::other(Carried::Registry(e)))? {
                Some(block) => {
                    (self.advance)(block.len() as u64);
                    self.block = block;
                }
                None => return Ok(0),
            }
        }
        let length = self.block.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.block.split_to(length));
        self.read += length as u64;
        Ok(length)
    }
}

/// The uncompressed layer as the parser sees it.
pub struct BlockReader {
    blocks: Receiver<Bytes>,
    block: Bytes,
}

impl Read for BlockReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.block.is_empty() {
            match self.blocks.recv() {
                Ok(block) => self.block = block,
                Err(_) => return Ok(0),
            }
        }
        let length = self.block.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.block.split_to(length));
        Ok(length)
    }
}
