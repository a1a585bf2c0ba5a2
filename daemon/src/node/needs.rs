//! System calls that the daemon cannot do without, tried before it begins anything.
//!
//! Kernels before 5.12 lack some of them. Where the kernel has them, a filter of a service manager or a container runtime may take
//! them away, and answers as such a kernel would.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsmount, fsopen,
    move_mount, open_tree,
};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::mounter::set_mount;

/// # Errors
/// When a call is missing; the text names all that are.
pub(super) fn check() -> io::Result<()> {
    let any = File::open("/proc/self/status")?;
    // Each is asked for something that it refuses, or that changes nothing.
    let tried = [
        ("fsopen", fsopen("no such filesystem", FsOpenFlags::FSOPEN_CLOEXEC).map(drop)),
        ("fsconfig", fsconfig_create(&any)),
        ("fsmount", fsmount(&any, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map(drop)),
        ("move_mount", move_mount(&any, "", &any, "", MoveMountFlags::empty())),
        ("open_tree", open_tree(CWD, "", OpenTreeFlags::OPEN_TREE_CLOEXEC).map(drop)),
        ("mount_setattr", set_mount(any.as_fd(), MountAttrFlags::empty(), None).map_err(errno_of)),
        ("statx", statx(&any, "", AtFlags::EMPTY_PATH, StatxFlags::empty()).map(drop)),
        ("pidfd_open", pidfd_open(getpid(), PidfdFlags::empty()).map(drop)),
    ];
    let missing: Vec<&str> =
        tried.into_iter().filter(|(_, result)| *result == Err(Errno::NOSYS)).map(|(name, _)| name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        format!(
            "these system calls are missing: {}; Linux 5.12 or newer is needed, and no filter (such as systemd's \
             SystemCallFilter= or a container runtime's seccomp profile) that takes them away",
            missing.join(", ")
        ),
    ))
}

fn errno_of(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_all() {
        check().unwrap();
    }

    #[test]
    fn a_call_that_a_filter_takes_away_is_named() {
        use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
        let rules = [(libc::SYS_open_tree, Vec::new()), (libc::SYS_mount_setattr, Vec::new())].into();
        let refuse = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
        let arch = std::env::consts::ARCH.try_into().unwrap();
        let filter: BpfProgram =
            SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).unwrap().try_into().unwrap();
        // A filter holds for the thread that loads it.
        let refused = std::thread::spawn(move || {
            seccompiler::apply_filter(&filter).unwrap();
            check()
        });
        let text = refused.join().unwrap().unwrap_err().to_string();
        assert!(text.contains("missing: open_tree, mount_setattr;"), "{text}");
    }
}
