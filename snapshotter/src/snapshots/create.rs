//! `Prepare`, `View` and `Mounts`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::blob::{self, Blob};
use super::directories::{self, Owner};
use super::error::Error;
use super::mounts::{self, Base, Lower, Mount, Upper};
use super::{IMAGE, Labels, Snapshots, image_mount, kept, now, owners};
use crate::caller::Caller;
use crate::labels;
use crate::store::{Image, Kind, Owners, Record, Role};

/// A snapshot to be made.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its key.
    pub key: String,
    /// Name of its parent, or nothing.
    pub parent: String,
    /// Its labels.
    pub labels: Labels,
    /// Who asks, and is to see what is mounted for the snapshot.
    pub caller: Caller,
}

/// What becomes of a request.
enum Plan {
    /// A blob's snapshot is made, and containerd is told that it is there.
    Blob(Box<Blob>),
    /// An ordinary one.
    Ordinary(Box<Ordinary>),
}

struct Ordinary {
    key: String,
    record: Record,
    lower: Lower,
    /// Number of the parent when the plan was made.
    parent: Option<u64>,
    caller: Caller,
}

impl Snapshots {
    /// Makes a snapshot that can be written to; gives its mounts.
    ///
    /// The blob of a lazo image is answered with [`Error::Exists`], as its snapshot is committed at once, or was there before.
    ///
    /// # Errors
    /// When the key is taken, the parent is not there or not committed, or the lazo image below cannot be mounted; then there is no
    /// such snapshot.
    pub async fn prepare(self: &Arc<Self>, request: Request) -> Result<Vec<Mount>, Error> {
        self.create(Kind::Active, request).await
    }

    /// Makes a snapshot that can only be read; gives its mounts.
    ///
    /// # Errors
    /// As for [`Self::prepare`].
    pub async fn view(self: &Arc<Self>, request: Request) -> Result<Vec<Mount>, Error> {
        self.create(Kind::View, request).await
    }

    /// The mounts of a snapshot, once more.
    ///
    /// # Errors
    /// When there is none of this key, it is committed, or the lazo image below cannot be mounted for the caller.
    pub async fn mounts(self: &Arc<Self>, key: String, caller: &Caller) -> Result<Vec<Mount>, Error> {
        let mut chain = self.store.chain(&key)?.into_iter();
        let record = chain.next().ok_or_else(|| Error::NotFound(key.clone()))?;
        if record.kind() == Kind::Committed {
            return Err(Error::Committed(key));
        }
        let lower = lower_of(&key, &record, chain.as_slice())?;
        let image = self.mounted(record.id, &lower, record.owners.as_ref(), caller).await?;
        if image.is_none() {
            return self.mounts_of(&record, &lower, image);
        }
        self.blocking(move |snapshots| snapshots.mounts_of(&record, &lower, image)).await
    }

