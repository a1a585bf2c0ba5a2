//! Mounts and the images that they show: made, listed, ended.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};

use lazo_format::BlobIndex;
use lazo_storage::PlainBlob;

use rustix::io::Errno;
use tokio::sync::{oneshot, watch};

use super::image::{Image, Opened, Wanted};
use super::state::{DataOptions, ImageRecord, MountRecord, Reference};
use super::{Worker, blobs};
use crate::fs::FileSystem;
use crate::fuse::{Answerer, Fuse};
use crate::kernel::READ_AHEAD_KIB;
use crate::node::mounter::{Answer, How, IMAGES, IdMap, Order, PARTS, Refusal, Writable};
use crate::node::protocol::{self, ApiError, ErrorKind, ImageInfo, Mode, MountInfo, MountRequest, Served};
use crate::session;

/// Threads that take requests for one FUSE tree. A node may have hundreds of trees, and misses do not occupy a thread.
pub(super) const TREE_THREADS: usize = 2;

/// Ended mounts of an image that are remembered, so that whoever uses a copy of one can be named: thousands may come and go.
const MAX_LEFT: usize = 16;

/// What is in the kernel.
#[derive(Default)]
pub(super) struct Tables {
    pub(super) images: BTreeMap<u32, Image>,
    /// Images that have ended here, and that somebody else still uses: by a copy of a mount in another mount namespace.
    pub(super) lingering: BTreeMap<u32, Image>,
    /// Images of an earlier worker that are being opened.
    pub(super) restoring: BTreeSet<u32>,
    /// By where they are.
    pub(super) mounts: BTreeMap<PathBuf, Mount>,
    /// Held while an image is made or ended.
    making: HashMap<String, Arc<tokio::sync::Mutex<()>>>,
}

/// A mount, or a place for one.
pub(super) enum Mount {
    /// Closed when it is known what has become of it.
    Making(watch::Receiver<()>),
    Live(MountRecord),
    Ending(MountRecord),
}

impl Tables {
    /// Whether nothing is mounted, and the kernel has done with all that was.
    pub(super) fn are_empty(&self) -> bool {
        self.mounts.is_empty() && self.images.is_empty() && self.lingering.is_empty() && self.restoring.is_empty()
    }
}

impl Mount {
    pub(super) fn record(&self) -> Option<&MountRecord> {
        match self {
            Self::Making(_) => None,
            Self::Live(record) | Self::Ending(record) => Some(record),
        }
    }
}

impl Worker {
    pub(super) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a mount. When nobody waits for it any more, the image is not opened to its end; and a mount that has begun to be made is
    /// made and then ended.
    pub(super) async fn make_mount(
        self: &Arc<Self>,
        request: MountRequest,
        pinned: Option<Wanted>,
    ) -> Result<MountInfo, ApiError> {
        let place = request.mount_point.clone();
        let making = self.reserve(&place).await?;
        let worker = Arc::clone(self);
        let (mut tell, told) = oneshot::channel();
        self.runtime.spawn(async move {
            let made = worker.make_reserved(&request, pinned, tell.closed()).await;
            let info = {
                let mut tables = worker.tables();
                match &made {
                    Ok(record) => tables.mounts.insert(place.clone(), Mount::Live(record.clone())),
                    Err(_) => tables.mounts.remove(&place),
                };
                drop(making);
                worker.count(&tables);
                made.map(|record| mount_info(&record, tables.images.get(&record.slot)))
            };
            worker.left.notify_waiters();
            // Whoever has given up waiting does not want it any more.
            if tell.send(info).is_err_and(|info| info.is_ok())
                && let Err(error) = worker.end_mount(place, false).await
            {
                tracing::warn!(error = error.error, "a mount that nobody waited for stays");
            }
        });
        told.await.unwrap_or_else(|error| Err(ApiError::of(ErrorKind::Internal, &error)))
    }

    /// Takes a place for a mount, until what it gives is dropped. That there is a mount already is said only when it can be used.
    async fn reserve(&self, place: &Path) -> Result<watch::Sender<()>, ApiError> {
        loop {
            let mut other = {
                let mut tables = self.tables();
                match tables.mounts.get(place) {
                    Some(Mount::Making(other)) => other.clone(),
                    Some(mount) => {
                        let record = mount.record();
                        return Err(taken(place, record.and_then(|record| tables.images.get(&record.slot))));
                    }
                    None => {
                        let (making, other) = watch::channel(());
                        tables.mounts.insert(place.to_owned(), Mount::Making(other));
                        return Ok(making);
                    }
                }
            };
            // Nothing is ever sent.
            let _ = other.changed().await;
        }
    }

