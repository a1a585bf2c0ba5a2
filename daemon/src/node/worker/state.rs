//! What is served, on disk: for the worker that comes after this one.
//!
//! ```text
//! RUN/daemon/images/<slot>.json   an image in the kernel, and where its data comes from
//! RUN/daemon/mounts/<id>.json     a mount of it
//! RUN/daemon/next                 the next slot or id: none is used twice, as the kernel remembers the files that it has seen
//! ```
//! A record is written before its mount is made, and removed after that has ended; so each mount has a record, and a
//! record without a mount is one of a mount that was never finished. Nothing is synced: a reboot takes the mounts as well.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use lazo_storage::this_boot;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::node::protocol::{Prefetch, RegistryOptions, Served, Writable};
use crate::private;

/// Version of the records. It grows when an older worker could not serve what a newer one has written; each reads all older ones.
const VERSION: u32 = 1;

/// An image in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    pub(super) slot: u32,
    /// As the first request named it, with absolute paths.
    pub(super) image: String,
    /// Digest of its manifest.
    pub(super) manifest: String,
    pub(super) platform: String,
    pub(super) mode: Served,
    pub(super) data: DataOptions,
    /// By what it was asked for, in the order in which its sources are asked. Older versions know the first only, which is in
    /// `image` and `data`, too; and records of theirs have none here.
    #[serde(default)]
    pub(super) references: Vec<Reference>,
    /// Blobs whose cache files the kernel reads itself.
    #[serde(default)]
    pub(super) plain: Vec<u16>,
    /// Where the kernel shows it below `/sys/fs` as long as anybody uses it.
    #[serde(default)]
    pub(super) sysfs: Option<String>,
    /// Of a FUSE tree: the kernel's number of its connection, by which it can be ended when it is mounted nowhere any more.
    #[serde(default)]
    pub(super) connection: Option<u32>,
    /// Where mounts of it were that have ended. Copies of them, as overlays have, may live.
    #[serde(default)]
    pub(super) left: Vec<PathBuf>,
}

/// One of the names by which an image was asked for: a source of its blobs, with a login of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reference {
    /// As it was requested, with absolute paths.
    pub(super) image: String,
    #[serde(default)]
    pub(super) registry: RegistryOptions,
    /// When it was last asked for, seconds since 1970.
    #[serde(default)]
    pub(super) used: u64,
}

/// Where an image's data comes from, as requested. Mounts with equal ones share the image. How registries are
/// reached may differ if there are no sources besides the image's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DataOptions {
    #[serde(default)]
    pub(super) sources: Vec<String>,
    #[serde(default)]
    pub(super) outage_limit: Option<u64>,
    #[serde(default)]
    pub(super) prefetch: Option<Prefetch>,
    #[serde(default)]
    pub(super) registry: RegistryOptions,
}

/// A mount of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MountRecord {
    pub(super) id: u32,
    pub(super) slot: u32,
    pub(super) mount_point: PathBuf,
    pub(super) image: String,
    /// Names that the image has besides, which this mount holds.
    #[serde(default)]
    pub(super) also: Vec<String>,
    #[serde(default)]
    pub(super) registry: RegistryOptions,
    #[serde(default)]
    pub(super) writable: Option<Writable>,
    #[serde(default)]
    pub(super) map: Option<String>,
    #[serde(default)]
    pub(super) nosuid: bool,
    #[serde(default)]
    pub(super) nodev: bool,
    #[serde(default)]
    pub(super) noexec: bool,
    /// Who asked for it: a user's number.
    #[serde(default)]
    pub(super) user: u32,
    /// Seconds since 1970.
    pub(super) since: u64,
}

impl ImageRecord {
    /// By what it was asked for. The first is what older versions know.
    pub(super) fn references(&self) -> Vec<Reference> {
        if self.references.is_empty() {
            return vec![Reference { image: self.image.clone(), registry: self.data.registry.clone(), used: 0 }];
        }
        self.references.clone()
    }

