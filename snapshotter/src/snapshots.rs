//! The core: snapshots as containerd expects them of a snapshotter, and lazo images among them.
//!
//! Ordinary layers are directories that overlayfs stacks. Of a lazo image, the blobs are snapshots without files, which containerd is
//! told are there already, so that it never fetches them; the bootstrap above them is unpacked as usual and stands for the whole image:
//! what containers have as their lowest layer is the image's mount.
//!
//! A call that changes something goes on to its end even if its caller goes away. The order in which directories, mounts and records
//! are made and removed is such that what a crash leaves behind has no record, and is swept at the next start or `Cleanup`.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use prost_types::Timestamp;
use tokio::task::JoinSet;

use self::directories::Directories;
use crate::filter::{Fields, Filter};
use crate::images::{ImageMount, Images};
use crate::store::{Image, Kind, Record, Store};

mod blob;
mod commit;
mod create;
mod directories;
mod error;
mod mounts;
mod names;
pub(crate) mod owners;
mod removal;
mod remove;
mod usage;

pub use self::create::Request;
pub use self::error::Error;
pub use self::mounts::Mount;
pub use self::usage::Usage;

/// Labels of a snapshot.
pub type Labels = BTreeMap<String, String>;

/// Name of the database, below the directory of snapshots.
const METADATA: &str = "metadata.redb";

/// Where a bootstrap layer has its files, below its root.
const IMAGE: &str = "image";

/// What is told about a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct Info {
    /// Its name or key.
    pub name: String,
    /// Its parent's, or nothing.
    pub parent: String,
    /// Where it is in its life.
    pub kind: Kind,
    /// When it was prepared or committed.
    pub created: Option<Timestamp>,
    /// When its labels were last changed.
    pub updated: Option<Timestamp>,
    /// Its labels.
    pub labels: Labels,
}

impl Info {
    fn of(name: &str, record: Record) -> Self {
        Self {
            name: name.to_owned(),
            kind: record.kind(),
            parent: record.parent,
            created: record.created,
            updated: record.updated,
            labels: record.labels,
        }
    }

    fn fields(&self) -> Fields<'_> {
        let kind = match self.kind {
            Kind::View => "view",
            Kind::Active => "active",
            Kind::Committed => "committed",
            Kind::Unknown => "",
        };
        Fields { name: &self.name, parent: &self.parent, kind, labels: &self.labels }
    }
}

/// All snapshots.
pub struct Snapshots {
    store: Store,
    directories: Directories,
    images: Images,
    overlay_options: Vec<String>,
    /// The next snapshot's number.
    next: AtomicU64,
    /// Numbers of snapshots that are being made, and may have a directory and a mount, but no record yet.
    making: Mutex<BTreeSet<u64>>,
    /// Held by who removes directories: one at a time, so that they do not take all the disk's time.
    removing: tokio::sync::Mutex<()>,
    /// Blobs whose last snapshot was removed, which the cache has not been told yet.
    unused: Mutex<BTreeSet<String>>,
    /// Work on what was removed, which goes on after its calls were answered.
    clearing: Mutex<JoinSet<()>>,
    /// Mounts of images that nobody has asked for yet.
    mounting: Mutex<JoinSet<()>>,
}

impl Snapshots {
    /// Opens those in a directory, which is made if it is not there. Directories without a record are removed.
    ///
    /// # Errors
    /// When the directory or the database in it cannot be used, above all while another process does.
    pub fn open(root: &Path, images: Images) -> Result<Arc<Self>, Error> {
        let directories = Directories::open(root)?;
        let store = Store::open(&directories.root().join(METADATA))?;
        let snapshots = Self {
            next: AtomicU64::new(store.next()?),
            store,
            directories,
            images,
            overlay_options: mounts::overlay_options(),
            making: Mutex::default(),
            removing: tokio::sync::Mutex::default(),
            unused: Mutex::default(),
            clearing: Mutex::default(),
            mounting: Mutex::default(),
        };
        snapshots.sweep()?;
        snapshots.tell_lost()?;
        Ok(Arc::new(snapshots))
    }

    /// What is known about a snapshot.
    ///
    /// # Errors
    /// When there is none of this name.
    pub async fn stat(&self, name: String) -> Result<Info, Error> {
        let record = self.store.get(&name)?.ok_or_else(|| Error::NotFound(name.clone()))?;
        Ok(Info::of(&name, record))
    }

