//! Serves images: their bytes to the kernel, and the control API.
//!
//! ```text
//! keeper   the link to the supervisor, which keeps what the next worker needs
//! state    records of what is served, for the next worker
//! image    an image: its metadata and where its data comes from
//! blobs    the FUSE mount of blobs, devices of EROFS mounts
//! mounts   images and mounts made and ended, by orders to the mounter
//! references  the names of an image, each a source
//! health   what is wrong, for whoever looks after the daemon
//! ending   what becomes of mounts and readers when the daemon is told to end
//! restore  what an earlier worker served
//! leftovers  mounts that a killed daemon has left, taken away without one
//! shares   room that no one registry can take all of
//! ```
//! No thread of this process looks at a file of a mount that it serves: killed while it waits for itself, it would stay,
//! and no other worker could take its place.

mod blobs;
mod ending;
#[cfg(any(test, fuzzing))]
pub(in crate::node) mod fuzz;
mod health;
mod image;
mod keeper;
mod leftovers;
mod mounts;
mod references;
mod restore;
mod shares;
mod state;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use lazo_registry::Options;
use lazo_storage::cache::Cache;
use lazo_storage::metrics::Metrics;
use lazo_storage::{Bounds, SourceSpec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};

use crate::endpoint::{Endpoint, MetricsAddr};
use crate::error::{Error, Result};
use crate::node::api::{self, Access, Node};
use crate::node::config::Config;
use crate::node::helpers::{self, Helpers};
use crate::node::mounter::{Mounter, Starting};
use crate::node::protocol::{
    ApiError, ErrorKind, Health, ImageInfo, MountInfo, MountRequest, SOCKET, StopInfo, UpgradeInfo,
};
use crate::node::supervisor::Begin;
use crate::node::{files, handover, harden};
use crate::private::make_private_dir;
use crate::serve::runtime;
use blobs::Slots;
use ending::End;
use keeper::{Keeper, Wish};
pub use leftovers::{is_abandoned, take_away};
use mounts::{Mount, Tables};
use shares::Shares;
use state::{MountRecord, State};

/// Threads for what blocks: looking up names of hosts, opening images, searching a path for the log. They begin when they are needed, and
/// end when they are not. Most of them wait, for a registry or a file server, and one that waits takes some 30 KB of memory. Two for
/// each image that may be opened, as it may need a second one, and 64 for readers.
const BLOCKING_THREADS: usize = 2 * (MAX_NAMED + MAX_LOCAL + MAX_AT_HAND) + 64;

/// Images of registries that are opened by their names at a time, and those of one registry among them; others wait. Each takes one of
/// the threads for what blocks until its registry has given manifest, config and bootstrap layer. A dozen registries that give nothing
/// must come together before another one's image waits, and then it waits no longer than until one of them is given up.
const MAX_NAMED: usize = 160;
const MAX_NAMED_OF_A_PLACE: usize = 12;

/// The same for layouts and archives, which may lie on a file server that hangs.
const MAX_LOCAL: usize = 24;
const MAX_LOCAL_OF_A_PLACE: usize = 4;

/// Images that are opened from files at hand: those whose bootstrap layer somebody has unpacked, and those that were mounted before.
const MAX_AT_HAND: usize = 32;
const MAX_AT_HAND_OF_A_PLACE: usize = 16;

/// Images prepared for at a time, and those of one registry; what comes on top is left out, as it can be.
const MAX_WARMING: usize = 16;
const MAX_WARMING_OF_A_PLACE: usize = 4;

/// Exit code of a worker that has ended what it served: no other one is to take its place. One that was replaced exits with 0.
pub(super) const ENDED: i32 = 3;

/// Names of kept files.
const BLOBS: &str = "blobs";
pub(super) const CONTROL: &str = "control";

/// Of several changes of the mount table, this is how long the first waits for the others.
const SETTLE: Duration = Duration::from_millis(100);

/// How often images are looked at that have ended here and may be in use elsewhere.
const LINGER: Duration = Duration::from_secs(5);

