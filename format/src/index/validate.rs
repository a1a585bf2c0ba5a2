//! All rules of the index at once.

use super::{BlobRecord, ChunkRecord, Index, IndexError};
use crate::cost::step;
use crate::ids::{BlobIndex, ChunkIndex, to_usize};

impl<B: AsRef<[u8]>> Index<B> {
    /// Checks everything: blobs tile the chunk table, chunks tile their blob's device space and stored bytes,
    /// each prefetch range stays in one blob, and none names a chunk that an earlier one has named.
    ///
    /// Linear in the number of records. Memory: one bit a chunk where there is a prefetch list.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<(), IndexError> {
        self.validate_with(|_, _| ())
    }

    /// The same, showing each chunk to `see` in the order of the table.
    ///
    /// # Errors
    /// As [`Index::validate`].
    pub fn validate_with(&self, mut see: impl FnMut(BlobIndex, &ChunkRecord)) -> Result<(), IndexError> {
        let mut next_chunk = 0;
        for number in self.blob_numbers() {
            let blob = self.blob(number)?;
            if blob.first_chunk.0 != next_chunk {
                return Err(IndexError::Blob(number, "its chunks do not follow those of the blob before"));
            }
            next_chunk = blob.chunks().end;
            self.validate_chunks(number, &blob, &mut see)?;
        }
        if next_chunk != self.counts.chunks {
            return Err(IndexError::Chunk(ChunkIndex(next_chunk), "no blob has it"));
        }
        self.validate_prefetch()
    }

    fn validate_chunks(
        &self,
        number: BlobIndex,
        blob: &BlobRecord,
        see: &mut impl FnMut(BlobIndex, &ChunkRecord),
    ) -> Result<(), IndexError> {
        let (mut device, mut stored) = (0, 0);
        for index in blob.chunks().map(ChunkIndex) {
            let chunk = self.chunk(index)?;
            if chunk.device_offset.0 != device || chunk.compressed_offset != stored {
                return Err(IndexError::Chunk(index, "it does not begin where the one before it ends"));
            }
            (device, stored) = (chunk.device_range().end, chunk.compressed_range().end);
            see(number, &chunk);
        }
        if device != blob.device_size || stored != blob.compressed_size {
            return Err(IndexError::Blob(number, "its chunks do not add up to its sizes"));
        }
        Ok(())
    }

    /// Ends after as many steps as there are chunks: the first that is named twice ends it.
    fn validate_prefetch(&self) -> Result<(), IndexError> {
        if self.counts.prefetch == 0 {
            return Ok(());
        }
        let mut named = vec![0_u64; to_usize(u64::from(self.counts.chunks).div_ceil(64))];
        for (number, range) in (0..).zip(self.prefetch()) {
            let range = range?;
            if self.blob_of(range.first)? != self.blob_of(ChunkIndex(range.chunks().end - 1))? {
                return Err(IndexError::Prefetch(number, "it reaches over two blobs"));
            }
            for chunk in range.chunks() {
                step();
                let (word, bit) = (&mut named[chunk as usize / 64], 1 << (chunk % 64));
                if *word & bit != 0 {
                    return Err(IndexError::Prefetch(number, "it names a chunk that an earlier one names"));
                }
                *word |= bit;
            }
        }
        Ok(())
    }
}
