//! Where an image's metadata and chunks come from, and where they stay.
//!
//! [`LazoImage`] is the part that must be at hand before a mount: manifest, bootstrap and chunk index, downloaded once,
//! verified from the manifest's digest down, kept under `STATE/images/<manifest digest>/` and mapped.
//!
//! [`Reader`] is the data path: bytes at a device address of a blob, from the cache file or through the fetch scheduler.
//! ```text
//! read_cached ── verified in this process ──────────────────────────── pread of the cache file
//!      │          └ marked ready by an earlier one: hashed first, then the same
//!      └ no: fetch ── claim: one flight a chunk, others join it
//!                       └ neighbouring chunks: one range request, at whichever source is best (`upstream`)
//!                          └ chunk by chunk as they come ── decode pool: zstd, BLAKE3, pwrite ── wake
//!                             └ not wanted yet: kept as stored, to be decoded when it is (`staged`)
//! ```
//! Nothing reaches a reader that was not hashed with BLAKE3 against the chunk index in this process.
//!
//! The cache is crash-only and bounded: see [`cache`]. `STATE/blobs/<blob>.<table>/` holds `data`, a sparse file laid out as the
//! blob's device space, and `ready`, a bitmap of the chunks that some process wrote, which is a hint: nothing is synced, and each
//! process hashes each chunk before its first use. What the cache cannot take is served from a bounded memory (`overflow`),
//! and nothing is fetched ahead then.
//! `<table>` is the digest of the blob's part of the chunk index, so that an image which describes the same blob
//! differently cannot put its bytes where another image reads.

mod bits;
mod blob;
mod bounds;
pub mod cache;
pub mod check;
mod error;
mod fetch;
mod flight;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod image;
pub mod inspect;
mod mapped;
pub mod metrics;
mod overflow;
mod pool;
mod prefetch;
mod rate;
mod readahead;
mod reader;
mod seal;
mod source;
mod staged;
mod table;
#[cfg(test)]
mod tests;
mod trim;
mod upstream;
mod walk;
mod window;

pub use bounds::Bounds;
pub use cache::PlainBlob;
pub use error::{Error, ReadError, Result};
pub use image::{LazoImage, this_boot};
pub use mapped::Mapped;
pub use metrics::Stats;
pub use prefetch::Prefetch;
pub use rate::RateLimiter;
pub use reader::{Parts, Reader};
pub use source::{
    BlobSource, BucketSource, ByteStream, EndpointSource, ErrorKind, LayoutSource, SourceError, SourceSpec, SpecError,
    WebSource, of_image,
};
pub use table::ImageIndex;
pub use trim::Trimmer;
pub use upstream::{Body, Cause, Policy, Reason, SourceId, Speed, Tried, Trouble, Upstream, UpstreamError, Urgency};
pub use walk::ResolveError;
