//! Finding a path for an inode number or a device address, for log lines.

use lazo_format::{BlobIndex, FileType};

use super::{Entry, FileSystem, FsError, Ino, ROOT, Target};

/// Directories looked at before the search is given up: it serves a log line, and takes about a second then.
const MAX_DIRECTORIES: usize = 200_000;

/// A file's last block is its own to the end.
const BLOCK: u64 = super::BLOCK_SIZE as u64;

impl FileSystem {
    /// A path of the file, or of one whose data begins before `offset` of the device and goes beyond it, from `/`; lossy where it is
    /// not UTF-8.
    ///
    /// An EROFS file does not know its directory, so the tree is searched: not for the path of a request. `None` when
    /// it is not found within bounds, or the tree is damaged where it is searched.
    #[must_use]
    pub fn path_of(&self, wanted: Target, offset: u64) -> Option<String> {
        if wanted == Target::File(Ino(ROOT)) {
            return Some("/".to_owned());
        }
        // Directories found so far: the place of the parent in this list, and the name.
        let mut found: Vec<(usize, Vec<u8>, Ino)> = vec![(0, Vec::new(), Ino(ROOT))];
        let mut next = 0;
        while next < found.len().min(MAX_DIRECTORIES) {
            let directory = found[next].2;
            let mut hit = None;
            let listed = self.read_dir(directory, 0, |entry| {
                if entry.name == b"." || entry.name == b".." {
                    return Ok(true);
                }
                if self.is_target(entry, wanted, offset)? {
                    hit = Some(entry.name.to_vec());
                    return Ok(false);
                }
                if entry.file_type == FileType::Directory {
                    found.push((next, entry.name.to_vec(), entry.ino));
                }
                Ok::<_, FsError>(true)
            });
            if let Some(name) = hit {
                return Some(join(&found, next, &name));
            }
            if listed.is_err() {
                return None;
            }
            next += 1;
        }
        None
    }

    fn is_target(&self, entry: &Entry<'_>, wanted: Target, offset: u64) -> Result<bool, FsError> {
        match wanted {
            Target::File(ino) => Ok(entry.ino == ino),
            Target::Device(blob) => {
                Ok(entry.file_type == FileType::Regular && self.begins_around(entry.ino, blob, offset)?)
            }
        }
    }

    /// Whether a file's first run of data covers a device address. Files have one run, but for those with holes or shared pieces.
    fn begins_around(&self, ino: Ino, blob: BlobIndex, at: u64) -> Result<bool, FsError> {
        let inode = self.regular(ino)?;
        if inode.size == 0 {
            return Ok(false);
        }
        let run = self.image.bootstrap().extent(&inode, 0)?;
        let Some((in_blob, start)) = run.location else { return Ok(false) };
        Ok(in_blob == blob && start.0 <= at && at < start.0.saturating_add(run.length.next_multiple_of(BLOCK)))
    }
}

fn join(found: &[(usize, Vec<u8>, Ino)], mut directory: usize, name: &[u8]) -> String {
    let mut parts = vec![name];
    // Each directory was found from one before it in the list, so this ends at the root.
    while directory != 0 {
        parts.push(&found[directory].1);
        directory = found[directory].0;
    }
    let mut path = String::new();
    for part in parts.iter().rev() {
        path.push('/');
        path.push_str(&String::from_utf8_lossy(part));
    }
    path
}
