//! Images in the kernel: made with their first mount, ended after the last.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;

use lazo_format::BlobIndex;
use lazo_storage::PlainBlob;
use tokio::sync::oneshot;

use super::{refused, strange};
use crate::fs::FileSystem;
use crate::fuse::{Answerer, Fuse};
use crate::kernel::READ_AHEAD_KIB;
use crate::node::files;
use crate::node::mounter::{Answer, Order};
use crate::node::protocol::{ApiError, ErrorKind, Served};
use crate::node::worker::image::{Image, Opened, Wanted};
use crate::node::worker::state::{ImageRecord, Reference};
use crate::node::worker::{Worker, blobs};
use crate::session;

/// Threads that take requests for one FUSE tree. A node may have hundreds of trees, and misses do not occupy a thread.
pub(in crate::node::worker) const TREE_THREADS: usize = 2;

/// What was made of an image in the kernel.
struct Made {
    sysfs: Option<String>,
    connection: Option<u32>,
    plain: Vec<(BlobIndex, PlainBlob)>,
}

/// A FUSE mount that is served.
pub(in crate::node::worker) struct FuseMount {
    /// Hears of its end.
    pub(in crate::node::worker) ended: oneshot::Receiver<std::io::Result<()>>,
    /// The kernel's number of the connection.
    pub(in crate::node::worker) connection: Option<u32>,
}

impl Worker {
    /// An image in the kernel, made if there is none like it, with one more mount.
    pub(super) async fn take_image(
        self: &Arc<Self>,
        wanted: Wanted,
        mode: Served,
        mut opened: Opened,
    ) -> Result<u32, ApiError> {
        let manifest = opened.image.manifest_digest().to_string();
        let key = Image::key(&manifest, mode, &wanted.data, !self.sources.is_empty());
        let lock = Arc::clone(self.tables().making.entry(key.clone()).or_default());
        let held = lock.lock().await;
        let result = match self.join_image(&key, &mut opened) {
            Some(slot) => Ok(slot),
            None => self.make_image(wanted, manifest, mode, opened, key.clone()).await,
        };
        drop(held);
        self.forget_lock(&key, &lock);
        result
    }

    /// An image that is served already. The names by which it is asked for now are sources of it from here on.
    fn join_image(&self, key: &str, opened: &mut Opened) -> Option<u32> {
        let mut tables = self.tables();
        let (slot, image) = tables.images.iter_mut().find(|(_, image)| image.key == key && image.fs.is_ok())?;
        image.mounts += 1;
        image.hold(std::mem::take(&mut opened.found));
        self.save(image);
        Some(*slot)
    }

    fn forget_lock(&self, key: &str, lock: &Arc<tokio::sync::Mutex<()>>) {
        let mut tables = self.tables();
        // The table's and the caller's: nobody else has it, and nobody can get it while the tables are locked.
        if Arc::strong_count(lock) == 2 {
            tables.making.remove(key);
        }
    }

    async fn make_image(
        self: &Arc<Self>,
        wanted: Wanted,
        manifest: String,
        mode: Served,
        opened: Opened,
        key: String,
    ) -> Result<u32, ApiError> {
        let failed =
            |error: std::io::Error| ApiError::new(ErrorKind::Internal, format!("cannot write a record: {error}"));
        let slot = self.state.number().map_err(failed)?;
        let mut record = ImageRecord {
            slot,
            image: wanted.name,
            manifest,
            platform: wanted.platform.to_string(),
            mode,
            data: wanted.data,
            references: wanted.references,
            plain: Vec::new(),
            sysfs: None,
            connection: None,
            left: Vec::new(),
        };
        self.state.save(&record).map_err(failed)?;
        let (fs, references) = self.file_system(opened, &record.data);
        let made = match mode {
            Served::Erofs => self.mount_erofs(slot, &fs).await,
            Served::Fuse => self.mount_tree(slot, &record.image, &fs).await,
        };
        let Made { sysfs, connection, plain } = match made {
            Ok(made) => made,
            Err(error) => {
                self.slots.remove(slot);
                self.state.remove::<ImageRecord>(slot);
                return Err(error);
            }
        };
        (record.sysfs, record.connection) = (sysfs, connection);
        record.plain = plain.iter().map(|(blob, _)| blob.0).collect();
        if let Err(error) = self.state.save(&record) {
            tracing::warn!(slot, %error, "cannot complete a record");
        }
        self.start_background(&fs, &record.data);
        tracing::info!(image = record.image, manifest = record.manifest, slot, %mode, plain = plain.len(), "an image is served");
        let held = record.references.iter().map(|name| (name.clone(), Vec::new())).collect();
        let mut image = Image { record, key, references, fs: Ok(fs), plain, mounts: 1 };
        image.hold(held);
        self.tables().images.insert(slot, image);
        Ok(slot)
    }

