//! Makes and ends mounts, in a process of its own.
//!
//! The worker must never touch files of mounts that it serves itself: killed while it waits for itself, it could not be
//! replaced. So whatever looks at such a file, or might, is an [`Order`] to another process, the mounter, which has the rights to
//! mount and serves nothing. It holds no FUSE file: one that it kept would keep a dead connection from being noticed.
//!
//! ```text
//! client     the worker's side: starts the process, sends orders, matches replies by their number
//! process    the process: takes orders, each on a thread of its own, since any may have to wait for the worker
//! carry_out  one order
//!   ├ overlay  writable mounts
//!   ├ idmap, namespace  files shown as other users'
//!   ├ paths    what a path may be, and files that stay what was checked
//!   ├ connections  FUSE connections, ended by their numbers
//!   ├ context  a filesystem in the making: fsopen, fsconfig, fsmount
//!   └ probe    whether this kernel mounts EROFS from files, and reads past a device's end as an error
//! ```
//!
//! Only one mounter works for a run directory: a new one waits until the last thread of the one before has ended, and removes what
//! that has left half-done. As such a
//! thread may wait for the worker, the new worker must serve the FUSE files that it was given before it waits for an order.

mod carry_out;
mod client;
mod connections;
mod context;
#[cfg(any(test, fuzzing))]
pub(in crate::node) mod fuzz;
mod idmap;
mod namespace;
mod overlay;
mod paths;
mod probe;
mod process;
mod sys;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::MountAttrFlags;
use serde::{Deserialize, Serialize};

pub(super) use super::protocol::Writable;
use carry_out::Site;
pub(super) use client::{Mounter, Starting};
use namespace::Namespaces;

pub(super) use idmap::IdMap;
pub(super) use namespace::run_user_namespace;
pub(super) use process::run_mounter;
pub(super) use sys::set_mount;

/// Type of FUSE mounts in the mount table: `fuse.` and this.
const SUBTYPE: &str = "lazo";

/// Directory of the mounts of images, in the run directory.
pub(super) const IMAGES: &str = "images";

/// Directory for what overlays are made of, in the run directory.
pub(super) const PARTS: &str = "rw";

/// Something to do. All paths are absolute, without `..` and links; those of the daemon's own mounts are below the run directory.
#[derive(Serialize, Deserialize, Debug, Clone)]
#[serde(deny_unknown_fields)]
pub(super) enum Order {
    /// A new FUSE mount below the run directory; [`Answer::Mounted`] comes with its `/dev/fuse`, from which an INIT can be read.
    Fuse {
        /// Where; a directory is made if there is none.
        path: PathBuf,
        /// What the mount table shows; cut at 255 bytes.
        source: String,
        /// An image's tree: read-only, for all users, whose rights the kernel checks. Otherwise for root alone.
        tree: bool,
    },
    /// Raises the kernel's read-ahead for a FUSE mount, once its INIT was answered (which lowers it).
    RaiseReadAhead {
        /// The mount.
        path: PathBuf,
        /// To what, in KiB.
        kib: u32,
    },
    /// A new EROFS mount below the run directory: [`Answer::Mounted`]. The kernel opens all files now, and never again.
    Erofs {
        /// Where; a directory is made if there is none.
        path: PathBuf,
        /// The metadata; also what the mount table shows.
        bootstrap: PathBuf,
        /// The device of each blob, in the order of the bootstrap's table.
        devices: Vec<PathBuf>,
        /// Read devices past the page cache.
        directio: bool,
    },
    /// Mounts the image that is mounted at `from` at a user's directory too.
    Clone {
        /// A mount below the run directory.
        from: PathBuf,
        /// A directory.
        to: PathBuf,
        /// With what restrictions.
        how: How,
    },
    /// Mounts a writable overlay of the image that is mounted at `lower`.
    Overlay {
        /// A mount below the run directory.
        lower: PathBuf,
        /// A directory.
        to: PathBuf,
        /// Where what is written goes.
        writable: Writable,
        /// Who asks, a user's number: a directory to write to must be his, or root's.
        user: u32,
        /// A directory of its own in [`PARTS`], which is there while the order is carried out.
        parts: PathBuf,
        /// With what restrictions.
        how: How,
    },
    /// Ends what is mounted on top at a path, if it is lazo's. A directory below the run directory goes too.
    Unmount {
        /// The mount.
        path: PathBuf,
        /// At once from the tree, and really when its last user has gone; otherwise not while it has users.
        lazy: bool,
    },
    /// Takes a FUSE mount below the run directory from the tree, if it is there, and ends its connection: who reads gets I/O errors.
    Abort {
        /// The mount.
        path: PathBuf,
        /// The kernel's number of the connection, if it is known: the mount may live on as a copy somewhere.
        #[serde(default)]
        connection: Option<u32>,
    },
    /// Opens a file below the run directory for reading: it comes with [`Answer::Done`].
    Open {
        /// The file.
        path: PathBuf,
    },
    /// Whether this kernel can serve images by EROFS: [`Answer::Probed`]. Mounts a small image whose file is longer than its device.
    Probe {
        /// A directory on the filesystem where bootstraps lie.
        dir: PathBuf,
    },
    /// The mount table: [`Answer::Mounts`], what lies below the run directory or is mounted at one of these paths.
    Mounts {
        /// More paths.
        paths: Vec<PathBuf>,
    },
}

