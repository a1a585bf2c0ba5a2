//! Disk space of a directory.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What `st_blocks` counts in, in bytes, whatever the file system.
const BLOCK: u64 = 512;

/// What a snapshot takes, without its parents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Disk space in bytes.
    pub size: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// What a directory and all below it take; a file with several names counts once. What goes away meanwhile does not count.
///
/// # Errors
/// When a directory cannot be read.
pub(super) fn of(root: &Path) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let mut count = |metadata: &fs::Metadata| {
        if metadata.is_dir() || metadata.nlink() == 1 || linked.insert((metadata.dev(), metadata.ino())) {
            usage.size += metadata.blocks() * BLOCK;
            usage.inodes += 1;
        }
    };
    count(&fs::symlink_metadata(root)?);
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        let Some(entries) = there(fs::read_dir(&directory))? else { continue };
        for entry in entries {
            let entry = entry?;
            let Some(metadata) = there(entry.metadata())? else { continue };
            count(&metadata);
            if metadata.is_dir() {
                left.push(entry.path());
            }
        }
    }
    Ok(usage)
}

fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}