    async fn mount_erofs(&self, slot: u32, fs: &Arc<FileSystem>) -> Result<Made, ApiError> {
        let answerer = Answerer::new(Arc::clone(fs), Arc::clone(&self.metrics), self.runtime.clone());
        self.slots.serve(slot, Arc::clone(fs), answerer);
        let (mut plain, mut devices) = (Vec::new(), Vec::new());
        let mut room = self.room_for_plain();
        for blob in fs.image().index().blob_numbers() {
            let size = fs.device_size(blob).unwrap_or(u64::MAX);
            let sealed = if size <= room { fs.reader().sealed(blob).await } else { None };
            match sealed {
                Some(sealed) => {
                    room -= size;
                    devices.push(sealed.path().to_owned());
                    plain.push((blob, sealed));
                }
                None => devices.push(self.blobs_path().join(blobs::file_name(slot, blob))),
            }
        }
        let bootstrap = fs.image().bootstrap_path(&self.config.state_dir);
        let order = Order::Erofs { path: self.image_path(slot), bootstrap, devices, directio: self.config.directio };
        match self.mounter.order(order).await {
            Ok((Answer::Mounted { sysfs, .. }, _)) if plain.iter().all(|(_, blob)| blob.is_at_path()) => {
                Ok(Made { sysfs, connection: None, plain })
            }
            Ok((Answer::Mounted { .. }, _)) => {
                let path = self.image_path(slot);
                let _ = self.mounter.order(Order::Unmount { path, lazy: true }).await;
                Err(strange())
            }
            Ok(_) => Err(strange()),
            Err(refusal) => Err(refused(&refusal)),
        }
    }

    /// Bytes of blobs that may still be given to the kernel as files. What it has cannot be evicted as long as it is mounted, so that
    /// at most half of the cache may be that: the rest is for what is still being fetched.
    fn room_for_plain(&self) -> u64 {
        let Some(limit) = self.cache.limit() else { return u64::MAX };
        let tables = self.tables();
        let images = tables.images.values().chain(tables.lingering.values());
        let given = images.filter_map(|image| image.fs.as_ref().ok().map(|fs| (fs, &image.plain)));
        let sizes = given.flat_map(|(fs, plain)| plain.iter().filter_map(|(blob, _)| fs.device_size(*blob).ok()));
        (limit / 2).saturating_sub(sizes.sum())
    }

    async fn mount_tree(self: &Arc<Self>, slot: u32, name: &str, fs: &Arc<FileSystem>) -> Result<Made, ApiError> {
        let order = Order::Fuse { path: self.image_path(slot), source: format!("lazo#{name}"), tree: true };
        let fuse = Fuse::new(Arc::clone(fs), Arc::clone(&self.metrics), self.runtime.clone());
        let FuseMount { ended, connection } = self.mount_fuse(order, fuse, TREE_THREADS, &tree_name(slot)).await?;
        self.watch_tree(slot, ended);
        Ok(Made { sysfs: None, connection, plain: Vec::new() })
    }

