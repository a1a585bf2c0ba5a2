//! Packs the files of a layer into chunks, each content once.
//!
//! A blob's device space is filled in the order of the archive, which keeps a directory's files together. Files of up to one
//! chunk size are kept whole, several to a chunk (the open *pack*); larger ones are cut at multiples of the chunk size. The
//! rest of a large file opens a new pack right behind its last full piece, so that the file is contiguous in device space.
//! Files of the prefetch list are set aside and packed at the layer's end, in the list's order, as the *head* of the blob.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use lazo_format::{BLOCK_SIZE, ChunkDigest};

use crate::compress::{ChunkWriter, Pool, Spool};
use crate::error::{LayerError, Problem};
use crate::layer::content::{Content, Piece};
use crate::merge::FileId;

/// [`BLOCK_SIZE`] for lengths in memory.
const BLOCK: usize = 4096;

/// Chunks that may be pushed past an open pack. They wait in memory, compressed: at the default chunk size 4 MiB at most.
const MAX_PAST_PACK: u32 = 16;

/// The two parts of a blob, head first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Head,
    Body,
}

/// Where some blocks of content lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) layer: u16,
    pub(crate) part: Part,
    pub(crate) chunk: u32,
    /// Blocks from the chunk's beginning.
    pub(crate) block: u32,
}

/// A stretch of a file; `None` is a hole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileExtent {
    pub(crate) length: u64,
    pub(crate) place: Option<Place>,
}

/// What packing found, in bytes of file content.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PackStats {
    pub(crate) files: u64,
    pub(crate) content: u64,
    pub(crate) holes: u64,
    pub(crate) duplicate: u64,
}

/// Everything that is known of the contents packed so far, in all layers.
#[derive(Default)]
pub(crate) struct Contents {
    /// By BLAKE3 of the content, zero-padded to whole blocks. 56 bytes a distinct file or piece.
    places: HashMap<ChunkDigest, Place>,
    /// The extents of each regular file, by `FileId`.
    files: Vec<Box<[FileExtent]>>,
    pub(crate) stats: PackStats,
}

impl Contents {
    pub(crate) fn extents(&self, file: FileId) -> &[FileExtent] {
        self.files.get(file.0 as usize).map_or(&[], |e| e)
    }

    fn set_extents(&mut self, file: FileId, extents: Vec<FileExtent>) {
        let index = file.0 as usize;
        if self.files.len() <= index {
            self.files.resize_with(index + 1, Box::default);
        }
        self.files[index] = extents.into();
    }
}

/// Packs one layer.
pub(crate) struct LayerPacker<'p> {
    body: Sequence<'p>,
    set_aside: Option<SetAside>,
    layer: u16,
    chunk_size: usize,
    directory: PathBuf,
    contents: &'p mut Contents,
}

impl<'p> LayerPacker<'p> {
    /// Begins the layer's spools in `directory`.
    pub(crate) fn create(
        directory: &Path,
        layer: u16,
        chunk_size: u32,
        pool: &'p Pool,
        contents: &'p mut Contents,
    ) -> Result<Self, Problem> {
        let writer = ChunkWriter::create(pool, &directory.join(format!("{layer}.body")))?;
        let chunk_size = chunk_size as usize;
        let body = Sequence { writer, layer, part: Part::Body, chunk_size, pack: None };
        Ok(Self { body, set_aside: None, layer, chunk_size, directory: directory.to_owned(), contents })
    }

    /// Packs a file, or sets it aside if it has a rank in the prefetch list.
    pub(crate) fn add<R: Read>(
        &mut self,
        file: FileId,
        rank: Option<u32>,
        content: &mut Content<'_, R>,
    ) -> Result<(), Problem> {
        match rank {
            // A sparse file's map would have to be set aside as well; none is worth that.
            Some(rank) if !content.is_sparse() => {
                let set_aside = match &mut self.set_aside {
                    Some(existing) => existing,
                    none => none.insert(SetAside::create(&self.directory.join(format!("{}.prefetch", self.layer)))?),
                };
                set_aside.add(file, rank, content, self.chunk_size)
            }
            _ => self.body.add(file, content, self.contents),
        }
    }

    /// Ends the layer: its blob's head, if any, and body.
    pub(crate) fn finish(mut self) -> Result<(Option<Spool>, Spool), Problem> {
        self.body.flush()?;
        let body = self.body.writer.pool();
        let head = match self.set_aside.take() {
            None => None,
            Some(set_aside) => {
                let writer = ChunkWriter::create(body, &self.directory.join(format!("{}.head", self.layer)))?;
                let chunk_size = self.chunk_size;
                let mut head = Sequence { writer, layer: self.layer, part: Part::Head, chunk_size, pack: None };
                set_aside.pack(&mut head, self.contents)?;
                head.flush()?;
                Some(head.writer.finish()?)
            }
        };
        Ok((head, self.body.writer.finish()?))
    }

    /// The reason for which an `add` failed: the writer's own, if it was the writer that gave up.
    pub(crate) fn into_failure(self, otherwise: LayerError) -> LayerError {
        match otherwise.problem() {
            Problem::Interrupted => self.body.writer.failure().map_or(otherwise, LayerError::from),
            _ => otherwise,
        }
    }
}

struct Pack {
    chunk: u32,
    data: Vec<u8>,
}

