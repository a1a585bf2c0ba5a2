//! Header blocks, RFC 7541: read with a table that their sender keeps too, written without one.

use std::borrow::Cow;
use std::collections::VecDeque;

use super::{Malformed, huffman};

/// Most that a sender may have in the table, bytes: what it may without being told another size, which the servers here do not do.
const MAX_TABLE: usize = 4096;

/// What RFC 7541 adds to the bytes of a field for its size.
const OVERHEAD: usize = 32;

/// Most fields of a block, by the same measure: a byte can stand for a field of 4 KiB. The servers here refuse more than 16 KiB.
const MAX_LIST: usize = 64 << 10;

/// Most bytes of an integer after the first: enough for 28 bits.
const MAX_DIGITS: usize = 4;

/// A header field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
    /// Whether no table may ever have it, such as a password.
    pub(super) sensitive: bool,
}

impl Field<'_> {
    fn size(&self) -> usize {
        self.name.len() + self.value.len() + OVERHEAD
    }
}

/// Name and value.
type Entry = (Box<[u8]>, Box<[u8]>);

/// The state that goes from one block to the next.
#[derive(Debug)]
pub(super) struct Decoder {
    /// Fields of earlier blocks, the last first, `size` in all and `limit` at most.
    table: VecDeque<Entry>,
    size: usize,
    limit: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { table: VecDeque::new(), size: 0, limit: MAX_TABLE }
    }
}

impl Decoder {
    /// Gives each field of a block. After an error, the connection's blocks cannot be understood any more.
    pub(super) fn decode(&mut self, mut block: &[u8], mut each: impl FnMut(Field<'_>)) -> Result<(), Malformed> {
        let mut list = 0;
        let mut add = |field: Field<'_>| {
            list += field.size();
            if list > MAX_LIST {
                return Err(Malformed("a header block has too many fields"));
            }
            each(field);
            Ok(())
        };
        while block.first().is_some_and(|first| first & 0xe0 == 0x20) {
            self.resize(integer(&mut block, 5)?)?;
        }
        while let Some(&first) = block.first() {
            if first & 0x80 != 0 {
                let (name, value) = self.entry(integer(&mut block, 7)?)?;
                add(Field { name, value, sensitive: false })?;
                continue;
            }
            let indexed = first & 0x40 != 0;
            if !indexed && first & 0x20 != 0 {
                return Err(Malformed("a table changes its size within a header block"));
            }
            let name: Cow<'_, [u8]> = match integer(&mut block, if indexed { 6 } else { 4 })? {
                0 => string(&mut block)?,
                index => self.entry(index)?.0.to_vec().into(),
            };
            let value = string(&mut block)?;
            let field = Field { name: &name, value: &value, sensitive: !indexed && first & 0x10 != 0 };
            add(field)?;
            if indexed {
                self.insert(field);
            }
        }
        Ok(())
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), Malformed> {
        let none = || Malformed("a header field is in no table");
        let index = index.checked_sub(1).ok_or_else(none)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        self.table.get(index - STATIC.len()).map(|(name, value)| (&**name, &**value)).ok_or_else(none)
    }

    fn insert(&mut self, field: Field<'_>) {
        self.make_room(field.size());
        // One that is larger than the table empties it, and is not in it.
        if field.size() <= self.limit {
            self.size += field.size();
            self.table.push_front((field.name.into(), field.value.into()));
        }
    }

    fn resize(&mut self, limit: usize) -> Result<(), Malformed> {
        if limit > MAX_TABLE {
            return Err(Malformed("a table is larger than it may be"));
        }
        self.limit = limit;
        self.make_room(0);
        Ok(())
    }

    fn make_room(&mut self, wanted: usize) {
        while self.size + wanted > self.limit
            && let Some((name, value)) = self.table.pop_back()
        {
            self.size -= name.len() + value.len() + OVERHEAD;
        }
    }
}

/// Writes a field so that it can be read without a table.
pub(super) fn literal(field: &Field<'_>, output: &mut Vec<u8>) {
    output.push(if field.sensitive { 0x10 } else { 0 });
    for string in [field.name, field.value] {
        let mut left = string.len();
        if left < 0x7f {
            output.extend(left.to_le_bytes().first());
        } else {
            output.push(0x7f);
            left -= 0x7f;
            while left >= 0x80 {
                output.push(0x80 | left.to_le_bytes()[0] & 0x7f);
                left >>= 7;
            }
            output.extend(left.to_le_bytes().first());
        }
        output.extend_from_slice(string);
    }
}

/// A number that begins in the last bits of a byte.
fn integer(block: &mut &[u8], bits: u32) -> Result<usize, Malformed> {
    let mask = (1_usize << bits) - 1;
    let mut value = usize::from(byte(block)?) & mask;
    if value < mask {
        return Ok(value);
    }
    for digit in 0..MAX_DIGITS {
        let byte = byte(block)?;
        value += usize::from(byte & 0x7f) << (7 * digit);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed("a number in a header block is too large"))
}

fn string<'a>(block: &mut &'a [u8]) -> Result<Cow<'a, [u8]>, Malformed> {
    let is_coded = block.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer(block, 7)?;
    let (string, rest) = block.split_at_checked(length).ok_or(CUT)?;
    *block = rest;
    if is_coded { huffman::decode(string).map(Cow::Owned) } else { Ok(Cow::Borrowed(string)) }
}

fn byte(block: &mut &[u8]) -> Result<u8, Malformed> {
    let (&first, rest) = block.split_first().ok_or(CUT)?;
    *block = rest;
    Ok(first)
}

const CUT: Malformed = Malformed("a header block is cut off");

/// The table that everybody has, from 1 on.
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"), (":scheme", "http"),
    (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"), (":status", "304"), (":status", "400"),
    (":status", "404"), (":status", "500"), ("accept-charset", ""), ("accept-encoding", "gzip, deflate"), ("accept-language", ""),
    ("accept-ranges", ""), ("accept", ""), ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""),
    ("cache-control", ""), ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""), ("location", ""),
    ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""), ("referer", ""),
    ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""), ("strict-transport-security", ""),
    ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""), ("www-authenticate", ""),
];