    async fn create(self: &Arc<Self>, kind: Kind, request: Request) -> Result<Vec<Mount>, Error> {
        let snapshots = Arc::clone(self);
        // A task of its own, which nobody breaks off.
        let task = tokio::spawn(async move {
            match snapshots.plan(kind, request)? {
                Plan::Blob(plan) => Err(snapshots.add_blob(*plan).await),
                Plan::Ordinary(plan) => snapshots.make(*plan).await,
            }
        });
        task.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// Looks at what is there, and at what the labels want.
    fn plan(&self, kind: Kind, request: Request) -> Result<Plan, Error> {
        let Request { key, parent, labels, caller } = request;
        if key.is_empty() {
            return Err(Error::NoName);
        }
        if self.store.get(&key)?.is_some() {
            return Err(Error::Exists(key));
        }
        let parents = if parent.is_empty() { Vec::new() } else { self.store.chain(&parent)? };
        let top = parents.first();
        if top.is_none() && !parent.is_empty() {
            return Err(Error::NoParent(parent));
        }
        if top.is_some_and(|top| top.kind() != Kind::Committed) {
            return Err(Error::ParentNotCommitted(parent));
        }
        let mut record = Record { parent, labels: kept(labels), ..Record::default() };
        record.set_kind(kind);
        if kind == Kind::Active && record.labels.contains_key(labels::BLOB) {
            match blob::refuted(&record.labels, &record.parent) {
                None => return blob::plan(key, record, top).map(|plan| Plan::Blob(Box::new(plan))),
                Some(reason) => tracing::warn!(
                    key,
                    image = record.labels.get(labels::IMAGE_REF),
                    reason,
                    "a layer that says it is a lazo blob is taken for an ordinary one"
                ),
            }
        }
        if kind == Kind::Active && is_bootstrap(&record.labels) {
            if top.is_some_and(|top| top.role() != Role::Blob) {
                return Err(Error::BootstrapPlace(key));
            }
            record.set_role(Role::Bootstrap);
            record.image = Some(image_of(&key, &record.labels)?);
        }
        // What is unpacked has the owners that the archive says: all images with the layer share it, and its author wrote these labels.
        if !record.labels.contains_key(labels::TARGET) {
            record.owners = owners::from_labels(&record.labels)?;
        }
        let lower = lower_of(&key, &record, &parents)?;
        if lower.image.is_some() && is_remapped_copy(&key) {
            return Err(Error::RemappedCopy(key));
        }
        let parent = top.map(|top| top.id);
        Ok(Plan::Ordinary(Box::new(Ordinary { key, record, lower, parent, caller })))
    }

    async fn make(self: &Arc<Self>, plan: Ordinary) -> Result<Vec<Mount>, Error> {
        let Ordinary { key, mut record, lower, parent, caller } = plan;
        if let Some(image) = &record.image {
            self.images.warm(&image.name);
        }
        let number = self.number();
        record.id = number.id;
        let own_mount = lower.image.is_some() && record.owners.is_some();
        let base = lower.image.clone();
        let made = match self.mounted(record.id, &lower, record.owners.as_ref(), &caller).await {
            Ok(image) => self.blocking(move |snapshots| snapshots.enter(&key, record, &lower, parent, image)).await,
            Err(error) => Err(error),
        };
        if made.is_err() {
            if own_mount {
                self.images.unmount(number.id).await;
            }
            if let Some(base) = base {
                self.unmount_removed(base).await;
            }
        }
        drop(number);
        made
    }

    /// Makes the directory, then the record. If that fails, there is neither.
    fn enter(
        &self,
        key: &str,
        mut record: Record,
        lower: &Lower,
        parent: Option<u64>,
        image: Option<PathBuf>,
    ) -> Result<Vec<Mount>, Error> {
        check_parent(self.store.get(&record.parent)?.as_ref(), &record, parent)?;
        let owner = self.owner(&record, lower, image.as_deref())?;
        self.directories.make(record.id, record.kind() == Kind::Active, owner)?;
        record.created = Some(now());
        record.updated = record.created;
        let added = self.mounts_of(&record, lower, image).and_then(|mounts| {
            self.store.change(|change| {
                if change.get(key)?.is_some() {
                    return Err(Error::Exists(key.to_owned()));
                }
                check_parent(change.get(&record.parent)?.as_ref(), &record, parent)?;
                change.insert(key, &record).map_err(Error::from)
            })?;
            Ok(mounts)
        });
        if added.is_err() {
            self.directories.remove(record.id);
        }
        added
    }

    /// Makes sure that the image below a snapshot is mounted and seen; gives the path of the mount.
    async fn mounted(
        &self,
        id: u64,
        lower: &Lower,
        owners: Option<&Owners>,
        caller: &Caller,
    ) -> Result<Option<PathBuf>, Error> {
        let Some(base) = &lower.image else { return Ok(None) };
        let map = owners.map(owners::for_daemon);
        // With its own owners, a container has a mount of its own.
        let place = if map.is_some() { id } else { base.id };
        let files = self.directories.files(base.id).join(IMAGE);
        let mount = image_mount(place, id, &base.image, &files, map.as_deref());
        Ok(Some(self.images.mounted(&mount, caller).await?))
    }

    /// Ends an image's mount that was made while its snapshot was being removed.
    pub(super) async fn unmount_removed(self: &Arc<Self>, base: Base) {
        let id = base.id;
        let there = self.blocking(move |snapshots| snapshots.store.get(&base.name)).await;
        if there.is_ok_and(|there| there.is_none_or(|there| there.id != id)) {
            self.images.unmount(id).await;
        }
    }

    /// The root directory of a snapshot belongs to whom that of its parent belongs to, or to the root of its user namespace.
    fn owner(&self, record: &Record, lower: &Lower, image: Option<&Path>) -> Result<Option<Owner>, Error> {
        if let Some(owners) = &record.owners {
            return owners::root(owners).map(Some);
        }
        match (lower.plain.first(), image) {
            (Some(top), _) => directories::owner(&self.directories.files(*top)).map(Some),
            (None, Some(image)) => directories::owner(image).map(Some),
            (None, None) => Ok(None),
        }
    }

    fn mounts_of(&self, record: &Record, lower: &Lower, image: Option<PathBuf>) -> Result<Vec<Mount>, Error> {
        let id = record.id;
        let writable = record.kind() == Kind::Active;
        let upper = writable.then(|| Upper { files: self.directories.files(id), work: self.directories.work(id) });
        let mut layers: Vec<PathBuf> = lower.plain.iter().map(|id| self.directories.files(*id)).collect();
        // An image's mount has its owners shifted already. Where there are layers above it too, containerd shifts those, by a clone of
        // the file system that they are in; the link in there leads to the image's mount just the same.
        let owners = record.owners.as_ref().filter(|_| image.is_none() || !lower.plain.is_empty());
        if let Some((base, mount)) = lower.image.as_ref().zip(image) {
            let holder = if record.owners.is_some() { id } else { base.id };
            layers.push(self.directories.link(holder, &mount)?);
        }
        if layers.is_empty() {
            return Ok(vec![mounts::bind(&self.directories.files(id), writable, owners)]);
        }
        Ok(vec![mounts::stacked(upper.as_ref(), &layers, owners, &self.overlay_options)])
    }
}

/// What the labels of a layer say about its image.
pub(super) fn image_of(key: &str, labels: &Labels) -> Result<Image, Error> {
    let name = labels.get(labels::IMAGE_REF).ok_or_else(|| Error::NoImage(key.to_owned()))?;
    let direct_io = labels.get(labels::DIRECT_IO).is_some_and(|value| value == labels::YES);
    let manifest = labels.get(labels::MANIFEST_DIGEST).cloned();
    Ok(Image { name: name.clone(), manifest, direct_io, also: Vec::new() })
}

/// Whether a bootstrap layer is to be unpacked. Who makes a container has a say in its labels, but none that it is an unpacking.
fn is_bootstrap(labels: &Labels) -> bool {
    labels.contains_key(labels::BOOTSTRAP) && labels.contains_key(labels::TARGET)
}

/// Whether containerd wants to change the owners of all files, as it does for user namespaces on behalf of a snapshotter that cannot
/// shift them: the key is that of the copy, made from the parent's name or a digest.
fn is_remapped_copy(key: &str) -> bool {
    let name = key.rsplit('/').next().unwrap_or_default();
    name.starts_with("sha256:") && name.ends_with("-remap")
}

fn lower_of(key: &str, record: &Record, parents: &[Record]) -> Result<Lower, Error> {
    match record.role() {
        // Unpacked by itself: what its blobs hold is not to be seen in it.
        Role::Bootstrap => Ok(Lower::default()),
        _ => Lower::of(key, &record.parent, parents),
    }
}

/// The parent may have been removed since it was looked at.
pub(super) fn check_parent(now: Option<&Record>, record: &Record, before: Option<u64>) -> Result<(), Error> {
    if now.map(|parent| parent.id) == before { Ok(()) } else { Err(Error::NoParent(record.parent.clone())) }
}
