//! Who asks for mounts, and whether it sees those of images.
//!
//! The node daemon mounts an image in its own mount namespace, and containerd mounts a container's root above that in another process.
//! Where that process is in another mount namespace and mounts do not propagate to it, it finds an empty directory in the image's place,
//! and starts the container with an empty root. So its mount table is looked at, once for each mount and connection: a mount
//! that is there stays as long as the image does.
//!
//! A mount is known there by its device and the end of its path. What comes before that can differ: the run directory of a pod may be
//! a directory of its own by that name, where the host has a link.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lazo_daemon::shows_device;
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use tokio::net::UnixStream;

/// Mounts that a caller is known to see, at most; the oldest numbers are looked for again.
const MAX_SEEN: usize = 4096;

/// The process at the other end of a connection. By default it is not known.
#[derive(Debug, Clone, Default)]
pub struct Caller(Option<Arc<Process>>);

#[derive(Debug)]
struct Process {
    id: i32,
    /// Numbers and devices of mounts that it sees.
    seen: Mutex<BTreeSet<(u64, String)>>,
    /// Whether it was said that its mount table cannot be read.
    warned: AtomicBool,
}

/// A mount, as this process sees it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Here {
    /// Nothing is mounted at the path.
    Absent,
    /// A device is, `MAJOR:MINOR` as mount tables have it.
    Device(String),
    /// The kernel does not say.
    Untold,
}

/// What a process's mount table says.
#[derive(Debug)]
enum Look {
    Seen,
    Unseen,
    /// The process has ended, and waits for no answer.
    Ended,
    Untold(io::Error),
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
        Self(Some(Arc::new(Process { id, seen: Mutex::default(), warned: AtomicBool::default() })))
    }

    /// The process, if it is known that it does not see the mount of this number and device at a path that ends with `place`. Waits for
    /// the kernel.
    pub(crate) fn blind_to(&self, id: u64, device: String, place: &Path) -> Option<i32> {
        let process = self.0.as_ref()?;
        let seen = || process.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mount = (id, device);
        if seen().contains(&mount) {
            return None;
        }
        // The table is long where many containers run: other calls of this connection do not wait for it.
        match look(process.id, &mount.1, place) {
            Look::Seen => {
                let mut seen = seen();
                if seen.len() >= MAX_SEEN {
                    seen.pop_first();
                }
                seen.insert(mount);
                None
            }
            Look::Unseen => Some(process.id),
            Look::Ended => None,
            Look::Untold(error) => {
                if !process.warned.swap(true, Ordering::Relaxed) {
                    let id = process.id;
                    tracing::warn!(process = id, %error, "nobody can tell whether containerd sees the mounts of images");
                }
                None
            }
        }
    }
}

fn look(process: i32, device: &str, place: &Path) -> Look {
    match fs::read(format!("/proc/{process}/mountinfo")) {
        Ok(mounts) if shows_device(&mounts, device, place) => Look::Seen,
        Ok(mounts) if mounts.is_empty() => Look::Ended,
        Ok(_) => Look::Unseen,
        Err(error) if has_ended(process, &error) => Look::Ended,
        Err(error) => Look::Untold(error),
    }
}

/// Whether a process's mount table cannot be read because it has ended.
fn has_ended(process: i32, error: &io::Error) -> bool {
    match Errno::from_io_error(error) {
        // Of a process that nobody has waited for, and of one that ends meanwhile.
        Some(Errno::INVAL | Errno::SRCH) => true,
        // It could also be hidden (hidepid=).
        Some(Errno::NOENT) => Pid::from_raw(process).is_none_or(|id| test_kill_process(id) == Err(Errno::SRCH)),
        _ => false,
    }
}

/// What is mounted at a path, as far as this process sees.
pub(crate) fn mounted_here(path: &Path) -> Here {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    match statx(CWD, path, flags, StatxFlags::empty()) {
        Ok(found) if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) => {
            Here::Device(format!("{}:{}", found.stx_dev_major, found.stx_dev_minor))
        }
        Ok(found) if found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => Here::Absent,
        // A directory of the daemon's goes with its mount.
        Err(Errno::NOENT | Errno::NOTDIR) => Here::Absent,
        // Such as a mount that has lost its server.
        Ok(_) | Err(_) => Here::Untold,
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    use rustix::process::{WaitId, WaitIdOptions, waitid};

    use super::*;

    fn me() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    #[test]
    fn a_mount_is_seen_while_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("containerd/3");
        assert_eq!(mounted_here(&point), Here::Absent, "no directory");
        fs::create_dir_all(&point).unwrap();
        assert_eq!(mounted_here(&point), Here::Absent, "a directory");
        mount("none", &point, "tmpfs", MountFlags::empty(), None).unwrap();
        let Here::Device(device) = mounted_here(&point) else { panic!("it is mounted") };
        let caller =
            Caller(Some(Arc::new(Process { id: me(), seen: Mutex::default(), warned: AtomicBool::default() })));
        let place = Path::new("containerd/3");
        assert_eq!(caller.blind_to(3, "0:0".to_owned(), place), Some(me()), "another device");
        assert_eq!(caller.blind_to(3, device.clone(), Path::new("containerd/4")), Some(me()), "another place");
        assert_eq!(caller.blind_to(3, device.clone(), place), None);
        // Something over it.
        mount("none", &point, "tmpfs", MountFlags::empty(), None).unwrap();
        assert!(matches!(look(me(), &device, place), Look::Unseen));
        for _ in 0..2 {
            unmount(&point, UnmountFlags::empty()).unwrap();
        }
        assert_eq!(mounted_here(&point), Here::Absent, "unmounted");
        fs::remove_dir(&point).unwrap();
        assert_eq!(mounted_here(&point), Here::Absent, "removed");
        fs::write(&point, "").unwrap();
        assert_eq!(mounted_here(&point.join("below")), Here::Absent, "below a file");
    }

    #[test]
    fn a_process_that_has_ended_is_no_riddle() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let id = i32::try_from(child.id()).unwrap();
        let place = Path::new("containerd/3");
        assert!(matches!(look(id, "0:0", place), Look::Unseen));
        drop(child.stdin.take());
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(Pid::from_raw(id).unwrap()), ended).unwrap();
        assert!(matches!(look(id, "0:0", place), Look::Ended), "{:?}", look(id, "0:0", place));
        child.wait().unwrap();
        assert!(matches!(look(id, "0:0", place), Look::Ended), "{:?}", look(id, "0:0", place));
        // One that lives, and whose table is kept from this process.
        let hidden = io::Error::from(Errno::NOENT);
        assert!(!has_ended(me(), &hidden) && !has_ended(me(), &io::Error::from(Errno::ACCESS)));
    }
}
