//! Who serves which mount: `RUN/mounts/MAJOR:MINOR-PID.json`, locked by its process as long as that lives. Beside it is
//! `MAJOR:MINOR-PID.sock`, at which the process answers.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::kernel::{self, Mounted};
use crate::private;

/// How long an ended mount's process may take to end. It has nothing left to do then, so that a machine must be very busy for
/// it to take longer.
const END: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// What is known of a mount. It is for people and messages, so that paths which are not UTF-8 may lose something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    pub(crate) pid: u32,
    pub(crate) image: String,
    pub(crate) manifest: String,
    pub(crate) mount_point: String,
    pub(crate) log: Option<String>,
    /// The socket at which it answers.
    pub(crate) control: Option<String>,
}

impl Content {
    /// From a record's text; `None` for one that is just being written: its mount is not ready yet.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }
}

/// Where the record of a mount and what belongs to it are, but for the ending.
fn place(run_dir: &Path, mounted: &Mounted, pid: u32) -> PathBuf {
    run_dir.join("mounts").join(format!("{}-{pid}", mounted.device))
}

/// The socket of a mount that this process serves. Its directory is there when this returns.
pub(crate) fn control_socket(run_dir: &Path, mounted: &Mounted) -> Result<PathBuf> {
    let dir = run_dir.join("mounts");
    private::make_private_dir(&dir).map_err(Error::io::<io::Error>(format!("make {}", dir.display())))?;
    Ok(place(run_dir, mounted, std::process::id()).with_extension("sock"))
}

/// The record of a mount that this process serves. Goes with it.
#[derive(Debug)]
pub(crate) struct Record {
    path: PathBuf,
    _locked: File,
}

impl Record {
    /// Writes the record of a mount.
    pub(crate) fn write(run_dir: &Path, mounted: &Mounted, content: &Content) -> Result<Self> {
        let path = place(run_dir, mounted, content.pid).with_extension("json");
        let write = || {
            if let Some(dir) = path.parent() {
                private::make_private_dir(dir)?;
            }
            let mut file = private::create_file(&path)?;
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            file.write_all(&serde_json::to_vec_pretty(content)?)?;
            Ok(file)
        };
        let file = write().map_err(Error::io::<io::Error>(format!("write {}", path.display())))?;
        Ok(Self { path, _locked: file })
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // If it stays, it is not locked, and so means nothing.
        let _ = fs::remove_file(&self.path);
    }
}

/// Another process that serves a mount.
struct Server {
    content: Content,
    process: OwnedFd,
}

impl Server {
    /// The living process that serves a mount, if `run_dir` knows one.
    fn find(run_dir: &Path, mounted: &Mounted) -> Option<Self> {
        let prefix = format!("{}-", mounted.device);
        let entries = fs::read_dir(run_dir.join("mounts")).ok()?.flatten();
        let mut candidates = entries.map(|entry| entry.path()).filter(|path| is_record(path, &prefix));
        candidates.find_map(|record| Self::open(&record))
    }

    /// From a record, if its process lives.
    fn open(record: &Path) -> Option<Self> {
        let mut file = File::open(record).ok()?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).ok()?;
        let content = Content::parse(&text)?;
        let pid = Pid::from_raw(i32::try_from(content.pid).ok()?)?;
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            remove_stale(record);
            return None;
        };
        // Locked after its process was opened, so that this is the process that holds the lock, and no later one with its number.
        let locked = flock(&file, FlockOperation::NonBlockingLockShared).is_err();
        if !locked {
            remove_stale(record);
        }
        locked.then_some(Self { content, process })
    }

    /// Waits until the process has ended, which makes its descriptor readable. False if that takes longer than [`END`].
    fn wait(&self) -> Result<bool> {
        let failed = || Error::io::<rustix::io::Errno>(format!("wait for process {} to end", self.content.pid));
        let mut process = [PollFd::new(&self.process, PollFlags::IN)];
        let ended = poll(&mut process, Some(&END)).map_err(failed())?;
        Ok(ended > 0)
    }
}

fn is_record(path: &Path, prefix: &str) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(prefix) && name.ends_with(".json")
}

/// A mount whose process lives.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LiveMount {
    /// The process that serves it.
    pub pid: u32,
    /// The image as it was named.
    pub image: String,
    /// Digest of its manifest.
    pub manifest: String,
    /// Where it is mounted.
    pub mount_point: String,
    /// The socket at which its process answers.
    pub control: Option<PathBuf>,
}

/// The mounts that `run_dir` knows of and whose processes live.
#[must_use]
pub fn live_mounts(run_dir: &Path) -> Vec<LiveMount> {
    let entries = fs::read_dir(run_dir.join("mounts")).into_iter().flatten().flatten();
    let records = entries.map(|entry| entry.path()).filter(|path| is_record(path, ""));
    let contents = records.filter_map(|record| Server::open(&record)).map(|server| server.content);
    let mount = |c: Content| LiveMount {
        pid: c.pid,
        image: c.image,
        manifest: c.manifest,
        mount_point: c.mount_point,
        control: c.control.map(PathBuf::from),
    };
    contents.map(mount).collect()
}

/// Removes the record and the socket of a process that was killed.
fn remove_stale(record: &Path) {
    // If they stay, nobody holds the lock or listens, and so they mean nothing.
    let _ = fs::remove_file(record.with_extension("sock"));
    let _ = fs::remove_file(record);
}

/// Unmounts the lazo image at `path` and waits until the process that serves it has ended. With `lazy` it goes from the tree even if
/// it is in use, and its process, which then lives on, is not waited for.
///
/// # Errors
/// [`Error::NotMounted`], [`Error::Busy`], [`Error::StillServing`].
pub fn umount(path: &Path, run_dir: &Path, lazy: bool) -> Result<()> {
    let path = kernel::resolve(path)?;
    let Some(mounted) = kernel::find(&path)? else {
        return Err(Error::NotMounted { path });
    };
    let server = Server::find(run_dir, &mounted);
    kernel::unmount(&path, lazy)?;
    if lazy {
        return Ok(());
    }
    let Some(server) = server else {
        tracing::info!(run_dir = %run_dir.display(), "no process is known to serve the mount; it may have been killed");
        return Ok(());
    };
    let (pid, log) = (server.content.pid, server.content.log.clone().unwrap_or_default());
    if server.wait()? { Ok(()) } else { Err(Error::StillServing { path, pid, seconds: END.tv_sec, log }) }
}
