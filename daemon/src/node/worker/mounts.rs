//! Mounts: made and ended. The images that they show are made and ended in `images`, and what is listed comes from `shown`.

mod images;
mod shown;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};

use rustix::io::Errno;
use tokio::sync::{oneshot, watch};

use super::Worker;
use super::image::{Image, Wanted};
use super::state::{DataOptions, MountRecord};
use crate::node::mounter::{How, IMAGES, IdMap, Order, PARTS, Refusal, Writable};
use crate::node::protocol::{self, ApiError, ErrorKind, Mode, MountInfo, MountRequest, Served};
pub(super) use images::{TREE_THREADS, tree_name};
use shown::{mount_info, taken};

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