    /// Changes labels. `paths` are `labels` for all, or `labels.KEY` for one; without any, all are replaced. A label that is empty, or
    /// named but not given, is removed.
    ///
    /// # Errors
    /// When there is no such snapshot, or another path is given.
    pub async fn update(self: &Arc<Self>, name: String, labels: Labels, paths: Vec<String>) -> Result<Info, Error> {
        self.blocking(move |snapshots| {
            snapshots.store.change(|change| {
                let mut record = change.get(&name)?.ok_or_else(|| Error::NotFound(name.clone()))?;
                if paths.is_empty() {
                    record.labels.clone_from(&labels);
                }
                for path in &paths {
                    match path.strip_prefix("labels.") {
                        Some(key) => {
                            let value = labels.get(key).cloned().unwrap_or_default();
                            record.labels.insert(key.to_owned(), value);
                        }
                        None if path == "labels" => record.labels.clone_from(&labels),
                        None => return Err(Error::Immutable(path.clone())),
                    }
                }
                record.labels = kept(record.labels);
                record.updated = Some(now());
                change.put(&name, &record)?;
                Ok(Info::of(&name, record))
            })
        })
        .await
    }

    /// What a snapshot takes on the disk, without its parents. That of a committed one never changes: it is the one that it had when it
    /// was committed. A blob's is nothing, as what has been fetched of it is in the cache, changes all the time, and belongs to
    /// all images that have the blob.
    ///
    /// # Errors
    /// When there is none of this name, or its directory cannot be read.
    pub async fn usage(self: &Arc<Self>, name: String) -> Result<Usage, Error> {
        self.blocking(move |snapshots| {
            let record = snapshots.store.get(&name)?.ok_or_else(|| Error::NotFound(name.clone()))?;
            match record.kind() {
                Kind::Active => snapshots.disk_usage(record.id),
                _ => Ok(Usage { size: record.size, inodes: record.inodes }),
            }
        })
        .await
    }

    /// All snapshots that any of these filters matches, or all, in the order of their names.
    ///
    /// # Errors
    /// When a filter cannot be understood.
    pub async fn list(self: &Arc<Self>, filters: Vec<String>) -> Result<Vec<Info>, Error> {
        let filter = Filter::parse(&filters)?;
        self.blocking(move |snapshots| {
            let mut list = Vec::new();
            snapshots.store.each(|name, record| {
                let info = Info::of(name, record);
                if filter.matches(&info.fields()) {
                    list.push(info);
                }
            })?;
            Ok(list)
        })
        .await
    }

    /// Waits for work that went on after its calls were answered, so that another process can go on from here.
    pub async fn settle(&self) {
        let mounting = mem::take(&mut *locked(&self.mounting));
        drop(mounting);
        let clearing = mem::take(&mut *locked(&self.clearing));
        clearing.join_all().await;
    }

    fn disk_usage(&self, id: u64) -> Result<Usage, Error> {
        let path = self.directories.files(id);
        usage::of(&path).map_err(error::file("measure", &path))
    }

    /// Runs what waits for the disk where that holds up nobody. It is not broken off when the caller goes away.
    ///
    /// Looking up a few records is not worth it: they come from memory, and do not wait for changes.
    async fn blocking<T: Send + 'static>(self: &Arc<Self>, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let snapshots = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&snapshots)).await;
        done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// A number that no other snapshot has or will have.
    fn number(self: &Arc<Self>) -> Number {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        locked(&self.making).insert(id);
        Number { id, snapshots: Arc::clone(self) }
    }
}

/// The number of a snapshot that is being made.
struct Number {
    id: u64,
    snapshots: Arc<Snapshots>,
}

impl Drop for Number {
    fn drop(&mut self) {
        locked(&self.snapshots.making).remove(&self.id);
    }
}

/// Nothing that holds one of these locks can leave things half done.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds a task to those that are under way.
fn start(tasks: &Mutex<JoinSet<()>>, task: impl Future<Output = ()> + Send + 'static) {
    let mut tasks = locked(tasks);
    while tasks.try_join_next().is_some() {}
    tasks.spawn(task);
}

/// Labels as they are stored: an empty one is none.
fn kept(labels: Labels) -> Labels {
    labels.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

/// An order to mount an image for a snapshot.
fn image_mount<'a>(id: u64, snapshot: u64, image: &'a Image, files: &'a Path, map: Option<&'a str>) -> ImageMount<'a> {
    let Image { name, manifest, direct_io, also } = image;
    let manifest = manifest.as_deref();
    ImageMount { id, snapshot, image: name, also, manifest, files, map, direct_io: *direct_io }
}
