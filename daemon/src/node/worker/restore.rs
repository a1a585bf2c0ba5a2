//! What an earlier worker served is served again.
//!
//! Sessions come first: the kernel's requests wait in them, and the mounter, whose last order may wait for one, too. Images are
//! opened from what is kept on disk, without the network. If the FUSE files are lost (the supervisor was killed), the mounts
//! are dead: they are taken from the tree and made anew, as their records say.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lazo_format::BlobIndex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::blobs::{ABOUT_NAME, Blobs, Trim, file_name};
use super::image::{Image, Wanted};
use super::mounts::{Mount, TREE_THREADS, refused, request_of, strange, tree_name};
use super::references::{self, References};
use super::state::{ImageRecord, MountRecord};
use super::{BLOBS, Worker};
use crate::error::{Error, Result};
use crate::fuse::{Answerer, Fuse};
use crate::kernel::table;
use crate::node::files;
use crate::node::mounter::{Answer, Order};
use crate::node::protocol::Served;
use crate::session;

/// Threads that take requests for blobs of all images. Misses do not occupy one.
const BLOB_THREADS: usize = 4;

/// How long a worker waits for images to be opened before it goes on with the rest. Those that take longer, such as from a hung file
/// server, come when they come.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where something is mounted.
pub(super) fn mounted_paths() -> io::Result<HashSet<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(table::lines(&table).map(|line| line.path).collect())
}

impl Worker {
    pub(super) async fn restore(self: &Arc<Self>, files: &mut BTreeMap<String, OwnedFd>) -> Result<()> {
        let failed = || Error::io::<io::Error>("restore what was mounted");
        let images: Vec<ImageRecord> = self.state.load().map_err(failed())?;
        let mounts: Vec<MountRecord> = self.state.load().map_err(failed())?;
        let blobs = files.remove(BLOBS);
        // An EROFS mount lives if the FUSE mount of its devices does.
        let lives = |image: &ImageRecord| match image.mode {
            Served::Erofs => blobs.is_some(),
            Served::Fuse => files.contains_key(&tree_name(image.slot)),
        };
        let (live, dead): (Vec<_>, Vec<_>) = images.into_iter().partition(lives);
        for image in live.iter().filter(|image| image.mode == Served::Erofs) {
            self.slots.expect(image.slot);
        }
        if let Some(device) = blobs {
            self.resume_blobs(device).map_err(failed())?;
        }
        let dead: BTreeMap<u32, ImageRecord> = dead.into_iter().map(|image| (image.slot, image)).collect();
        let (mounts, again): (Vec<_>, Vec<_>) = mounts.into_iter().partition(|mount| !dead.contains_key(&mount.slot));
        for mount in mounts {
            self.tables().mounts.insert(mount.mount_point.clone(), Mount::Live(mount));
        }
        self.restore_images(live, files).await;
        if self.erofs.get().is_none() {
            self.begin_blobs().await;
        }
        // The first order that is waited for: when it is carried out, none of the worker before is under way any more.
        let looked = self.mounter.order(Order::Mounts { paths: Vec::new() }).await;
        looked.map_err(io::Error::other).map_err(failed())?;
        // Those that are not there were never finished, or were ended meanwhile.
        self.compare_with_kernel().await;
        self.make_again(again, dead).await;
        Ok(())
    }

    /// The filesystem of blobs, and the task that has their files opened: by the mounter, as this process must not look at them.
    fn blobs(self: &Arc<Self>) -> Blobs {
        let (open, mut asked) = mpsc::unbounded_channel();
        let worker = Arc::clone(self);
        self.runtime.spawn(async move {
            while let Some((slot, blob)) = asked.recv().await {
                // These are the first that can be done without.
                if files::check_room().is_err() {
                    worker.slots.not_opened(slot, blob);
                    continue;
                }
                let path = worker.blobs_path().join(file_name(slot, blob));
                match worker.mounter.order(Order::Open { path }).await {
                    Ok((_, Some(file))) => worker.slots.opened(slot, blob, file.into()),
                    Ok((_, None)) => {}
                    Err(refusal) => tracing::warn!(slot, %blob, %refusal, "a blob takes more of the page cache"),
                }
            }
        });
        let trim = Trim { trimmer: Arc::clone(self.cache.trimmer()), open };
        Blobs::new(Arc::clone(&self.slots), trim, self.runtime.clone())
    }

