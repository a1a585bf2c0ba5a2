//! Directories and files that nobody but their owner gets at, whatever the umask that a process was started with.
//!
//! Below the state and run directories lie files of images, set-user-ID programs among them, and mounts of them that honour such bits.
//! Whoever could walk into those could run them outside of any container.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

/// Of directories: their owner's alone.
const DIRECTORY: u32 = 0o700;

/// Of files: their owner's alone.
const FILE: u32 = 0o600;

/// What others may do.
const OTHERS: u32 = 0o077;

/// Makes a directory for this user alone, and the parents that it lacks. One that is there is taken away from all other users.
///
/// # Errors
/// When it cannot be made, is no directory, or belongs to another user, who could do what he likes with it.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY).create(path)?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let directory = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let metadata = directory.metadata()?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        let error = format!("{} belongs to another user, {}", path.display(), metadata.uid());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, error));
    }
    if metadata.mode() & OTHERS != 0 {
        directory.set_permissions(Permissions::from_mode(DIRECTORY))?;
    }
    Ok(())
}

/// Makes a file for this user alone, or empties it.
pub(crate) fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(FILE).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn nobody_else_gets_at_what_is_made_or_found() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a/b");
        make_private_dir(&path).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o700, 0o700));
        std::fs::set_permissions(&path, Permissions::from_mode(0o2775)).unwrap();
        make_private_dir(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        std::fs::set_permissions(&path, Permissions::from_mode(0o500)).unwrap();
        make_private_dir(&path).unwrap();
        assert_eq!(mode(&path), 0o500, "narrower on purpose");
        let file = path.join("file");
        create_file(&file).unwrap();
        assert_eq!(mode(&file), 0o600);
    }

    #[test]
    fn what_is_not_ours_is_refused_and_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let (other, link) = (scratch.path().join("other"), scratch.path().join("link"));
        std::fs::create_dir(&other).unwrap();
        std::fs::set_permissions(&other, Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(&other, &link).unwrap();
        assert!(make_private_dir(&link).is_err(), "a link may lead anywhere");
        std::os::unix::fs::chown(&other, Some(4711), None).unwrap();
        assert_eq!(make_private_dir(&other).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(mode(&other), 0o755);
        std::fs::write(scratch.path().join("file"), "").unwrap();
        assert!(make_private_dir(&scratch.path().join("file")).is_err());
    }
}
