//! The kernel's own EROFS as judge of a bootstrap, with files as its devices.

use std::{
    fs::File,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::CWD,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
    },
};

/// A kernel EROFS mount; unmounted on drop.
pub(crate) struct ErofsMount(PathBuf);

impl ErofsMount {
    /// Mounts `bootstrap`, a file neither on tmpfs nor overlayfs, at the directory `at`. `devices`: a file for each blob.
    ///
    /// # Errors
    /// The kernel's, as text, with what it wrote to the file system context's log.
    pub(crate) fn new(bootstrap: &Path, devices: &[PathBuf], at: &Path) -> Result<Self, String> {
        let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|error| format!("fsopen: {error}"))?;
        let files: Vec<File> = std::iter::once(bootstrap)
            .chain(devices.iter().map(PathBuf::as_path))
            .map(|path| File::open(path).map_err(|error| format!("{}: {error}", path.display())))
            .collect::<Result<_, _>>()?;
        let fail = |what: &str, error: rustix::io::Errno| {
            let mut log = vec![0; 4096];
            let length = rustix::io::read(context.as_fd(), &mut log[..]).unwrap_or(0);
            format!("{what}: {error}: {}", String::from_utf8_lossy(&log[..length]))
        };
        let name = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
        let fd = context.as_fd();
        fsconfig_set_string(fd, "source", name(&files[0])).map_err(|error| fail("source", error))?;
        for file in &files[1..] {
            fsconfig_set_string(fd, "device", name(file)).map_err(|error| fail("device", error))?;
        }
        fsconfig_set_flag(fd, "ro").map_err(|error| fail("ro", error))?;
        fsconfig_create(fd).map_err(|error| fail("mount", error))?;
        let mount = fsmount(fd, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
            .map_err(|error| fail("fsmount", error))?;
        move_mount(mount.as_fd(), "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|error| fail("move_mount", error))?;
        Ok(Self(at.to_owned()))
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ErofsMount {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
