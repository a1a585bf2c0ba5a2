//! Messages, with open files, between the daemon's processes.
//!
//! A message on the stream socket is its length, 4 bytes, little-endian, and that many bytes of JSON. Its files travel with the
//! length. Calls block.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message in bytes: an order to mount 65535 blobs, each by a path, with room to spare.
const MAX_MESSAGE: usize = 32 << 20;

/// Bytes of a message that are received at a time, so that memory is taken for what has come and not for what was announced.
const PIECE: usize = 64 << 10;

/// Most files of one message.
const MAX_FILES: usize = 4;

/// Two ends; neither is passed to children unless asked for.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Sends a message and copies of some files.
pub(super) fn send<T: Serialize>(socket: impl AsFd, message: &T, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_MESSAGE);
    let length = length.ok_or_else(|| io::Error::other("a message between the daemon's processes is too long"))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("too many files in a message between the daemon's processes"));
    }
    let head = length.to_le_bytes();
    let sent = retry_on_intr(|| sendmsg(&socket, &[io::IoSlice::new(&head)], &mut control, SendFlags::NOSIGNAL))?;
    write_all(&socket, &head[sent..])?;
    write_all(&socket, &body)
}

/// Waits for a message; `None` when the other end is closed.
pub(super) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut head = [0; 4];
    let received = retry_on_intr(|| {
        recvmsg(&socket, &mut [io::IoSliceMut::new(&mut head)], &mut control, RecvFlags::CMSG_CLOEXEC)
    });
    let received = match received {
        Ok(message) => message.bytes,
        // The other process was killed with something of ours unread.
        Err(Errno::CONNRESET) => 0,
        Err(error) => return Err(error.into()),
    };
    if received == 0 {
        return Ok(None);
    }
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            files.extend(received);
        }
    }
    read_exact(&socket, &mut head[received..])?;
    let length = usize::try_from(u32::from_le_bytes(head)).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message between the daemon's processes is too long"));
    }
    let mut body = Vec::new();
    while body.len() < length {
        let begin = body.len();
        body.resize(length.min(begin + PIECE), 0);
        read_exact(&socket, &mut body[begin..])?;
    }
    Ok(Some((serde_json::from_slice(&body)?, files)))
}

fn write_all(socket: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let sent = retry_on_intr(|| rustix::net::send(&socket, bytes, SendFlags::NOSIGNAL))?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

fn read_exact(socket: impl AsFd, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        let (received, _) = retry_on_intr(|| rustix::net::recv(&socket, &mut *buffer, RecvFlags::empty()))?;
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer = &mut buffer[received..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Seek as _, Write as _};

    #[test]
    fn messages_and_files_arrive_in_order() {
        let (a, b) = pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"held").unwrap();
        file.rewind().unwrap();
        let long = "x".repeat(1 << 20);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                send(&a, &"first", &[]).unwrap();
                send(&a, &long, &[file.as_fd()]).unwrap();
            });
            let (text, files) = receive::<String>(&b).unwrap().unwrap();
            assert_eq!((text.as_str(), files.len()), ("first", 0));
            let (text, mut files) = receive::<String>(&b).unwrap().unwrap();
            assert_eq!((text.len(), files.len()), (1 << 20, 1));
            let mut content = String::new();
            std::fs::File::from(files.remove(0)).read_to_string(&mut content).unwrap();
            assert_eq!(content, "held");
        });
        drop(a);
        assert!(receive::<String>(&b).unwrap().is_none());
    }

    #[test]
    fn nonsense_is_an_error() {
        let (a, b) = pair().unwrap();
        write_all(&a, &u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(receive::<String>(&b).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let (a, b) = pair().unwrap();
        write_all(&a, &[3, 0, 0, 0, b'"']).unwrap();
        drop(a);
        assert_eq!(receive::<String>(&b).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
