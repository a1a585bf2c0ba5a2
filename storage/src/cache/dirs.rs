//! The blobs' directories as they lie in `STATE/blobs`, whoever uses them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::files::{DATA, LOCK, READY, WHOLE, disk_bytes, open_or_make};
use super::lock::{self, Kind};

/// Begins the names of directories that are being removed, of blobs and of images. What is left of the latter goes with images
/// that were left half made.
const GONE: &str = ".gone-";
pub(super) const IMAGE_GONE: &str = ".tmp-gone-";

/// A blob's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dir {
    pub(super) path: PathBuf,
    pub(super) name: String,
    /// Real disk space of its files.
    pub(super) disk: u64,
    pub(super) last_used: SystemTime,
}

/// All blobs' directories. One that vanishes meanwhile is left out, and so is what is no blob's.
pub(super) fn scan(blobs: &Path) -> io::Result<Vec<Dir>> {
    let entries = match fs::read_dir(blobs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut dirs = Vec::new();
    for entry in entries {
        let Ok(entry) = entry else { continue };
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        let metadata = |file: &str| fs::metadata(path.join(file)).ok();
        let (data, ready, lock) = (metadata(DATA), metadata(READY), metadata(LOCK));
        let disk = [&data, &ready].into_iter().flatten().map(disk_bytes).sum();
        let used = lock.or(ready).or(data).and_then(|m| m.modified().ok());
        dirs.push(Dir { path, name, disk, last_used: used.unwrap_or(SystemTime::UNIX_EPOCH) });
    }
    Ok(dirs)
}

/// Whether a process uses a blob's directory.
pub(super) fn is_used(dir: &Path) -> bool {
    File::open(dir.join(LOCK)).and_then(|file| lock::is_locked(&file, WHOLE)).unwrap_or(false)
}

/// Removes a blob's directory, unless a process uses it: false then.
pub(super) fn remove(dir: &Path) -> io::Result<bool> {
    let lock_path = dir.join(LOCK);
    let file = match open_or_make(&lock_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    if !lock::try_lock(&file, WHOLE, Kind::Exclusive)? {
        return Ok(false);
    }
    if !is_linked(&file, &lock_path) {
        return Ok(false);
    }
    remove_at_once(dir, GONE)?;
    Ok(true)
}

/// Moves a directory out of the way in one step, so that whoever opens it from now on makes a new one; then removes it.
pub(super) fn remove_at_once(dir: &Path, prefix: &str) -> io::Result<()> {
    let gone = dir.with_file_name(gone_name(prefix));
    fs::rename(dir, &gone)?;
    remove_all(&gone)
}

/// Removes what processes that were killed have left half removed.
pub(super) fn remove_leftovers(blobs: &Path) {
    let entries = fs::read_dir(blobs).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(GONE)) {
        if let Err(error) = remove_all(&entry.path()) {
            tracing::warn!(dir = %entry.path().display(), %error, "cannot remove what an eviction has left");
        }
    }
}

fn remove_all(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        // Somebody else has removed it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn is_linked(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

/// A name that nobody else uses: processes of other PID namespaces may share the directory.
fn gone_name(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{prefix}{}-{}-{}", std::process::id(), now.as_nanos(), NEXT.fetch_add(1, Ordering::Relaxed))
}
