//! The frames of a client, one step at a time.

use hyper::http::uri::Authority;

use super::Malformed;
use super::hpack::{Decoder, Field, literal};

/// What a client begins with.
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// Length, type, flags and stream.
const HEAD: usize = 9;

/// Longest payload of a frame: the servers here do not offer more than RFC 9113 has by itself.
const MAX_PAYLOAD: usize = 1 << 14;

/// A frame of header fields is looked at as a whole.
pub(super) const MAX_INPUT: usize = HEAD + MAX_PAYLOAD;

/// Longest header block in all of its frames, bytes. The servers here refuse requests with more than 16 KiB of fields.
const MAX_BLOCK: usize = 64 << 10;

/// Most frames of a header block, which may be without content: four times as many as [`MAX_BLOCK`] fills, and what
/// [`Frames::finish`] writes is fewer too.
const MAX_FRAMES: usize = 16;

const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// Takes the place of what is no authority.
const LOCALHOST: &[u8] = b"localhost";

/// How far a client's bytes have been looked at.
#[derive(Debug)]
pub(super) struct Frames {
    /// Bytes that are still to pass as they are: of the preface, or of the payload of a frame.
    passing: usize,
    /// A header block that is not complete yet.
    block: Option<Block>,
    decoder: Decoder,
}

#[derive(Debug)]
struct Block {
    stream: [u8; 4],
    end_stream: u8,
    frames: usize,
    bytes: Vec<u8>,
}

struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: [u8; 4],
}

impl Head {
    fn parse(bytes: [u8; HEAD]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = bytes;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        Self { length, kind, flags, stream }
    }
}

impl Default for Frames {
    fn default() -> Self {
        Self { passing: PREFACE, block: None, decoder: Decoder::default() }
    }
}

impl Frames {
    /// Looks at the beginning of `input`, adds to `output` what is to be read in its place, and gives how much of the input that was:
    /// nothing if more is needed, though never more than [`MAX_INPUT`]. There is one header block in a step at most, so that what is
    /// added is bounded too.
    pub(super) fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, Malformed> {
        if self.passing > 0 {
            let length = self.passing.min(input.len());
            output.extend_from_slice(&input[..length]);
            self.passing -= length;
            return Ok(length);
        }
        let Some((&head, rest)) = input.split_first_chunk::<HEAD>() else { return Ok(0) };
        let Head { length, kind, flags, stream } = Head::parse(head);
        match (kind, &self.block) {
            (HEADERS, None) | (CONTINUATION, Some(_)) => {}
            (PUSH_PROMISE, _) => return Err(Malformed("it sends a promise")),
            (_, Some(_)) | (CONTINUATION, None) => return Err(Malformed("a header block is broken off")),
            _ => {
                output.extend_from_slice(&head);
                self.passing = length;
                return Ok(HEAD);
            }
        }
        if length > MAX_PAYLOAD {
            return Err(Malformed("a frame is too long"));
        }
        let Some(payload) = rest.get(..length) else { return Ok(0) };
        let fragment = if kind == HEADERS { fragment(payload, flags)? } else { payload };
        let begun = || Block { stream, end_stream: flags & END_STREAM, frames: 0, bytes: Vec::new() };
        let block = self.block.get_or_insert_with(begun);
        if block.stream != stream {
            return Err(Malformed("a header block goes on in another stream"));
        }
        if block.bytes.len() + fragment.len() > MAX_BLOCK {
            return Err(Malformed("a header block is too long"));
        }
        block.frames += 1;
        if block.frames > MAX_FRAMES {
            return Err(Malformed("a header block is in too many frames"));
        }
        block.bytes.extend_from_slice(fragment);
        if flags & END_HEADERS != 0
            && let Some(block) = self.block.take()
        {
            self.finish(&block, output)?;
        }
        Ok(HEAD + length)
    }

    /// Writes a block anew, in as many frames as it needs.
    fn finish(&mut self, block: &Block, output: &mut Vec<u8>) -> Result<(), Malformed> {
        let mut fields = Vec::with_capacity(2 * block.bytes.len());
        self.decoder.decode(&block.bytes, |field| literal(&with_authority(field), &mut fields))?;
        let count = fields.len().div_ceil(MAX_PAYLOAD).max(1);
        for index in 0..count {
            let part = &fields[index * MAX_PAYLOAD..fields.len().min((index + 1) * MAX_PAYLOAD)];
            let (kind, first) = if index == 0 { (HEADERS, block.end_stream) } else { (CONTINUATION, 0) };
            let last = if index + 1 == count { END_HEADERS } else { 0 };
            let [.., a, b, c] = part.len().to_be_bytes();
            output.extend_from_slice(&[a, b, c, kind, first | last]);
            output.extend_from_slice(&block.stream);
            output.extend_from_slice(part);
        }
        Ok(())
    }
}

/// The header fields in a frame's payload, without padding and priority.
fn fragment(payload: &[u8], flags: u8) -> Result<&[u8], Malformed> {
    let short = || Malformed("a frame is too short");
    let mut rest = payload;
    let mut padding = 0;
    if flags & PADDED != 0 {
        let (&length, after) = rest.split_first().ok_or_else(short)?;
        (padding, rest) = (usize::from(length), after);
    }
    if flags & PRIORITY != 0 {
        rest = rest.get(5..).ok_or_else(short)?;
    }
    rest.len().checked_sub(padding).map(|length| &rest[..length]).ok_or_else(short)
}

fn with_authority(field: Field<'_>) -> Field<'_> {
    match field.name == b":authority" && Authority::try_from(field.value).is_err() {
        true => Field { value: LOCALHOST, ..field },
        false => field,
    }
}

/// All that comes of a client's bytes, from the preface on.
#[cfg(test)]
pub(super) fn rewritten(mut input: &[u8]) -> Option<Vec<u8>> {
    let (mut frames, mut output) = (Frames::default(), Vec::new());
    loop {
        let used = frames.step(&input[..input.len().min(MAX_INPUT)], &mut output).ok()?;
        if used == 0 {
            return Some(output);
        }
        input = &input[used..];
    }
}

/// Checks what must hold of any client's bytes: what comes of them passes a second time as it is.
#[cfg(any(test, fuzzing))]
pub(crate) fn stays(mut input: &[u8]) {
    let (mut frames, mut again) = (Frames::default(), Frames::default());
    let (mut output, mut copy) = (Vec::new(), Vec::new());
    while let Ok(used) = frames.step(&input[..input.len().min(MAX_INPUT)], &mut output) {
        if used == 0 {
            assert!(input.len() < MAX_INPUT, "a frame that is there is not seen");
            return;
        }
        input = &input[used..];
        let mut rest = &output[..];
        while !rest.is_empty() {
            let used = again.step(&rest[..rest.len().min(MAX_INPUT)], &mut copy).expect("what was written here");
            assert!(used > 0, "half a frame was written");
            rest = &rest[used..];
        }
        assert!(copy == output, "{copy:?} of {output:?}");
        output.clear();
        copy.clear();
    }
}
