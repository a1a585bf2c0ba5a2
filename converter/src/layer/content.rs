//! The content of one regular file, cut at multiples of the chunk size, with holes told from data.

use std::io::{self, Read};

use crate::error::Problem;

/// One stretch of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// The buffer holds it: one chunk size, or less at the end of the file.
    Data,
    /// So many bytes of zeros that are nowhere stored: a multiple of the chunk size, or up to the end of the file.
    Hole(u64),
}

/// Yields a file's pieces in order.
pub(crate) struct Content<'a, R> {
    /// The file's stored data.
    data: &'a mut R,
    size: u64,
    position: u64,
    /// Data pieces of a sparse file that were not read to their end yet; the first one's start moves as it is read.
    sparse: Option<std::iter::Peekable<std::vec::IntoIter<(u64, u64)>>>,
}

impl<'a, R: Read> Content<'a, R> {
    /// `data` has all of `size` bytes, or of a sparse file the pieces back to back.
    pub(crate) fn new(data: &'a mut R, size: u64, pieces: Option<Vec<(u64, u64)>>) -> Self {
        Self { data, size, position: 0, sparse: pieces.map(|p| p.into_iter().peekable()) }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn is_sparse(&self) -> bool {
        self.sparse.is_some()
    }

    /// The next piece, its data in `buffer`, or `None` at the end.
    pub(crate) fn next(&mut self, chunk_size: u64, buffer: &mut Vec<u8>) -> Result<Option<Piece>, Problem> {
        let length = chunk_size.min(self.size - self.position);
        if length == 0 {
            return Ok(None);
        }
        let start = self.position;
        if let Some(sparse) = &mut self.sparse {
            let next = sparse.peek().map_or(self.size, |(offset, _)| offset - offset % chunk_size);
            if next > start {
                self.position = next;
                return Ok(Some(Piece::Hole(next - start)));
            }
        }
        buffer.clear();
        buffer.resize(usize::try_from(length).map_err(|_| Problem::Truncated)?, 0);
        self.position += length;
        match &mut self.sparse {
            None => fill(self.data, buffer)?,
            Some(sparse) => fill_sparse(self.data, sparse, start, buffer)?,
        }
        Ok(Some(Piece::Data))
    }
}

fn fill<R: Read>(data: &mut R, buffer: &mut [u8]) -> Result<(), Problem> {
    data.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Problem::Truncated,
        _ => Problem::Read(error),
    })
}

/// Reads what data lies in the file from `start` on for the length of `buffer`, which is zeroed.
fn fill_sparse<R: Read>(
    data: &mut R,
    sparse: &mut std::iter::Peekable<std::vec::IntoIter<(u64, u64)>>,
    start: u64,
    buffer: &mut [u8],
) -> Result<(), Problem> {
    let end = start + buffer.len() as u64;
    while let Some((offset, length)) = sparse.peek_mut() {
        if *offset >= end {
            break;
        }
        let stop = (*offset + *length).min(end);
        let range = (*offset - start)..(stop - start);
        let (Ok(from), Ok(to)) = (usize::try_from(range.start), usize::try_from(range.end)) else { break };
        fill(data, &mut buffer[from..to])?;
        *length -= stop - *offset;
        *offset = stop;
        if *length == 0 {
            sparse.next();
        }
    }
    Ok(())
}
