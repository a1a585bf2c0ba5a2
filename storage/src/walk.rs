//! Going through a bootstrap's tree: all of it, or along one path.

use std::collections::HashSet;

use lazo_format::{BlobIndex, Bootstrap, BootstrapError, DeviceAddr, FileType, Inode, Nid};

/// Symlinks followed in one path: as many as Linux.
const MAX_LINKS: u32 = 40;
/// Longest path that a walk puts together, bytes: deeper trees cannot be opened by one path either, and a loop of
/// directories in a damaged bootstrap ends here at the latest.
const MAX_PATH: usize = 1 << 20;

/// An entry that a walk has come to.
#[derive(Debug)]
pub(crate) struct Visited<'a> {
    /// Absolute path; `/` for the root.
    pub(crate) path: &'a [u8],
    pub(crate) inode: &'a Inode,
    /// Whether another path of the walk led to this inode before.
    pub(crate) again: bool,
}

/// Visits every entry of the tree, the root first, parents before children.
///
/// Takes memory for the names of the directories on hand and for one number for each inode with several links.
///
/// # Errors
/// The first [`BootstrapError`].
pub(crate) fn walk<B: AsRef<[u8]>>(
    bootstrap: &Bootstrap<B>,
    mut visit: impl FnMut(&Visited<'_>) -> Result<(), BootstrapError>,
) -> Result<(), BootstrapError> {
    let mut linked = HashSet::new();
    let mut directories = HashSet::new();
    let mut pending = vec![(b"/".to_vec(), bootstrap.root())];
    while let Some((path, nid)) = pending.pop() {
        let inode = bootstrap.inode(nid)?;
        let directory = inode.file_type == FileType::Directory;
        let again = !directory && inode.nlink > 1 && !linked.insert(nid);
        visit(&Visited { path: &path, inode: &inode, again })?;
        if !directory {
            continue;
        }
        if !directories.insert(nid) {
            return Err(BootstrapError::Inode(nid, "the directory is reached a second time"));
        }
        let first = pending.len();
        for entry in bootstrap.read_dir(&inode, 0)? {
            let entry = entry?;
            if entry.name != b"." && entry.name != b".." {
                pending.push((join(&path, entry.name, nid)?, entry.nid));
            }
        }
        // The stack gives the last one first.
        pending[first..].reverse();
    }
    Ok(())
}

fn join(directory: &[u8], name: &[u8], nid: Nid) -> Result<Vec<u8>, BootstrapError> {
    let slash: &[u8] = if directory == b"/" { b"" } else { b"/" };
    let path = [directory, slash, name].concat();
    if path.len() > MAX_PATH { Err(BootstrapError::Inode(nid, "its path is too long")) } else { Ok(path) }
}

/// A run of a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// `None` for a hole.
    pub(crate) location: Option<(BlobIndex, DeviceAddr)>,
}

/// The runs of a regular file in order.
///
/// # Errors
/// The first [`BootstrapError`].
pub(crate) fn runs<B: AsRef<[u8]>>(
    bootstrap: &Bootstrap<B>,
    inode: &Inode,
    mut visit: impl FnMut(Run),
) -> Result<(), BootstrapError> {
    let mut offset = 0;
    while offset < inode.size {
        let run = bootstrap.extent(inode, offset)?;
        if run.length == 0 {
            return Err(BootstrapError::Inode(inode.nid, "its content ends before its size"));
        }
        visit(Run { offset, length: run.length, location: run.location });
        offset += run.length;
    }
    Ok(())
}

/// Why a path leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// A component does not exist.
    #[error("no such file or directory")]
    NotFound,
    /// A component that is not the last is neither a directory nor a symlink to one.
    #[error("a component is not a directory")]
    NotADirectory,
    /// More symlinks than the kernel would follow.
    #[error("too many levels of symbolic links")]
    Loop,
    /// The tree itself.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
}

/// Finds what a path names inside the image: symlinks on the way are followed, one at its end is not, and `..` of the
/// root is the root.
///
/// # Errors
/// [`ResolveError`].
pub(crate) fn resolve<B: AsRef<[u8]>>(bootstrap: &Bootstrap<B>, path: &[u8]) -> Result<Inode, ResolveError> {
    let mut way = vec![bootstrap.inode(bootstrap.root())?];
    let mut pending: Vec<Vec<u8>> = components(path);
    let mut links = 0;
    while let Some(name) = pending.pop() {
        let Some(here) = way.last() else { return Err(ResolveError::NotFound) };
        if here.file_type != FileType::Directory {
            return Err(ResolveError::NotADirectory);
        }
        if name == b".." {
            if way.len() > 1 {
                way.pop();
            }
            continue;
        }
        let (nid, _) = bootstrap.lookup(here, &name)?.ok_or(ResolveError::NotFound)?;
        let inode = bootstrap.inode(nid)?;
        if inode.file_type != FileType::Symlink || pending.is_empty() {
            way.push(inode);
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(ResolveError::Loop);
        }
        let target = bootstrap.read_link(&inode)?;
        if target.starts_with(b"/") {
            way.truncate(1);
        }
        pending.extend(components(target));
    }
    way.pop().ok_or(ResolveError::NotFound)
}

/// The components that lead somewhere, the last one first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.rev().map(<[u8]>::to_vec).collect()
}
