//! Removal of directories, however deep: containers may have nested them beyond what descriptors, stacks and paths can hold.

use std::ffi::CString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, DirEntry, FileType, Mode, OFlags, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

/// Levels that are open at a time. What lies deeper is moved up first.
const LEVELS: usize = 64;

/// An open directory, and its name in the one above.
struct Level {
    directory: Dir,
    name: CString,
}

/// Removes a directory in which nobody else makes any: what is below it may be anybody's. No link is followed.
pub(super) fn tree(path: &Path) -> io::Result<()> {
    let top = openat(CWD, path, FLAGS, Mode::empty())?;
    let mut levels = vec![Level { directory: Dir::read_from(&top)?, name: CString::default() }];
    let (mut moved, mut again) = (0_u64, false);
    loop {
        let depth = levels.len();
        let Some(level) = levels.last_mut() else { break };
        match level.directory.read().transpose()? {
            Some(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
            Some(entry) => {
                let (above, name) = (level.directory.fd()?, entry.file_name());
                if !is_directory(above, &entry)? {
                    gone(unlinkat(above, name, AtFlags::empty()))?;
                } else if depth < LEVELS {
                    let directory: OwnedFd = openat(above, name, FLAGS, Mode::empty())?;
                    levels.push(Level { directory: Dir::new(directory)?, name: name.to_owned() });
                } else {
                    renameat(above, name, &top, format!("deep-{moved}"))?;
                    (moved, again) = (moved + 1, true);
                }
            }
            // What was moved to the top since it was begun may not have been seen there.
            None if depth == 1 && again => {
                level.directory.rewind();
                again = false;
            }
            None => {
                let ended = levels.pop();
                if let (Some(ended), Some(above)) = (ended, levels.last()) {
                    gone(unlinkat(above.directory.fd()?, &ended.name, AtFlags::REMOVEDIR))?;
                }
            }
        }
    }
    std::fs::remove_dir(path)
}

fn is_directory(above: BorrowedFd<'_>, entry: &DirEntry) -> io::Result<bool> {
    let kind = match entry.file_type() {
        FileType::Unknown => {
            FileType::from_raw_mode(statat(above, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?.st_mode)
        }
        kind => kind,
    };
    Ok(kind == FileType::Directory)
}

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What somebody else has removed is gone too.
fn gone(removed: Result<(), Errno>) -> io::Result<()> {
    match removed {
        Err(Errno::NOENT) => Ok(()),
        removed => Ok(removed?),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::{LEVELS, tree};

    #[test]
    fn deep_and_wide() {
        let scratch = tempfile::tempdir().unwrap();
        let kept = scratch.path().join("kept");
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "").unwrap();
        let top = scratch.path().join("top");
        std::fs::create_dir(&top).unwrap();
        // Deeper than a path can name: built from below.
        let mut inner = scratch.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        for level in 0..LEVELS * 20 {
            let outer = scratch.path().join(format!("outer-{level}"));
            std::fs::create_dir(&outer).unwrap();
            std::fs::write(outer.join("file"), "").unwrap();
            symlink(&kept, outer.join("link")).unwrap();
            std::fs::rename(&inner, outer.join("a-directory")).unwrap();
            inner = outer;
        }
        std::fs::rename(&inner, top.join("fs")).unwrap();
        tree(&top).unwrap();
        assert!(!top.exists() && kept.join("file").exists());
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
    }
}