    /// Makes a FUSE mount and serves it; its FUSE file is kept by a name.
    pub(in crate::node::worker) async fn mount_fuse<F: fuser::Filesystem + Send + Sync + 'static>(
        &self,
        order: Order,
        fs: F,
        threads: usize,
        kept_as: &str,
    ) -> Result<FuseMount, ApiError> {
        let Order::Fuse { path, .. } = &order else { return Err(strange()) };
        let path = path.clone();
        let (device, file) = match self.mounter.order(order).await {
            Ok((Answer::Mounted { device, .. }, Some(file))) => (device, file),
            // This process had no room for the file, and nobody else has it.
            Ok((Answer::Mounted { .. }, None)) => {
                let _ = self.mounter.order(Order::Unmount { path, lazy: true }).await;
                return Err(files::none_left());
            }
            Ok(_) => return Err(strange()),
            Err(refusal) => return Err(refused(&refusal)),
        };
        let kept = file.try_clone().map_err(|error| ApiError::of(ErrorKind::Internal, &error))?;
        let begun = tokio::task::spawn_blocking(move || session::begin(fs, file, threads));
        let begun = begun.await.map_err(std::io::Error::other).and_then(|begun| begun);
        let ended = begun.and_then(session::start).and_then(|ended| {
            // Not before the kernel has had its answer to INIT: a worker that takes it over gives none.
            self.keeper.keep(kept_as, kept.as_fd())?;
            Ok(ended)
        });
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => {
                drop(kept);
                let _ = self.mounter.order(Order::Unmount { path, lazy: true }).await;
                let text = format!("cannot begin the session with the kernel: {error}");
                return Err(ApiError::new(ErrorKind::Internal, text));
            }
        };
        if let Err(refusal) = self.mounter.order(Order::RaiseReadAhead { path, kib: READ_AHEAD_KIB }).await {
            tracing::warn!(%refusal, "reads in order will be slower");
        }
        // The kernel numbers connections by the devices of their filesystems, whose major number is 0.
        let connection = device.strip_prefix("0:").and_then(|minor| minor.parse().ok());
        Ok(FuseMount { ended, connection })
    }

    /// When the kernel has done with a tree, so have we.
    pub(in crate::node::worker) fn watch_tree(
        self: &Arc<Self>,
        slot: u32,
        ended: oneshot::Receiver<std::io::Result<()>>,
    ) {
        let worker = Arc::clone(self);
        self.runtime.spawn(async move {
            match ended.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(slot, %error, "a session with the kernel broke"),
                Err(_) => tracing::error!(slot, "a thread of a session panicked"),
            }
            worker.keeper.release(&tree_name(slot));
            worker.finish_image(slot);
        });
    }

    /// One mount of an image less, and what it held of the image's names. The last one ends it.
    pub(in crate::node::worker) async fn leave_image(&self, slot: u32, references: &[Reference]) {
        let (key, lock) = {
            let mut tables = self.tables();
            let Some(image) = tables.images.get_mut(&slot) else { return };
            image.mounts = image.mounts.saturating_sub(1);
            image.release(references);
            self.save(image);
            let key = image.key.clone();
            let lock = Arc::clone(tables.making.entry(key.clone()).or_default());
            (key, lock)
        };
        let held = lock.lock().await;
        let ends = {
            let mut tables = self.tables();
            let idle = tables.images.get(&slot).is_some_and(|image| image.mounts == 0);
            if idle && let Some(image) = tables.images.remove(&slot) {
                tables.lingering.insert(slot, image);
            }
            idle
        };
        if ends {
            // Whoever has a copy of the mount elsewhere keeps it.
            if let Err(refusal) = self.mounter.order(Order::Unmount { path: self.image_path(slot), lazy: true }).await {
                tracing::warn!(slot, %refusal, "an image's own mount");
            }
            self.look_after_lingering();
            self.count(&self.tables());
        }
        drop(held);
        self.forget_lock(&key, &lock);
    }

    /// Ends what lingered and is not used any more.
    pub(in crate::node::worker) fn look_after_lingering(&self) {
        let gone: Vec<u32> = {
            let tables = self.tables();
            tables.lingering.values().filter(|image| !is_in_use(image)).map(|image| image.record.slot).collect()
        };
        for slot in gone {
            self.finish_image(slot);
        }
    }

    fn finish_image(&self, slot: u32) {
        let image = {
            let mut tables = self.tables();
            let image = tables.lingering.remove(&slot).or_else(|| tables.images.remove(&slot));
            self.count(&tables);
            image
        };
        self.slots.remove(slot);
        self.left.notify_waiters();
        if let Some(image) = image {
            self.state.remove::<ImageRecord>(slot);
            tracing::info!(image = image.record.image, slot, "an image is not served any more");
        }
    }
}

/// Name of a tree's FUSE file among the kept ones.
pub(in crate::node::worker) fn tree_name(slot: u32) -> String {
    format!("tree-{slot}")
}

/// Whether somebody may still read an image that is mounted nowhere. Of a tree, its session hears when the kernel has done with it; one that
/// cannot be served has no session.
fn is_in_use(image: &Image) -> bool {
    match image.record.mode {
        Served::Erofs => image.record.sysfs.as_deref().is_some_and(|path| Path::new("/sys/fs").join(path).exists()),
        Served::Fuse => image.fs.is_ok(),
    }
}
