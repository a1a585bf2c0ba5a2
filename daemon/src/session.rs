//! Sessions with the kernel: begun after a mount, or taken over from a process that has ended.
//!
//! A session that is taken over gets no second INIT from the kernel, which fuser waits for. So fuser's session begins on one end of
//! a socket pair, at whose other end it is sent an INIT like the kernel's; then the FUSE file takes the place of the
//! socket. What the process before had received and not answered is asked for again by a notification (Linux 6.9 and later).

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use fuser::{Config, Filesystem, Session, SessionACL};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use tokio::sync::oneshot;

/// `FUSE_INIT`.
const INIT: u32 = 26;

/// Version of the protocol that the made-up INIT speaks; fuser takes any of major version 7.
const VERSION: (u32, u32) = (7, 40);

/// As large as fuser's configuration asks for, and as the kernel's own.
const READ_AHEAD: u32 = 1 << 20;

/// `FUSE_NOTIFY_RESEND`.
const RESEND: i32 = 7;

/// Length of an answer's header, which is all of a notification without content.
const HEADER: u32 = 16;

/// Longest answer to INIT, with room to spare.
const ANSWER: usize = 4096;

fn config(threads: usize) -> Config {
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(threads);
    // All threads read the one file: another process can take the session over by this file alone.
    config.clone_fd = false;
    config
}

/// Begins the session of a new mount.
///
/// # Errors
/// When the mount has gone, or the kernel's FUSE is too old.
pub(crate) fn begin<F: Filesystem>(fs: F, device: OwnedFd, threads: usize) -> io::Result<Session<F>> {
    Session::from_fd(fs, device, SessionACL::All, config(threads))
}

/// Goes on with the session of a mount whose process has ended.
///
/// # Errors
/// When the session cannot be set up. A mount that has gone shows when the session runs.
pub(crate) fn resume<F: Filesystem>(fs: F, device: &OwnedFd, threads: usize) -> io::Result<Session<F>> {
    let (kernel, ours) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::send(&kernel, &init(), SendFlags::NOSIGNAL)?;
    let session = Session::from_fd(fs, ours, SessionACL::All, config(threads))?;
    rustix::net::recv(&kernel, &mut [0; ANSWER], RecvFlags::empty())?;
    replace(&session, device)?;
    if let Err(error) = ask_again(device) {
        tracing::warn!(%error, "the kernel cannot repeat requests (Linux 6.9 can); readers that waited may wait for ever");
    }
    Ok(session)
}

/// An INIT as the kernel sends it, which offers everything.
fn init() -> Vec<u8> {
    const UNUSED: usize = 11;
    /// Length, operation, number, inode, user, group, process, extensions; then the operation's arguments.
    const LENGTH: usize = 40 + 5 * 4 + UNUSED * 4;
    let mut bytes = Vec::with_capacity(LENGTH);
    let mut put = |words: &[u32]| words.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
    put(&[u32::try_from(LENGTH).unwrap_or_default(), INIT]);
    // The number is 1, as the kernel never gives odd ones to requests.
    put(&[1, 0, 0, 0, 0, 0, 0, 0]);
    put(&[VERSION.0, VERSION.1, READ_AHEAD, u32::MAX, u32::MAX]);
    put(&[0; UNUSED]);
    bytes
}

/// Asks for all requests that were received and not answered.
fn ask_again(device: &OwnedFd) -> io::Result<()> {
    let mut notification = Vec::new();
    notification.extend_from_slice(&HEADER.to_le_bytes());
    notification.extend_from_slice(&RESEND.to_le_bytes());
    notification.extend_from_slice(&0_u64.to_le_bytes());
    rustix::io::write(device, &notification)?;
    Ok(())
}

/// Puts the FUSE file in the place of the file that a session reads.
#[expect(unsafe_code, reason = "fuser lends its file, and does not let it be replaced")]
fn replace<F: Filesystem>(session: &Session<F>, device: &OwnedFd) -> io::Result<()> {
    use std::mem::ManuallyDrop;
    use std::os::fd::FromRawFd as _;
    let number = session.as_fd().as_raw_fd();
    // SAFETY: the session owns the number and lives longer than this; it is not closed here. dup3 changes what the number stands for
    // in one step, and no thread reads from it yet.
    let mut file = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    Ok(rustix::io::dup3(device, &mut file, rustix::io::DupFlags::CLOEXEC)?)
}

/// Runs a session on its threads; what is returned hears of its end.
///
/// # Errors
/// When no thread can be started.
pub(crate) fn start<F: Filesystem + Send + Sync + 'static>(
    session: Session<F>,
) -> io::Result<oneshot::Receiver<io::Result<()>>> {
    let (tell, ended) = oneshot::channel();
    let run = move || {
        // Nobody listens when the process ends anyway.
        let _ = tell.send(session.run());
    };
    std::thread::Builder::new().name("lazo-session".into()).spawn(run)?;
    Ok(ended)
}
