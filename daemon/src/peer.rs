//! Who is at the other end of a Unix socket, as the kernel knows it. rustix and nix lack the groups.
#![expect(unsafe_code, reason = "getsockopt(SO_PEERGROUPS) has no safe binding")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// Most groups of a process; the kernel's own bound.
const MAX_GROUPS: usize = 65_536;

/// The process that connected, at the time it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The others that it was in.
    pub(crate) groups: Vec<u32>,
}

/// Asks the kernel.
pub(crate) fn of(socket: &impl AsFd) -> io::Result<Peer> {
    let credentials = rustix::net::sockopt::socket_peercred(socket)?;
    Ok(Peer { uid: credentials.uid.as_raw(), gid: credentials.gid.as_raw(), groups: groups(socket)? })
}

fn groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let size = size_of_val(&*groups);
        let mut length = libc::socklen_t::try_from(size).map_err(io::Error::other)?;
        // SAFETY: the buffer is writable for `length` bytes, of which the kernel writes whole numbers and says how many bytes.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let needed = usize::try_from(length).map_err(io::Error::other)? / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(needed);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || needed <= groups.len() || needed > MAX_GROUPS {
            return Err(error);
        }
        groups.resize(needed, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen_as_it_is() {
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        let peer = of(&a).unwrap();
        assert_eq!((peer.uid, peer.gid), (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
        let mut own: Vec<u32> = rustix::process::getgroups().unwrap().into_iter().map(|group| group.as_raw()).collect();
        let mut seen = peer.groups;
        own.sort_unstable();
        seen.sort_unstable();
        assert_eq!(seen, own);
    }
}
