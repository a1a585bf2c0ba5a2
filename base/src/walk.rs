//! Files below a directory, opened name by name: no link is followed, and nothing leads upwards or out.
//!
//! openat2(2) would do the same in one call, but service managers and container runtimes filter it. No server of a file system is
//! asked for anything but the last file, so that one which hangs holds up nobody before that.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::Errno;

/// Opens a file below a directory. `path` is relative.
///
/// # Errors
/// [`Errno::LOOP`] for a link anywhere in the path, [`Errno::XDEV`] for a path that is empty, absolute or has `..`, and those of
/// openat(2).
pub fn open_below(directory: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut at = None;
    let mut names = path.components().peekable();
    while let Some(name) = names.next() {
        let Component::Normal(name) = name else { return Err(Errno::XDEV) };
        let directory = at.as_ref().map_or(directory.as_fd(), OwnedFd::as_fd);
        // A link is opened as itself, so that it can be told from a file that is no directory.
        let found = openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        match (kind(&found)?, names.peek()) {
            (FileType::Symlink, _) => return Err(Errno::LOOP),
            (FileType::Directory, Some(_)) => at = Some(found),
            (_, Some(_)) => return Err(Errno::NOTDIR),
            (_, None) => return openat(directory, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()),
        }
    }
    Err(Errno::XDEV)
}

/// The same from the root, for an absolute path.
///
/// # Errors
/// As of [`open_below`].
pub fn open_from_root(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    match path.strip_prefix("/") {
        Ok(below) if below.as_os_str().is_empty() => Ok(root),
        Ok(below) => open_below(root, below, flags),
        Err(_) => Err(Errno::XDEV),
    }
}

fn kind(file: &OwnedFd) -> Result<FileType, Errno> {
    let status = statx(file, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
    Ok(FileType::from_raw_mode(status.stx_mode.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/file"), "x").unwrap();
        symlink("/etc", dir.path().join("a/out")).unwrap();
        symlink("file", dir.path().join("a/link")).unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        for (path, expected) in [
            ("a/file", None),
            ("a/b", None),
            ("a/./b", None),
            ("a/out/passwd", Some(Errno::LOOP)),
            ("a/link", Some(Errno::LOOP)),
            ("a/file/x", Some(Errno::NOTDIR)),
            ("a/missing", Some(Errno::NOENT)),
            ("a/../a/file", Some(Errno::XDEV)),
            ("/etc/passwd", Some(Errno::XDEV)),
            ("", Some(Errno::XDEV)),
        ] {
            for flags in [OFlags::RDONLY, OFlags::PATH] {
                assert_eq!(open_below(&root, path.as_ref(), flags).err(), expected, "{path}");
            }
        }
        let real = std::fs::canonicalize(dir.path()).unwrap();
        open_from_root(&real.join("a/file"), OFlags::RDONLY).unwrap();
        assert_eq!(open_from_root("a/file".as_ref(), OFlags::RDONLY).err(), Some(Errno::XDEV));
    }
}
