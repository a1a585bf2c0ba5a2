//! One image in the kernel: opened, and served until its last user has gone.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lazo_format::{BlobIndex, Digest};
use lazo_registry::{ImageRef, Options, Platform, Source};
use lazo_storage::{BlobSource, LazoImage, Parts, PlainBlob, RateLimiter, Reader, SourceSpec, Upstream};

use tokio::sync::oneshot;

use super::Worker;
use super::references::{Found, References};
use super::state::{DataOptions, ImageRecord, MountRecord, Reference};
use crate::fs::FileSystem;
use crate::node::config;
use crate::node::protocol::{ApiError, ErrorKind, MountRequest, RegistryOptions, Served};

/// How long preparing for an image may take; it is of no use later.
const WARM_LIMIT: Duration = Duration::from_secs(20);

/// An image whose metadata is at hand, and where its data comes from.
pub(super) struct Opened {
    pub(super) image: LazoImage,
    /// Those that were configured or asked for besides the image's own.
    pub(super) sources: Vec<Arc<dyn BlobSource>>,
    /// The image's own.
    pub(super) found: Vec<Found>,
}

/// What is wanted of an image, from a request or a record.
pub(super) struct Wanted {
    /// The first of its names, for messages.
    pub(super) name: String,
    pub(super) image: ImageRef,
    /// All of its names.
    pub(super) references: Vec<Reference>,
    pub(super) platform: Platform,
    pub(super) data: DataOptions,
    pub(super) which: Which,
}

/// Which image it is.
pub(super) enum Which {
    /// What its name stands for now.
    Named,
    /// The kept one of this digest, whatever the name stands for now.
    Kept(Digest),
    /// The one whose bootstrap layer lies unpacked in this directory.
    Files(PathBuf),
}

impl Wanted {
    pub(super) fn of_request(request: &MountRequest) -> Result<Self, ApiError> {
        let platform = request.platform.as_deref().map_or_else(|| Ok(Platform::host()), |p| parse("platform", p))?;
        let data = DataOptions {
            sources: request.sources.clone(),
            outage_limit: request.outage_limit,
            prefetch: request.prefetch,
            registry: request.registry.clone(),
        };
        let which = request.files.clone().map_or(Which::Named, Which::Files);
        let names = std::iter::once(&request.image).chain(&request.also);
        let references = names.map(|name| Reference::now(name.clone(), request.registry.clone())).collect();
        Self::new(references, platform, data, which)
    }

    pub(super) fn of_record(record: &ImageRecord) -> Result<Self, ApiError> {
        let which = Which::Kept(parse("manifest", &record.manifest)?);
        Self::new(record.references(), parse("platform", &record.platform)?, record.data.clone(), which)
    }

    /// What a mount that was lost had of an image.
    pub(super) fn of_mount(record: &ImageRecord, mount: &MountRecord) -> Result<Self, ApiError> {
        let references = mount.references();
        Ok(Self { references, ..Self::of_record(record)? })
    }

    fn new(references: Vec<Reference>, platform: Platform, data: DataOptions, which: Which) -> Result<Self, ApiError> {
        let name = references.first().map(|first| first.image.clone()).unwrap_or_default();
        let image = Self::check(&name)?;
        for other in references.iter().skip(1) {
            Self::check(&other.image)?;
        }
        Ok(Self { name, image, references, platform, data, which })
    }

    /// A name that can be one of an image.
    pub(super) fn check(name: &str) -> Result<ImageRef, ApiError> {
        let image: ImageRef = parse("image", name)?;
        if let ImageRef::OciLayout { path, .. }
        | ImageRef::OciArchive { path, .. }
        | ImageRef::DockerArchive { path, .. } = &image
            && !path.is_absolute()
        {
            return Err(ApiError::new(ErrorKind::Invalid, format!("image {name}: its path is not absolute")));
        }
        Ok(image)
    }

    /// Whose room it takes while it is opened: a registry's, or a layout's or archive's.
    fn place(&self) -> String {
        match &self.image {
            ImageRef::Docker(reference) => reference.host.clone(),
            ImageRef::OciLayout { path, .. }
            | ImageRef::OciArchive { path, .. }
            | ImageRef::DockerArchive { path, .. } => path.display().to_string(),
        }
    }
}

pub(super) fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(what: &str, text: &str) -> Result<T, ApiError> {
    text.parse().map_err(|error| ApiError::new(ErrorKind::Invalid, format!("{what} {text:?}: {error}")))
}

