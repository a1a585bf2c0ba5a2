//! The note that an image's files were verified and validated, and that they are still the same files.
//!
//! Whether a file is the one that was verified is told by its identity: device, inode, size, times of last change, and the
//! boot in which that was seen. Within one boot the kernel keeps these true; in a new one, after whatever happened to the
//! disk, the content is hashed again and compared with the note's BLAKE3.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use lazo_format::Digest;
use serde::{Deserialize, Serialize};

use super::verify::Verified;
use crate::mapped::Mapped;
use crate::table::Table;

/// Changes when the note's meaning does. One of a later version is as good as none.
const VERSION: u32 = 2;

/// Notes of this version say what the content is, but not that anybody has validated it.
const HASHED_ONLY: u32 = 1;

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
    /// Digest by which the image is kept.
    #[serde(default)]
    image: String,
    /// Digests of its blobs' tables.
    #[serde(default)]
    tables: Box<[Table]>,
    files: Vec<Entry>,
}

/// What a note says about files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// They are the very files.
    Same,
    /// They have the same content, which had to be looked at: the note should be written anew.
    Equal,
}

impl Stamp {
    /// For the files of an image, by name in their directory, that have just been verified.
    pub(super) fn of(image: &Digest, files: [(&str, &File); 2], verified: Verified) -> io::Result<Self> {
        let entry = |((name, file), blake3): ((&str, &File), String)| {
            Ok(Entry { name: name.to_owned(), identity: Identity::of(file)?, blake3 })
        };
        let files = files.into_iter().zip(verified.digests).map(entry).collect::<io::Result<_>>()?;
        Ok(Self { version: VERSION, image: image.to_string(), tables: verified.tables, files })
    }

    /// The note in a file; `None` for one of a later version or none at all.
    pub(super) fn read(path: &Path) -> Option<Self> {
        Self::parse(&std::fs::read(path).ok()?)
    }

    /// The note in a file's content; `None` for one of another version or none at all.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let stamp: Self = serde_json::from_slice(bytes).ok()?;
        (HASHED_ONLY..=VERSION).contains(&stamp.version).then_some(stamp)
    }

    pub(crate) fn to_json(&self) -> io::Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(io::Error::other)
    }

    /// Whether the files were validated, as those of this image.
    pub(super) fn is_validated(&self, image: &Digest) -> bool {
        self.version == VERSION && self.image == image.to_string()
    }

    /// Digests of the blobs' tables.
    pub(super) fn tables(&self) -> Box<[Table]> {
        self.tables.clone()
    }

    /// The same note for the files as they are now, whose content is what it was.
    pub(super) fn renewed(mut self, files: &[(&str, &File, &Mapped)]) -> io::Result<Self> {
        for (name, file, _) in files {
            for entry in self.files.iter_mut().filter(|entry| entry.name == *name) {
                entry.identity = Identity::of(file)?;
            }
        }
        Ok(self)
    }

    /// Whether these are the verified files: by identity, else by content. `None` when they are not.
    pub(super) fn holds(&self, files: &[(&str, &File, &Mapped)]) -> Option<Holds> {
        let mut holds = Holds::Same;
        for (name, file, content) in files {
            let entry = self.files.iter().find(|e| e.name == *name)?;
            if Identity::of(file).ok()? != entry.identity {
                holds = Holds::Equal;
                if content.blake3().to_hex().as_str() != entry.blake3 {
                    return None;
                }
            }
        }
        Some(holds)
    }
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
        let other_path = dir.path().join("other");
        std::fs::write(&other_path, b"other").unwrap();
        let other = File::open(&other_path).unwrap();
        let image = Digest::sha256_of(b"image");
        let digests = [map.blake3(), blake3::hash(b"other")].map(|digest| digest.to_hex().to_string());
        let verified = Verified { digests, tables: ["t".to_owned()].into() };
        let stamp = Stamp::of(&image, [("index", &file), ("other", &other)], verified).unwrap();
        assert_eq!(stamp.holds(&[("index", &file, &map)]), Some(Holds::Same), "the very file");
        assert_eq!(stamp.holds(&[("bootstrap", &file, &map)]), None, "a file that it does not speak of");
        assert!(stamp.is_validated(&image) && !stamp.is_validated(&Digest::sha256_of(b"another")));

        let note = dir.path().join("verified.json");
        std::fs::write(&note, stamp.to_json().unwrap()).unwrap();
        assert_eq!(Stamp::read(&note), Some(stamp.clone()));
        // As the version before wrote it: it tells the content, and that nobody has validated it.
        let text = String::from_utf8(stamp.to_json().unwrap()).unwrap();
        std::fs::write(&note, text.replace("\"version\":2", "\"version\":1")).unwrap();
        let old = Stamp::read(&note).unwrap();
        assert_eq!(old.holds(&[("index", &file, &map)]), Some(Holds::Same));
        assert!(!old.is_validated(&image));
        std::fs::write(&note, text.replace("\"version\":2", "\"version\":3")).unwrap();
        assert_eq!(Stamp::read(&note), None);

        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"content").unwrap();
        let (file, map) = open();
        assert_eq!(stamp.holds(&[("index", &file, &map)]), Some(Holds::Equal), "another file with the same content");
        let renewed = stamp.clone().renewed(&[("index", &file, &map)]).unwrap();
        assert_eq!(renewed.holds(&[("index", &file, &map)]), Some(Holds::Same));
        assert!(renewed.is_validated(&image) && renewed.tables() == stamp.tables());

        // Same inode and size; only the times tell.
        let mut change = File::options().write(true).open(&path).unwrap();
        change.write_all(b"CONTENT").unwrap();
        let (file, map) = open();
        assert_eq!(stamp.holds(&[("index", &file, &map)]), None);
    }
}
