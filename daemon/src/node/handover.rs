//! A worker whose supervisor was killed, or was told to end while images are in use, serves on, and gives what it was to keep to
//! the next supervisor.
//!
//! The worker holds `RUN/worker.lock` as long as it lives. A supervisor that begins and finds it held waits for the worker at
//! `RUN/handover.sock`, receives all files, and starts a worker of its own when that one has ended.
//!
//! ```text
//! supervisor ── greets ──▶ worker ── all files, and the connection ──▶ holder (a process that only keeps them)
//!     │ ◀── all files ────────┘ ends: only one process may take the kernel's requests
//!     └─▶ its worker ── serves: says so on the connection ──▶ holder ends
//! ```
//! No worker can be left until the next one serves, as both would take the kernel's requests. So the files are kept meanwhile by a process of
//! its own, the *holder*. If the connection closes before anybody has said that he serves, the new daemon was killed; then the holder waits
//! at `RUN/handover.sock` for the next one, and readers wait with it. It has `RUN/holder.lock` as long as it lives.

mod holder;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::net::SendFlags;
use serde::{Deserialize, Serialize};

use super::link;
pub(super) use holder::{Holder, run as run_holder};

/// How long a supervisor waits for a worker of an earlier one. It needs no longer than to notice that it is alone.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it waits for a daemon that may have been told to end just now: that listens when it has ended what nobody uses.
const COURTESY: Duration = Duration::from_secs(2);

/// How long whoever gives files waits after an error, such as too many open files.
const PAUSE: Duration = Duration::from_millis(200);

/// How often it looks.
const LOOK: Duration = Duration::from_millis(5);

/// How long a supervisor may take to greet, in seconds. Older versions never do, and nor do they say that they serve.
const GREETING: i64 = 1;

/// What a supervisor says first, and what is said when all is served again.
const GREETS: u8 = b'h';
const SERVES: u8 = b's';

/// Files by name.
pub(super) type Files = BTreeMap<String, OwnedFd>;

/// Comes with each file.
#[derive(Serialize, Deserialize)]
struct Kept {
    name: String,
    /// How many follow. Older versions do not say.
    #[serde(default)]
    left: Option<usize>,
}

/// What a supervisor was given.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) files: Files,
    /// Where to say that all of it is served ([`say_served`]). When it is closed before, the files are given to the next one who asks.
    pub(super) from: Option<OwnedFd>,
}

/// A file that says by its lock that a process of a kind lives.
fn lock(run_dir: &Path, name: &str) -> io::Result<Option<File>> {
    let path = run_dir.join(name);
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Waits for a lock that another process is about to give up.
fn wait_for_lock(run_dir: &Path, name: &str, who: &str) -> io::Result<File> {
    let begin = Instant::now();
    loop {
        if let Some(lock) = lock(run_dir, name)? {
            return Ok(lock);
        }
        if begin.elapsed() > PATIENCE {
            return Err(io::Error::other(format!("{who} does not end")));
        }
        thread::sleep(LOOK);
    }
}

/// What a supervisor begins with: its lock on the run directory, for as long as it lives, and the files of a worker that is ready to
/// hand over. A daemon that was told to end while images are in use has such a worker, too; it ends when that has handed over.
pub(super) fn begin(run_dir: &Path) -> io::Result<(File, Given)> {
    // Of two that begin at once, one would get the lock and the other the files.
    let _alone_to_begin = wait_for_lock(run_dir, "begin.lock", "another daemon that begins")?;
    let begin = Instant::now();
    loop {
        if let Some(alone) = lock(run_dir, "daemon.lock")? {
            return Ok((alone, take(run_dir)?));
        }
        // One that ends in the middle of it, as nothing is in use any more, gives up its lock soon.
        if let Ok(given) = UnixStream::connect(socket(run_dir)).and_then(receive) {
            // Its worker has ended, or a holder has the files too.
            return Ok((wait_for_lock(run_dir, "daemon.lock", "the daemon before")?, given));
        }
        if begin.elapsed() > COURTESY {
            let problem = format!("another daemon uses the run directory {}", run_dir.display());
            return Err(io::Error::other(problem));
        }
        thread::sleep(LOOK);
    }
}

/// The locks of a run directory, if no daemon's process has one of them.
pub(super) fn alone(run_dir: &Path) -> io::Result<Option<(File, File)>> {
    let locks = (lock(run_dir, "daemon.lock")?, lock(run_dir, "worker.lock")?);
    Ok(match locks {
        (Some(daemon), Some(worker)) => Some((daemon, worker)),
        _ => None,
    })
}

/// For a worker, as long as it lives. Waits for the one before it to be gone altogether.
pub(super) fn lock_worker(run_dir: &Path) -> io::Result<File> {
    wait_for_lock(run_dir, "worker.lock", "an earlier worker")
}

fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("handover.sock")
}

