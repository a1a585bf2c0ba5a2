//! Paths in orders, and the files they stand for.
//!
//! What was checked is held open and used by its descriptor, so that it is what gets mounted and mounted on.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Component, Path, PathBuf};

use lazo_base::walk::{open_below, open_from_root};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxAttributes, StatxFlags, fstat, statx};
use rustix::io::Errno;

use super::Refusal;
use crate::node::protocol::SNAPSHOTTER_MOUNTS;

/// Longest path in bytes: Linux's PATH_MAX less the final NUL.
const MAX_PATH: usize = 4095;

/// Longest string of a mount's parameter in bytes: the kernel's limit.
pub(super) const MAX_PARAMETER: usize = 255;

/// The daemon's own directory for mounts.
pub(super) struct RunDir {
    path: PathBuf,
    directory: OwnedFd,
}

impl RunDir {
    /// The path may have links in it, unlike all that come later.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let directory = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { path: path.to_owned(), directory })
    }

    /// A path below.
    pub(super) fn below(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether an absolute path lies below; the directory itself does not.
    pub(super) fn holds(&self, path: &Path) -> bool {
        path.starts_with(&self.path) && path != self.path
    }

    /// Opens a file below, as it is now, what is mounted there included.
    fn open_below(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Refusal> {
        check(path)?;
        let outside = || Refusal::new(format!("{} is not below {}", path.display(), self.path.display()));
        let below = path.strip_prefix(&self.path).ok().filter(|p| !p.as_os_str().is_empty()).ok_or_else(outside)?;
        open_below(&self.directory, below, flags).map_err(Refusal::io(format!("open {}", path.display())))
    }

    /// A directory below, made if there is none, to mount on.
    pub(super) fn directory(&self, path: &Path) -> Result<OwnedFd, Refusal> {
        check(path)?;
        if !self.holds(path) {
            return Err(Refusal::new(format!("{} is not below {}", path.display(), self.path.display())));
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(Refusal::io(format!("make the directory {}", path.display())))?;
        self.open_below(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// What is mounted at a path below.
    pub(super) fn mount(&self, path: &Path) -> Result<OwnedFd, Refusal> {
        let root = self.open_below(path, OFlags::PATH | OFlags::DIRECTORY)?;
        let attributes = quick_stat(&root).map_err(Refusal::io(format!("look at {}", path.display())))?.stx_attributes;
        if attributes.contains(StatxAttributes::MOUNT_ROOT) {
            Ok(root)
        } else {
            Err(Refusal::new(format!("nothing is mounted at {}", path.display())))
        }
    }

    /// A user's directory to mount at: not one of the daemon's own, which it could not use any more.
    pub(super) fn place_outside(&self, path: &Path) -> Result<OwnedFd, Refusal> {
        if path.starts_with(&self.path) && !path.starts_with(self.path.join(SNAPSHOTTER_MOUNTS)) {
            return Err(Refusal::new(format!("cannot mount at {}: the daemon's own mounts are there", path.display())));
        }
        user_directory(path, "mount at")
    }

    /// A regular file below, open for reading.
    pub(super) fn file(&self, path: &Path) -> Result<OwnedFd, Refusal> {
        // What is no file is not opened: a pipe would wait, a device do who knows what.
        let known = self.open_below(path, OFlags::PATH)?;
        check_regular(&known, path)?;
        self.open_below(path, OFlags::RDONLY)
    }
}

/// A user's directory, to do something with.
pub(super) fn user_directory(path: &Path, to_do: &str) -> Result<OwnedFd, Refusal> {
    check(path)?;
    open_from_root(path, OFlags::PATH | OFlags::DIRECTORY).map_err(|error| match error {
        Errno::LOOP => Refusal {
            message: format!("cannot {to_do} {}: it has a symbolic link in it; name what it leads to", path.display()),
            ..Refusal::io("")(error)
        },
        error => Refusal::io(format!("{to_do} {}", path.display()))(error),
    })
}

/// A regular file, not opened yet: opening might wait for its server.
pub(super) fn regular(path: &Path) -> Result<OwnedFd, Refusal> {
    check(path)?;
    let what = || format!("open {}", path.display());
    // Links are followed once, by their text: one of /proc, which leads to a file that has no name, leads nowhere so.
    let real = std::fs::canonicalize(path).map_err(Refusal::io(what()))?;
    let file = open_from_root(&real, OFlags::PATH).map_err(Refusal::io(what()))?;
    check_regular(&file, path)?;
    Ok(file)
}

fn check_regular(file: &OwnedFd, path: &Path) -> Result<(), Refusal> {
    let status = fstat(file).map_err(Refusal::io(format!("look at {}", path.display())))?;
    match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile => Ok(()),
        _ => Err(Refusal::new(format!("{} is not a regular file", path.display()))),
    }
}

/// Refuses what could mean another place than it says.
pub(super) fn check(path: &Path) -> Result<(), Refusal> {
    let bytes = path.as_os_str().as_bytes();
    let plain = path.is_absolute()
        && bytes.len() <= MAX_PATH
        && !bytes.contains(&0)
        && !path.components().any(|part| part == Component::ParentDir);
    if plain {
        return Ok(());
    }
    let shown: String = path.to_string_lossy().chars().take(MAX_PATH).collect();
    Err(Refusal::new(format!("{shown:?} is not an absolute path without \"..\" of at most {MAX_PATH} bytes")))
}

/// A path as a mount's parameter: itself if it fits, or else the descriptor's, which must stay open until it was used.
pub(super) fn parameter(path: &Path, file: &OwnedFd) -> PathBuf {
    if path.as_os_str().len() <= MAX_PARAMETER {
        path.to_owned()
    } else {
        PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
    }
}

/// What is known of a file without asking a server.
pub(super) fn quick_stat(file: impl AsFd) -> rustix::io::Result<Statx> {
    statx(file, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::empty())
}

/// `MAJOR:MINOR` of the filesystem of a file, without asking a server.
pub(super) fn device(file: impl AsFd) -> rustix::io::Result<String> {
    let status = quick_stat(file)?;
    Ok(format!("{}:{}", status.stx_dev_major, status.stx_dev_minor))
}