/// The chunks of one part of a blob, in order.
struct Sequence<'p> {
    writer: ChunkWriter<'p>,
    layer: u16,
    part: Part,
    chunk_size: usize,
    pack: Option<Pack>,
}

impl Sequence<'_> {
    fn add<R: Read>(
        &mut self,
        file: FileId,
        content: &mut Content<'_, R>,
        contents: &mut Contents,
    ) -> Result<(), Problem> {
        let mut extents = Vec::new();
        let mut buffer = self.writer.pool().buffer();
        let mut pieces = 0u32;
        while let Some(piece) = content.next(self.chunk_size as u64, &mut buffer)? {
            let extent = match piece {
                Piece::Hole(length) => FileExtent { length, place: None },
                Piece::Data => {
                    let length = buffer.len() as u64;
                    FileExtent { length, place: self.place(&mut buffer, pieces > 0, contents)? }
                }
            };
            pieces = pieces.saturating_add(1);
            if extent.place.is_none() {
                contents.stats.holes += extent.length;
            }
            extents.push(extent);
        }
        contents.stats.files += 1;
        contents.stats.content += content.size();
        contents.set_extents(file, extents);
        Ok(())
    }

    /// Finds or makes a place for a piece of content; `None` if it is all zeros. May swap the buffer for another.
    fn place(
        &mut self,
        buffer: &mut Vec<u8>,
        continues: bool,
        contents: &mut Contents,
    ) -> Result<Option<Place>, Problem> {
        if buffer.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let length = buffer.len();
        buffer.resize(length.next_multiple_of(BLOCK), 0);
        let digest = ChunkDigest::of(buffer);
        if let Some(place) = contents.places.get(&digest) {
            contents.stats.duplicate += length as u64;
            return Ok(Some(*place));
        }
        let place = if buffer.len() > self.chunk_size / 2 && !self.fits(buffer.len(), continues) {
            self.place_alone(buffer)?
        } else {
            self.place_in_pack(buffer, continues)?
        };
        contents.places.insert(digest, place);
        Ok(Some(place))
    }

    /// Whether the open pack has room. What continues a large file never joins it: it must follow that file's pieces.
    fn fits(&self, length: usize, continues: bool) -> bool {
        !continues && self.pack.as_ref().is_some_and(|pack| pack.data.len() + length <= self.chunk_size)
    }

    fn place_alone(&mut self, buffer: &mut Vec<u8>) -> Result<Place, Problem> {
        if self.pack.as_ref().is_some_and(|pack| self.writer.next() - pack.chunk > MAX_PAST_PACK) {
            self.flush()?;
        }
        let chunk = self.writer.reserve()?;
        let data = std::mem::replace(buffer, self.writer.pool().buffer());
        self.writer.push(chunk, data)?;
        Ok(Place { layer: self.layer, part: self.part, chunk, block: 0 })
    }

    fn place_in_pack(&mut self, buffer: &[u8], continues: bool) -> Result<Place, Problem> {
        if !self.fits(buffer.len(), continues) {
            self.flush()?;
        }
        let pack = match &mut self.pack {
            Some(pack) => pack,
            none => none.insert(Pack { chunk: self.writer.reserve()?, data: self.writer.pool().buffer() }),
        };
        let block = u32::try_from(pack.data.len() as u64 / BLOCK_SIZE).unwrap_or(u32::MAX);
        pack.data.extend_from_slice(buffer);
        Ok(Place { layer: self.layer, part: self.part, chunk: pack.chunk, block })
    }

    fn flush(&mut self) -> Result<(), Problem> {
        match self.pack.take() {
            Some(pack) => self.writer.push(pack.chunk, pack.data),
            None => Ok(()),
        }
    }
}

/// The contents of files of the prefetch list, uncompressed, until the layer's end.
struct SetAside {
    path: PathBuf,
    file: BufWriter<File>,
    size: u64,
    /// Rank in the list, file, offset here, length.
    files: Vec<(u32, FileId, u64, u64)>,
}

impl SetAside {
    fn create(path: &Path) -> Result<Self, Problem> {
        let file = BufWriter::with_capacity(1 << 20, File::create_new(path).map_err(Problem::Spool)?);
        Ok(Self { path: path.to_owned(), file, size: 0, files: Vec::new() })
    }

    fn add<R: Read>(
        &mut self,
        file: FileId,
        rank: u32,
        content: &mut Content<'_, R>,
        step: usize,
    ) -> Result<(), Problem> {
        let mut buffer = Vec::new();
        while content.next(step as u64, &mut buffer)?.is_some() {
            self.file.write_all(&buffer).map_err(Problem::Spool)?;
        }
        self.files.push((rank, file, self.size, content.size()));
        self.size += content.size();
        Ok(())
    }

    fn pack(mut self, head: &mut Sequence<'_>, contents: &mut Contents) -> Result<(), Problem> {
        self.file.flush().map_err(Problem::Spool)?;
        self.files.sort_unstable();
        let mut file = File::open(&self.path).map_err(Problem::Spool)?;
        for (_, id, offset, size) in &self.files {
            file.seek(SeekFrom::Start(*offset)).map_err(Problem::Spool)?;
            let mut data = BufReader::new(&mut file);
            head.add(*id, &mut Content::new(&mut data, *size, None), contents)?;
        }
        std::fs::remove_file(&self.path).map_err(Problem::Spool)
    }
}
