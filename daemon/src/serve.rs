//! One mount from the image to the unmount.

use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lazo_registry::{ImageRef, Options, Platform, Source};
use lazo_storage::cache::{Cache, CacheOptions};
use lazo_storage::metrics::Metrics;
use lazo_storage::{BlobSource, Bounds, LazoImage, Parts, Policy, Prefetch, RateLimiter, Reader, SourceSpec, Upstream};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::endpoint::{Endpoint, MetricsAddr};
use crate::error::{Error, Result};
use crate::fs::FileSystem;
use crate::fuse::Fuse;
use crate::kernel::{self, Restrictions};
use crate::memory;
use crate::node::make_run_dir;
use crate::record::{self, Content, Record};
use crate::session;

/// Threads that take requests from the kernel. Misses do not occupy one, so that this only is for metadata and cached reads
/// of several processes.
const FUSE_THREADS: usize = 4;

/// Threads for tasks: the network, replies that waited for it, the control API.
const TASK_THREADS: usize = 2;

/// Threads for what blocks: looking up names of hosts, searching a path for the log.
const BLOCKING_THREADS: usize = 4;

/// How long tasks may take to notice that the mount has ended.
const STOP: Duration = Duration::from_millis(100);

/// What to mount, where.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// The image.
    pub image: ImageRef,
    /// Which of its platforms, if it has several.
    pub platform: Platform,
    /// An existing directory.
    pub mount_point: PathBuf,
    /// Where images and chunks are kept.
    pub state_dir: PathBuf,
    /// How the cache of chunks is kept.
    pub cache: CacheOptions,
    /// Where the record of the mount is kept.
    pub run_dir: PathBuf,
    /// How to reach registries.
    pub registry: Options,
    /// Where metrics can be read, beside the mount's own socket.
    pub metrics: Option<MetricsAddr>,
    /// What to fetch before it is read.
    pub prefetch: Prefetch,
    /// Most bytes a second that are fetched without anybody waiting for them.
    pub background_bytes: Option<NonZeroU64>,
    /// Most requests a second that are made without anybody waiting for them.
    pub background_requests: Option<NonZeroU64>,
    /// Places that are asked before the image's own registry or layout, in this order.
    pub sources: Vec<SourceSpec>,
    /// How patient to be with sources.
    pub policy: Policy,
    /// Where this process writes its log, for messages.
    pub log: Option<PathBuf>,
    /// What files of the image may not do.
    pub restrictions: Restrictions,
}

impl MountOptions {
    /// An image of this machine's platform at a mount point, with nothing fetched ahead and the defaults for all else.
    #[must_use]
    pub fn new(image: ImageRef, mount_point: PathBuf, state_dir: PathBuf, run_dir: PathBuf) -> Self {
        Self {
            image,
            platform: Platform::host(),
            mount_point,
            state_dir,
            run_dir,
            registry: Options::default(),
            cache: CacheOptions::default(),
            metrics: None,
            prefetch: Prefetch::None,
            background_bytes: None,
            background_requests: None,
            sources: Vec::new(),
            policy: Policy::default(),
            log: None,
            restrictions: Restrictions::default(),
        }
    }
}

/// Mounts an image and serves it until it is unmounted or the process is told to end (SIGTERM, SIGINT, SIGHUP). Calls `ready`
/// on the caller's thread when the mount can be used; if that fails, the mount is taken back.
///
/// # Errors
/// When the image cannot be opened or mounted, or the session with the kernel breaks.
pub fn serve(options: &MountOptions, ready: impl FnOnce() -> io::Result<()>) -> Result<()> {
    let mount_point = kernel::check_mount_point(&options.mount_point)?;
    memory::keep_little();
    let runtime = runtime(BLOCKING_THREADS).map_err(Error::io::<io::Error>("start threads"))?;
    let result = run(options, &mount_point, &runtime, ready);
    runtime.shutdown_timeout(STOP);
    result
}

