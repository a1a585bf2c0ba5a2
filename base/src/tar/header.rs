//! One header block: the fields of V7, what POSIX (ustar), GNU and star added behind them, and how numbers are written.

use std::ops::Range;

use super::Fault;

/// Length of a block, bytes. Headers and data begin at multiples of it.
pub(super) const BLOCK: usize = 512;

// Fields of V7, which all formats have.
const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const KIND: usize = 156;
const LINK: Range<usize> = 157..257;

// Fields of ustar, GNU and star.
const MAGIC: Range<usize> = 257..263;
const VERSION: Range<usize> = 263..265;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;

const USTAR_PREFIX: Range<usize> = 345..500;

const STAR_PREFIX: Range<usize> = 345..476;
const STAR_ATIME: Range<usize> = 476..488;
const STAR_CTIME: Range<usize> = 488..500;
const STAR_TRAILER: Range<usize> = 508..512;

const GNU_ATIME: Range<usize> = 345..357;
const GNU_CTIME: Range<usize> = 357..369;
const GNU_SPARSE: Range<usize> = 386..483;
const GNU_REAL_SIZE: Range<usize> = 483..495;

const USTAR_MAGIC: &[u8] = b"ustar\0";
const GNU_MAGIC: &[u8] = b"ustar ";
const GNU_VERSION: &[u8] = b" \0";
const STAR_TRAILER_TEXT: &[u8] = b"tar\0";

/// Which fields a header has behind those of V7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// A header block, parsed.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) format: Format,
    pub(super) kind: u8,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) size: i64,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) mtime: i64,
    pub(super) device: (i64, i64),
    block: [u8; BLOCK],
}

impl Header {
    /// Checks a block, which is not all zeros, and takes its fields out.
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Self, Fault> {
        let format = format(block)?;
        let number = |field: Range<usize>| number(&block[field]);
        let mut header = Self {
            format,
            kind: block[KIND],
            name: text(&block[NAME]).to_vec(),
            link: text(&block[LINK]).to_vec(),
            size: number(SIZE)?,
            mode: number(MODE)?,
            uid: number(UID)?,
            gid: number(GID)?,
            mtime: number(MTIME)?,
            device: (0, 0),
            block: *block,
        };
        if format != Format::V7 {
            header.device = (number(MAJOR)?, number(MINOR)?);
        }
        let prefix = match format {
            Format::V7 => &[],
            Format::Ustar => text(&block[USTAR_PREFIX]),
            Format::Star => {
                number(STAR_ATIME)?;
                number(STAR_CTIME)?;
                text(&block[STAR_PREFIX])
            }
            Format::Gnu => gnu_prefix(block),
        };
        if !prefix.is_empty() {
            header.name = [prefix, b"/", &header.name].concat();
        }
        Ok(header)
    }

    /// The beginning of an old GNU sparse file's map: four pieces, and whether blocks with more follow.
    pub(super) fn gnu_sparse(&self) -> &[u8] {
        &self.block[GNU_SPARSE]
    }

    /// Length of an old GNU sparse file with its holes.
    pub(super) fn gnu_real_size(&self) -> Result<i64, Fault> {
        number(&self.block[GNU_REAL_SIZE])
    }
}

/// Checks the checksum, and tells the format by its magic.
fn format(block: &[u8; BLOCK]) -> Result<Format, Fault> {
    const BAD: Fault = Fault::Corrupt("a header's checksum does not match; is this a tar?");
    // The field itself counts as spaces. Old writers of Sun's summed signed bytes.
    let counted = || block.iter().enumerate().map(|(at, byte)| if CHECKSUM.contains(&at) { b' ' } else { *byte });
    let unsigned: i64 = counted().map(i64::from).sum();
    let signed: i64 = counted().map(|byte| i64::from(byte.cast_signed())).sum();
    let stored = octal(&block[CHECKSUM]).map_err(|_| BAD)?;
    if stored != unsigned && stored != signed {
        return Err(BAD);
    }
    Ok(match &block[MAGIC] {
        USTAR_MAGIC if &block[STAR_TRAILER] == STAR_TRAILER_TEXT => Format::Star,
        USTAR_MAGIC => Format::Ustar,
        GNU_MAGIC if &block[VERSION] == GNU_VERSION => Format::Gnu,
        _ => Format::V7,
    })
}

/// GNU's format has no prefix, but Go before 1.8 wrote one there, over the times of access and change. So where these are no
/// numbers, ASCII text is taken for a prefix.
fn gnu_prefix(block: &[u8; BLOCK]) -> &[u8] {
    let is_time = |field: &[u8]| field[0] == 0 || number(field).is_ok();
    if is_time(&block[GNU_ATIME]) && is_time(&block[GNU_CTIME]) {
        return &[];
    }
    let prefix = text(&block[USTAR_PREFIX]);
    if prefix.is_ascii() { prefix } else { &[] }
}

/// What stands before the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number in octal, or, where the first bit is set, in base 256: two's complement, the most significant byte first.
pub(super) fn number(field: &[u8]) -> Result<i64, Fault> {
    const TOO_LARGE: Fault = Fault::Corrupt("a number in a header is too large");
    const BINARY: u8 = 0x80;
    const NEGATIVE: u8 = 0x40;
    let first = field.first().copied().unwrap_or_default();
    if first & BINARY == 0 {
        return octal(field);
    }
    // -n - 1 is n with all bits inverted.
    let invert = if first & NEGATIVE == 0 { 0 } else { 0xff };
    let mut value = 0u64;
    for (at, byte) in field.iter().enumerate() {
        let byte = if at == 0 { (byte ^ invert) & !BINARY } else { byte ^ invert };
        if value >> 56 != 0 {
            return Err(TOO_LARGE);
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).map_err(|_| TOO_LARGE)?;
    Ok(if invert == 0 { value } else { !value })
}

/// A number in octal with spaces and NULs around it, or nothing, which is 0.
fn octal(field: &[u8]) -> Result<i64, Fault> {
    const BAD: Fault = Fault::Corrupt("a number in a header is none");
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = field.iter().position(|byte| !blank(byte)) else { return Ok(0) };
    let end = field.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    text(&field[start..end]).iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8).and_then(|value| value.checked_add(i64::from(digit - b'0'))).ok_or(BAD),
        _ => Err(BAD),
    })
}
