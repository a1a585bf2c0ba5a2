//! Converts OCI images into lazo images.
//!
//! A conversion streams every layer once: fetched, verified, inflated and hashed ([`layer`]), merged into one tree as an
//! overlay would show it ([`merge`]), its file contents packed into chunks, each content once ([`pack`]), compressed on all
//! cores into a spool file a layer ([`compress`], [`blob`]). At the end the tree becomes the bootstrap, the chunks' places
//! the index ([`assemble`]), and only then is the destination written ([`manifest`], [`image`]): blobs first, the tag last.
//!
//! Memory: about 250 bytes an entry of the image, 56 bytes a distinct content, and for each job some ten chunk sizes. Names, link
//! targets and extended attributes may take 2 GiB; real images stay under 100 MB.
//! No layer is ever unpacked or held whole. Spool files take the size of the converted image on disk.

mod assemble;
mod blob;
mod compress;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod image;
pub mod layer;
mod layers;
mod manifest;
mod merge;
mod overwrite;
mod pack;
mod prefetch;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lazo_format::{DEFAULT_CHUNK_SIZE, Digest};
use lazo_registry::Platform;

pub use lazo_base::compression::ZstdWindow;

pub use error::{Error, LayerError, Problem};
pub use image::{BlobSummary, ImageSummary, Summary, convert};
pub use layers::check_layer;
pub use merge::Warnings;
pub use prefetch::{PrefetchList, Unmatched};

/// zstd level: for inputs of up to 256 KiB level 4 is the first with a searching match finder; level 3 gives blobs 1.6 % larger.
pub const DEFAULT_COMPRESSION_LEVEL: i32 = 4;

/// How to convert.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which platforms of a multi-platform image.
    pub platforms: Platforms,
    /// Largest chunk in uncompressed bytes: a power of two from 4096 to [`lazo_format::MAX_CHUNK_SIZE`].
    pub chunk_size: u32,
    /// zstd level.
    pub compression_level: i32,
    /// Threads that compress. The result does not depend on it.
    pub jobs: usize,
    /// Largest window of a layer packed with zstd: memory that unpacking may take.
    pub zstd_window: ZstdWindow,
    /// Leave out the data that upper layers hide, at the price that images with equal base layers no longer share blobs.
    pub compact: bool,
    /// What a container reads first. Laid out first in its blobs, and fetched right after a mount.
    pub prefetch: PrefetchList,
    /// Say that the image's programs open files with `O_DIRECT`, even if no label of its config says so: it is served as a FUSE tree.
    pub direct_io: bool,
    /// Replace an ordinary image at the destination.
    pub force: bool,
    /// Repository on the destination's registry whose blobs may be mounted instead of uploaded.
    pub mount_from: Option<lazo_registry::ImageRef>,
    /// How to reach the destination's registry, where that is otherwise than the source's.
    pub destination: Option<lazo_registry::Options>,
    /// Set it to make the conversion end with [`Error::Interrupted`].
    pub cancel: Arc<AtomicBool>,
}

/// Which manifests of an index to convert.
#[derive(Clone, Debug)]
pub enum Platforms {
    /// The one that suits best; the result is a single manifest.
    One(Platform),
    /// The one that suits best for each of these; the result is an index.
    Some(Vec<Platform>),
    /// Each; the result is an index again.
    All,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            platforms: Platforms::One(Platform::host()),
            chunk_size: DEFAULT_CHUNK_SIZE,
            compression_level: DEFAULT_COMPRESSION_LEVEL,
            jobs: std::thread::available_parallelism().map_or(1, usize::from),
            zstd_window: ZstdWindow::DEFAULT,
            compact: false,
            prefetch: PrefetchList::default(),
            direct_io: false,
            force: false,
            mount_from: None,
            destination: None,
            cancel: Arc::default(),
        }
    }
}

/// Is told how a conversion goes on. Called from several threads.
pub trait Progress: Send + Sync {
    /// Layer `number` (from 1) of `count` begins; it has `size` compressed bytes.
    fn layer(&self, number: usize, count: usize, digest: &Digest, size: u64);
    /// So many more compressed bytes of it were read.
    fn advance(&self, bytes: u64);
    /// A blob of `size` bytes goes to the destination.
    fn upload(&self, digest: &Digest, size: u64);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn layer(&self, _: usize, _: usize, _: &Digest, _: u64) {}
    fn advance(&self, _: u64) {}
    fn upload(&self, _: &Digest, _: u64) {}
}
