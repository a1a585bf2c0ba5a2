//! What can go wrong around a mount.

use std::io;
use std::path::PathBuf;

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A mount cannot be made or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The image.
    #[error(transparent)]
    Image(#[from] lazo_storage::Error),
    /// The source that the image comes from.
    #[error(transparent)]
    Registry(Box<lazo_registry::Error>),
    /// A place to fetch data from cannot be used.
    #[error("image {image}: a source of its data cannot be used")]
    Source {
        /// The image.
        image: String,
        /// Cause.
        source: lazo_storage::SourceError,
    },
    /// There is no place to fetch data from.
    #[error(
        "image {image}: no host in its hosts.toml may be pulled from; give one the capability \"pull\", or name a --source"
    )]
    NoSource {
        /// The image.
        image: String,
    },
    /// The mount point is no place to mount at.
    #[error("cannot mount at {}: {reason}", path.display())]
    MountPoint {
        /// The mount point.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A path at which no lazo image is mounted.
    #[error("{} is not a lazo mount; see them all with: lazo stats --json", path.display())]
    NotMounted {
        /// The path.
        path: PathBuf,
    },
    /// Somebody uses the mount.
    #[error("{} is busy: a process has its working directory or an open file in it, or something is mounted in it; \
             find it with: fuser -vm {}", path.display(), path.display())]
    Busy {
        /// The mount point.
        path: PathBuf,
    },
    /// The mount is gone, its process is not.
    #[error("{} is unmounted, but process {pid} still serves it after {seconds} s: a container or another mount namespace may \
             have a copy of the mount; its log is {log}", path.display())]
    StillServing {
        /// The mount point.
        path: PathBuf,
        /// The process.
        pid: u32,
        /// How long was waited.
        seconds: i64,
        /// Its log.
        log: String,
    },
    /// A signal came before there was a mount.
    #[error("told to end while opening {image}; nothing was mounted")]
    Interrupted {
        /// The image.
        image: String,
    },
    /// The address for metrics.
    #[error("cannot offer metrics at {address}; give another address with --metrics")]
    Metrics {
        /// The address.
        address: String,
        /// Cause.
        source: io::Error,
    },
    /// A system call or file.
    #[error("cannot {what}")]
    Io {
        /// What was to be done, and on what.
        what: String,
        /// Cause.
        source: io::Error,
    },
}

impl From<lazo_registry::Error> for Error {
    fn from(error: lazo_registry::Error) -> Self {
        Self::Registry(Box::new(error))
    }
}

impl Error {
    pub(crate) fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source: source.into() }
    }
}
