//! `Remove` and `Cleanup`.
//!
//! A snapshot is gone when its record is. Its mount, directory and cached data follow, one snapshot at a time, while the call has been
//! answered already: containerd removes snapshots while it lets nobody make any. `Cleanup` waits for that.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use super::error::Error;
use super::{Snapshots, locked, start};
use crate::labels;
use crate::store::{Image, Kind, Record, Role};

impl Snapshots {
    /// Removes a snapshot.
    ///
    /// # Errors
    /// When there is no such snapshot, or it has children.
    pub async fn remove(self: &Arc<Self>, key: String) -> Result<(), Error> {
        let removed = self.blocking(move |snapshots| {
            snapshots.store.change_at_last(|change| {
                let record = change.get(&key)?.ok_or_else(|| Error::NotFound(key.clone()))?;
                if change.has_children(record.id)? {
                    return Err(Error::HasChildren(key.clone()));
                }
                change.remove(&key, &record)?;
                let unused = match record.blob() {
                    Some(blob) if !change.has_blob(blob)? => Some(blob.to_owned()),
                    _ => None,
                };
                Ok((record, unused))
            })
        });
        let (record, unused) = removed.await?;
        locked(&self.unused).extend(unused);
        start(&self.clearing, Arc::clone(self).clear(record));
        Ok(())
    }

    /// Waits until what was removed takes no space any more, and removes what belongs to no snapshot.
    ///
    /// # Errors
    /// When directories or records cannot be read.
    pub async fn cleanup(self: &Arc<Self>) -> Result<(), Error> {
        let snapshots = Arc::clone(self);
        let task = tokio::spawn(async move {
            let one = snapshots.removing.lock().await;
            snapshots.release_unused().await;
            snapshots.unmount_orphans().await?;
            snapshots.blocking(Self::sweep).await?;
            snapshots.blocking(|snapshots| snapshots.store.keep_reserve()).await;
            drop(one);
            Ok(())
        });
        task.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// Begins to put right what an earlier process has left behind, but for directories, which are right already.
    pub fn begin(self: &Arc<Self>) {
        let snapshots = Arc::clone(self);
        start(&self.clearing, async move {
            if let Err(error) = snapshots.unmount_orphans().await {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot look for mounts that are left over");
            }
        });
    }

    /// Ends mounts of images that are not here any more.
    async fn unmount_orphans(self: &Arc<Self>) -> Result<(), Error> {
        for id in self.blocking(|snapshots| snapshots.orphans(snapshots.images.list())).await? {
            tracing::info!(id, "ending the mount of an image that containerd does not have any more");
            self.images.unmount(id).await;
        }
        self.forget_logins().await;
        Ok(())
    }

    /// Forgets logins of images that are not here any more, or not by this name.
    pub(crate) async fn forget_logins(self: &Arc<Self>) {
        let names = self.blocking(|snapshots| {
            let (mut names, mut images, mut layers) = (BTreeSet::new(), Vec::new(), BTreeMap::new());
            snapshots.store.each(|name, record| {
                if record.role() == Role::Bootstrap && record.kind() == Kind::Committed {
                    images.push(name.to_owned());
                }
                names.extend(record.image.iter().flat_map(Image::names));
                layers.insert(name.to_owned(), (record.parent, record.labels.get(labels::IMAGE_REF).cloned()));
            })?;
            names.extend(names_of_others(images, layers));
            Ok::<_, Error>(names)
        });
        match names.await {
            Ok(names) => self.images.retain_logins(names).await,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "kept logins cannot be looked through")
            }
        }
    }

    /// Removes what is left of a snapshot.
    async fn clear(self: Arc<Self>, record: Record) {
        let one = self.removing.lock().await;
        let image_mount = record.role() == Role::Bootstrap && record.kind() == Kind::Committed;
        if image_mount || record.owners.is_some() {
            self.images.unmount(record.id).await;
        }
        if record.role() != Role::Blob {
            self.blocking(move |snapshots| snapshots.directories.remove(record.id)).await;
        }
        self.release_unused().await;
        drop(one);
    }

    async fn release_unused(self: &Arc<Self>) {
        let unused = mem::take(&mut *locked(&self.unused));
        if !unused.is_empty() {
            self.images.release(&unused).await;
            self.forget_logins().await;
        }
    }

    /// Removes directories that belong to no snapshot.
    pub(super) fn sweep(&self) -> Result<(), Error> {
        for id in self.orphans(self.directories.list()?)? {
            tracing::debug!(id, "removing the directory of a snapshot that is not there");
            self.directories.remove(id);
        }
        Ok(())
    }

    /// Which of these numbers belong to no snapshot. They must have been listed before: a snapshot that was being made then is being
    /// made still, or has got its record.
    fn orphans(&self, listed: Vec<u64>) -> Result<Vec<u64>, Error> {
        let making: BTreeSet<u64> = locked(&self.making).clone();
        let there = self.store.ids()?;
        Ok(listed.into_iter().filter(|id| !making.contains(id) && !there.contains(id)).collect())
    }

    /// Says which snapshots have lost their directories, as may happen when a machine loses its power.
    pub(super) fn tell_lost(&self) -> Result<(), Error> {
        let there: BTreeSet<u64> = self.directories.list()?.into_iter().collect();
        self.store.each(|name, record| {
            if record.role() != Role::Blob && !there.contains(&record.id) {
                tracing::error!(
                    name,
                    id = record.id,
                    "a snapshot has lost its directory; remove its image or container"
                );
            }
        })?;
        Ok(())
    }
}

/// The names that the labels of layers have which belong to none of these images: of images that are being unpacked. A layer's label keeps the
/// name with which the layer came, whatever its image is called by now. `layers` are parents and names, by the layers' own names.
fn names_of_others(images: Vec<String>, mut layers: BTreeMap<String, (String, Option<String>)>) -> Vec<String> {
    for image in images {
        let mut next = image;
        while let Some((parent, _)) = layers.remove(&next) {
            next = parent;
        }
    }
    layers.into_values().filter_map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_belong_to_an_image_keep_no_name_alive() {
        let layers =
            [("a", "", "old"), ("b", "a", "old"), ("image", "b", "old"), ("c", "a", "new"), ("key", "c", "new")];
        let layers = layers.map(|(own, parent, name)| (own.to_owned(), (parent.to_owned(), Some(name.to_owned()))));
        assert_eq!(names_of_others(vec!["image".to_owned()], layers.clone().into()), ["new", "new"]);
        assert_eq!(names_of_others(Vec::new(), layers.into()).len(), 5);
    }
}
