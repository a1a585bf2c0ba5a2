//! A file's extents as runs, and the chunk size that maps them with the fewest entries.

use crate::ids::{BLOCK_SIZE, BlobIndex, DeviceAddr};

use super::Extent;

/// Largest value of EROFS's 5-bit chunk size field: chunks of 4096 << 31 bytes.
const MAX_CHUNK_BITS: u32 = 31;

/// A maximal piece of a file that is contiguous in one blob, or a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// Offset in the file.
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) location: Option<(BlobIndex, DeviceAddr)>,
}

impl Run {
    fn continues_with(&self, extent: &Extent) -> bool {
        match (self.location, extent.location) {
            (None, None) => true,
            (Some((blob, at)), Some((next_blob, next_at))) => {
                blob == next_blob && at.0.checked_add(self.length) == Some(next_at.0)
            }
            _ => false,
        }
    }
}

/// Merges neighbouring extents.
pub(crate) fn runs(extents: &[Extent]) -> impl Iterator<Item = Run> + '_ {
    let mut extents = extents.iter().peekable();
    let mut start = 0;
    std::iter::from_fn(move || {
        let first = extents.next()?;
        let mut run = Run { start, length: first.length, location: first.location };
        while let Some(next) = extents.next_if(|next| run.continues_with(next)) {
            run.length = run.length.saturating_add(next.length);
        }
        start = start.saturating_add(run.length);
        Some(run)
    })
}

/// Shape of a chunk map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunking {
    /// Chunk size is 4096 << bits bytes.
    pub(crate) bits: u32,
    /// Entries of the map.
    pub(crate) count: u64,
}

/// The largest chunks that no run's boundary divides, and no larger than covers the file: one entry for a
/// contiguous file however long it is.
pub(crate) fn chunking(size: u64, extents: &[Extent]) -> Chunking {
    let blocks = size.div_ceil(BLOCK_SIZE);
    let cover = blocks.checked_next_power_of_two().map_or(u64::BITS, u64::trailing_zeros);
    let aligned = runs(extents).skip(1).map(|run| (run.start / BLOCK_SIZE).trailing_zeros()).min();
    let bits = cover.min(aligned.unwrap_or(MAX_CHUNK_BITS)).min(MAX_CHUNK_BITS);
    Chunking { bits, count: blocks.div_ceil(1 << bits) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(blocks: u64, location: Option<(u16, u64)>) -> Extent {
        let location = location.map(|(blob, block)| (BlobIndex(blob), DeviceAddr(block * BLOCK_SIZE)));
        Extent { length: blocks * BLOCK_SIZE, location }
    }

    fn shape(extents: &[Extent]) -> (u32, u64) {
        let found = chunking(extents.iter().map(|extent| extent.length).sum(), extents);
        (found.bits, found.count)
    }

    #[test]
    fn contiguous_files_take_one_entry() {
        for (blocks, bits) in [(1, 0), (2, 1), (3, 2), (64, 6), (65, 7), (1 << 31, 31)] {
            assert_eq!(shape(&[extent(blocks, Some((3, 7)))]), (bits, 1), "{blocks} blocks");
        }
        assert_eq!(chunking(1, &[Extent { length: 1, location: None }]), Chunking { bits: 0, count: 1 });
        assert_eq!(shape(&[extent(3, Some((0, 5))), extent(4, Some((0, 8))), extent(1, Some((0, 12)))]), (3, 1));
    }

    #[test]
    fn boundaries_bound_the_chunk() {
        let at = |block| Some((0, block));
        assert_eq!(shape(&[extent(64, at(0)), extent(64, at(200)), extent(5, at(100))]), (6, 3));
        assert_eq!(shape(&[extent(64, at(0)), extent(64, Some((1, 64)))]), (6, 2));
        assert_eq!(shape(&[extent(3, at(0)), extent(1, None), extent(4, None)]), (0, 8));
        assert_eq!(shape(&[extent(12, None), extent(4, at(9))]), (2, 4));
        assert_eq!(shape(&[extent(1 << 31, None), extent(1 << 31, None)]), (31, 2));
    }
}