    async fn make_reserved(
        self: &Arc<Self>,
        request: &MountRequest,
        pinned: Option<Wanted>,
        given_up: impl Future<Output = ()>,
    ) -> Result<MountRecord, ApiError> {
        let mut mode = self.choose(request.mode)?;
        let wanted = pinned.map_or_else(|| Wanted::of_request(request), Ok)?;
        let (wanted, opened) = tokio::select! {
            opened = self.open(wanted) => opened?,
            () = given_up => {
                tracing::info!(image = request.image, "who asked for a mount has gone; its image is not opened");
                return Err(ApiError::new(ErrorKind::Unavailable, "nobody waits for the mount any more"));
            }
        };
        if request.mode == Mode::Auto && opened.image.wants_direct_io() {
            // More than the configuration, which knows nothing of this image: it does not run otherwise.
            mode = Served::Fuse;
        }
        let references = wanted.references.clone();
        let slot = self.take_image(wanted, mode, opened).await?;
        let made = self.show(request, slot).await;
        if made.is_err() {
            self.leave_image(slot, &references).await;
        }
        made
    }

    /// Shows an image at a mount point.
    async fn show(&self, request: &MountRequest, slot: u32) -> Result<MountRecord, ApiError> {
        let failed =
            |error: std::io::Error| ApiError::new(ErrorKind::Internal, format!("cannot write a record: {error}"));
        let map = request.map.as_deref().map(parse_map).transpose()?;
        let record = MountRecord {
            id: self.state.number().map_err(failed)?,
            slot,
            mount_point: request.mount_point.clone(),
            image: request.image.clone(),
            also: request.also.clone(),
            registry: request.registry.clone(),
            writable: request.writable.clone(),
            map: request.map.clone(),
            nosuid: request.nosuid,
            nodev: request.nodev,
            noexec: request.noexec,
            user: request.user,
            since: crate::node::now(),
        };
        self.state.save(&record).map_err(failed)?;
        let order = self.order_of(&record, map);
        if let Err(refusal) = self.mounter.order(order).await {
            self.state.remove::<MountRecord>(record.id);
            return Err(refused(&refusal));
        }
        tracing::info!(image = record.image, slot, mount_point = %record.mount_point.display(), "mounted");
        Ok(record)
    }

    /// What shows an image at a mount point.
    fn order_of(&self, record: &MountRecord, map: Option<IdMap>) -> Order {
        let how = How { nosuid: record.nosuid, nodev: record.nodev, noexec: record.noexec, map };
        let (image, to) = (self.image_path(record.slot), record.mount_point.clone());
        let writable = match &record.writable {
            None => return Order::Clone { from: image, to, how },
            Some(protocol::Writable::Directory(dir)) => Writable::Directory(dir.clone()),
            Some(protocol::Writable::Tmpfs { size }) => Writable::Tmpfs { size: *size },
        };
        let (user, parts) = (record.user, self.parts_path(record.id));
        Order::Overlay { lower: image, to, writable, user, parts, how }
    }

    /// An image in the kernel, made if there is none like it, with one more mount.
    async fn take_image(self: &Arc<Self>, wanted: Wanted, mode: Served, mut opened: Opened) -> Result<u32, ApiError> {
        let manifest = opened.image.manifest_digest().to_string();
        let key = Image::key(&manifest, mode, &wanted.data);
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
            left: Vec::new(),
        };
        self.state.save(&record).map_err(failed)?;
        let (fs, references) = self.file_system(opened, &record.data);
        let made = match mode {
            Served::Erofs => self.mount_erofs(slot, &fs).await,
            Served::Fuse => self.mount_tree(slot, &record.image, &fs).await.map(|()| (None, Vec::new())),
        };
        let (sysfs, plain) = match made {
            Ok(made) => made,
            Err(error) => {
                self.slots.remove(slot);
                self.state.remove::<ImageRecord>(slot);
                return Err(error);
            }
        };
        record.sysfs = sysfs;
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

