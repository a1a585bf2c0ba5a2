//! Record locks of open file descriptions (`F_OFD_SETLK`).
//!
//! They belong to the opened file and not to the process, so that two users within a process exclude each other as two
//! processes do; they go with the last descriptor, however the process ends; and they change between shared and exclusive in one
//! step, keeping what they were if that fails. flock(2) gives the old lock up first.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Between two attempts at a lock that others hold for the length of a few system calls.
const RETRY: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Shared,
    /// Needs a file that is open for writing.
    Exclusive,
    Unlocked,
}

/// What of a file a lock is on: the byte at an offset, there or not.
pub(super) type Byte = u32;

/// Takes, changes or gives up a lock without waiting. False if somebody else's is in the way, and all is as it was.
pub(super) fn try_lock(file: &File, byte: Byte, kind: Kind) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&record(byte, kind)?)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The same, again and again for as long as `patience`. Not F_OFD_SETLKW: a holder that is frozen would freeze this process too.
pub(super) fn lock(file: &File, byte: Byte, kind: Kind, patience: Duration) -> io::Result<bool> {
    let start = Instant::now();
    loop {
        if try_lock(file, byte, kind)? {
            return Ok(true);
        }
        if start.elapsed() >= patience {
            return Ok(false);
        }
        std::thread::sleep(RETRY);
    }
}

/// Whether anybody else holds a lock of any kind. Disturbs nobody.
pub(super) fn is_locked(file: &File, byte: Byte) -> io::Result<bool> {
    let mut record = record(byte, Kind::Exclusive)?;
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut record))?;
    Ok(i32::from(record.l_type) != libc::F_UNLCK)
}

fn record(byte: Byte, kind: Kind) -> io::Result<libc::flock> {
    let kind = match kind {
        Kind::Shared => libc::F_RDLCK,
        Kind::Exclusive => libc::F_WRLCK,
        Kind::Unlocked => libc::F_UNLCK,
    };
    let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidInput);
    Ok(libc::flock {
        l_type: kind.try_into().map_err(out_of_range)?,
        l_whence: libc::SEEK_SET.try_into().map_err(out_of_range)?,
        l_start: byte.into(),
        l_len: 1,
        // Must be 0 for these locks.
        l_pid: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_becomes_exclusive_only_alone_and_stays_shared_otherwise() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(path.path()).unwrap();
        let (one, two) = (open(), open());
        assert!(!is_locked(&two, 0).unwrap());
        assert!(try_lock(&one, 0, Kind::Shared).unwrap() && try_lock(&two, 0, Kind::Shared).unwrap());
        assert!(!try_lock(&one, 0, Kind::Exclusive).unwrap());
        assert!(is_locked(&two, 0).unwrap(), "still shared after the failure");
        assert!(try_lock(&one, 1, Kind::Exclusive).unwrap(), "another byte is another lock");
        drop(two);
        assert!(try_lock(&one, 0, Kind::Exclusive).unwrap());
        let two = open();
        assert!(!try_lock(&two, 0, Kind::Shared).unwrap());
        assert!(try_lock(&one, 0, Kind::Shared).unwrap() && try_lock(&two, 0, Kind::Shared).unwrap());
        drop(one);
        assert!(try_lock(&two, 0, Kind::Exclusive).unwrap(), "closing gives a lock up");
        assert!(!lock(&open(), 0, Kind::Shared, Duration::from_millis(3)).unwrap());
        assert!(try_lock(&two, 0, Kind::Unlocked).unwrap() && !is_locked(&open(), 0).unwrap());
    }
}
