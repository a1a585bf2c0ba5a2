//! Directories of snapshots: `<number>/fs` with its files, `<number>/work` for overlayfs, `<number>/image` that leads to its image.
//!
//! A directory without a record belongs to nobody: it is made before its record is, and removed after it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use lazo_daemon::make_private_dir;

use super::error::{Error, file};
use super::removal;

/// The root of a file system that is made from scratch may be entered and listed by everybody, as elsewhere.
const ROOT_MODE: u32 = 0o755;
/// overlayfs makes directories of its own in here.
const WORK_MODE: u32 = 0o711;
/// Nobody but root gets at snapshots except through their mounts.
const PRIVATE: u32 = 0o700;

/// User and group.
pub(super) type Owner = (u32, u32);

#[derive(Debug)]
pub(super) struct Directories {
    root: PathBuf,
    /// Links made so far: each is made under a name of its own, as containers of an image may be made at once.
    links: AtomicU64,
}

impl Directories {
    /// Those below a directory, which is made if it is not there, and is for nobody else.
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        make_private_dir(root).map_err(file("make the directory", root))?;
        let root = fs::canonicalize(root).map_err(file("find the directory", root))?;
        Ok(Self { root, links: AtomicU64::new(0) })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn files(&self, id: u64) -> PathBuf {
        self.root.join(id.to_string()).join("fs")
    }

    pub(super) fn work(&self, id: u64) -> PathBuf {
        self.root.join(id.to_string()).join("work")
    }

    /// Makes a snapshot's directory. If it cannot be made, nothing is left.
    pub(super) fn make(&self, id: u64, writable: bool, owner: Option<Owner>) -> Result<(), Error> {
        let made = self.try_make(id, writable, owner);
        if made.is_err() {
            self.remove(id);
        }
        made
    }

    fn try_make(&self, id: u64, writable: bool, owner: Option<Owner>) -> Result<(), Error> {
        let make = |path: &Path, mode| {
            let made = fs::DirBuilder::new().mode(mode).create(path);
            made.map_err(file("make the directory", path))
        };
        let files = self.files(id);
        make(&self.root.join(id.to_string()), PRIVATE)?;
        make(&files, ROOT_MODE)?;
        if fs::metadata(&files).map_err(file("look at", &files))?.mode() & 0o777 != ROOT_MODE {
            // Our umask takes something away.
            let mode = fs::Permissions::from_mode(ROOT_MODE);
            fs::set_permissions(&files, mode).map_err(file("set the mode of", &files))?;
        }
        if writable {
            make(&self.work(id), WORK_MODE)?;
        }
        if let Some((user, group)) = owner.filter(|owner| *owner != (0, 0)) {
            std::os::unix::fs::lchown(&files, Some(user), Some(group)).map_err(file("set the owner of", &files))?;
        }
        Ok(())
    }

    /// Removes a snapshot's directory. What cannot be removed now is when it is next swept.
    pub(super) fn remove(&self, id: u64) {
        let path = self.root.join(id.to_string());
        match removal::tree(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "cannot remove a snapshot's directory");
            }
            _ => {}
        }
    }

    /// The numbers of all directories.
    pub(super) fn list(&self) -> Result<Vec<u64>, Error> {
        let fault = || file("list the directory", &self.root);
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(fault())? {
            let name = entry.map_err(fault())?.file_name();
            // What has another name is none of ours, such as lost+found.
            numbers.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        Ok(numbers)
    }

    /// A path to an image's mount that begins like those of all other layers, so that containerd, which gives the common beginning
    /// only once, can pass on chains that are longer than the kernel's page for mount options.
    pub(super) fn link(&self, id: u64, mount: &Path) -> Result<PathBuf, Error> {
        let link = self.root.join(id.to_string()).join("image");
        if fs::read_link(&link).is_ok_and(|now| now == mount) {
            return Ok(link);
        }
        let new = link.with_extension(format!("new{}", self.links.fetch_add(1, Ordering::Relaxed)));
        let removed =
            fs::remove_file(&new).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) });
        let made =
            removed.and_then(|()| std::os::unix::fs::symlink(mount, &new)).and_then(|()| fs::rename(&new, &link));
        made.map_err(file("make the link", &link))?;
        Ok(link)
    }
}

/// Who owns a directory.
pub(super) fn owner(path: &Path) -> Result<Owner, Error> {
    let metadata = fs::metadata(path).map_err(file("look at", path))?;
    Ok((metadata.uid(), metadata.gid()))
}