    fn resume_blobs(self: &Arc<Self>, device: OwnedFd) -> io::Result<()> {
        let session = session::resume(self.blobs(), &device, BLOB_THREADS)?;
        self.watch_blobs(session::start(session)?);
        let _ = self.erofs.set(Ok(()));
        Ok(())
    }

    /// Tries whether the kernel can mount images, and makes the mount of blobs if so.
    async fn begin_blobs(self: &Arc<Self>) {
        let begun = match self.probe().await {
            Ok(()) => self.make_blobs().await,
            Err(reason) => Err(reason),
        };
        match &begun {
            Ok(()) => tracing::info!("images are served by the kernel's EROFS"),
            Err(reason) => tracing::warn!(reason, "images are served by FUSE trees"),
        }
        let _ = self.erofs.set(begun);
    }

    async fn probe(&self) -> std::result::Result<(), String> {
        let dir = self.config.state_dir.clone();
        match self.mounter.order(Order::Probe { dir }).await {
            Ok((Answer::Probed { erofs }, _)) => erofs,
            Ok(_) => Err(strange().error),
            Err(refusal) => Err(refusal.message),
        }
    }

    async fn make_blobs(self: &Arc<Self>) -> std::result::Result<(), String> {
        let path = self.blobs_path();
        // A dead one of an earlier daemon.
        let _ = self.mounter.order(Order::Unmount { path: path.clone(), lazy: true }).await;
        let order = Order::Fuse { path: path.clone(), source: "lazo".to_owned(), tree: false };
        let mount = self.mount_fuse(order, self.blobs(), BLOB_THREADS, BLOBS).await.map_err(|error| error.error)?;
        self.watch_blobs(mount.ended);
        // Teaches the kernel that files here are opened and closed without asking.
        self.mounter.order(Order::Open { path: path.join(ABOUT_NAME) }).await.map_err(|refusal| refusal.message)?;
        Ok(())
    }

    /// The mount of blobs ends with the daemon. If it breaks before, all EROFS mounts are dead: the next worker makes them anew.
    fn watch_blobs(self: &Arc<Self>, ended: tokio::sync::oneshot::Receiver<io::Result<()>>) {
        let worker = Arc::clone(self);
        self.runtime.spawn(async move {
            let result = ended.await;
            if worker.stopping.get().is_some() {
                return;
            }
            tracing::error!(?result, "the FUSE mount of blobs has ended; all EROFS mounts are made anew");
            worker.keeper.release(BLOBS);
            std::process::exit(1);
        });
    }

    pub(super) async fn end_blobs(&self) {
        self.keeper.release(BLOBS);
        let _ = self.mounter.order(Order::Unmount { path: self.blobs_path(), lazy: true }).await;
    }

