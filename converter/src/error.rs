//! What can go wrong in a conversion, and where.

use std::fmt;
use std::path::PathBuf;

use lazo_base::compression::Compression;
use lazo_base::tar::{self, Fault};
use lazo_format::Digest;

/// A conversion that failed. The destination has not been touched: it is written only after everything was read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The source or the destination could not be read or written, or held the wrong bytes.
    #[error(transparent)]
    Registry(#[from] lazo_registry::Error),
    /// One of several images could not be converted.
    #[error("image {image}")]
    Of {
        /// Its platform and digest.
        image: String,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// The destination holds an ordinary image, which writing would replace.
    #[error(
        "{destination} holds an ordinary image, and writing would replace it; choose another tag, or replace it with --force"
    )]
    Overwrites {
        /// Where the lazo image was to go.
        destination: String,
    },
    /// The destination cannot be read, and may be an ordinary image.
    #[error("cannot see whether {destination} holds an ordinary image; --force replaces whatever is there")]
    MayOverwrite {
        /// Where the lazo image was to go.
        destination: String,
        /// Cause.
        source: Box<lazo_registry::Error>,
    },
    /// A layer of the source is not what it should be.
    #[error("layer {number} of {count} ({digest})")]
    Layer {
        /// Position of the layer in the manifest, from 1.
        number: usize,
        /// Number of layers in the manifest.
        count: usize,
        /// The layer's digest.
        digest: Box<Digest>,
        /// What is wrong with it.
        source: Box<LayerError>,
    },
    /// A file of the conversion's own could not be written or read.
    #[error("{what} {}", path.display())]
    Io {
        /// What was being done, as in "write chunk spool".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// The source is not an image that can be converted.
    #[error("{0}")]
    Image(String),
    /// An option is out of its range.
    #[error("{0}")]
    Options(String),
    /// The merged tree cannot be written as a bootstrap.
    #[error("the image's tree cannot be written as a bootstrap")]
    Tree(#[from] lazo_format::TreeError),
    /// The chunk index cannot be written.
    #[error("the chunk index cannot be written")]
    Index(#[from] lazo_format::IndexError),
    /// The caller asked for the conversion to stop.
    #[error("interrupted")]
    Interrupted,
    /// A thread of the conversion panicked: a bug in lazo.
    #[error("a worker thread panicked; please report this")]
    Panicked,
}

/// A layer that cannot be converted: which entry, if the fault is in one, and what the fault is.
#[derive(Debug)]
pub struct LayerError {
    place: Box<Place>,
    problem: Problem,
}

/// Where in a layer a fault is. Positions are bytes of the uncompressed archive.
#[derive(Debug)]
enum Place {
    /// Nowhere in particular: it concerns the layer as a whole.
    Layer,
    /// In the entry of this path, whose header begins there.
    Entry(Vec<u8>, u64),
    /// In a header that begins there, behind the entry of this path, if there is one.
    Header(Option<Vec<u8>>, u64),
}

/// A fault in a layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The archive's bytes cannot be had.
    #[error("cannot read the layer")]
    Read(#[source] std::io::Error),
    /// The stored layer cannot be unpacked: it is damaged, or something stands behind it, or it needs too much memory.
    #[error("cannot unpack it as {compression}, at byte {position} of what is stored")]
    Unpack {
        /// What its first bytes say that it is.
        compression: Compression,
        /// How far the stored bytes were used.
        position: u64,
        /// The decompressor's word.
        source: std::io::Error,
    },
    /// The registry's answer is wrong, or never came.
    #[error("cannot fetch the layer")]
    Fetch(#[source] Box<lazo_registry::Error>),
    /// The uncompressed layer is not the one that the config names.
    #[error("its uncompressed content has digest {actual}, but the config's diff_ids say {expected}")]
    DiffId {
        /// From `rootfs.diff_ids`.
        expected: Box<Digest>,
        /// Of the bytes read.
        actual: Box<Digest>,
    },
    /// The archive ends within an entry.
    #[error("the archive is truncated")]
    Truncated,
    /// The archive breaks the tar format.
    #[error("the archive is corrupt: {0}")]
    Corrupt(&'static str),
    /// A path that cannot name a file.
    #[error("the path is not valid: {0}")]
    Path(&'static str),
    /// Too many symbolic links on the way.
    #[error("too many levels of symbolic links on its path (a loop?)")]
    LinkLoop,
    /// A parent is neither a directory nor a symbolic link.
    #[error("its parent {0} is not a directory")]
    NotADirectory(String),
    /// A hard link's target is missing or a directory.
    #[error("hard link to {target}, which {why}")]
    HardLink {
        /// The target, as the archive has it.
        target: String,
        /// "does not exist", "is a directory".
        why: &'static str,
    },
    /// More of something than lazo handles in bounded memory.
    #[error("more than {limit} {what}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// Something tar can express and a container's file system cannot.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The converter's own temporary file failed.
    #[error("cannot write temporary data")]
    Spool(#[source] std::io::Error),
    /// The chunk could not be compressed.
    #[error("cannot compress a chunk")]
    Encode(#[source] lazo_format::ChunkError),
    /// The conversion was told to stop.
    #[error("interrupted")]
    Interrupted,
    /// A thread of the conversion panicked: a bug in lazo.
    #[error("a worker thread panicked; please report this")]
    Panicked,
}

impl LayerError {
    /// A fault in the entry whose header begins at this byte of the archive.
    pub(crate) fn in_entry(entry: &[u8], position: u64, problem: Problem) -> Self {
        Self { place: Box::new(Place::Entry(entry.to_vec(), position)), problem }
    }

    /// A fault of the archive itself; `after` is the entry before it.
    pub(crate) fn from_archive(error: tar::Error, after: Option<Vec<u8>>) -> Self {
        let tar::Error { position, member, fault } = error;
        let place = member.map_or(Place::Header(after, position), |member| Place::Entry(member, position));
        let problem = match fault {
            Fault::Read(error) => Problem::Read(error),
            Fault::Truncated => Problem::Truncated,
            Fault::Corrupt(why) => Problem::Corrupt(why),
            Fault::SparseData { .. } => Problem::Corrupt("a sparse map that does not fit its file"),
            Fault::Extension => Problem::Corrupt("an extended header"),
            Fault::TooMuch { what, limit } => Problem::TooMany { what, limit },
        };
        Self { place: Box::new(place), problem }
    }

    /// The fault itself.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Path of the faulty entry as the archive has it, if the fault is in one.
    pub fn entry(&self) -> Option<&[u8]> {
        match &*self.place {
            Place::Entry(entry, _) => Some(entry),
            _ => None,
        }
    }

    /// Byte of the uncompressed archive where the header in question begins, if the fault is in a particular place.
    pub fn position(&self) -> Option<u64> {
        match &*self.place {
            Place::Layer => None,
            Place::Entry(_, position) | Place::Header(_, position) => Some(*position),
        }
    }
}

impl From<Problem> for LayerError {
    fn from(problem: Problem) -> Self {
        Self { place: Box::new(Place::Layer), problem }
    }
}

impl fmt::Display for LayerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.place {
            Place::Layer => {}
            Place::Entry(entry, position) => {
                write!(f, "entry \"{}\" at byte {position} of the archive: ", entry.escape_ascii())?;
            }
            Place::Header(None, position) => write!(f, "header at byte {position} of the archive: ")?,
            Place::Header(Some(after), position) => {
                let after = after.escape_ascii();
                write!(f, "header at byte {position} of the archive, after entry \"{after}\": ")?;
            }
        }
        self.problem.fmt(f)
    }
}

impl std::error::Error for LayerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.problem)
    }
}