/// The worker's parts.
struct Worker {
    config: Config,
    sources: Vec<SourceSpec>,
    registry: Options,
    metrics: Arc<Metrics>,
    cache: Arc<Cache>,
    bounds: Bounds,
    runtime: Handle,
    keeper: Keeper,
    mounter: Mounter,
    /// Runs credential helpers.
    helpers: Helpers,
    state: State,
    /// Room for registries' images that are being opened by their names.
    named: Shares,
    /// Room for layouts and archives.
    local: Shares,
    /// Room for those whose files are at hand.
    at_hand: Shares,
    /// Room for those that are being prepared for.
    warming: Shares,
    slots: Arc<Slots>,
    tables: Mutex<Tables>,
    /// Why EROFS cannot be used, if so.
    erofs: OnceLock<std::result::Result<(), String>>,
    /// Whether it has restored what was served, and answers.
    ready: watch::Sender<bool>,
    /// Told when it is to end.
    stopping: OnceLock<()>,
    /// Wishes of the control API.
    wish: mpsc::UnboundedSender<Wish>,
    /// Whether a service manager would start the daemon again.
    managed: bool,
    /// Set when the supervisor has gone.
    orphaned: AtomicBool,
    /// Set when it only serves on what is in use.
    leaving: AtomicBool,
    /// Set while somebody who has asked for the end has no answer yet.
    answering: AtomicBool,
    /// The mount table may have changed.
    changed: Notify,
    /// A mount or an image has gone.
    left: Notify,
    restarts: u64,
    upgrades: u64,
    since: u64,
    worker_since: u64,
}

/// The process's main: its link to the supervisor is its standard input.
pub(super) fn run() -> Result<()> {
    crate::memory::keep_little();
    let link = take_stdin().map_err(Error::io::<io::Error>("find the supervisor"))?;
    let (keeper, begin, files) = Keeper::begin(link).map_err(Error::io::<io::Error>("hear from the supervisor"))?;
    let failing = keeper.failing();
    let code = match run_with(keeper, begin, files) {
        Ok(End::Replaced) => 0,
        Ok(End::Ended) => ENDED,
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the worker cannot go on");
            failing(&error);
            1
        }
    };
    // At once: a reply that is dropped unsent becomes an I/O error, and one that was not given is asked for again by the next worker.
    std::process::exit(code);
}

fn run_with(keeper: Keeper, mut begin: Begin, mut files: BTreeMap<String, OwnedFd>) -> Result<End> {
    let config = &begin.config;
    let made = |dir: &Path| Error::io::<io::Error>(format!("make {}", dir.display()));
    if !config.state_dir.is_dir() {
        make_private_dir(&config.state_dir).map_err(made(&config.state_dir))?;
    }
    // As the mount table has it.
    begin.config.run_dir = make_run_dir(&config.run_dir).map_err(made(&config.run_dir))?;
    let config = &begin.config;
    // As long as this process lives.
    let alive = handover::lock_worker(&config.run_dir).map_err(Error::io::<io::Error>("begin to serve"))?;
    std::mem::forget(alive);
    // With all rights, and before there are threads, which would keep theirs.
    let starting = Starting::spawn(&config.run_dir).map_err(Error::io::<io::Error>("start the process that mounts"))?;
    let helpers =
        helpers::Starting::spawn().map_err(Error::io::<io::Error>("start the process for credential helpers"))?;
    let access = Access::new(config).map_err(Error::io::<io::Error>("use the configuration's control_group"))?;
    let listener = listener(config, &keeper, files.remove(CONTROL), &access)?;
    harden::worker(&writable(config)).map_err(Error::io::<io::Error>("give up rights"))?;
    // Its threads end with the process.
    let runtime = runtime(BLOCKING_THREADS).map_err(Error::io::<io::Error>("start threads"))?;
    let runtime = std::mem::ManuallyDrop::new(runtime);
    let (wish, wishes) = mpsc::unbounded_channel();
    keeper.listen(wish.clone()).map_err(Error::io::<io::Error>("start a thread"))?;
    let mounter = starting.connect().map_err(Error::io::<io::Error>("start threads"))?;
    let helpers = helpers.connect().map_err(Error::io::<io::Error>("start threads"))?;
    let worker = Arc::new(Worker::new(keeper, begin, (mounter, helpers), wish, runtime.handle().clone())?);
    runtime.block_on(worker.serve(files, wishes, listener, access))
}

/// Makes the run directory, with mode 0711 if it is not there: others may pass through it, to the control socket, but see nothing. All
/// that is made in it is for nobody else. Gives its path without links.
///
/// # Errors
/// When it cannot be made.
pub fn make_run_dir(path: &Path) -> io::Result<PathBuf> {
    if !path.is_dir() {
        std::fs::create_dir_all(path)?;
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
    }
    std::fs::canonicalize(path)
}

