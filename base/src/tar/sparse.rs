//! Where a sparse file has data: GNU's old format keeps the map in headers, PAX formats 0.0 and 0.1 in records, and format 1.0
//! before the data.

use super::Fault;
use super::header::{BLOCK, Header, number};
use super::pax::{self, Key, Records};

/// Data pieces of one sparse file; the map takes 16 bytes a piece, so 4 MiB at most.
const MAX_PIECES: usize = 1 << 18;
/// Longest number of a map before the data, bytes. 64 bits take 20 with their sign.
const MAX_DIGITS: usize = 512;
/// Width of a number in GNU's old map; a piece has two.
const FIELD: usize = 12;

/// A map as it was written, unchecked.
pub(super) struct Map {
    /// The name of the file, where the header has a made-up one.
    pub(super) name: Option<Vec<u8>>,
    /// Length of the file with its holes.
    pub(super) size: i64,
    /// Offset and length of each piece.
    pub(super) pieces: Vec<(i64, i64)>,
}

type ReadBlock<'a> = &'a mut dyn FnMut(&mut [u8; BLOCK]) -> Result<(), Fault>;

/// GNU's old format: four pieces in the header, 21 in each block that follows it. `more` reads such a block.
pub(super) fn from_header(header: &Header, more: ReadBlock<'_>) -> Result<Map, Fault> {
    let mut map = Map { name: None, size: header.gnu_real_size()?, pieces: Vec::new() };
    let mut extended = collect(header.gnu_sparse(), &mut map.pieces)?;
    while extended {
        let mut block = [0; BLOCK];
        more(&mut block)?;
        extended = collect(&block, &mut map.pieces)?;
    }
    Ok(map)
}

/// Takes pieces out of an area of an old map; whether a further block follows, which a byte behind the last piece says.
fn collect(area: &[u8], pieces: &mut Vec<(i64, i64)>) -> Result<bool, Fault> {
    let (fields, rest) = area.split_at(area.len() / (2 * FIELD) * (2 * FIELD));
    for piece in fields.chunks_exact(2 * FIELD).take_while(|piece| piece[0] != 0) {
        let (offset, length) = piece.split_at(FIELD);
        push(pieces, number(offset)?, number(length)?)?;
    }
    Ok(rest.first().is_some_and(|byte| *byte != 0))
}

fn push(pieces: &mut Vec<(i64, i64)>, offset: i64, length: i64) -> Result<(), Fault> {
    check_count(pieces.len() + 1)?;
    pieces.push((offset, length));
    Ok(())
}

fn check_count(count: usize) -> Result<(), Fault> {
    match count {
        0..=MAX_PIECES => Ok(()),
        _ => Err(Fault::TooMuch { what: "pieces in a sparse file", limit: MAX_PIECES as u64 }),
    }
}

/// PAX formats; `None` when the records describe no sparse file, or one of a version that nobody knows. `more` reads a block
/// of the file's stored data, of which there are `stored` bytes.
pub(super) fn from_records(records: &Records, stored: u64, more: ReadBlock<'_>) -> Result<Option<Map>, Fault> {
    let in_data = match (records.get(Key::SparseMajor), records.get(Key::SparseMinor)) {
        (Some(b"0"), Some(b"0" | b"1")) => false,
        (Some(b"1"), Some(b"0")) => true,
        (None, None) if records.get(Key::SparseMap).is_some() => false,
        _ => return Ok(None),
    };
    let size = match records.get(Key::SparseSize).or_else(|| records.get(Key::SparseRealSize)) {
        Some(size) => pax::number(size)?,
        None => i64::try_from(stored).map_err(|_| Fault::Corrupt("a size that is too large"))?,
    };
    let pieces = if in_data { from_data(more)? } else { from_map(records)? };
    Ok(Some(Map { name: records.get(Key::SparseName).map(<[u8]>::to_vec), size, pieces }))
}

/// Formats 0.0 and 0.1: a count, and offsets and lengths in turn, between commas.
fn from_map(records: &Records) -> Result<Vec<(i64, i64)>, Fault> {
    const BAD: Fault = Fault::Corrupt("a sparse map that has not as many pieces as it says");
    let count = pax::number(records.get(Key::SparseCount).unwrap_or_default())?;
    let map = records.get(Key::SparseMap);
    let numbers: Vec<&[u8]> = map.map_or_else(Vec::new, |map| map.split(|byte| *byte == b',').collect());
    if i64::try_from(numbers.len()).ok() != count.checked_mul(2) {
        return Err(BAD);
    }
    let mut pieces = Vec::new();
    for pair in numbers.chunks_exact(2) {
        push(&mut pieces, pax::number(pair[0])?, pax::number(pair[1])?)?;
    }
    Ok(pieces)
}

/// Format 1.0: numbers, one a line: a count and then pairs; padded to a block.
fn from_data(more: ReadBlock<'_>) -> Result<Vec<(i64, i64)>, Fault> {
    let mut lines = Lines { more, block: [0; BLOCK], at: BLOCK };
    let count = usize::try_from(lines.number()?).map_err(|_| Fault::Corrupt("a sparse map of less than no pieces"))?;
    check_count(count)?;
    let mut pieces = Vec::new();
    for _ in 0..count {
        push(&mut pieces, lines.number()?, lines.number()?)?;
    }
    Ok(pieces)
}

/// Numbers of a map before the data.
struct Lines<'a> {
    more: ReadBlock<'a>,
    block: [u8; BLOCK],
    at: usize,
}

impl Lines<'_> {
    fn number(&mut self) -> Result<i64, Fault> {
        let mut line = Vec::new();
        loop {
            if self.at == BLOCK {
                (self.more)(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => return pax::number(&line),
                _ if line.len() < MAX_DIGITS => line.push(byte),
                _ => return Err(Fault::TooMuch { what: "digits in a sparse map", limit: MAX_DIGITS as u64 }),
            }
        }
    }
}

/// Checks that pieces ascend, lie in the file and add up to the stored data; without those that are empty.
pub(super) fn checked(pieces: Vec<(i64, i64)>, size: u64, stored: u64) -> Result<Vec<(u64, u64)>, Fault> {
    const BAD: Fault = Fault::Corrupt("a sparse map whose pieces overlap or lie outside of the file");
    let (mut end, mut total) = (0, 0u64);
    let mut kept = Vec::with_capacity(pieces.len());
    for (offset, length) in pieces {
        let (Ok(offset), Ok(length)) = (u64::try_from(offset), u64::try_from(length)) else { return Err(BAD) };
        if offset < end || offset + length > size {
            return Err(BAD);
        }
        end = offset + length;
        total += length;
        if length > 0 {
            kept.push((offset, length));
        }
    }
    if total != stored {
        return Err(Fault::SparseData { size });
    }
    Ok(kept)
}
