//! Mounts of lazo images, which the node daemon makes on demand.
//!
//! An image is mounted at `RUN/containerd/<id>`, where `id` is the number of the snapshot that has its bootstrap; containers
//! have overlays of that. The daemon looks after a mount through its own restarts; a mount that is lost all the same is made again
//! when it is next asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lazo_daemon::make_private_dir;
use lazo_daemon::node::client::{Client, ClientError};
use lazo_daemon::node::protocol::{ErrorKind, Mode, MountRequest, SNAPSHOTTER_MOUNTS, SOCKET};

use crate::caller::{Caller, Here, mounted_here};
use crate::credentials::Credentials;

/// How long to wait for a daemon that is being started, as when all of lazo is started or upgraded at once.
const DAEMON_PATIENCE: Duration = Duration::from_secs(10);

/// How long connections and tokens stay good that the daemon has prepared; the blobs of an image come one after the other.
const WARM: Duration = Duration::from_secs(30);

/// How long the daemon's word is good that an image is mounted and served, for the snapshot for which it was asked: containerd asks two or
/// three times while it starts a container.
const CONFIRMED: Duration = Duration::from_secs(2);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// After this time, the daemon has noticed that a mount was ended without it: twice what it lets changes of the mount table settle.
const NOTICED: Duration = Duration::from_millis(200);

/// After these times, the daemon is asked again to give up blobs that were in use: an image stays in use for some seconds after
/// its last mount, and longer where another mount namespace has a copy of it.
const RELEASE_AGAIN: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(6), Duration::from_secs(30), Duration::from_secs(300)];

/// An image cannot be mounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The node daemon does not answer.
    #[error("image {image} cannot be mounted, as the node daemon cannot be reached; is `lazo daemon` running?")]
    NoDaemon {
        /// The image.
        image: String,
        /// Cause.
        source: ClientError,
    },
    /// It says no.
    #[error("image {image} cannot be mounted")]
    Refused {
        /// The image.
        image: String,
        /// Whether the image itself is at fault, and will be the next time too.
        lasting: bool,
        /// What the daemon says.
        source: ClientError,
    },
    /// It is mounted, but not for everybody.
    #[error(
        "image {image} is mounted at {}, but {who} does not see the mount, and a container of the image would start with an empty root: \
         `lazo daemon` is in another mount namespace; run lazo and containerd in the host's (no PrivateMounts=, ProtectSystem= or the \
         like in their units), and give a pod that lazo runs in its run directory with mountPropagation: Bidirectional",
        path.display()
    )]
    Unseen {
        /// The image.
        image: String,
        /// Where it is mounted.
        path: PathBuf,
        /// Which process does not see it.
        who: String,
    },
    /// There is no place for the mount.
    #[error("cannot make the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// What to mount.
#[derive(Debug, Clone, Copy)]
pub struct ImageMount<'a> {
    /// Names the mount.
    pub id: u64,
    /// The snapshot that it is for.
    pub snapshot: u64,
    /// Where the image's blobs come from.
    pub image: &'a str,
    /// Other names of it, from where they come as well.
    pub also: &'a [String],
    /// Digest of its manifest, for messages.
    pub manifest: Option<&'a str>,
    /// Directory with the files of its bootstrap layer.
    pub files: &'a Path,
    /// How owners are shifted, as `lazo mount --map` takes it.
    pub map: Option<&'a str>,
    /// Its programs open files with `O_DIRECT`, as they can in a FUSE tree only.
    pub direct_io: bool,
}

/// A mount to be seen to.
struct Job {
    id: u64,
    snapshot: u64,
    request: MountRequest,
    /// What messages call the image.
    image: String,
}

/// The images that are mounted for containerd.
#[derive(Clone)]
pub struct Images {
    daemon: Client,
    dir: PathBuf,
    credentials: Option<Arc<Credentials>>,
    /// The image that the daemon was last told to prepare for, and when.
    warmed: Arc<Mutex<Option<(String, Instant)>>>,
    /// When the daemon last said for a snapshot that the image below it is mounted, for those of the last [`CONFIRMED`].
    confirmed: Arc<Mutex<BTreeMap<u64, Instant>>>,
}

impl Images {
    /// Those of a run directory and its daemon.
    #[must_use]
    pub fn new(run_dir: &Path) -> Self {
        Self {
            daemon: Client::at(run_dir.join(SOCKET)),
            dir: run_dir.join(SNAPSHOTTER_MOUNTS),
            credentials: None,
            warmed: Arc::default(),
            confirmed: Arc::default(),
        }
    }

    /// The same; logins with which lazo images are pulled are kept.
    pub(crate) fn with_logins(self, credentials: Arc<Credentials>) -> Self {
        Self { credentials: Some(credentials), ..self }
    }