impl Order {
    /// The mount that it is about, if it is about one alone.
    fn path(&self) -> Option<&PathBuf> {
        match self {
            Self::Fuse { path, .. }
            | Self::RaiseReadAhead { path, .. }
            | Self::Erofs { path, .. }
            | Self::Unmount { path, .. }
            | Self::Abort { path, .. }
            | Self::Open { path } => Some(path),
            Self::Clone { .. } | Self::Overlay { .. } | Self::Probe { .. } | Self::Mounts { .. } => None,
        }
    }
}

/// Carries out orders in this process, one after the other, each about one mount: for who has the rights to, and serves nothing.
pub(super) fn carry_out_here(
    run_dir: &Path,
    orders: Vec<Order>,
) -> io::Result<Vec<(PathBuf, Result<Answer, Refusal>)>> {
    let site = Site::open(run_dir, Namespaces::new(Vec::new()))?;
    let carry_out = |order: Order| Some((order.path()?.clone(), site.carry_out(order).map(|(answer, _)| answer)));
    Ok(orders.into_iter().filter_map(carry_out).collect())
}

/// Restrictions of a user's mount.
#[derive(Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct How {
    /// setuid, setgid and file capabilities have no effect.
    pub(super) nosuid: bool,
    /// Device files cannot be opened.
    pub(super) nodev: bool,
    /// Nothing can be executed.
    pub(super) noexec: bool,
    /// Shows files as other users' than the image says.
    pub(super) map: Option<IdMap>,
}

impl How {
    fn attributes(&self) -> MountAttrFlags {
        let all = [
            (self.nosuid, MountAttrFlags::MOUNT_ATTR_NOSUID),
            (self.nodev, MountAttrFlags::MOUNT_ATTR_NODEV),
            (self.noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        ];
        all.into_iter().filter(|(set, _)| *set).map(|(_, attribute)| attribute).collect()
    }
}

/// What came of an order.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is done.
    Done,
    /// It is mounted.
    Mounted {
        /// `MAJOR:MINOR`, as in the mount table.
        device: String,
        /// Where the kernel shows it below `/sys/fs` as long as it lives, in whatever mount namespace; if it says so.
        sysfs: Option<String>,
    },
    /// The kernel was tried.
    Probed {
        /// Why EROFS cannot be used, if so.
        erofs: Result<(), String>,
    },
    /// The mount table, in its order: of those at one path the last is on top.
    Mounts(Vec<MountEntry>),
}

/// A line of the mount table.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub(super) struct MountEntry {
    /// Where.
    pub(super) path: PathBuf,
    /// Type: `fuse.lazo`, `erofs`, `overlay`.
    pub(super) fs_type: String,
    /// What.
    pub(super) source: String,
    /// `MAJOR:MINOR`.
    pub(super) device: String,
}

/// An order was not carried out, and left nothing behind.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct Refusal {
    /// The mount has users.
    pub(super) busy: bool,
    /// The system call's error number, if one failed.
    pub(super) errno: Option<i32>,
    /// What failed, on what, and why.
    pub(super) message: String,
}

impl Refusal {
    fn new(message: impl Into<String>) -> Self {
        Self { busy: false, errno: None, message: message.into() }
    }

    fn ended() -> Self {
        Self::new("the process that mounts has ended; whether this was done is not known")
    }

    /// What failed, as "cannot …", of a system call's error.
    fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |error| {
            let error = error.into();
            Self { busy: false, errno: error.raw_os_error(), message: format!("cannot {what}: {error}") }
        }
    }
}

/// The first message: for whom the process works.
#[derive(Serialize, Deserialize, Debug)]
struct Hello {
    run_dir: PathBuf,
}

/// An order on the link.
#[derive(Serialize, Deserialize, Debug)]
struct Request {
    number: u64,
    order: Order,
}

/// The reply on the link, perhaps with a file.
#[derive(Serialize, Deserialize, Debug)]
struct Reply {
    number: u64,
    result: Result<Answer, Refusal>,
}
