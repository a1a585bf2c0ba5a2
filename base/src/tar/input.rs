//! Where an archive's bytes come from.

use std::io::{self, Read};

/// Bytes in order, of which some may be skipped.
pub trait Input {
    /// Reads until `buffer` is full or the input ends; the count of bytes read.
    ///
    /// # Errors
    /// The input's own, but not the end.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Leaves out up to `count` bytes; how many there were before the input ended.
    ///
    /// # Errors
    /// The input's own, but not the end.
    fn skip(&mut self, count: u64) -> io::Result<u64>;
}

/// A stream, which is skipped by reading it.
#[derive(Debug)]
pub struct Stream<R>(pub R);

impl<R: Read> Input for Stream<R> {
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        io::copy(&mut (&mut self.0).take(count), &mut io::sink())
    }
}
