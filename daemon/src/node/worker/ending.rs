//! How a worker ends.
//!
//! ```text
//! Stop      another worker takes over at once (an upgrade): finish what was begun, exit
//! End       told to end without a service manager: unmount what nobody uses, then as Leave
//! Leave     serve on until the kernel has done with every image, or another daemon takes over
//! Orphaned  the supervisor has gone: as Leave
//! Cut       end now: whoever still reads gets I/O errors
//! ```
//! A mount that was ended may live on: the overlay of a container, or another mount namespace, holds a copy of it. Data is taken
//! away from nobody who has one, so what counts is whether the kernel still holds the image's filesystem.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::io::Errno;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::keeper::Wish;
use super::mounts::{Mount, Tables, refused};
use super::{CONTROL, Worker};
use crate::error::{Error, Result};
use crate::kernel::table;
use crate::node::mounter::Order;
use crate::node::protocol::{ApiError, ErrorKind, Held, Served, StopInfo};

/// How long a worker that is to stop waits for requests that make or end mounts.
const FINISH: Duration = Duration::from_secs(8);

/// How long to wait between looks at whether they are done.
const LOOK: Duration = Duration::from_millis(10);

/// How long the answer to a request for the end may take to be written, before the process ends.
const ANSWER: Duration = Duration::from_millis(100);

/// Users of one image that are named. A node may have hundreds of containers of one.
const MAX_USERS: usize = 8;

/// How a worker has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Mounts live; another worker serves them.
    Replaced,
    /// Nothing is served any more.
    Ended,
}

/// Hears the signals that ask for an end. They are the supervisor's business; without one they are wishes.
pub(super) async fn hear_signals(worker: Arc<Worker>) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
        if worker.orphaned.load(Ordering::Relaxed) {
            let _ = worker.wish.send(Wish::End);
        }
    }
}

impl Worker {
    /// Serves until it is told to end, and may.
    pub(super) async fn until_end(self: Arc<Self>, mut wishes: mpsc::UnboundedReceiver<Wish>) -> Result<End> {
        let (mut leaving, mut taken) = (false, None);
        loop {
            tokio::select! {
                // Without a supervisor nobody would start another worker: then no mounts can be made or ended any more, and that is all.
                () = self.mounter.ended(), if !self.orphaned.load(Ordering::Relaxed) => {
                    return Err(Error::io("go on without the process that mounts")(io::Error::other("it has ended")));
                }
                () = self.helpers.ended(), if !self.orphaned.load(Ordering::Relaxed) => {
                    let ended = io::Error::other("it has ended");
                    return Err(Error::io("go on without the process for credential helpers")(ended));
                }
                Some(wish) = wishes.recv() => match wish {
                    Wish::Stop => {
                        self.finish().await;
                        return Ok(End::Replaced);
                    }
                    Wish::Cut => return Ok(End::Ended),
                    Wish::End | Wish::Leave | Wish::Orphaned => {
                        self.begin_to_leave(wish).await;
                        leaving = true;
                        taken.get_or_insert_with(|| Box::pin(Arc::clone(&self).taken_over()));
                    }
                },
                () = self.unused(), if leaving => {
                    self.end_blobs_mount().await;
                    return Ok(End::Ended);
                }
                () = async { if let Some(taken) = &mut taken { taken.await } }, if taken.is_some() => {
                    return Ok(End::Replaced);
                }
            }
        }
    }

    /// Makes no mounts any more, ends those that it may, and says what is left.
    async fn begin_to_leave(self: &Arc<Self>, wish: Wish) {
        if wish == Wish::Orphaned {
            self.orphaned.store(true, Ordering::Relaxed);
            if self.leaving.load(Ordering::Relaxed) {
                return;
            }
            tracing::error!("the supervisor has gone; what is mounted is served on until another daemon takes it over");
        }
        self.finish().await;
        self.leaving.store(true, Ordering::Relaxed);
        if wish == Wish::End {
            self.end_unused().await;
        }
        self.look_after_lingering();
        let held = self.held();
        for Held { image, mount_points, users } in &held {
            tracing::warn!(image, ?mount_points, ?users, "an image is in use and is served on");
        }
        let (unused, mounts) = {
            let tables = self.tables();
            (tables.are_empty(), tables.mounts.len().max(held.len()))
        };
        if !unused {
            self.keeper.busy(mounts);
        }
    }

