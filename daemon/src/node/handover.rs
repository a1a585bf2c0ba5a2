//! A worker whose supervisor was killed, or was told to end while images are in use, serves on, and gives what it was to keep to
//! the next supervisor.
//!
//! The worker holds `RUN/worker.lock` as long as it lives. A supervisor that begins and finds it held waits for the worker at
//! `RUN/handover.sock`, receives all files, and starts a worker of its own when that one has ended.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::link;

/// How long a supervisor waits for a worker of an earlier one. It needs no longer than to notice that it is alone.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it looks.
const LOOK: Duration = Duration::from_millis(5);

/// Comes with each file.
#[derive(Serialize, Deserialize)]
struct Kept {
    name: String,
    /// How many follow. Older versions do not say.
    #[serde(default)]
    left: Option<usize>,
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

/// What a supervisor begins with: its lock on the run directory, for as long as it lives, and the files of a worker that is ready to
/// hand over. A daemon that was told to end while images are in use has such a worker, too; it ends when that has handed over.
pub(super) fn begin(run_dir: &Path) -> io::Result<(File, BTreeMap<String, OwnedFd>)> {
    if let Some(alone) = lock(run_dir, "daemon.lock")? {
        return Ok((alone, take(run_dir)?));
    }
    let running = |_| io::Error::other(format!("another daemon uses the run directory {}", run_dir.display()));
    let files = receive(&UnixStream::connect(socket(run_dir)).map_err(running)?)?;
    // For as long as it takes: nobody else has these files any more.
    loop {
        if let Some(alone) = lock(run_dir, "daemon.lock")? {
            return Ok((alone, files));
        }
        thread::sleep(LOOK);
    }
}

/// For a worker, as long as it lives. Waits for the one before it to be gone altogether.
pub(super) fn lock_worker(run_dir: &Path) -> io::Result<File> {
    let begin = Instant::now();
    loop {
        if let Some(lock) = lock(run_dir, "worker.lock")? {
            return Ok(lock);
        }
        if begin.elapsed() > PATIENCE {
            return Err(io::Error::other("an earlier worker does not end"));
        }
        thread::sleep(LOOK);
    }
}

fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("handover.sock")
}

/// Gives files to the first supervisor that asks for them and takes them all, as they are then, and returns.
pub(super) fn give(run_dir: &Path, files: impl Fn() -> io::Result<BTreeMap<String, OwnedFd>>) -> io::Result<()> {
    let path = socket(run_dir);
    loop {
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        let (stream, _) = listener.accept()?;
        let _ = std::fs::remove_file(&path);
        match send_all(&stream, &files()?) {
            Ok(()) => return Ok(()),
            Err(error) => tracing::warn!(%error, "a daemon that was to take over has gone; the next one is waited for"),
        }
    }
}

fn send_all(stream: &UnixStream, files: &BTreeMap<String, OwnedFd>) -> io::Result<()> {
    for (left, (name, file)) in (0..files.len()).rev().zip(files) {
        link::send(stream, &Kept { name: name.clone(), left: Some(left) }, &[file.as_fd()])?;
    }
    Ok(())
}

/// Receives the files of a worker that has lost its supervisor; none if there is no such worker.
pub(super) fn take(run_dir: &Path) -> io::Result<BTreeMap<String, OwnedFd>> {
    let begin = Instant::now();
    loop {
        if let Ok(stream) = UnixStream::connect(socket(run_dir)) {
            return receive(&stream);
        }
        if lock(run_dir, "worker.lock")?.is_some() {
            return Ok(BTreeMap::new());
        }
        if begin.elapsed() > PATIENCE {
            return Err(io::Error::other("a worker of an earlier daemon lives, and does not give up its mounts"));
        }
        thread::sleep(LOOK);
    }
}

fn receive(stream: &UnixStream) -> io::Result<BTreeMap<String, OwnedFd>> {
    let (mut files, mut missing) = (BTreeMap::new(), 0);
    while let Some((Kept { name, left }, received)) = link::receive(stream)? {
        let file = received.into_iter().next().ok_or(io::ErrorKind::InvalidData)?;
        files.insert(name, file);
        missing = left.unwrap_or(0);
    }
    if missing > 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the worker that hands over has gone"));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Seek as _, Write as _};

    #[test]
    fn files_go_from_one_to_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"kept").unwrap();
        file.rewind().unwrap();
        let worker = lock_worker(dir.path()).unwrap();
        thread::scope(|scope| {
            let files = || Ok(BTreeMap::from([("a".to_owned(), file.try_clone()?.into())]));
            let path = dir.path();
            scope.spawn(move || give(path, files).unwrap());
            let files = take(dir.path()).unwrap();
            let mut content = String::new();
            File::from(files.into_iter().next().unwrap().1).read_to_string(&mut content).unwrap();
            assert_eq!(content, "kept");
        });
        drop(worker);
        assert!(take(dir.path()).unwrap().is_empty(), "nobody is left");
    }

    #[test]
    fn a_broken_handover_is_no_handover() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        link::send(&ours, &Kept { name: "a".to_owned(), left: Some(1) }, &[file.as_fd()]).unwrap();
        drop(ours);
        assert_eq!(receive(&theirs).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        send_all(&ours, &BTreeMap::from([("a".to_owned(), file.into())])).unwrap_err();
    }

    #[test]
    fn there_is_one_supervisor() {
        let dir = tempfile::tempdir().unwrap();
        let first = begin(dir.path()).unwrap();
        assert!(begin(dir.path()).is_err());
        drop(first);
        begin(dir.path()).unwrap();
    }

    #[test]
    fn a_daemon_that_is_to_end_hands_over_to_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let ending = std::sync::Mutex::new(Some(begin(dir.path()).unwrap()));
        let file = tempfile::tempfile().unwrap();
        thread::scope(|scope| {
            let files = || Ok(BTreeMap::from([("a".to_owned(), file.try_clone()?.into())]));
            let (path, ending) = (dir.path(), &ending);
            scope.spawn(move || {
                give(path, files).unwrap();
                ending.lock().unwrap().take();
            });
            let next = loop {
                match begin(dir.path()) {
                    Ok(next) => break next,
                    Err(_) => thread::sleep(LOOK),
                }
            };
            assert!(next.1.contains_key("a"));
        });
    }
}