/// The control socket: the one that was kept, so that nobody is turned away meanwhile, or a new one.
fn listener(config: &Config, keeper: &Keeper, kept: Option<OwnedFd>, access: &Access) -> Result<UnixListener> {
    let path = config.run_dir.join(SOCKET);
    if let Some(kept) = kept.filter(|_| path.exists()) {
        return Ok(kept.into());
    }
    let failed = || Error::io::<io::Error>(format!("listen at {}", path.display()));
    let listener = api::listen(&path, access).map_err(failed())?;
    keeper.keep(CONTROL, listener.as_fd()).map_err(failed())?;
    Ok(listener)
}

/// Where this process makes and writes files.
fn writable(config: &Config) -> Vec<&Path> {
    let metrics = match &config.metrics {
        Some(MetricsAddr::Unix(path)) => path.parent(),
        _ => None,
    };
    [config.state_dir.as_path(), &config.run_dir].into_iter().chain(metrics).collect()
}

/// Standard input, which is `/dev/null` from now on.
fn take_stdin() -> io::Result<OwnedFd> {
    let link = rustix::stdio::stdin().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(link)
}

impl Worker {
    fn new(
        keeper: Keeper,
        begin: Begin,
        (mounter, helpers): (Mounter, Helpers),
        wish: mpsc::UnboundedSender<Wish>,
        runtime: Handle,
    ) -> Result<Self> {
        let Begin { config, since, managed, restarts, upgrades, .. } = begin;
        let metrics = Arc::new(Metrics::new());
        metrics.worker_restarts.inc_by(restarts);
        metrics.worker_upgrades.inc_by(upgrades);
        let cache = Cache::open(&config.state_dir, config.cache_options(), Arc::clone(&metrics))?;
        let failed = || Error::io::<io::Error>(format!("keep records in {}", config.run_dir.display()));
        let state = State::open(&config.run_dir).map_err(failed())?;
        let sources = config
            .source_specs()
            .map_err(|error| Error::io("use a source of the configuration")(io::Error::other(error)))?;
        Ok(Self {
            sources,
            registry: Options { helpers: lazo_registry::Helpers::by(helpers.clone()), ..config.registry_options() },
            metrics,
            cache,
            bounds: Bounds::default(),
            runtime,
            keeper,
            mounter,
            helpers,
            state,
            named: Shares::new(MAX_NAMED, MAX_NAMED_OF_A_PLACE),
            local: Shares::new(MAX_LOCAL, MAX_LOCAL_OF_A_PLACE),
            at_hand: Shares::new(MAX_AT_HAND, MAX_AT_HAND_OF_A_PLACE),
            warming: Shares::new(MAX_WARMING, MAX_WARMING_OF_A_PLACE),
            slots: Arc::default(),
            tables: Mutex::default(),
            erofs: OnceLock::new(),
            ready: watch::Sender::new(false),
            stopping: OnceLock::new(),
            wish,
            managed,
            orphaned: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            answering: AtomicBool::new(false),
            changed: Notify::new(),
            left: Notify::new(),
            restarts,
            upgrades,
            since,
            worker_since: crate::node::now(),
            config,
        })
    }

    async fn serve(
        self: Arc<Self>,
        mut files: BTreeMap<String, OwnedFd>,
        wishes: mpsc::UnboundedReceiver<Wish>,
        listener: UnixListener,
        access: Access,
    ) -> Result<End> {
        // Whoever waits for data waits no longer than this.
        self.restore(&mut files).await?;
        // First of all: an upgrade that waits at the socket is about the next worker.
        self.keeper.ready();
        self.runtime.spawn(api::serve(listener, access, Arc::new(Front(Arc::clone(&self)))));
        let _scraped = self.offer_metrics();
        self.watch_mounts();
        let hearing = ending::hear_signals(Arc::clone(&self));
        self.runtime.spawn(async {
            if let Err(error) = hearing.await {
                tracing::error!(%error, "signals cannot be heard");
            }
        });
        self.keep_telling();
        self.ready.send_replace(true);
        self.until_end(wishes).await
    }

    fn offer_metrics(&self) -> Option<Endpoint> {
        let address = self.config.metrics.as_ref()?;
        match Endpoint::start(address, Arc::clone(&self.metrics), &self.runtime) {
            Ok(endpoint) => Some(endpoint),
            Err(error) => {
                tracing::error!(%address, %error, "cannot offer metrics there; the control socket has them");
                None
            }
        }
    }

    fn no_erofs(&self) -> Option<String> {
        self.erofs.get().and_then(|erofs| erofs.clone().err())
    }

    fn check_running(&self) -> std::result::Result<(), ApiError> {
        match self.stopping.get() {
            None => Ok(()),
            Some(()) => Err(ApiError::new(ErrorKind::Unavailable, "the daemon is ending or being replaced; try again")),
        }
    }

