//! The note that some files were verified, and that they are still the same files.
//!
//! Whether a file is the one that was verified is told by its identity: device, inode, size, times of last change, and the
//! boot in which that was seen. Within one boot the kernel keeps these true; in a new one, after whatever happened to the
//! disk, the content is hashed again and compared with the note's BLAKE3.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::mapped::Mapped;

/// Changes when the note's meaning does; an older note is as good as none.
const VERSION: u32 = 1;

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Which file, in which boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    boot: String,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            boot: this_boot()?,
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }

    /// Whether the content is the same, whatever else about the file has changed between the two.
    pub(crate) fn is_same_content(&self, later: &Self) -> bool {
        *self == Self { changed: self.changed, ..later.clone() }
    }

    /// Whether it was seen in this boot. False too where the kernel does not say which boot this is.
    pub(crate) fn is_of_this_boot(&self) -> bool {
        this_boot().is_ok_and(|boot| boot == self.boot)
    }

    /// Whether it was certainly not seen in this boot.
    pub(crate) fn is_of_another_boot(&self) -> bool {
        this_boot().is_ok_and(|boot| boot != self.boot)
    }
}

/// Which boot this is.
///
/// # Errors
/// When the kernel does not say.
pub fn this_boot() -> io::Result<String> {
    Ok(std::fs::read_to_string(BOOT_ID)?.trim().to_owned())
}

/// One verified file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    name: String,
    identity: Identity,
    blake3: String,
}

/// The note in `verified.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    version: u32,
    files: Vec<Entry>,
}

impl Stamp {
    /// For files that have just been verified, by name in their directory.
    pub(super) fn of(files: &[(&str, &File, &Mapped)]) -> io::Result<Self> {
        let entry = |&(name, file, content): &(&str, &File, &Mapped)| {
            Ok(Entry { name: name.to_owned(), identity: Identity::of(file)?, blake3: blake3_of(content) })
        };
        Ok(Self { version: VERSION, files: files.iter().map(entry).collect::<io::Result<_>>()? })
    }

    /// The note in a file; `None` for one of another version or none at all.
    pub(super) fn read(path: &Path) -> Option<Self> {
        Self::parse(&std::fs::read(path).ok()?)
    }

    /// The note in a file's content; `None` for one of another version or none at all.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let stamp: Self = serde_json::from_slice(bytes).ok()?;
        (stamp.version == VERSION).then_some(stamp)
    }

    pub(crate) fn to_json(&self) -> io::Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(io::Error::other)
    }

    /// Whether these are the verified files: by identity, else by content. `None` when they are not; otherwise whether the
    /// content had to be looked at, so that the note should be written anew.
    pub(super) fn holds(&self, files: &[(&str, &File, &Mapped)]) -> Option<bool> {
        let mut hashed = false;
        for (name, file, content) in files {
            let entry = self.files.iter().find(|e| e.name == *name)?;
            if Identity::of(file).ok()? != entry.identity {
                hashed = true;
                if blake3_of(content) != entry.blake3 {
                    return None;
                }
            }
        }
        Some(hashed)
    }
}

fn blake3_of(content: &Mapped) -> String {
    blake3::hash(content.as_ref()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn knows_the_same_file_the_same_content_and_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        std::fs::write(&path, b"content").unwrap();
        let open = || {
            let file = File::open(&path).unwrap();
            let map = Mapped::new(&file).unwrap();
            (file, map)
        };
        let (file, map) = open();
        let stamp = Stamp::of(&[("index", &file, &map)]).unwrap();
        assert_eq!(stamp.holds(&[("index", &file, &map)]), Some(false), "the very file");
        assert_eq!(stamp.holds(&[("bootstrap", &file, &map)]), None, "a file that it does not speak of");

        let note = dir.path().join("verified.json");
        std::fs::write(&note, stamp.to_json().unwrap()).unwrap();
        assert_eq!(Stamp::read(&note), Some(stamp.clone()));

        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"content").unwrap();
        let (file, map) = open();
        assert_eq!(stamp.holds(&[("index", &file, &map)]), Some(true), "another file with the same content");

        // Same inode and size; only the times tell.
        let mut change = File::options().write(true).open(&path).unwrap();
        change.write_all(b"CONTENT").unwrap();
        let (file, map) = open();
        assert_eq!(stamp.holds(&[("index", &file, &map)]), None);
    }
}