    /// Sets by what it was asked for.
    pub(super) fn refer(&mut self, references: Vec<Reference>) {
        if let Some(first) = references.first() {
            self.image.clone_from(&first.image);
            self.data.registry.clone_from(&first.registry);
            self.references = references;
        }
    }
}

impl MountRecord {
    /// The names that it holds of its image.
    pub(super) fn references(&self) -> Vec<Reference> {
        let names = std::iter::once(&self.image).chain(&self.also);
        let reference =
            |image: &String| Reference { image: image.clone(), registry: self.registry.clone(), used: self.since };
        names.map(reference).collect()
    }
}

/// A record that has a number.
pub(super) trait Numbered: Serialize + DeserializeOwned {
    /// Its directory.
    const KIND: &'static str;
    fn number(&self) -> u32;
}

impl Numbered for ImageRecord {
    const KIND: &'static str = "images";
    fn number(&self) -> u32 {
        self.slot
    }
}

impl Numbered for MountRecord {
    const KIND: &'static str = "mounts";
    fn number(&self) -> u32 {
        self.id
    }
}

/// A record as it is written.
#[derive(Serialize, Deserialize)]
pub(super) struct Stamped<T> {
    version: u32,
    boot: String,
    pub(super) record: T,
}

impl<T: Numbered> Stamped<T> {
    /// From the content of a file.
    pub(super) fn parse(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }
}

/// The records.
#[derive(Debug)]
pub(super) struct State {
    dir: PathBuf,
    boot: String,
    next: Mutex<u32>,
}

impl State {
    /// Opens or makes the directory below the run directory.
    pub(super) fn open(run_dir: &Path) -> io::Result<Self> {
        let dir = run_dir.join("daemon");
        for kind in [ImageRecord::KIND, MountRecord::KIND] {
            private::make_private_dir(&dir.join(kind))?;
        }
        let next = fs::read_to_string(dir.join("next")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1);
        Ok(Self { dir, boot: this_boot()?, next: Mutex::new(next) })
    }

