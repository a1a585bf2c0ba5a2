//! What can go wrong between an image's name and its bytes.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use lazo_format::{BlobIndex, BootstrapError, ChunkError, ChunkIndex, Digest, IndexError};

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The image cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry, layout or archive, or what it holds.
    #[error(transparent)]
    Registry(Box<lazo_registry::Error>),
    /// An image, but not one that `lazo convert` made.
    #[error("{image} is not a lazo image ({reason}); make one of it with `lazo convert {image} DESTINATION`")]
    NotLazo {
        /// The image.
        image: String,
        /// What is missing.
        reason: String,
    },
    /// A lazo image whose parts do not belong together.
    #[error("image {image}: {reason}")]
    Damaged {
        /// The image.
        image: String,
        /// What contradicts what.
        reason: String,
    },
    /// An image's metadata is not at hand any more.
    #[error("image {image} is not kept in {} any more; mount it again to fetch it", state_dir.display())]
    NotKept {
        /// The image.
        image: String,
        /// Where it was.
        state_dir: PathBuf,
    },
    /// The bootstrap is not readable.
    #[error("bootstrap of {image}")]
    Bootstrap {
        /// The image.
        image: String,
        /// Cause.
        source: BootstrapError,
    },
    /// The chunk index is not readable.
    #[error("chunk index of {image}")]
    Index {
        /// The image.
        image: String,
        /// Cause.
        source: IndexError,
    },
    /// A state directory that another version of lazo keeps.
    #[error("{} says {version:?}: another version of lazo keeps this state directory; \
             use another one with --state-dir, or remove it when nothing is mounted from it", path.display())]
    OtherVersion {
        /// The file that says so.
        path: PathBuf,
        /// What it says.
        version: String,
    },
    /// A local file or directory.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was to be done.
        what: &'static str,
        /// To what.
        path: PathBuf,
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
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}

/// Bytes at a device address cannot be had. All who wait for a chunk get the same one, hence [`Arc`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The chunk index does not say where the bytes are.
    #[error("blob {blob} has nothing at {at:#x}")]
    Index {
        /// The blob.
        blob: BlobIndex,
        /// The device address.
        at: u64,
        /// Cause.
        source: IndexError,
    },
    /// No bytes from the source.
    #[error("chunk {chunk} of blob {digest} cannot be fetched")]
    Source {
        /// The blob.
        digest: Digest,
        /// The chunk.
        chunk: ChunkIndex,
        /// Cause; shared by all chunks of the request.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Wrong bytes from the source, each time.
    #[error("chunk {chunk} of blob {digest} is damaged at its source: {attempts} attempts gave wrong bytes")]
    Verify {
        /// The blob.
        digest: Digest,
        /// The chunk.
        chunk: ChunkIndex,
        /// How often it was fetched.
        attempts: u32,
        /// What was wrong the last time.
        source: ChunkError,
    },
    /// The cache file cannot be opened, written or read.
    #[error("cannot {what} {}", path.display())]
    Cache {
        /// What was to be done.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The cache loses what is written to it, as when its files are being removed.
    #[error(
        "the cache of blob {digest} does not keep chunk {chunk}; are files being removed under the state directory?"
    )]
    Lost {
        /// The blob.
        digest: Digest,
        /// The chunk.
        chunk: ChunkIndex,
    },
    /// The mount is being taken down.
    #[error("chunk {chunk} of blob {digest}: the fetch was given up as the mount ends")]
    Stopped {
        /// The blob.
        digest: Digest,
        /// The chunk.
        chunk: ChunkIndex,
    },
}

impl ReadError {
    /// The chunk that is at fault, where it is one.
    #[must_use]
    pub fn chunk(&self) -> Option<ChunkIndex> {
        match self {
            Self::Source { chunk, .. }
            | Self::Verify { chunk, .. }
            | Self::Lost { chunk, .. }
            | Self::Stopped { chunk, .. } => Some(*chunk),
            Self::Index { .. } | Self::Cache { .. } => None,
        }
    }
}