fn listen(run_dir: &Path) -> io::Result<UnixListener> {
    let path = socket(run_dir);
    let _ = std::fs::remove_file(&path);
    UnixListener::bind(&path)
}

/// Gives files to the first supervisor that asks for them and takes them all, as they are then, and returns. Before that, `hold` has
/// another process keep them too, until they are served again.
pub(super) fn give(
    run_dir: &Path,
    files: impl Fn() -> io::Result<Files>,
    hold: impl Fn(&UnixStream, &Files) -> io::Result<Holder>,
) {
    loop {
        let given = listen(run_dir).and_then(|listener| {
            let (stream, _) = listener.accept()?;
            let _ = std::fs::remove_file(socket(run_dir));
            hand_over(&stream, &files()?, &hold)
        });
        match given {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(%error, "nothing was handed over to another daemon; the next one is waited for")
            }
        }
        thread::sleep(PAUSE);
    }
}

fn hand_over(
    stream: &UnixStream,
    files: &Files,
    hold: impl Fn(&UnixStream, &Files) -> io::Result<Holder>,
) -> io::Result<()> {
    if !greets(stream) {
        return send_all(stream, files);
    }
    let holder = hold(stream, files);
    send_all(stream, files)?;
    // The other has all files now: without a holder it is better to go on than to have two that serve.
    if let Err(error) = holder.and_then(Holder::goes_on) {
        tracing::warn!(%error, "what is handed over is lost if the new daemon is killed before it serves");
    }
    Ok(())
}

fn send_all(stream: impl AsFd, files: &Files) -> io::Result<()> {
    for (left, (name, file)) in (0..files.len()).rev().zip(files) {
        link::send(&stream, &Kept { name: name.clone(), left: Some(left) }, &[file.as_fd()])?;
    }
    Ok(())
}

/// Whether the one that asks for files is going to say when it serves them.
fn greets(stream: &UnixStream) -> bool {
    let mut said = [PollFd::new(stream, PollFlags::IN)];
    let limit = Timespec { tv_sec: GREETING, tv_nsec: 0 };
    poll(&mut said, Some(&limit)).is_ok_and(|count| count > 0) && hear(stream) == Some(GREETS)
}

/// The next byte; none when the other end is closed.
fn hear(stream: &UnixStream) -> Option<u8> {
    let mut byte = [0];
    let received = rustix::io::retry_on_intr(|| rustix::net::recv(stream, &mut byte, rustix::net::RecvFlags::empty()));
    received.is_ok_and(|(count, _)| count == 1).then_some(byte[0])
}

fn say(stream: impl AsFd, byte: u8) -> io::Result<()> {
    rustix::net::send(stream, &[byte], SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// What was given is served again: nobody else needs to keep it any more.
pub(super) fn say_served(from: &OwnedFd) {
    // An error: it was said before, by this process or another of the same daemon.
    let _ = say(from, SERVES);
}

/// Receives the files of a worker that has lost its supervisor, or of a holder; none if there is no such process.
pub(super) fn take(run_dir: &Path) -> io::Result<Given> {
    let begin = Instant::now();
    loop {
        // One that was killed in the middle of it may have left a holder.
        if let Ok(given) = UnixStream::connect(socket(run_dir)).and_then(receive) {
            return Ok(given);
        }
        // In this order: a holder is there before its worker ends.
        if lock(run_dir, "worker.lock")?.is_some() && lock(run_dir, holder::LOCK)?.is_some() {
            return Ok(Given::default());
        }
        if begin.elapsed() > PATIENCE {
            return Err(io::Error::other("a worker of an earlier daemon lives, and does not give up its mounts"));
        }
        thread::sleep(LOOK);
    }
}

fn receive(stream: UnixStream) -> io::Result<Given> {
    say(&stream, GREETS)?;
    // There is one at least: the control socket.
    let (mut files, mut missing) = (Files::new(), Some(1));
    // Who does not say how many there are closes the connection.
    while missing != Some(0)
        && let Some((Kept { name, left }, received)) = link::receive(&stream)?
    {
        let file = received.into_iter().next().ok_or(io::ErrorKind::InvalidData)?;
        files.insert(name, file);
        missing = left;
    }
    if missing.is_some_and(|missing| missing > 0) {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the worker that hands over has gone"));
    }
    Ok(Given { files, from: Some(stream.into()) })
}
