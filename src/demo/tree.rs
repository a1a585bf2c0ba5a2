//! Looking at directory trees: are two the same, and what has been read in one.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, utimensat};

/// Calls `visit` for everything below `root`, in order, with its path from there.
fn walk(root: &Path, visit: &mut dyn FnMut(&Path, &Metadata) -> Result<()>) -> Result<()> {
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        for name in names(&root.join(&directory))? {
            let path = directory.join(name);
            let metadata = root.join(&path).symlink_metadata()?;
            visit(&path, &metadata)?;
            if metadata.is_dir() {
                pending.push(path);
            }
        }
    }
    Ok(())
}

fn names(directory: &Path) -> Result<Vec<OsString>> {
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Compares names, types, permissions, owners, sizes, link targets and modification times. Answers the number of entries.
///
/// # Errors
/// Names the first entry in which the trees differ.
pub(crate) fn compare(expected: &Path, actual: &Path) -> Result<u64> {
    let mut entries = 0;
    walk(expected, &mut |path, wanted| {
        let found = actual.join(path).symlink_metadata();
        let found = found.with_context(|| format!("/{} is missing in the mount", path.display()))?;
        let same = wanted.mode() == found.mode()
            && (wanted.is_dir() || wanted.len() == found.len())
            && wanted.mtime() == found.mtime()
            && (wanted.uid(), wanted.gid()) == (found.uid(), found.gid())
            && (!wanted.is_symlink() || expected.join(path).read_link()? == actual.join(path).read_link()?)
            && (!wanted.is_dir() || names(&expected.join(path))? == names(&actual.join(path))?);
        if !same {
            bail!("/{} in the mount differs from the unpacked image: {found:?} is not {wanted:?}", path.display());
        }
        entries += 1;
        Ok(())
    })?;
    if names(expected)? != names(actual)? {
        bail!("the root directories differ");
    }
    Ok(entries)
}

/// Sets every access time to 1970, so that the kernel notes the next access (mount option relatime).
///
/// # Errors
/// When a time cannot be set.
pub(crate) fn forget_accesses(root: &Path) -> Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: 0 },
        last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    };
    walk(root, &mut |path, _| {
        let path = root.join(path);
        utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)
            .with_context(|| format!("set times of {}", path.display()))
    })
}

/// The files that were read since [`forget_accesses`], in the order in which they were read first, as absolute paths of
/// the image. Empty where the file system keeps no access times.
///
/// # Errors
/// When the tree cannot be read.
pub(crate) fn accesses(root: &Path) -> Result<Vec<String>> {
    let mut read = Vec::new();
    walk(root, &mut |path, metadata| {
        let accessed = (metadata.atime(), metadata.atime_nsec());
        // Globs are allowed in a prefetch list: names that would be taken for one are left out.
        if let Some(text) = path.to_str().filter(|text| !text.contains(['*', '?', '[', '{', '\\', '\n']))
            && metadata.is_file()
            && accessed > (0, 0)
        {
            read.push((accessed, format!("/{text}")));
        }
        Ok(())
    })?;
    read.sort();
    Ok(read.into_iter().map(|(_, path)| path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> tempfile::TempDir {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path();
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/first"), "1").unwrap();
        fs::write(root.join("second"), "2").unwrap();
        std::os::unix::fs::symlink("second", root.join("link")).unwrap();
        for name in ["d/first", "second", "link", "d"] {
            let times = Timestamps {
                last_access: Timespec { tv_sec: 5, tv_nsec: 0 },
                last_modification: Timespec { tv_sec: 7, tv_nsec: 0 },
            };
            utimensat(CWD, root.join(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        temporary
    }

    #[test]
    fn equal_trees_are_equal_and_any_difference_is_named() {
        let (one, two) = (sample(), sample());
        assert_eq!(compare(one.path(), two.path()).unwrap(), 4);
        fs::write(two.path().join("d/more"), "").unwrap();
        let error = compare(one.path(), two.path()).unwrap_err().to_string();
        assert!(error.starts_with("/d in the mount differs"), "{error}");
        let three = sample();
        fs::remove_file(three.path().join("second")).unwrap();
        let error = compare(one.path(), three.path()).unwrap_err().to_string();
        assert_eq!(error, "/second is missing in the mount");
    }

    #[test]
    fn what_was_read_is_listed() {
        let temporary = sample();
        forget_accesses(temporary.path()).unwrap();
        assert!(accesses(temporary.path()).unwrap().is_empty());
        fs::read(temporary.path().join("d/first")).unwrap();
        let listed = accesses(temporary.path()).unwrap();
        // Nothing at all on a file system mounted with noatime.
        assert!(listed.is_empty() || listed == ["/d/first"], "{listed:?}");
    }
}
