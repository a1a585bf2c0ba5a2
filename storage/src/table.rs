//! An image's chunk index, and the digests of its blobs' parts of the chunk table.
//!
//! The digest of a part names the blob's cache, so that an image which describes a blob differently cannot put its bytes where
//! another image reads. It needs a look at all chunks, which is made once, when the image is verified, and never when a blob is
//! opened.

use std::ops::Deref;

use lazo_format::{BlobIndex, BlobRecord, ChunkRecord, Index, IndexError};

use crate::mapped::Mapped;

/// Hex digits of a table's digest: 128 bits, out of reach of who would look for a second table with the same ones.
const TABLE_DIGITS: usize = 32;

/// The digest of all that places a blob's bytes, in hex: sizes, encodings and digests of its chunks.
pub(crate) type Table = String;

/// A chunk index with a digest for each blob. It can be used like the index itself.
#[derive(Debug)]
pub struct ImageIndex {
    index: Index<Mapped>,
    tables: Box<[Table]>,
}

impl ImageIndex {
    /// With digests that were made when the index was validated.
    pub(crate) fn new(index: Index<Mapped>, tables: Box<[Table]>) -> Self {
        Self { index, tables }
    }

    /// Validates an index and makes the digests.
    ///
    /// # Errors
    /// What [`Index::validate`] finds.
    #[cfg(test)]
    pub(crate) fn survey(index: Index<Mapped>) -> Result<Self, IndexError> {
        let mut tables = Tables::default();
        index.validate_with(|blob, chunk| tables.add(blob, chunk))?;
        let tables = tables.finish(index.blob_count());
        Ok(Self { index, tables })
    }

    /// The digest of a blob's part of the chunk table.
    pub(crate) fn table(&self, blob: BlobIndex) -> Option<&str> {
        self.tables.get(usize::from(blob.0)).map(String::as_str)
    }
}

impl Deref for ImageIndex {
    type Target = Index<Mapped>;

    fn deref(&self) -> &Index<Mapped> {
        &self.index
    }
}

/// Makes the digests of all blobs' tables from the chunks in order.
#[derive(Default)]
pub(crate) struct Tables {
    done: Vec<Table>,
    current: blake3::Hasher,
}

impl Tables {
    /// Adds the next chunk of the image.
    pub(crate) fn add(&mut self, blob: BlobIndex, chunk: &ChunkRecord) {
        self.begin(usize::from(blob.0));
        // The offsets follow from the sizes.
        self.current.update(&chunk.compressed_size.to_le_bytes());
        self.current.update(&chunk.device_size.to_le_bytes());
        self.current.update(&[chunk.encoding.to_byte()]);
        self.current.update(&chunk.digest.0);
    }

    /// Ends all blobs before this one.
    fn begin(&mut self, blob: usize) {
        while self.done.len() < blob {
            self.done.push(self.current.finalize().to_hex()[..TABLE_DIGITS].to_owned());
            self.current.reset();
        }
    }

    /// The digests of so many blobs.
    pub(crate) fn finish(mut self, blobs: usize) -> Box<[Table]> {
        self.begin(blobs);
        self.done.into()
    }
}

/// The record of one blob and the digest of its table, of an index that has been validated.
pub(crate) fn table_of(index: &Index<Mapped>, number: BlobIndex) -> Result<(BlobRecord, Table), IndexError> {
    let blob = index.blob(number)?;
    let mut tables = Tables::default();
    for chunk in blob.chunks() {
        tables.add(BlobIndex(0), &index.chunk(lazo_format::ChunkIndex(chunk))?);
    }
    Ok((blob, tables.finish(1).into_iter().next().unwrap_or_default()))
}