    /// A number that no image or mount has had.
    pub(super) fn number(&self) -> io::Result<u32> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let number = *next;
        let after = number.checked_add(1).ok_or_else(|| io::Error::other("all numbers for mounts are used up"))?;
        self.write(&self.dir.join("next"), after.to_string().as_bytes())?;
        *next = after;
        Ok(number)
    }

    pub(super) fn save<T: Numbered>(&self, record: &T) -> io::Result<()> {
        let stamped = Stamped { version: VERSION, boot: self.boot.clone(), record };
        self.write(&self.path::<T>(record.number()), &serde_json::to_vec(&stamped)?)
    }

    pub(super) fn remove<T: Numbered>(&self, number: u32) {
        let path = self.path::<T>(number);
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove a record");
        }
    }

    /// All records of this boot. Others are removed: what they tell of is gone. What cannot be read is left alone, and said.
    pub(super) fn load<T: Numbered>(&self) -> io::Result<Vec<T>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(self.dir.join(T::KIND))? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                // Half-written, by a worker that was killed.
                let _ = fs::remove_file(&path);
                continue;
            }
            let read = fs::read(&path).and_then(|bytes| Ok(Stamped::<T>::parse(&bytes)?));
            match read {
                Ok(stamped) if stamped.version > VERSION => {
                    tracing::error!(path = %path.display(), version = stamped.version, "a record of a newer lazo is not understood");
                }
                Ok(stamped) if stamped.boot != self.boot => {
                    let _ = fs::remove_file(&path);
                }
                Ok(stamped) => records.push(stamped.record),
                Err(error) => tracing::error!(path = %path.display(), %error, "a record cannot be read"),
            }
        }
        records.sort_by_key(Numbered::number);
        Ok(records)
    }

    fn path<T: Numbered>(&self, number: u32) -> PathBuf {
        self.dir.join(T::KIND).join(format!("{number}.json"))
    }

    /// So that there is the old content or the new one, whenever this process is killed.
    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let new = path.with_extension("new");
        let mut file = private::create_file(&new)?;
        file.write_all(content)?;
        fs::rename(&new, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(id: u32) -> MountRecord {
        MountRecord {
            id,
            slot: 1,
            mount_point: "/mnt/a".into(),
            image: "h/r:t".into(),
            also: Vec::new(),
            registry: RegistryOptions::default(),
            writable: Some(Writable::Tmpfs { size: None }),
            map: None,
            nosuid: true,
            nodev: false,
            noexec: false,
            user: 0,
            since: 7,
        }
    }

    #[test]
    fn records_outlive_a_worker_and_numbers_are_not_used_twice() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let (first, second) = (state.number().unwrap(), state.number().unwrap());
        state.save(&mount(second)).unwrap();
        state.save(&mount(first)).unwrap();
        let later = State::open(dir.path()).unwrap();
        assert_eq!(later.load::<MountRecord>().unwrap(), [mount(first), mount(second)]);
        later.remove::<MountRecord>(first);
        assert_eq!(later.load::<MountRecord>().unwrap(), [mount(second)]);
        assert!(later.load::<ImageRecord>().unwrap().is_empty());
        assert!(later.number().unwrap() > second);
    }

    #[test]
    fn records_of_this_version_stay_readable() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let boot = this_boot().unwrap();
        let text = format!(
            r#"{{"version":1,"boot":"{}","record":{{"id":5,"slot":1,"mount_point":"/mnt/a","image":"h/r:t",
                "writable":{{"tmpfs":{{"size":null}}}},"nosuid":true,"since":7}}}}"#,
            boot.trim()
        );
        fs::write(dir.path().join("daemon/mounts/5.json"), text).unwrap();
        assert_eq!(state.load::<MountRecord>().unwrap(), [mount(5)]);
    }

    #[test]
    fn an_image_has_the_names_that_older_and_newer_records_say() {
        let old = r#"{"slot":1,"image":"a.example/r","manifest":"sha256:0","platform":"linux/amd64","mode":"fuse",
            "data":{"registry":{"plain_http":true}}}"#;
        let mut record: ImageRecord = serde_json::from_str(old).unwrap();
        let registry = RegistryOptions { plain_http: true, ..RegistryOptions::default() };
        let first = Reference { image: "a.example/r".into(), registry, used: 0 };
        assert_eq!(record.references(), std::slice::from_ref(&first));
        let second = Reference { image: "b.example/r".into(), registry: RegistryOptions::default(), used: 7 };
        record.refer(vec![second.clone(), first]);
        let again: ImageRecord = serde_json::from_slice(&serde_json::to_vec(&record).unwrap()).unwrap();
        assert_eq!(again.references(), record.references());
        assert_eq!((&again.image, &again.data.registry), (&second.image, &second.registry), "for older versions");
        record.refer(Vec::new());
        assert_eq!(record.references().len(), 2, "one always stays");
    }

    #[test]
    fn stale_foreign_and_broken_records_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        state.save(&mount(1)).unwrap();
        let mounts = dir.path().join("daemon/mounts");
        let text = fs::read_to_string(mounts.join("1.json")).unwrap();
        fs::write(mounts.join("2.json"), text.replace(&state.boot, "an earlier boot")).unwrap();
        fs::write(mounts.join("3.json"), text.replace("\"version\":1", "\"version\":2")).unwrap();
        fs::write(mounts.join("4.json"), &text[..20]).unwrap();
        fs::write(mounts.join("5.new"), &text[..20]).unwrap();
        assert_eq!(state.load::<MountRecord>().unwrap(), [mount(1)]);
        assert!(!mounts.join("2.json").exists() && !mounts.join("5.new").exists());
        assert!(mounts.join("3.json").exists() && mounts.join("4.json").exists());
    }
}
