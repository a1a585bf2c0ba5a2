//! The kernel's side of a mount: making and ending it, finding it in the mount table, its read-ahead.

pub(crate) mod table;

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

use crate::error::{Error, Result};

/// Type in the mount table; `fuse.NAME` lets the kernel know that it is FUSE.
const TYPE: &str = "fuse.lazo";

/// Most of a source's name that goes into the mount table; the kernel takes a page.
const MAX_SOURCE: usize = 1024;

/// Kernel read-ahead for a file of the mount, in KiB. FUSE alone caps it at 128; at 1 MiB a sequential reader needs an
/// eighth of the round trips, and read-ahead beyond that did not pay (16 MiB at 20 ms a request: 1.32 s, .22 s, .12 s for
/// 128, 1024 and 4096 KiB, but ten times the bytes for readers that jump).
pub(crate) const READ_AHEAD_KIB: u32 = 1024;

/// A lazo mount in the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// `MAJOR:MINOR` of the device that `stat` shows.
    pub(crate) device: String,
}

/// What files of a mount may not do. By default what could give a user of the machine rights that he does not have: an image by name is
/// whatever its registry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restrictions {
    /// Set-user-ID and set-group-ID bits and file capabilities mean nothing.
    pub nosuid: bool,
    /// Device files cannot be opened.
    pub nodev: bool,
    /// Nothing can be executed.
    pub noexec: bool,
}

impl Default for Restrictions {
    fn default() -> Self {
        Self { nosuid: true, nodev: true, noexec: false }
    }
}

impl Restrictions {
    fn flags(self) -> MountFlags {
        let all =
            [(self.nosuid, MountFlags::NOSUID), (self.nodev, MountFlags::NODEV), (self.noexec, MountFlags::NOEXEC)];
        all.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag).collect()
    }
}

/// Checks that something can be mounted at a path, and gives it without links.
///
/// # Errors
/// When it does not exist, is no directory, or is a lazo mount already.
pub fn check_mount_point(path: &Path) -> Result<PathBuf> {
    let bad = |reason: &str| Error::MountPoint { path: path.to_owned(), reason: reason.to_owned() };
    let real = match fs::canonicalize(path) {
        Ok(real) => real,
        Err(error) => {
            return Err(match error.kind() {
                io::ErrorKind::NotFound => bad("there is no such directory; make it first"),
                io::ErrorKind::NotConnected => bad("a mount there has lost its server; end it with lazo umount"),
                _ => bad(&error.to_string()),
            });
        }
    };
    if !real.is_dir() {
        return Err(bad("it is not a directory"));
    }
    if find(&real)?.is_some() {
        return Err(bad("a lazo image is mounted there already; end that with lazo umount"));
    }
    Ok(real)
}

/// Mounts a FUSE filesystem whose requests come from the file returned.
pub(crate) fn mount(image: &str, path: &Path, restrictions: Restrictions) -> Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let device =
        device.map_err(Error::io::<io::Error>("open /dev/fuse; does this kernel have FUSE, and are you root?"))?;
    let source: String = format!("lazo#{image}").chars().take(MAX_SOURCE).collect();
    let options =
        format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", device.as_raw_fd());
    // Made here, of digits and letters.
    let options = CString::new(options).unwrap_or_default();
    let flags = MountFlags::RDONLY | restrictions.flags();
    let mounted = rustix::mount::mount(source, path, TYPE, flags, options.as_c_str());
    mounted.map_err(|error| match error {
        rustix::io::Errno::PERM | rustix::io::Errno::ACCESS => {
            Error::MountPoint { path: path.to_owned(), reason: format!("{error}; mounting needs root (CAP_SYS_ADMIN)") }
        }
        error => Error::MountPoint { path: path.to_owned(), reason: error.to_string() },
    })?;
    Ok(device.into())
}

