//! A filesystem in the making.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_fd, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};
use rustix::path::Arg;

use super::Refusal;

/// Most messages of the kernel about one mount that are shown.
const MAX_MESSAGES: usize = 8;

/// What the mount table shows for filesystems that have no source.
pub(super) const SOURCE: &str = "lazo";

/// A context from fsopen(2).
pub(super) struct Context {
    fs_type: &'static str,
    file: OwnedFd,
}

impl Context {
    pub(super) fn new(fs_type: &'static str) -> Result<Self, Refusal> {
        let file = fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC);
        let file =
            file.map_err(Refusal::io(format!("mount {fs_type}; does this kernel have it, and are you root?")))?;
        Ok(Self { fs_type, file })
    }

    pub(super) fn flag(&self, key: &str) -> Result<(), Refusal> {
        fsconfig_set_flag(&self.file, key).map_err(|error| self.refused(key, error))
    }

    pub(super) fn set(&self, key: &str, value: impl Arg) -> Result<(), Refusal> {
        fsconfig_set_string(&self.file, key, value).map_err(|error| self.refused(key, error))
    }

    /// Sets a parameter to a file. False if this kernel takes only a path for it.
    pub(super) fn set_file(&self, key: &str, file: impl AsFd) -> Result<bool, Refusal> {
        match fsconfig_set_fd(&self.file, key, file) {
            Ok(()) => Ok(true),
            Err(Errno::INVAL) => Ok(false),
            Err(error) => Err(self.refused(key, error)),
        }
    }

    /// Makes the filesystem; it is mounted nowhere yet, and gone again when the file is closed.
    pub(super) fn create(self, attributes: MountAttrFlags) -> Result<OwnedFd, Refusal> {
        fsconfig_create(&self.file).map_err(|error| self.refused("all of it", error))?;
        fsmount(&self.file, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(|error| self.refused("fsmount", error))
    }

    fn refused(&self, what: &str, error: rustix::io::Errno) -> Refusal {
        let mut refusal = Refusal::io(format!("mount {} ({what})", self.fs_type))(error);
        for message in self.messages() {
            refusal.message.push_str("; ");
            refusal.message.push_str(&message);
        }
        refusal
    }

    /// What the kernel has to say about it, oldest first.
    fn messages(&self) -> Vec<String> {
        // Not all kernels answer "no data" at once.
        if rustix::fs::fcntl_setfl(&self.file, OFlags::NONBLOCK).is_err() {
            return Vec::new();
        }
        let mut buffer = [0; 1024];
        let mut messages = Vec::new();
        while messages.len() < MAX_MESSAGES {
            match rustix::io::read(&self.file, &mut buffer) {
                Ok(length) if length > 0 => {
                    messages.push(String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned());
                }
                _ => break,
            }
        }
        messages
    }
}

/// Puts a mount that is nowhere yet on a directory.
pub(super) fn attach(mount: impl AsFd, directory: impl AsFd) -> rustix::io::Result<()> {
    move_mount(
        mount,
        "",
        directory,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}