    /// Lets requests that make or end mounts come to their end, and takes no more.
    async fn finish(&self) {
        let _ = self.stopping.set(());
        let begin = tokio::time::Instant::now();
        let busy = || self.tables().mounts.values().any(|mount| !matches!(mount, Mount::Live(_)));
        while busy() && begin.elapsed() < FINISH {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends all mounts of which no file is in use.
    async fn end_unused(self: &Arc<Self>) {
        let places: Vec<PathBuf> = self.tables().mounts.keys().cloned().collect();
        for place in places {
            if let Err(error) = self.end_mount(place, false).await {
                tracing::warn!(error = error.error, "a mount stays");
            }
        }
    }

    /// Returns when nothing is mounted, and the kernel has done with all that was.
    async fn unused(&self) {
        loop {
            let left = self.left.notified();
            if self.tables().are_empty() && !self.answering.load(Ordering::Relaxed) {
                return;
            }
            left.await;
        }
    }

    /// Returns when another supervisor has all that it needs to go on.
    async fn taken_over(self: Arc<Self>) {
        let worker = Arc::clone(&self);
        let given = tokio::task::spawn_blocking(move || worker.keeper.hand_over(&worker.config.run_dir)).await;
        if let Err(error) = given {
            tracing::error!(%error, "what is mounted is served on, but cannot be taken over");
            std::future::pending::<()>().await;
        }
    }

    async fn end_blobs_mount(&self) {
        if self.no_erofs().is_none() {
            self.end_blobs().await;
        }
    }

    /// What keeps this process from ending.
    fn held(&self) -> Vec<Held> {
        let overlays = overlays();
        let tables = self.tables();
        let images = tables.images.values().chain(tables.lingering.values());
        let held = images.map(|image| {
            let slot = image.record.slot;
            let mount_points = mount_points(&tables, slot);
            let ours: BTreeSet<&Path> = mount_points.iter().chain(&image.record.left).map(PathBuf::as_path).collect();
            let users = overlays.iter().filter(|(lower, _)| lower.iter().any(|dir| ours.contains(dir.as_path())));
            Held {
                image: image.record.image.clone(),
                users: users.take(MAX_USERS).map(|(_, place)| place.clone()).collect(),
                mount_points,
            }
        });
        held.collect()
    }

    /// Ends the daemon on request: at once if nothing is in use, or if it is forced to, and otherwise when that is so.
    pub(super) async fn stop_on_request(self: &Arc<Self>, force: bool) -> Result<StopInfo, ApiError> {
        if self.managed && !self.orphaned.load(Ordering::Relaxed) {
            let text = "a service manager runs this daemon and would start it again: tell that to stop it, such as by \
                        `systemctl stop lazo`";
            return Err(ApiError::new(ErrorKind::Invalid, text));
        }
        self.answering.store(true, Ordering::Relaxed);
        self.finish().await;
        self.end_unused().await;
        self.look_after_lingering();
        let held = self.held();
        if force && !held.is_empty() {
            self.cut().await;
        }
        let worker = Arc::clone(self);
        self.runtime.spawn(async move {
            tokio::time::sleep(ANSWER).await;
            // Before it may end because nothing is in use.
            let _ = worker.wish.send(if force { Wish::Cut } else { Wish::End });
            worker.answering.store(false, Ordering::Relaxed);
            worker.left.notify_waiters();
        });
        Ok(StopInfo { held, cut: force })
    }

    /// Takes all mounts from the tree and ends the connections with the kernel: reads fail from now on. A tree that only an overlay holds is
    /// mounted nowhere, and its connection has a number.
    async fn cut(&self) {
        let orders: Vec<Order> = {
            let tables = self.tables();
            let unmount = |path| Order::Unmount { path, lazy: true };
            let images = tables.images.values().chain(tables.lingering.values()).map(|image| {
                let path = self.image_path(image.record.slot);
                match image.record.mode {
                    Served::Erofs => unmount(path),
                    // The number of one that is not served may be another mount's by now.
                    Served::Fuse => {
                        Order::Abort { path, connection: image.record.connection.filter(|_| image.fs.is_ok()) }
                    }
                }
            });
            let blobs = (self.no_erofs().is_none()).then(|| Order::Abort { path: self.blobs_path(), connection: None });
            tables.mounts.keys().cloned().map(unmount).chain(images).chain(blobs).collect()
        };
        for order in orders {
            match self.mounter.order(order).await {
                Err(refusal) if refusal.errno != Some(Errno::INVAL.raw_os_error()) => {
                    tracing::warn!(error = refused(&refusal).error, "a mount stays");
                }
                // What is not mounted need not be unmounted.
                _ => {}
            }
        }
        self.keeper.release(CONTROL);
    }
}

/// Where the image of a slot is mounted.
fn mount_points(tables: &Tables, slot: u32) -> Vec<PathBuf> {
    let records = tables.mounts.values().filter_map(Mount::record).filter(|record| record.slot == slot);
    records.map(|record| record.mount_point.clone()).collect()
}

/// Overlays in this mount namespace: their lower directories with links followed, and where they are mounted.
fn overlays() -> Vec<(Vec<PathBuf>, PathBuf)> {
    let Ok(table) = std::fs::read("/proc/self/mountinfo") else { return Vec::new() };
    let overlays = table::lines(&table).filter(|line| line.fs_type == "overlay");
    overlays.map(|line| (lower_dirs(&line.options), line.path)).collect()
}

/// The lower directories that an overlay's options name. The snapshotter's are links to where an image is mounted, which are read and
/// not followed further: no file of a mount of ours is looked at.
pub(super) fn lower_dirs(options: &[u8]) -> Vec<PathBuf> {
    let named = options.split(|byte| *byte == b',').find_map(|option| option.strip_prefix(b"lowerdir="));
    let named = named.unwrap_or_default().split(|byte| *byte == b':').filter(|dir| !dir.is_empty());
    let dirs = named.map(table::unescape);
    dirs.map(|dir| std::fs::read_link(&dir).unwrap_or(dir)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_directories_are_found_in_options() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/run/lazo/containerd/7", dir.path().join("image")).unwrap();
        let options = format!("rw,lowerdir=/a\\040b:{}/image,upperdir=/u,workdir=/w", dir.path().display());
        assert_eq!(lower_dirs(options.as_bytes()), [Path::new("/a b"), Path::new("/run/lazo/containerd/7")]);
        assert_eq!(lower_dirs(b"rw,upperdir=/u"), [] as [&Path; 0]);
    }
}