fn run(
    options: &MountOptions,
    mount_point: &Path,
    runtime: &Runtime,
    ready: impl FnOnce() -> io::Result<()>,
) -> Result<()> {
    let mut signals =
        runtime.block_on(async { Signals::new() }).map_err(Error::io::<io::Error>("watch for signals"))?;
    let metrics = Arc::new(Metrics::new());
    let _scraped = options.metrics.as_ref().map(|a| offer_metrics(a, &metrics, runtime.handle())).transpose()?;
    // Before anything is written into the state directory, which may be another version's.
    let cache = Cache::open(&options.state_dir, options.cache, Arc::clone(&metrics))?;
    let (image, source) = runtime.block_on(async {
        tokio::select! {
            opened = open(options) => opened,
            () = signals.next() => Err(Error::Interrupted { image: options.image.to_string() }),
        }
    })?;
    let index = Arc::clone(image.index());
    let failed = |source| Error::Source { image: image.name().to_owned(), source };
    let mut sources: Vec<Arc<dyn BlobSource>> = Vec::new();
    for spec in &options.sources {
        sources.push(spec.open(&options.registry).map_err(failed)?);
    }
    sources.extend(lazo_storage::of_image(&source).map_err(failed)?);
    if sources.is_empty() {
        return Err(Error::NoSource { image: image.name().to_owned() });
    }
    let upstream = Upstream::new(sources, options.policy.clone(), Arc::clone(&metrics));
    let rate = RateLimiter::new(options.background_bytes, options.background_requests);
    let parts = Parts {
        index,
        upstream,
        cache,
        bounds: Bounds::default(),
        rate,
        metrics: Arc::clone(&metrics),
        runtime: runtime.handle().clone(),
    };
    let reader = Arc::new(Reader::new(parts));
    let (name, manifest) = (image.name().to_owned(), image.manifest_digest().to_string());
    let fs = Arc::new(FileSystem::new(image, Arc::clone(&reader)));

    let device = kernel::mount(&name, mount_point, options.restrictions)?;
    let mut mount = Mount { path: mount_point, mounted: true };
    let fuse = Fuse::new(fs, Arc::clone(&metrics), runtime.handle().clone());
    let session = session::begin(fuse, device, FUSE_THREADS);
    let session = session.map_err(Error::io::<io::Error>("begin the session with the kernel"))?;
    let ended = session::start(session).map_err(Error::io::<io::Error>("start a thread"))?;

    let Some(mounted) = kernel::find(mount_point)? else {
        return Err(Error::NotMounted { path: mount_point.to_owned() });
    };
    kernel::raise_read_ahead(&mounted);
    let probe = fs::read_dir(mount_point).and_then(|mut d| d.next().transpose());
    probe.map_err(Error::io::<io::Error>(format!("list {}", mount_point.display())))?;
    make_run_dir(&options.run_dir).map_err(Error::io::<io::Error>(format!("make {}", options.run_dir.display())))?;
    let control = record::control_socket(&options.run_dir, &mounted)?;
    let _control = Endpoint::start(&MetricsAddr::Unix(control.clone()), Arc::clone(&metrics), runtime.handle())
        .map_err(Error::io::<io::Error>(format!("listen at {}", control.display())))?;
    let content = Content {
        pid: std::process::id(),
        image: name.clone(),
        manifest: manifest.clone(),
        mount_point: mount_point.display().to_string(),
        log: options.log.as_ref().map(|log| log.display().to_string()),
        control: Some(control.display().to_string()),
    };
    let record = Record::write(&options.run_dir, &mounted, &content)?;
    metrics.mounts.inc();
    tracing::info!(image = name, manifest, mount_point = %mount_point.display(), "mounted");
    ready().map_err(Error::io::<io::Error>("tell that the mount is ready"))?;
    reader.start_prefetch(options.prefetch);
    let result = runtime.block_on(wait(&mut mount, ended, signals));
    tracing::info!(image = name, stats = ?metrics.stats(), "unmounted");
    metrics.mounts.dec();
    drop(record);
    result
}

fn offer_metrics(address: &MetricsAddr, metrics: &Arc<Metrics>, runtime: &Handle) -> Result<Endpoint> {
    let failed = |source| Error::Metrics { address: address.to_string(), source };
    Endpoint::start(address, Arc::clone(metrics), runtime).map_err(failed)
}

/// Threads for tasks, of which those that block are at most `blocking`.
pub(crate) fn runtime(blocking: usize) -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(TASK_THREADS)
        .max_blocking_threads(blocking)
        .thread_name("lazo-task")
        .enable_all()
        .build()
}

async fn open(options: &MountOptions) -> Result<(LazoImage, Source)> {
    let source = Source::open(&options.image, &options.registry).await?;
    let image = LazoImage::open(&source, &options.state_dir, &options.platform).await?;
    Ok((image, source))
}

/// Waits for the end of the session. A signal unmounts; if the mount is in use, it leaves the tree at once and is served to
/// its last user, and a second signal ends that too.
async fn wait(mount: &mut Mount<'_>, mut ended: oneshot::Receiver<io::Result<()>>, mut signals: Signals) -> Result<()> {
    loop {
        tokio::select! {
            result = &mut ended => {
                mount.mounted = false;
                let result = result.unwrap_or_else(|_| Err(io::Error::other("a thread of the session panicked")));
                return result.map_err(Error::io("serve the mount"));
            }
            () = signals.next() => {
                if !mount.mounted {
                    tracing::warn!("told to end twice: files that are still open will fail");
                    return Ok(());
                }
                mount.end();
            }
        }
    }
}

/// A mount that is taken back when it is dropped.
struct Mount<'a> {
    path: &'a Path,
    mounted: bool,
}

impl Mount<'_> {
    fn end(&mut self) {
        self.mounted = false;
        let result = match kernel::unmount(self.path, false) {
            Err(Error::Busy { .. }) => {
                tracing::warn!(path = %self.path.display(), "the mount is in use; it is served until the last file is closed");
                kernel::unmount(self.path, true)
            }
            result => result,
        };
        if let Err(error) = result {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot unmount");
        }
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if self.mounted {
            self.end();
        }
    }
}

/// The signals that end a mount.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> io::Result<Self> {
        let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
        let [terminate, interrupt, hangup] = kinds.map(signal);
        Ok(Self([terminate?, interrupt?, hangup?]))
    }

    async fn next(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
