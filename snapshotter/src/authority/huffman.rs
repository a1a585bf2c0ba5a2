//! The Huffman code of RFC 7541, appendix B.

use super::Malformed;

/// Bits of each byte's code, and of that for the end of a string. The codes follow from that: shorter ones come first, and of the same
/// length those of lower bytes.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

const LONGEST: usize = 30;

/// How many codes there are of each length.
const COUNTS: [u32; LONGEST + 1] = {
    let mut counts = [0; LONGEST + 1];
    let mut symbol = 0;
    while symbol < LENGTHS.len() {
        counts[LENGTHS[symbol] as usize] += 1;
        symbol += 1;
    }
    counts
};

/// What the codes stand for, in the codes' order.
const SYMBOLS: [usize; LENGTHS.len()] = {
    let mut symbols = [0; LENGTHS.len()];
    let (mut length, mut next) = (0, 0);
    while length <= LONGEST {
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                symbols[next] = symbol;
                next += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    symbols
};

/// The bytes of a string, at most 8 for 5 of its own.
pub(super) fn decode(coded: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut bytes = Vec::with_capacity(coded.len() * 8 / 5);
    let mut code = Code::default();
    for byte in coded {
        for bit in (0..8).rev() {
            let Some(symbol) = code.push(byte >> bit & 1)? else { continue };
            bytes.push(u8::try_from(symbol).map_err(|_| Malformed("a string ends before its end"))?);
            code = Code::default();
        }
    }
    // Less than a byte of the code for the end fills the last byte.
    if code.length < 8 && code.bits == (1 << code.length) - 1 {
        return Ok(bytes);
    }
    Err(Malformed("a string ends within a character"))
}

/// Bits of a code so far.
#[derive(Default)]
struct Code {
    bits: u32,
    length: usize,
    /// The first code of this length, and its place among all.
    first: u32,
    place: u32,
}

impl Code {
    /// What the code stands for, if this was its last bit.
    fn push(&mut self, bit: u8) -> Result<Option<usize>, Malformed> {
        self.first = (self.first + COUNTS[self.length]) << 1;
        self.place += COUNTS[self.length];
        self.length += 1;
        self.bits = self.bits << 1 | u32::from(bit);
        let count = COUNTS.get(self.length).ok_or(Malformed("a string has a code that is none"))?;
        let index = self.bits.wrapping_sub(self.first);
        if index >= *count {
            return Ok(None);
        }
        let symbol = SYMBOLS[(self.place + index) as usize];
        Ok(Some(symbol))
    }
}
