//! Writable mounts.
//!
//! An overlay clones the mounts of its layers when it is made. So what is mounted for it alone, memory to write to or the image
//! with mapped ids, need not stay in the mount table, and lives as long as the overlay. What is done in the overlay later
//! is done with the capabilities that this process has now.

use std::collections::HashSet;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{
    Gid, Mode, OFlags, Timestamps, Uid, fchmod, fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, mkdirat,
    openat,
};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, UnmountFlags, unmount};

use super::carry_out::{Site, read_table};
use super::context::{Context, SOURCE, attach};
use super::paths::{MAX_PARAMETER, user_directory};
use super::{How, IMAGES, PARTS, Refusal, Writable};
use crate::kernel::table;

/// What is mounted in the parts' directory while an overlay is made.
const LOWER: &str = "lower";
const MEMORY: &str = "memory";

/// Largest value of an extended attribute in bytes: Linux's XATTR_SIZE_MAX; and largest list of names.
const MAX_XATTR: usize = 65536;

/// What an overlay writes to, in the directory that a user names: what was written, and what is just being written.
const UPPER: &str = "upper";
const WORK: &str = "work";

/// Others than its owner may write to it.
const OTHERS_WRITE: u32 = 0o022;

/// Directories that overlays which are just being made will write to.
#[derive(Default)]
pub(super) struct Uppers(Mutex<HashSet<PathBuf>>);

impl Site {
    pub(super) fn overlay(
        &self,
        lower: &Path,
        to: &Path,
        writable: &Writable,
        user: u32,
        parts: &Path,
        how: &How,
    ) -> Result<(), Refusal> {
        let (source, directory) = (self.run_dir.mount(lower)?, self.run_dir.place_outside(to)?);
        if parts.parent() != Some(&self.run_dir.below(PARTS)) {
            return Err(Refusal::new(format!("{} is no place for the parts of an overlay", parts.display())));
        }
        // Checks the rest of the path too.
        drop(self.run_dir.directory(parts)?);
        let _parts = Parts(parts);
        let (lower, source) = match &how.map {
            Some(_) => self.mapped(lower, &source, &parts.join(LOWER), how)?,
            None => (lower.to_owned(), source),
        };
        let (upper_in, _held) = match writable {
            Writable::Directory(path) => (path.clone(), Some(self.uppers.hold(path)?)),
            Writable::Tmpfs { size } => (self.memory(&parts.join(MEMORY), *size)?, None),
        };
        let within = user_directory(&upper_in, "write to")?;
        check_owner(&within, &upper_in, user)?;
        let (upper, fresh) = make_directory(&within, UPPER)?;
        if fresh {
            copy_root(&source, &upper).map_err(Refusal::io(format!("set up {}/upper", upper_in.display())))?;
        }
        let (work, _) = make_directory(&within, WORK)?;
        check_owner(&work, &upper_in.join(WORK), 0)?;
        let context = Context::new("overlay")?;
        context.set("source", SOURCE)?;
        context.set("lowerdir", layer(&lower, &source))?;
        let directories = [("upperdir", UPPER, &upper), ("workdir", WORK, &work)];
        let mut by_path = Vec::new();
        for (key, name, directory) in directories {
            if !context.set_file(key, directory)? {
                let path = upper_in.join(name);
                context.set(key, layer(&path, directory))?;
                by_path.push((path, directory));
            }
        }
        let mount = context.create(how.attributes())?;
        by_path.iter().try_for_each(|(path, directory)| check_same(path, directory))?;
        attach(&mount, &directory).map_err(Refusal::io(format!("mount at {}", to.display())))
    }

    /// The image with mapped ids, as an overlay itself cannot have.
    fn mapped(&self, from: &Path, source: &OwnedFd, at: &Path, how: &How) -> Result<(PathBuf, OwnedFd), Refusal> {
        let how = How { map: how.map.clone(), ..How::default() };
        let tree = self.clone_tree(from, source, &how)?;
        let directory = self.run_dir.directory(at)?;
        attach(&tree, &directory).map_err(Refusal::io(format!("mount at {}", at.display())))?;
        Ok((at.to_owned(), self.run_dir.mount(at)?))
    }

    /// Memory to write to.
    fn memory(&self, at: &Path, size: Option<u64>) -> Result<PathBuf, Refusal> {
        let directory = self.run_dir.directory(at)?;
        let context = Context::new("tmpfs")?;
        context.set("source", SOURCE)?;
        context.set("mode", "0700")?;
        match size {
            // To the kernel that would be no limit.
            Some(0) => return Err(Refusal::new("an overlay in no memory at all cannot be written to")),
            Some(size) => context.set("size", size.to_string())?,
            None => {}
        }
        let mount = context.create(MountAttrFlags::empty())?;
        attach(&mount, &directory).map_err(Refusal::io(format!("mount at {}", at.display())))?;
        Ok(at.to_owned())
    }