/// Unmounts what is on top at a path; with `detach` at once from the tree, and really when its last user has gone.
pub(crate) fn unmount(path: &Path, detach: bool) -> Result<()> {
    let flags = if detach { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(path, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::BUSY) => Err(Error::Busy { path: path.to_owned() }),
        Err(rustix::io::Errno::INVAL) => Err(Error::NotMounted { path: path.to_owned() }),
        Err(error) => Err(Error::io(format!("unmount {}", path.display()))(error)),
    }
}

/// Whether a mount table, of any process, has a device (`MAJOR:MINOR`) mounted at a path that ends like this one, with nothing mounted
/// over it there.
#[must_use]
pub fn shows_device(table: &[u8], device: &str, place: &Path) -> bool {
    let mut there = table::lines(table).filter(|line| line.device == device && line.path.ends_with(place));
    there.any(|line| table::on_top(table, &line.path).is_some_and(|top| top.device == device))
}

/// The lazo mount on top at a path, which must have no links in it.
pub(crate) fn find(path: &Path) -> Result<Option<Mounted>> {
    let table = fs::read("/proc/self/mountinfo").map_err(Error::io::<io::Error>("read /proc/self/mountinfo"))?;
    Ok(find_in(&table, path))
}

fn find_in(table: &[u8], path: &Path) -> Option<Mounted> {
    let line = table::on_top(table, path).filter(|line| line.fs_type == TYPE)?;
    Some(Mounted { device: line.device })
}

/// Raises the kernel's read-ahead for a mount. It works without, only slower.
pub(crate) fn raise_read_ahead(mounted: &Mounted) {
    let path = format!("/sys/class/bdi/{}/read_ahead_kb", mounted.device);
    if let Err(error) = fs::write(&path, READ_AHEAD_KIB.to_string()) {
        tracing::warn!(path, %error, "cannot raise the kernel's read-ahead; reads in order will be slower");
    }
}

/// The path without links, for a mount that may have lost its server: its last part is not looked at.
///
/// # Errors
/// When a directory on the way is not there.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    let failed = || Error::io::<io::Error>(format!("find {}", path.display()));
    let absolute = std::path::absolute(path).map_err(failed())?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) if name.as_bytes() != b".." => {
            let real = fs::canonicalize(parent).map_err(failed())?.join(name);
            // A link to a mount point is as good.
            match fs::read_link(&real) {
                Ok(_) => fs::canonicalize(&real).map_err(failed()),
                Err(_) => Ok(real),
            }
        }
        _ => fs::canonicalize(&absolute).map_err(failed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 28 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
        90 28 0:51 / /mnt/a\\040b ro,relatime shared:1 master:2 - fuse.lazo lazo#docker://h/r:t ro,user_id=0\n\
        91 28 0:52 / /mnt/c ro - fuse.lazo lazo#x ro\n\
        92 91 0:53 / /mnt/c rw - tmpfs tmpfs rw\n\
        93 28 0:54 / /mnt/d rw - tmpfs tmpfs rw\n\
        94 93 0:55 / /mnt/d ro - fuse.lazo lazo#x ro\n";

    #[test]
    fn finds_the_lazo_mount_on_top() {
        let device = |path: &str| find_in(TABLE, Path::new(path)).map(|m| m.device);
        assert_eq!(device("/mnt/a b").as_deref(), Some("0:51"));
        assert_eq!(device("/mnt/d").as_deref(), Some("0:55"));
        assert_eq!(device("/mnt/c"), None, "a tmpfs covers it");
        assert_eq!(device("/sys"), None);
        assert_eq!(device("/mnt"), None);
    }

    #[test]
    fn finds_a_device_by_the_end_of_its_path() {
        for (device, place, expected) in [
            ("0:51", "a b", true),
            ("0:51", "mnt/a b", true),
            ("0:51", "b", false),
            ("0:52", "mnt/c", false),
            ("0:53", "mnt/c", true),
            ("0:5", "mnt/a b", false),
            ("0:55", "mnt/c", false),
        ] {
            assert_eq!(shows_device(TABLE, device, Path::new(place)), expected, "{device} at {place}");
        }
    }
}