    /// Where an image is mounted, or would be.
    #[must_use]
    pub fn path(&self, id: u64) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// Lets the daemon prepare for an image of which a blob was seen, and keeps the login with which it is being pulled. Returns at
    /// once; what goes wrong will be told when the image is mounted.
    pub fn warm(&self, image: &str) {
        let (daemon, image, credentials) = (self.daemon.clone(), image.to_owned(), self.credentials.clone());
        let fresh = {
            let mut warmed = self.warmed.lock().unwrap_or_else(PoisonError::into_inner);
            let known = warmed.as_ref().is_some_and(|(name, when)| *name == image && when.elapsed() < WARM);
            *warmed = Some((image.clone(), Instant::now()));
            !known
        };
        tokio::task::spawn_blocking(move || {
            if let Some(Err(error)) = credentials.map(|credentials| credentials.keep(&image)) {
                tracing::error!(image, %error, "cannot keep the login of a pull; the image's data may not be had later");
            }
            if !fresh {
                return;
            }
            if let Err(error) = daemon.warm(&image) {
                tracing::debug!(image, error = &error as &dyn std::error::Error, "cannot prepare for an image");
            }
        });
    }

    /// Makes sure that an image is mounted, and that the caller sees it; gives its path.
    ///
    /// # Errors
    /// When it cannot be, or the mount is not seen where it is needed.
    pub async fn mounted(&self, mount: &ImageMount<'_>, caller: &Caller) -> Result<PathBuf, ImageError> {
        let path = self.path(mount.id);
        let image = match mount.manifest {
            Some(manifest) => format!("{} ({manifest})", mount.image),
            None => mount.image.to_owned(),
        };
        let job = Job { id: mount.id, snapshot: mount.snapshot, request: request(mount, &path), image };
        let (caller, images) = (caller.clone(), self.clone());
        let mounting = tokio::task::spawn_blocking(move || images.see_to(&job, &caller));
        mounting.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        Ok(path)
    }

    fn see_to(&self, job: &Job, caller: &Caller) -> Result<(), ImageError> {
        let path = &job.request.mount_point;
        if !self.is_confirmed(job) {
            self.ask(job)?;
        }
        let mut here = mounted_here(path);
        if here == Here::Absent {
            // The daemon takes it for mounted; the mount may have been lost just now.
            std::thread::sleep(NOTICED);
            self.ask(job)?;
            here = mounted_here(path);
        }
        let who = match here {
            // The owner of an image's root is looked up here.
            Here::Absent => Some(format!("lazo's snapshotter (process {})", std::process::id())),
            // Containers are made by the caller.
            Here::Device(device) => {
                let place = Path::new(SNAPSHOTTER_MOUNTS).join(job.id.to_string());
                caller.blind_to(job.id, device, &place).map(|process| format!("containerd (process {process})"))
            }
            Here::Untold => None,
        };
        match who {
            None => Ok(()),
            Some(who) => Err(ImageError::Unseen { image: job.image.clone(), path: path.clone(), who }),
        }
    }

    /// Has the daemon mount an image unless it is mounted.
    fn ask(&self, job: &Job) -> Result<(), ImageError> {
        let path = &job.request.mount_point;
        // The place itself may be the image's root already, whose mode is the image's.
        let place = || fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        let made = make_private_dir(&self.dir).and_then(|()| place());
        made.map_err(|source| ImageError::Directory { path: path.clone(), source })?;
        patiently(|| self.mount_once(&job.request)).map_err(|source| {
            let image = job.image.clone();
            match ClientError::kind(&source) {
                None => ImageError::NoDaemon { image, source },
                Some(kind) => ImageError::Refused { image, lasting: kind == ErrorKind::Image, source },
            }
        })?;
        self.confirm(job.snapshot);
        Ok(())
    }

