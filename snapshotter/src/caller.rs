//! Who asks for mounts, and whether it sees those of images.
//!
//! The node daemon mounts an image in its own mount namespace, and containerd mounts a container's root above that in another process.
//! Where that process is in another mount namespace and mounts do not propagate to it, it finds an empty directory in the image's place,
//! and starts the container with an empty root. So its mount table is looked at, once for each image and connection: a mount
//! that is there stays as long as the image does.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use lazo_daemon::is_mounted;
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use tokio::net::UnixStream;

/// Images that a caller is known to see, at most; the oldest numbers are looked for again.
const MAX_SEEN: usize = 4096;

/// The process at the other end of a connection. By default it is not known.
#[derive(Debug, Clone, Default)]
pub struct Caller(Option<Arc<Process>>);

#[derive(Debug)]
struct Process {
    id: i32,
    /// Numbers of mounts that it sees.
    seen: Mutex<BTreeSet<u64>>,
}

impl Caller {
    /// Who has connected.
    #[must_use]
    pub fn of(stream: &UnixStream) -> Self {
        let id = stream.peer_cred().ok().and_then(|peer| peer.pid());
        // The kernel says 0 where it has no number for the process in this PID namespace.
        let Some(id) = id.filter(|id| *id > 0) else {
            tracing::warn!(
                "containerd's process has no number here, so that nobody can tell whether it sees the mounts of images; lazo's snapshotter \
                 is to be in the host's PID namespace (hostPID: true)"
            );
            return Self::default();
        };
        Self(Some(Arc::new(Process { id, seen: Mutex::default() })))
    }

    /// The process, if it is known that it does not see the mount of this number at a path. Waits for the kernel.
    pub(crate) fn blind_to(&self, id: u64, path: &Path) -> Option<i32> {
        let process = self.0.as_ref()?;
        let mut seen = process.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.contains(&id) {
            return None;
        }
        let table = format!("/proc/{}/mountinfo", process.id);
        match fs::read(&table) {
            Ok(mounts) if is_mounted(&mounts, path) => {
                if seen.len() == MAX_SEEN {
                    seen.pop_first();
                }
                seen.insert(id);
                None
            }
            // It has ended, and waits for no answer.
            Ok(mounts) if mounts.is_empty() => None,
            Ok(_) => Some(process.id),
            Err(error) => {
                tracing::warn!(table, %error, "nobody can tell whether containerd sees the mounts of images");
                None
            }
        }
    }
}

/// Whether something is mounted at a path, as far as this process sees; also so if that cannot be told.
pub(crate) fn is_seen_here(path: &Path) -> bool {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    statx(CWD, path, flags, StatxFlags::empty()).map_or(true, |found| {
        found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
            || !found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
    })
}
