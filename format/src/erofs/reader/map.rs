//! Chunk maps: from an offset in a file to a place in a device.

use zerocopy::FromBytes as _;

use crate::cost::step;
use crate::ids::{BLOCK_SIZE, BlobIndex, DeviceAddr};

use super::super::ondisk::{MAP_ENTRY_SIZE, MapEntry, NULL_ADDR};
use super::{Bootstrap, BootstrapError, Bytes, FileType, Inode, Layout};

/// Most map entries that one call of [`Bootstrap::extent`] looks at: 256 MiB of a file in 256 KiB pieces, more
/// than any single read. A contiguous file has one entry however long it is.
const MAX_RUN_ENTRIES: u64 = 1024;

/// Where a piece of a file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Offset in the file in bytes: the one asked for.
    pub offset: u64,
    /// Bytes from there that lie in one run; 0 at or behind the end of the file.
    pub length: u64,
    /// Blob and device address of the first byte; `None` for a hole.
    pub location: Option<(BlobIndex, DeviceAddr)>,
}

/// The map of a regular file that is not empty.
#[derive(Debug, Clone, Copy)]
pub(super) struct Map<'a> {
    entries: &'a [MapEntry],
    /// log2 of the chunk size in bytes: 12 to 43.
    bits: u32,
    size: u64,
}

/// One entry of it: where a chunk's bytes lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// Offset in the file.
    pub(super) start: u64,
    /// Offset in the file behind its last byte: the next chunk's start, or the end of the file.
    pub(super) end: u64,
    pub(super) location: Option<(BlobIndex, DeviceAddr)>,
}

impl<'a> Map<'a> {
    fn of(image: Bytes<'a>, inode: &Inode) -> Option<Self> {
        let Layout::Chunked { bits } = inode.layout else { return None };
        let bits = bits + BLOCK_SIZE.trailing_zeros();
        let count = inode.size.div_ceil(1 << bits);
        let at = inode.head_end().checked_next_multiple_of(MAP_ENTRY_SIZE)?;
        let entries = image.get(at, count.checked_mul(MAP_ENTRY_SIZE)?)?;
        Some(Self { entries: <[MapEntry]>::ref_from_bytes(entries).ok()?, bits, size: inode.size })
    }

    pub(super) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    fn entry(&self, number: u64) -> Option<&'a MapEntry> {
        step();
        self.entries.get(usize::try_from(number).ok()?)
    }

    /// Whether those fields of an entry are zero that have to be.
    pub(super) fn is_clean(&self, number: u64) -> bool {
        let is_clean =
            |entry: &MapEntry| entry.unused_block_high == 0 && (entry.block != NULL_ADDR || entry.device == 0);
        self.entry(number).is_some_and(is_clean)
    }

    /// `None` behind the last entry.
    pub(super) fn piece(&self, number: u64) -> Option<Piece> {
        let entry = self.entry(number)?;
        let start = number << self.bits;
        // Behind the last chunk but one, so no overflow; the last is cut off at the size.
        let end = self.size.min(start.saturating_add(1 << self.bits));
        let location = match entry.block.get() {
            NULL_ADDR => None,
            // Device 0 would be the bootstrap itself: number 65535 is in no device table.
            block => Some((BlobIndex(entry.device.get().wrapping_sub(1)), DeviceAddr(u64::from(block) * BLOCK_SIZE))),
        };
        Some(Piece { start, end, location })
    }
}

impl Piece {
    /// Whether `next` goes on where this one ends.
    fn continues(&self, next: &Self) -> bool {
        match (self.location, next.location) {
            (None, None) => true,
            (Some((blob, at)), Some((next_blob, next_at))) => {
                blob == next_blob && at.0 + (self.end - self.start) == next_at.0
            }
            _ => false,
        }
    }
}

/// Whether a regular file that is not empty has its map in the image.
pub(super) fn check(image: Bytes<'_>, inode: &Inode) -> Result<(), &'static str> {
    if inode.size > i64::MAX.cast_unsigned() {
        return Err("its size is beyond what a file can have");
    }
    Map::of(image, inode).map(|_| ()).ok_or("its chunk map is not in the image")
}

impl<B: AsRef<[u8]>> Bootstrap<B> {
    /// Where a regular file's content lies from an offset on: the longest run, across map entries as far as
    /// those are contiguous and within a bound of 1024 entries.
    ///
    /// # Errors
    /// [`BootstrapError::Type`] when the inode is not a regular file, [`BootstrapError::Inode`] when an entry
    /// points outside the devices.
    pub fn extent(&self, inode: &Inode, offset: u64) -> Result<Mapping, BootstrapError> {
        if inode.file_type != FileType::Regular {
            return Err(BootstrapError::Type(inode.nid, "regular file"));
        }
        if offset >= inode.size {
            return Ok(Mapping { offset, length: 0, location: None });
        }
        let map = self.map(inode)?;
        let first = offset >> map.bits;
        let mut piece = self.piece(inode, &map, first)?;
        let skipped = offset - piece.start;
        let location = piece.location.map(|(blob, at)| (blob, DeviceAddr(at.0 + skipped)));
        for number in first + 1..map.len().min(first + MAX_RUN_ENTRIES) {
            let next = self.piece(inode, &map, number)?;
            if !piece.continues(&next) {
                break;
            }
            piece = next;
        }
        Ok(Mapping { offset, length: piece.end - offset, location })
    }

    /// Bytes of a regular file's blocks that are not in holes. `None` if its map has more than `most` entries, which are not looked at.
    ///
    /// # Errors
    /// [`BootstrapError::Type`] when the inode is not a regular file, [`BootstrapError::Inode`] when its map is not in the image.
    pub fn data_bytes(&self, inode: &Inode, most: u64) -> Result<Option<u64>, BootstrapError> {
        if inode.file_type != FileType::Regular {
            return Err(BootstrapError::Type(inode.nid, "regular file"));
        }
        if inode.size == 0 {
            return Ok(Some(0));
        }
        let map = self.map(inode)?;
        if map.len() > most {
            return Ok(None);
        }
        let pieces = (0..map.len()).filter_map(|number| map.piece(number));
        let data = pieces.filter(|piece| piece.location.is_some());
        // Pieces do not overlap and end within the size, which is below 2^63.
        Ok(Some(data.map(|piece| (piece.end - piece.start).next_multiple_of(BLOCK_SIZE)).sum()))
    }

    /// The map of a regular file that is not empty.
    pub(super) fn map(&self, inode: &Inode) -> Result<Map<'_>, BootstrapError> {
        Map::of(self.image(), inode).ok_or_else(|| inode.error("its chunk map is not in the image"))
    }

    /// One entry, checked against the device table.
    pub(super) fn piece(&self, inode: &Inode, map: &Map<'_>, number: u64) -> Result<Piece, BootstrapError> {
        let piece = map.piece(number).ok_or_else(|| inode.error("its chunk map is not in the image"))?;
        if let Some((blob, at)) = piece.location {
            let slot = self.slot(blob).map_err(|_| inode.error("its chunk map names a device that does not exist"))?;
            if at.0 + (piece.end - piece.start).next_multiple_of(BLOCK_SIZE) > slot.size {
                return Err(inode.error("its chunk map reaches beyond a device"));
            }
        }
        Ok(piece)
    }
}
