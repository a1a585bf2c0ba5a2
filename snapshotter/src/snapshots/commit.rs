//! `Commit`.

use std::fs;
use std::sync::Arc;

use super::create::image_of;
use super::error::Error;
use super::mounts::Base;
use super::{Labels, Snapshots, image_mount, kept, now, start};
use crate::labels;
use crate::store::{Kind, Record, Role};

/// What every bootstrap layer has, below its root.
const BOOTSTRAP_FILES: [&str; 2] = ["image/bootstrap", "image/index"];

impl Snapshots {
    /// Makes what was written under a key a layer with a name. Its labels are those given here and no others.
    ///
    /// # Errors
    /// When the key is not there or not active, the name is taken, or a bootstrap lacks its files.
    pub async fn commit(self: &Arc<Self>, name: String, key: String, labels: Labels) -> Result<(), Error> {
        let committing = self.blocking({
            let name = name.clone();
            move |snapshots| snapshots.commit_now(&name, &key, kept(labels))
        });
        let record = committing.await?;
        if let Some(image) = record.image {
            let base = Base { name, id: record.id, image };
            start(&self.mounting, Arc::clone(self).mount_ahead(base));
        }
        Ok(())
    }

    fn commit_now(&self, name: &str, key: &str, labels: Labels) -> Result<Record, Error> {
        if name.is_empty() {
            return Err(Error::NoName);
        }
        if self.store.get(name)?.is_some() {
            return Err(Error::Exists(name.to_owned()));
        }
        let found = active(key, self.store.get(key)?)?;
        if found.role() == Role::Bootstrap {
            self.check_bootstrap(key, found.id)?;
        }
        // Measured before the change begins, so that others need not wait for it.
        let usage = self.disk_usage(found.id)?;
        self.store.change(|change| {
            if change.get(name)?.is_some() {
                return Err(Error::Exists(name.to_owned()));
            }
            let mut record = active(key, change.get(key)?)?;
            record.set_kind(Kind::Committed);
            if record.role() == Role::Bootstrap && labels.contains_key(labels::IMAGE_REF) {
                record.image = Some(image_of(key, &labels)?);
            }
            record.labels = labels;
            record.owners = None;
            record.size = usage.size;
            record.inodes = usage.inodes;
            record.created = Some(now());
            record.updated = record.created;
            change.rename(key, name, &record)?;
            Ok(record)
        })
    }

    fn check_bootstrap(&self, key: &str, id: u64) -> Result<(), Error> {
        let files = self.directories.files(id);
        let missing = |path: &&str| !fs::symlink_metadata(files.join(path)).is_ok_and(|metadata| metadata.is_file());
        match BOOTSTRAP_FILES.into_iter().find(missing) {
            Some(path) => Err(Error::NoBootstrap { key: key.to_owned(), path }),
            None => Ok(()),
        }
    }

    /// Mounts an image before a container asks for it, so that what it reads first is being fetched already.
    async fn mount_ahead(self: Arc<Self>, base: Base) {
        let files = self.directories.files(base.id).join(super::IMAGE);
        if let Err(error) = self.images.mounted(&image_mount(base.id, &base.image, &files, None)).await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(image = base.image.name, error, "cannot mount an image ahead of its first container");
        }
        self.unmount_removed(base).await;
    }
}

fn active(key: &str, record: Option<Record>) -> Result<Record, Error> {
    let record = record.ok_or_else(|| Error::NotFound(key.to_owned()))?;
    if record.kind() != Kind::Active {
        return Err(Error::NotActive(key.to_owned()));
    }
    Ok(record)
}