    async fn restore_images(self: &Arc<Self>, images: Vec<ImageRecord>, files: &mut BTreeMap<String, OwnedFd>) {
        let mut restored = JoinSet::new();
        for record in images {
            let device = files.remove(&tree_name(record.slot));
            self.tables().restoring.insert(record.slot);
            let worker = Arc::clone(self);
            restored.spawn(async move { worker.restore_image(record, device).await });
        }
        let all = async { while restored.join_next().await.is_some() {} };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            tracing::warn!("some images take long to open; the others are served");
            restored.detach_all();
        }
    }

    /// Serves an image again; whatever is wrong with it is its own matter.
    async fn restore_image(self: Arc<Self>, record: ImageRecord, device: Option<OwnedFd>) {
        let slot = record.slot;
        let opened = match Wanted::of_record(&record) {
            Ok(mut wanted) => {
                let held: Vec<_> = {
                    let tables = self.tables();
                    let users = tables.mounts.values().filter_map(Mount::record).filter(|mount| mount.slot == slot);
                    users.flat_map(MountRecord::references).collect()
                };
                references::complete(&mut wanted.references, held);
                self.open(wanted).await.map(|(_, opened)| opened)
            }
            Err(error) => Err(error),
        };
        let key = Image::key(&record.manifest, record.mode, &record.data, !self.sources.is_empty());
        let (references, fs) = (References::default(), Err(String::new()));
        let mut image = Image { key, references, fs, plain: Vec::new(), mounts: 0, record };
        match opened {
            Ok(opened) => {
                let (fs, references) = self.file_system(opened, &image.record.data);
                image.references = references;
                image.record.refer(image.references.list());
                self.save(&image);
                image.fs = match self.serve_again(&mut image, &fs, device).await {
                    Ok(()) => Ok(fs),
                    Err(error) => {
                        tracing::error!(slot, %error, "an image cannot be served again");
                        self.keeper.release(&tree_name(slot));
                        Err(error.to_string())
                    }
                };
            }
            Err(error) => {
                tracing::error!(
                    slot,
                    image = image.record.image,
                    error = error.error,
                    "an image cannot be served again"
                );
                // Its readers are told rather than kept waiting.
                self.slots.fail(slot);
                self.keeper.release(&tree_name(slot));
                image.fs = Err(error.error);
            }
        }
        let unused = {
            let mut tables = self.tables();
            let users = tables.mounts.values().filter_map(Mount::record).filter(|mount| mount.slot == slot);
            for mount in users {
                image.mounts += 1;
                image.references.count(&mount.references());
            }
            let unused = image.mounts == 0;
            tables.images.insert(slot, image);
            tables.restoring.remove(&slot);
            self.count(&tables);
            unused
        };
        if unused {
            self.leave_image(slot, &[]).await;
        }
    }

    async fn serve_again(
        self: &Arc<Self>,
        image: &mut Image,
        fs: &Arc<crate::fs::FileSystem>,
        device: Option<OwnedFd>,
    ) -> io::Result<()> {
        let slot = image.record.slot;
        match device {
            None => {
                let answerer = Answerer::new(Arc::clone(fs), Arc::clone(&self.metrics), self.runtime.clone());
                self.slots.serve(slot, Arc::clone(fs), answerer);
                for blob in image.record.plain.iter().map(|blob| BlobIndex(*blob)) {
                    image.plain.extend(fs.reader().sealed(blob).await.map(|sealed| (blob, sealed)));
                }
            }
            Some(device) => {
                let fuse = Fuse::new(Arc::clone(fs), Arc::clone(&self.metrics), self.runtime.clone());
                let session = session::resume(fuse, &device, TREE_THREADS)?;
                self.watch_tree(slot, session::start(session)?);
            }
        }
        self.start_background(fs, &image.record.data);
        Ok(())
    }

    /// Takes dead mounts from the tree, and makes them as their records say.
    async fn make_again(self: &Arc<Self>, mounts: Vec<MountRecord>, images: BTreeMap<u32, ImageRecord>) {
        let mounted = mounted_paths().unwrap_or_default();
        for mount in &mounts {
            self.state.remove::<MountRecord>(mount.id);
            if mounted.contains(&mount.mount_point) {
                self.take_away(&mount.mount_point).await;
            }
        }
        for slot in images.keys() {
            self.state.remove::<ImageRecord>(*slot);
            let path = self.image_path(*slot);
            if mounted.contains(&path) {
                self.take_away(&path).await;
            }
        }
        for mount in mounts {
            let Some(image) = images.get(&mount.slot) else { continue };
            let made = match Wanted::of_mount(image, &mount) {
                Ok(wanted) => self.make_mount(request_of(&mount, image.mode, &image.data), Some(wanted)).await,
                Err(error) => Err(error),
            };
            match made {
                Ok(_) => tracing::warn!(mount_point = %mount.mount_point.display(), "a dead mount was made anew"),
                Err(error) => {
                    tracing::error!(mount_point = %mount.mount_point.display(), error = error.error, "a dead mount cannot be made anew");
                }
            }
        }
    }

    async fn take_away(&self, path: &std::path::Path) {
        if let Err(refusal) = self.mounter.order(Order::Unmount { path: path.to_owned(), lazy: true }).await {
            tracing::warn!(error = refused(&refusal).error, "a dead mount stays");
        }
    }
}