/// Files that a name has read.
fn files_of(reference: &Reference) -> Vec<PathBuf> {
    let layout = match reference.image.parse() {
        Ok(
            ImageRef::OciLayout { path, .. } | ImageRef::OciArchive { path, .. } | ImageRef::DockerArchive { path, .. },
        ) => Some(path),
        _ => None,
    };
    let RegistryOptions { ca, authfile, token_file, hosts_dir, .. } = &reference.registry;
    layout.into_iter().chain(ca.iter().chain(authfile).chain(token_file).chain(hosts_dir).cloned()).collect()
}

impl Worker {
    pub(super) fn registry_options(&self, wanted: &RegistryOptions) -> Options {
        let mut options = self.registry.clone();
        options.plain_http |= wanted.plain_http;
        options.insecure |= wanted.insecure;
        options.extra_ca.extend(wanted.ca.iter().cloned());
        if wanted.authfile.is_some() {
            options.auth_file.clone_from(&wanted.authfile);
        }
        if wanted.token_file.is_some() {
            options.token_file.clone_from(&wanted.token_file);
        }
        if let Some(dir) = &wanted.hosts_dir {
            options.hosts_dir = config::hosts_dir(dir);
        }
        options
    }

    /// Brings an image's metadata, and its sources. On a thread of its own, as a layout may lie on a file server that hangs.
    ///
    /// When this future is dropped, requests to the registry end with it. The image's room is given back when its thread has ended.
    pub(super) async fn open(self: &Arc<Self>, wanted: Wanted) -> Result<(Wanted, Opened), ApiError> {
        self.check_files(&wanted)?;
        let shares = match (&wanted.which, &wanted.image) {
            (Which::Named, ImageRef::Docker(_)) => &self.named,
            (Which::Named, _) => &self.local,
            (Which::Kept(_) | Which::Files(_), _) => &self.at_hand,
        };
        let room = shares.take(&wanted.place()).await.map_err(|error| ApiError::of(ErrorKind::Internal, &error))?;
        let (worker, runtime) = (Arc::clone(self), self.runtime.clone());
        // Nothing is ever sent: it hears of the other end's drop.
        let (alive, given_up) = oneshot::channel::<Infallible>();
        let opening = tokio::task::spawn_blocking(move || {
            let _room = room;
            let opened = runtime.block_on(async {
                tokio::select! {
                    opened = worker.open_here(&wanted) => opened,
                    _ = given_up => Err(given_up_opening(&wanted)),
                }
            })?;
            Ok((wanted, opened))
        });
        let opened = opening.await.unwrap_or_else(|error| Err(ApiError::of(ErrorKind::Internal, &error)));
        drop(alive);
        opened
    }

    /// Refuses files in the daemon's own mounts: it would wait for itself.
    fn check_files(&self, wanted: &Wanted) -> Result<(), ApiError> {
        let adopted = if let Which::Files(files) = &wanted.which { Some(files.clone()) } else { None };
        let files = wanted.references.iter().flat_map(files_of).chain(adopted);
        let tables = self.tables();
        for file in files {
            let own = tables.mounts.keys().chain([&self.config.run_dir]).find(|own| file.starts_with(own));
            if let Some(own) = own {
                let text = format!("{} lies in {}, which the daemon itself serves", file.display(), own.display());
                return Err(ApiError::new(ErrorKind::Invalid, text));
            }
        }
        Ok(())
    }

    async fn open_here(&self, wanted: &Wanted) -> Result<Opened, ApiError> {
        let failed = |error: &dyn std::error::Error| ApiError::of(ErrorKind::Image, error);
        let options = self.registry_options(&wanted.data.registry);
        let mut sources = Vec::new();
        for text in &wanted.data.sources {
            let spec: SourceSpec = parse("source", text)?;
            sources.push(spec.open(&options).map_err(|error| failed(&error))?);
        }
        for spec in &self.sources {
            sources.push(spec.open(&options).map_err(|error| failed(&error))?);
        }
        let state_dir = &self.config.state_dir;
        let image = match &wanted.which {
            Which::Named => {
                let source = Source::open(&wanted.image, &options).await.map_err(|error| failed(&error))?;
                LazoImage::open(&source, state_dir, &wanted.platform).await
            }
            Which::Kept(digest) => LazoImage::kept(wanted.name.clone(), state_dir, digest),
            Which::Files(files) => LazoImage::adopt(wanted.name.clone(), state_dir, files),
        };
        let image = image.map_err(|error| failed(&error))?;
        let found = self.find(&wanted.references).await;
        if matches!(wanted.which, Which::Named) && sources.is_empty() && found.iter().all(|(_, own)| own.is_empty()) {
            let error = crate::Error::NoSource { image: wanted.name.clone() };
            return Err(failed(&error));
        }
        Ok(Opened { image, sources, found })
    }