    /// Removes what a mounter that was killed has left, when no other one works: what was mounted for overlays that it was making, and
    /// directories at which nothing is mounted.
    pub(super) fn clean(&self) {
        for path in children(&self.run_dir.below(PARTS)) {
            if let Err(error) = discard(&path) {
                tracing::warn!(%error, "something is left of the making of an overlay");
            }
        }
        for path in children(&self.run_dir.below(IMAGES)) {
            // An error: something is mounted there.
            let _ = fs::remove_dir(path);
        }
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect()
}

/// Removes what was mounted for an overlay while it was made.
fn discard(parts: &Path) -> Result<(), Refusal> {
    for name in [LOWER, MEMORY] {
        let path = parts.join(name);
        match unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // Not mounted, or not there.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(Refusal::io(format!("unmount {}", path.display()))(error)),
        }
    }
    for path in [parts.join(LOWER), parts.join(MEMORY), parts.to_owned()] {
        match fs::remove_dir(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Refusal::io(format!("remove {}", path.display()))(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Discarded when dropped.
struct Parts<'a>(&'a Path);

impl Drop for Parts<'_> {
    fn drop(&mut self) {
        if let Err(error) = discard(self.0) {
            tracing::warn!(%error, "something is left of the making of an overlay");
        }
    }
}

impl Uppers {
    /// Claims a directory. The kernel, by default, lets two overlays write to the same one and garbles both.
    fn hold<'a>(&'a self, path: &Path) -> Result<Held<'a>, Refusal> {
        let in_use = || Refusal::new(format!("another overlay writes to {}", path.display()));
        if !self.lock().insert(path.to_owned()) {
            return Err(in_use());
        }
        let held = Held { uppers: self, path: path.to_owned() };
        let table = read_table()?;
        let upper = path.join(UPPER);
        let mut overlays = table::lines(&table).filter(|line| line.fs_type == "overlay");
        if overlays.any(|line| upper_of(&line.options).is_some_and(|used| used == upper)) {
            return Err(in_use());
        }
        Ok(held)
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Held<'a> {
    uppers: &'a Uppers,
    path: PathBuf,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.uppers.lock().remove(&self.path);
    }
}

/// The `upperdir` among the options of an overlay.
fn upper_of(options: &[u8]) -> Option<PathBuf> {
    options.split(|&b| b == b',').find_map(|option| option.strip_prefix(b"upperdir=")).map(table::unescape)
}

/// A layer's path as the kernel takes it; by its descriptor if it is too long or has what means something there.
fn layer(path: &Path, file: &OwnedFd) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() <= MAX_PARAMETER && !bytes.iter().any(|byte| b":,\\".contains(byte)) {
        path.to_owned()
    } else {
        PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
    }
}

/// A directory, and whether it is new.
fn make_directory(within: &OwnedFd, name: &str) -> Result<(OwnedFd, bool), Refusal> {
    let fresh = match mkdirat(within, name, Mode::RWXU) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(Refusal::io(format!("make the directory {name}"))(error)),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(within, name, flags, Mode::empty());
    Ok((directory.map_err(Refusal::io(format!("open the directory {name}")))?, fresh))
}

/// Refuses a directory in which somebody else than root and this user could put things of his own in the place of an overlay's.
fn check_owner(directory: &OwnedFd, path: &Path, user: u32) -> Result<(), Refusal> {
    let status = fstat(directory).map_err(Refusal::io(format!("look at {}", path.display())))?;
    if ![0, user, rustix::process::geteuid().as_raw()].contains(&status.st_uid) {
        let text = format!(
            "cannot write to {}: it belongs to another user, {}, who could change what is written; name a directory of your own",
            path.display(),
            status.st_uid
        );
        return Err(Refusal { errno: Some(Errno::PERM.raw_os_error()), ..Refusal::new(text) });
    }
    if status.st_mode & OTHERS_WRITE != 0 {
        let path = path.display();
        let text =
            format!("cannot write to {path}: others may write to it too; take that away with: chmod go-w {path}");
        return Err(Refusal { errno: Some(Errno::PERM.raw_os_error()), ..Refusal::new(text) });
    }
    Ok(())
}

/// Whether an overlay that was made by path has got the directory that was checked. Linux before 6.13 takes paths only.
fn check_same(path: &Path, checked: &OwnedFd) -> Result<(), Refusal> {
    let failed = || Refusal::io(format!("look at {}", path.display()));
    let (now, checked) = (user_directory(path, "write to")?, fstat(checked).map_err(failed())?);
    let now = fstat(&now).map_err(failed())?;
    if (now.st_dev, now.st_ino) == (checked.st_dev, checked.st_ino) {
        return Ok(());
    }
    Err(Refusal::new(format!("cannot write to {}: it was replaced meanwhile", path.display())))
}

/// The root of an overlay looks as its upper directory does: it shall look as the image's root.
fn copy_root(image: &OwnedFd, upper: &OwnedFd) -> rustix::io::Result<()> {
    let image = openat(image, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let status = fstat(&image)?;
    fchown(upper, Some(Uid::from_raw(status.st_uid)), Some(Gid::from_raw(status.st_gid)))?;
    fchmod(upper, Mode::from_raw_mode(status.st_mode & 0o7777))?;
    copy_xattrs(&image, upper)?;
    let time = rustix::fs::Timespec { tv_sec: status.st_mtime, tv_nsec: status.st_mtime_nsec.cast_signed() };
    futimens(upper.as_fd(), &Timestamps { last_access: time, last_modification: time })
}

fn copy_xattrs(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    let mut names = vec![MaybeUninit::uninit(); MAX_XATTR];
    let mut value = vec![MaybeUninit::uninit(); MAX_XATTR];
    let names = match flistxattr(from, names.as_mut_slice()) {
        Ok((names, _)) => names,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error),
    };
    for name in names.split(|&b| b == 0).filter(|name| !name.is_empty()) {
        // An overlay's own would steer this one; labels are the policy's to give.
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"security.") {
            continue;
        }
        let (value, _) = fgetxattr(from, name, value.as_mut_slice())?;
        match fsetxattr(to, name, value, rustix::fs::XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