    /// Notices what is unmounted without us.
    fn watch_mounts(self: &Arc<Self>) {
        let worker = Arc::clone(self);
        let watch = move || {
            // Poll reports a change of the mount table as an exceptional condition, once for each opened file.
            let table = match std::fs::File::open("/proc/self/mountinfo") {
                Ok(table) => table,
                Err(error) => return tracing::warn!(%error, "cannot watch the mount table"),
            };
            let hour = Timespec { tv_sec: 3600, tv_nsec: 0 };
            loop {
                let mut changes = [PollFd::new(&table, PollFlags::PRI)];
                if poll(&mut changes, Some(&hour)).is_ok_and(|count| count > 0) {
                    worker.changed.notify_one();
                }
                std::thread::sleep(SETTLE);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("lazo-mounts".into()).spawn(watch) {
            tracing::warn!(%error, "cannot watch the mount table");
        }
        let worker = Arc::clone(self);
        self.runtime.spawn(async move {
            loop {
                tokio::select! {
                    () = worker.changed.notified() => worker.compare_with_kernel().await,
                    () = tokio::time::sleep(LINGER) => {}
                }
                worker.look_after_lingering();
            }
        });
    }

    /// Forgets mounts that have gone from the kernel.
    async fn compare_with_kernel(self: &Arc<Self>) {
        let live: Vec<_> = {
            let tables = self.tables();
            tables
                .mounts
                .values()
                .filter_map(|m| if let Mount::Live(record) = m { Some(record.clone()) } else { None })
                .collect()
        };
        let Ok(mounted) = restore::mounted_paths() else { return };
        for record in live.into_iter().filter(|record| !mounted.contains(&record.mount_point)) {
            if self.begin_to_end(&record) {
                self.forget_mount(&record).await;
            }
        }
    }

    /// Whether a mount is there still, and nobody else ends it.
    fn begin_to_end(&self, record: &MountRecord) -> bool {
        let mut tables = self.tables();
        let mount = tables.mounts.get_mut(&record.mount_point).filter(|m| matches!(m, Mount::Live(r) if r == record));
        if let Some(mount) = mount {
            *mount = Mount::Ending(record.clone());
            return true;
        }
        false
    }
}

/// What the control API sees of the worker.
struct Front(Arc<Worker>);

impl Node for Front {
    async fn mount(&self, request: MountRequest) -> std::result::Result<MountInfo, ApiError> {
        self.0.check_running()?;
        files::check_room()?;
        self.0.make_mount(request, None).await
    }

    async fn warm(&self, image: String) -> std::result::Result<(), ApiError> {
        self.0.warm(image).await
    }

    async fn refer(&self, mount_point: PathBuf, images: Vec<String>) -> std::result::Result<(), ApiError> {
        self.0.check_running()?;
        self.0.refer(mount_point, images).await
    }

    async fn umount(&self, mount_point: PathBuf, lazy: bool) -> std::result::Result<(), ApiError> {
        // While it leaves, this is what lets it end.
        if !self.0.leaving.load(Ordering::Relaxed) {
            self.0.check_running()?;
        }
        self.0.end_mount(mount_point, lazy).await
    }

    fn mounts(&self) -> Vec<MountInfo> {
        self.0.list_mounts()
    }

    fn images(&self) -> Vec<ImageInfo> {
        self.0.list_images()
    }

    fn health(&self) -> Health {
        self.0.health()
    }

    fn is_ready(&self) -> bool {
        self.0.is_ready()
    }

    fn state_dir(&self) -> &Path {
        &self.0.config.state_dir
    }

    fn removed(&self) {
        self.0.cache.look_again();
    }

    fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    async fn upgrade(
        &self,
        binary: Option<PathBuf>,
        connection: Option<Arc<UnixStream>>,
    ) -> std::result::Result<UpgradeInfo, ApiError> {
        self.0.check_running()?;
        let gives_connection = connection.is_some() && self.0.keeper.answers_upgrades();
        let answer = self.0.keeper.upgrade(binary, connection).await;
        let version = answer.map_err(|error| ApiError::new(ErrorKind::Invalid, format!("cannot upgrade: {error}")))?;
        if gives_connection {
            // The supervisor has it, and answers when the next worker serves. This one is told to end now.
            std::future::pending::<()>().await;
        }
        Ok(UpgradeInfo { version, worker_pid: std::process::id(), pause_ms: 0 })
    }

    async fn stop(&self, force: bool) -> std::result::Result<StopInfo, ApiError> {
        self.0.stop_on_request(force).await
    }
}
