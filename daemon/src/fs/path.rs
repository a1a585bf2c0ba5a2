//! Finding a path for an inode number, for log lines.

use super::{FileSystem, FsError, Ino, ROOT};

/// Directories looked at before the search is given up: it serves a log line, and takes about a second then.
const MAX_DIRECTORIES: usize = 200_000;

impl FileSystem {
    /// A path by which a file is reached, from `/`; lossy where it is not UTF-8.
    ///
    /// An EROFS file does not know its directory, so the tree is searched: not for the path of a request. `None` when
    /// it is not found within bounds, or the tree is damaged where it is searched.
    #[must_use]
    pub fn path_of(&self, wanted: Ino) -> Option<String> {
        if wanted.0 == ROOT {
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
                if entry.ino == wanted {
                    hit = Some(entry.name.to_vec());
                    return Ok(false);
                }
                if entry.file_type == lazo_format::FileType::Directory {
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