    /// One that the daemon could not go on serving is mounted anew.
    fn mount_once(&self, request: &MountRequest) -> Result<(), ClientError> {
        match self.daemon.mount(request) {
            Err(error) if error.kind() == Some(ErrorKind::Exists) => Ok(()),
            Err(error) if error.kind() == Some(ErrorKind::Broken) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "mounting an image again");
                self.doubt();
                self.daemon.umount(&request.mount_point, true)?;
                // The daemon has removed the directory with the mount. Where it cannot be made again, the mount says so.
                let _ = fs::create_dir_all(&request.mount_point);
                self.daemon.mount(request).map(drop)
            }
            result => result.map(drop),
        }
    }

    /// Whether the daemon has said just now for this snapshot that the mount is there, and it is.
    fn is_confirmed(&self, job: &Job) -> bool {
        let word = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).get(&job.snapshot).copied();
        word.is_some_and(|when| when.elapsed() < CONFIRMED) && mounted_here(&job.request.mount_point) != Here::Absent
    }

    /// Has the daemon asked for every snapshot again, as a mount ends on which several may lie.
    fn doubt(&self) {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn confirm(&self, snapshot: u64) {
        let mut confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        confirmed.retain(|_, when| when.elapsed() < CONFIRMED);
        confirmed.insert(snapshot, Instant::now());
    }

    /// Says by which names a mounted image is known. Whether the daemon knows it now; one that has no such mount will be told with it.
    pub(crate) async fn refer(&self, id: u64, names: Vec<String>) -> bool {
        let (daemon, path) = (self.daemon.clone(), self.path(id));
        let told = tokio::task::spawn_blocking(move || daemon.refer(&path, names)).await;
        match told.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())) {
            Ok(()) => true,
            Err(error) if error.kind() == Some(ErrorKind::NotFound) => true,
            Err(error) => {
                tracing::debug!(
                    id,
                    error = &error as &dyn std::error::Error,
                    "the daemon cannot be told an image's names"
                );
                false
            }
        }
    }

    /// Keeps the login with which an image is being pulled, if one is on offer.
    pub(crate) async fn keep_login(&self, image: String) {
        let Some(credentials) = self.credentials.clone() else { return };
        let kept = tokio::task::spawn_blocking(move || (credentials.keep(&image), image)).await;
        if let Ok((Err(error), image)) = kept {
            tracing::error!(image, %error, "cannot keep the login of a pull; the image's data may not be had later");
        }
    }

    /// Ends an image's mount. Containers that run on it keep it until they end.
    pub async fn unmount(&self, id: u64) {
        self.doubt();
        let (daemon, path) = (self.daemon.clone(), self.path(id));
        let ended = tokio::task::spawn_blocking(move || {
            match daemon.umount(&path, true) {
                Err(error) if error.kind() != Some(ErrorKind::NotFound) => {
                    tracing::warn!(path = %path.display(), error = &error as &dyn std::error::Error, "an image stays mounted");
                    return;
                }
                _ => {}
            }
            match fs::remove_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove an image's mount point");
                }
                _ => {}
            }
        });
        if let Err(error) = ended.await {
            tracing::error!(%error, "an unmount broke off");
        }
    }

    /// The numbers under which images are mounted, or were.
    #[must_use]
    pub fn list(&self) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// Forgets logins of repositories of which none of these images is.
    pub async fn retain_logins(&self, images: BTreeSet<String>) {
        let Some(credentials) = self.credentials.clone() else { return };
        let done = tokio::task::spawn_blocking(move || credentials.retain(images.iter().map(String::as_str)));
        if let Err(error) = done.await.map_err(io::Error::other).and_then(|done| done) {
            tracing::warn!(%error, "cannot look after the kept logins");
        }
    }

    /// Gives up blobs that no snapshot refers to any more: they go from the cache as soon as no mount holds them.
    pub async fn release(&self, blobs: &BTreeSet<String>) {
        if blobs.is_empty() {
            return;
        }
        let left = self.release_once(blobs.iter().cloned().collect()).await;
        let images = self.clone();
        tokio::spawn(async move {
            let mut left = left;
            for pause in RELEASE_AGAIN {
                if left.is_empty() {
                    return;
                }
                tokio::time::sleep(pause).await;
                left = images.release_once(left).await;
            }
        });
    }

    /// Those that are in use.
    async fn release_once(&self, blobs: Vec<String>) -> Vec<String> {
        let (daemon, asked) = (self.daemon.clone(), blobs.clone());
        match tokio::task::spawn_blocking(move || daemon.release(asked)).await {
            Ok(Ok(released)) => {
                tracing::debug!(bytes = released.bytes, in_use = released.in_use.len(), "blobs given up");
                released.in_use
            }
            Ok(Err(error)) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "cannot give up blobs now");
                blobs
            }
            Err(_) => blobs,
        }
    }
}

/// An order to mount an image at a path.
fn request(mount: &ImageMount<'_>, path: &Path) -> MountRequest {
    let mut request = MountRequest::new(mount.image.to_owned(), path.to_owned());
    request.files = Some(mount.files.to_owned());
    request.also = mount.also.to_vec();
    request.map = mount.map.map(str::to_owned);
    if mount.direct_io {
        request.mode = Mode::Fuse;
    }
    // Containers have what containerd gives them: it mounts what they see, with options of its own.
    (request.nosuid, request.nodev) = (false, false);
    request
}

/// Waits for a daemon that nobody has started yet.
fn patiently<T>(ask: impl Fn() -> Result<T, ClientError>) -> Result<T, ClientError> {
    let until = Instant::now() + DAEMON_PATIENCE;
    loop {
        match ask() {
            Err(ClientError::Broken { .. }) if Instant::now() < until => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
}
