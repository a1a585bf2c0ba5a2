//! A process that keeps the files of a handover until they are served again.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use super::{Files, Kept, PAUSE, SERVES, greets, hear, listen, lock, send_all, socket, wait_for_lock};
use crate::error::{Error, Result};
use crate::node::{link, supervisor, worker};

/// Held by a holder as long as it lives, in the run directory.
pub(super) const LOCK: &str = "holder.lock";

/// How often a holder looks whether the mounts of its files still live, in seconds.
const LOOK: i64 = 2;

/// After so many looks in a row at which a worker lives, that one serves the files: it had them from its supervisor. A killed worker
/// does not take as long to be gone.
const MANY_LOOKS: u32 = 15;

/// What a holder is told.
#[derive(Serialize, Deserialize)]
enum ToHolder {
    /// First of all, with the connection to the supervisor that takes over.
    Begin { run_dir: PathBuf },
    /// Comes with a file.
    File(Kept),
    /// The supervisor has all files.
    Given,
    /// It has not, and the worker serves on.
    NotGiven,
}

/// What a holder says.
#[derive(Serialize, Deserialize)]
struct Holds;

/// A holder, for the worker that has started it.
pub(in crate::node) struct Holder {
    pub(super) link: OwnedFd,
    child: Option<Child>,
    given: bool,
}

impl Holder {
    /// Starts one, and returns when it has copies of all files and of the connection.
    pub(in crate::node) fn start(run_dir: &Path, stream: &UnixStream, files: &Files) -> io::Result<Self> {
        let (link, theirs) = link::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("lazo").args(["daemon", "--process", "holder"]).stdin(Stdio::from(theirs)).stdout(Stdio::null());
        let child = command.spawn()?;
        drop(command);
        Self::equip(link, Some(child), run_dir, stream, files)
    }

    pub(super) fn equip(
        link: OwnedFd,
        child: Option<Child>,
        run_dir: &Path,
        stream: &UnixStream,
        files: &Files,
    ) -> io::Result<Self> {
        let holder = Self { link, child, given: false };
        link::send(&holder.link, &ToHolder::Begin { run_dir: run_dir.to_owned() }, &[stream.as_fd()])?;
        for (left, (name, file)) in (0..files.len()).rev().zip(files) {
            let kept = Kept { name: name.clone(), left: Some(left) };
            link::send(&holder.link, &ToHolder::File(kept), &[file.as_fd()])?;
        }
        match link::receive(&holder.link)? {
            Some((Holds, _)) => Ok(holder),
            None => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the process that was to hold the files has ended"))
            }
        }
    }

    /// The supervisor has all files: the worker may end.
    pub(super) fn goes_on(mut self) -> io::Result<()> {
        self.given = true;
        link::send(&self.link, &ToHolder::Given, &[])
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if self.given {
            return;
        }
        let _ = link::send(&self.link, &ToHolder::NotGiven, &[]);
        let _ = rustix::net::shutdown(&self.link, rustix::net::Shutdown::Both);
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}

/// The process's main: its link to the worker is its standard input.
///
/// # Errors
/// When it cannot hold anything.
pub(in crate::node) fn run() -> Result<()> {
    let link = rustix::stdio::stdin().try_clone_to_owned().map_err(Error::io::<io::Error>("find the worker"))?;
    hold(&link).map_err(Error::io::<io::Error>("hold what a worker hands over"))
}

/// Keeps files until somebody serves them.
pub(super) fn hold(link: &OwnedFd) -> io::Result<()> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "the worker said something out of turn");
    let Some((ToHolder::Begin { run_dir }, received)) = link::receive(link)? else { return Err(wrong()) };
    let stream = UnixStream::from(received.into_iter().next().ok_or_else(wrong)?);
    let mut files = Files::new();
    let mut left = None;
    while left != Some(0) {
        let Some((ToHolder::File(kept), received)) = link::receive(link)? else { return Err(wrong()) };
        files.insert(kept.name, received.into_iter().next().ok_or_else(wrong)?);
        left = kept.left;
    }
    let _alive = wait_for_lock(&run_dir, LOCK, "an earlier process that holds files")?;
    link::send(link, &Holds, &[])?;
    match link::receive(link) {
        Ok(Some((ToHolder::Given, _))) => {}
        Ok(Some(_)) => return Ok(()),
        // The worker was killed in the middle of it. Whoever has some files must not think that more will come.
        Ok(None) | Err(_) => drop(stream.shutdown(std::net::Shutdown::Both)),
    }
    if hear(&stream) == Some(SERVES) {
        return Ok(());
    }
    drop(stream);
    tracing::error!(
        files = files.len(),
        "the daemon that was to take over has ended before it served; readers wait until another one is started"
    );
    give_to_next(&run_dir, &files);
    Ok(())
}

/// Gives the files to whoever asks for them, until somebody serves them or their mounts have gone.
fn give_to_next(run_dir: &Path, files: &Files) {
    let mut served_elsewhere = 0;
    let lives = |(name, file): (&String, &OwnedFd)| name != worker::CONTROL && !supervisor::is_dead(file);
    while served_elsewhere < MANY_LOOKS && files.iter().any(lives) {
        // No error may end this process: its files would go with it.
        match next(run_dir) {
            Ok(Some(stream)) => {
                let known = greets(&stream);
                let sent = send_all(&stream, files);
                if sent.is_ok() && (!known || hear(&stream) == Some(SERVES)) {
                    return;
                }
                tracing::warn!("a daemon that was to take over has gone; the next one is waited for");
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "a daemon that is to take over cannot be waited for; trying again");
                std::thread::sleep(PAUSE);
            }
        }
        let somebody_serves = lock(run_dir, "worker.lock").is_ok_and(|free| free.is_none());
        served_elsewhere = if somebody_serves { served_elsewhere + 1 } else { 0 };
    }
}

/// The next one who asks within [`LOOK`].
fn next(run_dir: &Path) -> io::Result<Option<UnixStream>> {
    let listener = listen(run_dir)?;
    let mut asked = [PollFd::new(&listener, PollFlags::IN)];
    let period = Timespec { tv_sec: LOOK, tv_nsec: 0 };
    let found = rustix::io::retry_on_intr(|| poll(&mut asked, Some(&period)))? > 0;
    let stream = if found { Some(listener.accept()?.0) } else { None };
    let _ = std::fs::remove_file(socket(run_dir));
    Ok(stream)
}
