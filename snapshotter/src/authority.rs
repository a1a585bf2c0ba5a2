//! Connections of gRPC clients that put the path of a socket where HTTP/2 wants the name of a host.
//!
//! Older kubelets do so (`:authority: /run/lazo/cri.sock`), and gRPC clients in several languages send that path with escapes. RFC 9113
//! has no such authority, and the HTTP/2 library below hyper and tonic resets each request that has one. So every connection is read
//! through a filter:
//!
//! ```text
//! client ─▶ socket ─▶ Connection ─▶ hyper or tonic
//!                        │ frames    finds the header blocks; all other bytes pass as they are
//!                        │ hpack     decodes a block, and writes its fields so that they need no table
//!                        └ huffman   strings in it
//! ```
//!
//! A name that is no authority becomes `localhost`, which is what newer clients send; all other fields stay. What is written back does not
//! change.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::Connected;

use self::frames::{Frames, MAX_INPUT};

use crate::caller::Caller;

mod frames;
mod hpack;
mod huffman;
#[cfg(test)]
mod tests;

#[cfg(any(test, fuzzing))]
pub(crate) use self::frames::stays;

/// What a client sends cannot be HTTP/2.
#[derive(Debug, thiserror::Error)]
#[error("the client does not keep to HTTP/2: {0}")]
struct Malformed(&'static str);

/// A connection whose requests have authorities that the HTTP/2 library takes.
pub(crate) struct Connection<S> {
    stream: S,
    frames: Frames,
    /// What has come and was not looked at yet: the part `unread` of it.
    input: Box<[u8]>,
    unread: std::ops::Range<usize>,
    /// What the reader gets, and how much of it the reader has.
    output: Vec<u8>,
    taken: usize,
}

impl<S> Connection<S> {
    pub(crate) fn new(stream: S) -> Self {
        let input = vec![0; MAX_INPUT].into_boxed_slice();
        Self { stream, frames: Frames::default(), input, unread: 0..0, output: Vec::new(), taken: 0 }
    }
}

impl Connected for Connection<UnixStream> {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        Caller::of(&self.stream)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.taken < this.output.len() {
                let length = buffer.remaining().min(this.output.len() - this.taken);
                buffer.put_slice(&this.output[this.taken..this.taken + length]);
                this.taken += length;
                return Poll::Ready(Ok(()));
            }
            this.output.clear();
            this.taken = 0;
            let step = this.frames.step(&this.input[this.unread.clone()], &mut this.output);
            let used = step.map_err(|error| {
                // Whoever reads the connection drops it without a word.
                tracing::warn!(%error, "a connection is ended");
                io::Error::new(io::ErrorKind::InvalidData, error)
            })?;
            this.unread.start += used;
            if used > 0 {
                continue;
            }
            this.input.copy_within(this.unread.clone(), 0);
            this.unread = 0..this.unread.len();
            let mut room = ReadBuf::new(&mut this.input[this.unread.end..]);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut room))?;
            let length = room.filled().len();
            if length == 0 {
                return Poll::Ready(Ok(()));
            }
            this.unread.end += length;
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