    /// Connects and logs in to an image's source, for those who will want its blobs: connections and logins are the worker's.
    pub(super) async fn warm(self: &Arc<Self>, image: String) -> Result<(), ApiError> {
        let data = DataOptions::default();
        let reference = Reference::now(image.clone(), data.registry.clone());
        let wanted = Wanted::new(vec![reference], Platform::host(), data, Which::Named)?;
        let Some(room) = self.warming.try_take(&wanted.place()) else { return Ok(()) };
        let worker = Arc::clone(self);
        self.runtime.spawn(async move {
            let options = worker.registry_options(&wanted.data.registry);
            let looked = async {
                let source = Source::open(&wanted.image, &options).await?;
                source.root_digest().await
            };
            match tokio::time::timeout(WARM_LIMIT, looked).await {
                Ok(Ok(_)) => {}
                // Who mounts it will be told.
                Ok(Err(error)) => tracing::debug!(image, %error, "cannot prepare for an image"),
                Err(_) => tracing::debug!(image, "its source does not answer"),
            }
            drop(room);
        });
        Ok(())
    }

    /// The tree and data of an image, and by what it was asked for.
    pub(super) fn file_system(&self, opened: Opened, data: &DataOptions) -> (Arc<FileSystem>, References) {
        let mut policy = self.config.policy();
        if let Some(limit) = data.outage_limit {
            policy.outage_limit = Duration::from_secs(limit.min(config::MAX_OUTAGE_LIMIT));
        }
        let parts = Parts {
            index: Arc::clone(opened.image.index()),
            upstream: Upstream::new(opened.sources, policy, Arc::clone(&self.metrics)),
            cache: Arc::clone(&self.cache),
            bounds: self.bounds.clone(),
            rate: RateLimiter::new(self.config.background_rate, self.config.background_requests),
            metrics: Arc::clone(&self.metrics),
            runtime: self.runtime.clone(),
        };
        let references = References::new(opened.found, Some(&parts.upstream));
        (Arc::new(FileSystem::new(opened.image, Arc::new(Reader::new(parts)))), references)
    }

    /// Begins what nobody waits for, once this worker is ready: what was mounted before is served first, and the control socket
    /// answers.
    pub(super) fn start_background(&self, fs: &Arc<FileSystem>, data: &DataOptions) {
        let prefetch = data.prefetch.unwrap_or(self.config.prefetch).into();
        let (fs, mut ready) = (Arc::downgrade(fs), self.ready.subscribe());
        self.runtime.spawn(async move {
            // The sender lives as long as the worker.
            let _ = ready.wait_for(|ready| *ready).await;
            if let Some(fs) = fs.upgrade() {
                fs.reader().start_prefetch(prefetch);
                fs.reader().start_sealing();
            }
        });
    }
}

/// Nobody waits for an image any more.
fn given_up_opening(wanted: &Wanted) -> ApiError {
    ApiError::new(ErrorKind::Unavailable, format!("image {}: whoever asked for it has gone", wanted.name))
}

/// An image in the kernel.
pub(super) struct Image {
    pub(super) record: ImageRecord,
    /// What makes requests share it.
    pub(super) key: String,
    /// By what it was asked for.
    pub(super) references: References,
    /// None if it could not be restored.
    pub(super) fs: Result<Arc<FileSystem>, String>,
    /// Blobs that the kernel reads from the cache itself; no other process removes them meanwhile.
    pub(super) plain: Vec<(BlobIndex, PlainBlob)>,
    /// Mounts that show it.
    pub(super) mounts: u64,
}

impl Image {
    /// Requests with equal keys share the image, whatever they call it. `configured` is whether every image has sources besides its own.
    pub(super) fn key(manifest: &str, mode: Served, data: &DataOptions, configured: bool) -> String {
        let DataOptions { sources, outage_limit, prefetch, registry } = data;
        // Sources besides the image's own are opened once for all who share it, with the logins and certificates of one of them.
        let shared = (configured || !sources.is_empty()).then_some(registry);
        format!("{manifest} {mode} {sources:?} {outage_limit:?} {prefetch:?} {shared:?}")
    }
}
