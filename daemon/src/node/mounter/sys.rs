//! System calls that no crate offers safely.
#![expect(unsafe_code, reason = "mount_setattr(2), ioctl(2), unshare(2) and signal(2) have no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::mount::MountAttrFlags;

/// Changes a mount that is nowhere yet: sets attributes and, if a user namespace is given, maps ids by it.
pub(in crate::node) fn set_mount(
    mount: BorrowedFd<'_>,
    attributes: MountAttrFlags,
    ids: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let map = if ids.is_some() { MountAttrFlags::MOUNT_ATTR_IDMAP } else { MountAttrFlags::empty() };
    let change = libc::mount_attr {
        attr_set: u64::from((attributes | map).bits()),
        attr_clr: 0,
        propagation: 0,
        // Never negative.
        userns_fd: ids.map_or(0, |ids| u64::from(ids.as_raw_fd().unsigned_abs())),
    };
    // SAFETY: an empty C string and a structure of the size given, which the kernel only reads; descriptors are open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const change,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What `ioctl(FS_IOC_GETFSSYSFSPATH)` fills.
#[repr(C)]
struct SysfsPath {
    length: u8,
    name: [u8; 128],
}

/// Where the kernel shows a filesystem as long as it lives, below `/sys/fs` (Linux 6.10 and later).
pub(super) fn sysfs_path(file: BorrowedFd<'_>) -> Option<String> {
    /// `_IOR(0x15, 1, struct fs_sysfs_path)`.
    const GET_SYSFS_PATH: u32 = 2 << 30 | 129 << 16 | 0x15 << 8 | 1;
    const { assert!(size_of::<SysfsPath>() == 129) };
    let mut path = SysfsPath { length: 0, name: [0; 128] };
    // SAFETY: the call writes a structure of this size, which its number holds, and nothing else; the descriptor is open.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::Ioctl::from(GET_SYSFS_PATH), &raw mut path) };
    let name = path.name.get(..usize::from(path.length)).filter(|_| result == 0)?;
    String::from_utf8(name.to_vec()).ok()
}

/// Puts this process, which must have a single thread, into a new user namespace.
pub(super) fn new_user_namespace() -> rustix::io::Result<()> {
    // SAFETY: unlike UnshareFlags::FILES this closes nothing and leaves memory alone.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWUSER) }
}

/// Ignores what a terminal or a service manager sends to all processes of a daemon at once.
pub(super) fn ignore_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: SIG_IGN runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