    async fn mount_erofs(
        &self,
        slot: u32,
        fs: &Arc<FileSystem>,
    ) -> Result<(Option<String>, Vec<(BlobIndex, PlainBlob)>), ApiError> {
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
                Ok((sysfs, plain))
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

    async fn mount_tree(self: &Arc<Self>, slot: u32, name: &str, fs: &Arc<FileSystem>) -> Result<(), ApiError> {
        let order = Order::Fuse { path: self.image_path(slot), source: format!("lazo#{name}"), tree: true };
        let fuse = Fuse::new(Arc::clone(fs), Arc::clone(&self.metrics), self.runtime.clone());
        self.watch_tree(slot, self.mount_fuse(order, fuse, TREE_THREADS, &tree_name(slot)).await?);
        Ok(())
    }

    /// Makes a FUSE mount and serves it; its FUSE file is kept by a name. What is returned hears of its end.
    pub(super) async fn mount_fuse<F: fuser::Filesystem + Send + Sync + 'static>(
        &self,
        order: Order,
        fs: F,
        threads: usize,
        kept_as: &str,
    ) -> Result<oneshot::Receiver<std::io::Result<()>>, ApiError> {
        let Order::Fuse { path, .. } = &order else { return Err(strange()) };
        let path = path.clone();
        let file = match self.mounter.order(order).await {
            Ok((Answer::Mounted { .. }, Some(file))) => file,
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
        Ok(ended)
    }

    /// When the kernel has done with a tree, so have we.
    pub(super) fn watch_tree(self: &Arc<Self>, slot: u32, ended: oneshot::Receiver<std::io::Result<()>>) {
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
    pub(super) async fn leave_image(&self, slot: u32, references: &[Reference]) {
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
        }
        drop(held);
        self.forget_lock(&key, &lock);
    }

    /// Ends what lingered and is not used any more.
    pub(super) fn look_after_lingering(&self) {
        let gone: Vec<u32> = {
            let tables = self.tables();
            let erofs = tables.lingering.values().filter(|image| image.record.mode == Served::Erofs);
            erofs.filter(|image| !is_in_use(image.record.sysfs.as_deref())).map(|image| image.record.slot).collect()
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

    /// Ends a mount.
    pub(super) async fn end_mount(self: &Arc<Self>, place: PathBuf, lazy: bool) -> Result<(), ApiError> {
        let record = {
            let mut tables = self.tables();
            let not_found = || ApiError::new(ErrorKind::NotFound, format!("{} is not a lazo mount", place.display()));
            let mount = tables.mounts.get_mut(&place).ok_or_else(not_found)?;
            let Mount::Live(record) = mount else {
                let text = format!("the mount at {} is being made or ended", place.display());
                return Err(ApiError::new(ErrorKind::Unavailable, text));
            };
            let record = record.clone();
            *mount = Mount::Ending(record.clone());
            record
        };
        let worker = Arc::clone(self);
        let task = self.runtime.spawn(async move {
            let order = Order::Unmount { path: place.clone(), lazy };
            match worker.mounter.order(order).await {
                Ok(_) => {}
                // Somebody else has unmounted it.
                Err(refusal) if refusal.errno == Some(Errno::INVAL.raw_os_error()) => {}
                Err(refusal) => {
                    worker.tables().mounts.insert(place, Mount::Live(record));
                    return Err(refused(&refusal));
                }
            }
            worker.forget_mount(&record).await;
            Ok(())
        });
        task.await.unwrap_or_else(|error| Err(ApiError::of(ErrorKind::Internal, &error)))
    }

    /// After a mount has gone from the kernel.
    pub(super) async fn forget_mount(&self, record: &MountRecord) {
        self.state.remove::<MountRecord>(record.id);
        {
            let mut tables = self.tables();
            tables.mounts.remove(&record.mount_point);
            let image = tables.images.get_mut(&record.slot).map(|image| &mut image.record);
            if let Some(image) = image.filter(|image| image.left.len() < MAX_LEFT) {
                image.left.push(record.mount_point.clone());
                if let Err(error) = self.state.save(image) {
                    tracing::warn!(slot = record.slot, %error, "cannot complete a record");
                }
            }
            self.count(&tables);
        }
        tracing::info!(image = record.image, mount_point = %record.mount_point.display(), "unmounted");
        self.leave_image(record.slot, &record.references()).await;
        self.left.notify_waiters();
    }

    pub(super) fn choose(&self, mode: Mode) -> Result<Served, ApiError> {
        let mode = if mode == Mode::Auto { self.config.mode } else { mode };
        match (mode, self.no_erofs()) {
            (Mode::Fuse, _) | (Mode::Auto, Some(_)) => Ok(Served::Fuse),
            (Mode::Auto | Mode::Erofs, None) => Ok(Served::Erofs),
            (Mode::Erofs, Some(reason)) => {
                let text = format!("this machine cannot serve images by EROFS: {reason}; --mode fuse can");
                Err(ApiError::new(ErrorKind::Unsupported, text))
            }
        }
    }

    /// Gauges.
    pub(super) fn count(&self, tables: &Tables) {
        let figure = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let mounts = tables.mounts.values().filter(|mount| mount.record().is_some()).count();
        let failed = tables.images.values().filter(|image| image.fs.is_err()).count();
        self.metrics.mounts.set(figure(mounts));
        self.metrics.images.set(figure(tables.images.len() + tables.lingering.len()));
        self.metrics.failed_images.set(figure(failed));
    }

    pub(super) fn image_path(&self, slot: u32) -> PathBuf {
        self.config.run_dir.join(IMAGES).join(slot.to_string())
    }

    /// Where the mounter makes an overlay.
    pub(super) fn parts_path(&self, id: u32) -> PathBuf {
        self.config.run_dir.join(PARTS).join(id.to_string())
    }

    pub(super) fn blobs_path(&self) -> PathBuf {
        self.config.run_dir.join("blobs")
    }

    pub(super) fn list_mounts(&self) -> Vec<MountInfo> {
        let tables = self.tables();
        let mut records: Vec<_> = tables.mounts.values().filter_map(Mount::record).collect();
        records.sort_by_key(|record| record.id);
        records.into_iter().map(|record| mount_info(record, tables.images.get(&record.slot))).collect()
    }

    pub(super) fn list_images(&self) -> Vec<ImageInfo> {
        let tables = self.tables();
        tables.images.values().chain(tables.lingering.values()).map(image_info).collect()
    }
}

/// Name of a tree's FUSE file among the kept ones.
pub(super) fn tree_name(slot: u32) -> String {
    format!("tree-{slot}")
}

/// Whether the kernel still has an EROFS filesystem.
fn is_in_use(sysfs: Option<&str>) -> bool {
    sysfs.is_some_and(|path| Path::new("/sys/fs").join(path).exists())
}

pub(super) fn refused(refusal: &Refusal) -> ApiError {
    let wrong_path = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP].map(|errno| Some(errno.raw_os_error()));
    let kind = match refusal {
        Refusal { busy: true, .. } => ErrorKind::Busy,
        Refusal { errno, .. } if wrong_path.contains(errno) => ErrorKind::Invalid,
        _ => ErrorKind::Internal,
    };
    ApiError::new(kind, refusal.message.clone())
}

pub(super) fn strange() -> ApiError {
    ApiError::new(ErrorKind::Internal, "the process that mounts gave an answer to another question")
}

fn parse_map(text: &str) -> Result<IdMap, ApiError> {
    text.parse().map_err(|error| ApiError::of(ErrorKind::Invalid, &error))
}

/// Why nothing can be mounted where this image is.
fn taken(place: &Path, image: Option<&Image>) -> ApiError {
    let place = place.display();
    match image.and_then(|image| image.fs.as_ref().err()) {
        None => {
            ApiError::new(ErrorKind::Exists, format!("cannot mount at {place}: a lazo image is mounted there already"))
        }
        Some(reason) => {
            let text = format!("cannot mount at {place}: what is mounted there cannot be served any more: {reason}");
            ApiError::new(ErrorKind::Broken, text)
        }
    }
}

fn mount_info(record: &MountRecord, image: Option<&Image>) -> MountInfo {
    MountInfo {
        id: record.id.to_string(),
        mount_point: record.mount_point.clone(),
        image: record.image.clone(),
        manifest: image.map(|image| image.record.manifest.clone()).unwrap_or_default(),
        mode: image.map_or(Served::Erofs, |image| image.record.mode),
        slot: u64::from(record.slot),
        writable: record.writable.clone(),
        map: record.map.clone(),
        since: record.since,
    }
}

fn image_info(image: &Image) -> ImageInfo {
    let blobs = image.fs.as_ref().map_or(0, |fs| fs.image().index().blob_count());
    ImageInfo {
        slot: u64::from(image.record.slot),
        image: image.record.image.clone(),
        references: image.references.list().into_iter().map(|reference| reference.image).collect(),
        manifest: image.record.manifest.clone(),
        mode: image.record.mode,
        mounts: image.mounts,
        blobs: blobs as u64,
        plain_blobs: image.plain.len() as u64,
        failed: image.fs.as_ref().err().cloned(),
    }
}

/// What a record of a mount was requested as.
pub(super) fn request_of(record: &MountRecord, mode: Served, data: &DataOptions) -> MountRequest {
    MountRequest {
        platform: None,
        mode: match mode {
            Served::Erofs => Mode::Erofs,
            Served::Fuse => Mode::Fuse,
        },
        prefetch: data.prefetch,
        writable: record.writable.clone(),
        map: record.map.clone(),
        nosuid: record.nosuid,
        nodev: record.nodev,
        noexec: record.noexec,
        user: record.user,
        sources: data.sources.clone(),
        outage_limit: data.outage_limit,
        also: record.also.clone(),
        registry: record.registry.clone(),
        ..MountRequest::new(record.image.clone(), record.mount_point.clone())
    }
}
