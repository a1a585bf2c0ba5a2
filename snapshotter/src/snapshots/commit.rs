//! `Commit`.

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::Arc;

use lazo_base::walk::open_below;
use lazo_format::index::{MAX_BLOB_TABLE, blob_digests};
use rustix::fs::OFlags;

use super::create::image_of;
use super::error::{Error, file};
use super::mounts::Base;
use super::{Labels, Snapshots, image_mount, kept, now, start};
use crate::caller::Caller;
use crate::labels;
use crate::store::{Kind, Record, Role};

/// What every bootstrap layer has, below its root.
const BOOTSTRAP: &str = "image/bootstrap";
const INDEX: &str = "image/index";

impl Snapshots {
    /// Makes what was written under a key a layer with a name. Its labels are those given here and no others.
    ///
    /// # Errors
    /// When the key is not there or not active, the name is taken, or a bootstrap lacks its files or is not that of the blobs below it.
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
            self.check_bootstrap(key, &found)?;
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

    /// Checks that a bootstrap is of the image whose blobs lie below it. Its files are what its layer's author has put there, so that no
    /// link is followed.
    fn check_bootstrap(&self, key: &str, record: &Record) -> Result<(), Error> {
        let files = self.directories.files(record.id);
        let root = File::open(&files).map_err(file("open", &files))?;
        let open = |path: &'static str| {
            let missing = |_: io::Error| Error::NoBootstrap { key: key.to_owned(), path };
            // What is no file is not waited for.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let opened = open_below(&root, path.as_ref(), flags).map_err(io::Error::from);
            let opened = File::from(opened.map_err(missing)?);
            let is_file = opened.metadata().map_err(missing)?.is_file();
            if is_file { Ok(opened) } else { Err(Error::NoBootstrap { key: key.to_owned(), path }) }
        };
        open(BOOTSTRAP)?;
        let mut start = Vec::new();
        open(INDEX)?.take(MAX_BLOB_TABLE as u64).read_to_end(&mut start).map_err(file("read", &files.join(INDEX)))?;
        let of_index = blob_digests(&start).map_err(|source| Error::Index { key: key.to_owned(), source })?;
        let parents = if record.parent.is_empty() { Vec::new() } else { self.store.chain(&record.parent)? };
        let below = parents.iter().rev().map(|parent| parent.blob().unwrap_or_default().to_owned());
        if below.eq(of_index.iter().map(ToString::to_string)) { Ok(()) } else { Err(Error::OtherBlobs(key.to_owned())) }
    }

    /// Mounts an image before a container asks for it, so that what it reads first is being fetched already.
    async fn mount_ahead(self: Arc<Self>, base: Base) {
        let files = self.directories.files(base.id).join(super::IMAGE);
        let mount = image_mount(base.id, base.id, &base.image, &files, None);
        if let Err(error) = self.images.mounted(&mount, &Caller::default()).await {
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
