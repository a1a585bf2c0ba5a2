//! The service manager: the files that it keeps, and what it is told.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sd_notify::NotifyState;

/// The files that the service manager has kept or opened for this process, by name. To be called once, at the start.
///
/// # Errors
/// When what the environment says of them is not true.
#[expect(unsafe_code, reason = "file numbers come by the environment")]
pub fn inherited() -> io::Result<BTreeMap<String, OwnedFd>> {
    use std::os::fd::FromRawFd as _;
    let listed = sd_notify::listen_fds_with_names()?;
    // SAFETY: systemd gives these numbers to this process alone, as LISTEN_PID says; they are taken over once, at the start.
    let own = |number| unsafe { OwnedFd::from_raw_fd(number) };
    let mut files = BTreeMap::new();
    for (number, name) in listed {
        let file = own(number);
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::CLOEXEC)?;
        files.insert(name, file);
    }
    Ok(files)
}

/// Whether a service manager has started us.
pub(super) fn is_managed() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Whether a file is that of a FUSE mount which the kernel has done with. Such a file reports an error to whoever polls it.
pub(in crate::node) fn is_dead(file: &OwnedFd) -> bool {
    let mut state = [PollFd::new(file, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut state, Some(&at_once)).is_ok() && state[0].revents().contains(PollFlags::ERR)
}

pub(super) fn store(name: &str, file: BorrowedFd<'_>) {
    let state = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
    if let Err(error) = sd_notify::notify_with_fds(&state, &[file]) {
        tracing::warn!(%error, name, "the service manager does not keep a file: mounts would not outlive this process");
    }
}

pub(super) fn unstore(name: &str) {
    notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
}

pub(super) fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
