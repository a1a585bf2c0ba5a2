//! Bytes only: the EROFS bootstrap (writer and reader), the chunk index, digests and the chunk codec.
//!
//! Nothing in this crate does I/O, and everything that parses takes foreign bytes: a hostile bootstrap,
//! index or chunk yields an error, never a panic, an endless loop or memory beyond a stated bound.
//! `docs/FORMAT.md` describes the same bytes for someone who will read them without this crate.

pub mod chunk;
#[cfg(any(test, fuzzing))]
pub mod cost;
#[cfg(not(any(test, fuzzing)))]
mod cost;
pub mod digest;
pub mod erofs;
pub mod ids;
pub mod index;
pub mod media;
pub mod metadata;
pub mod tree;

pub use chunk::{ChunkDecoder, ChunkEncoder, ChunkError, EncodedChunk, Encoding};
pub use digest::{Algorithm, ChunkDigest, Digest, DigestError, Hasher};
pub use erofs::{Bootstrap, BootstrapError, DirEntry, FileType, Inode, Mapping, Summary, write_bootstrap};
pub use ids::{BLOCK_SIZE, BlobIndex, ChunkIndex, DEFAULT_CHUNK_SIZE, DeviceAddr, MAX_BLOBS, MAX_CHUNK_SIZE, Nid};
pub use index::{BlobRecord, ChunkRecord, Header, Index, IndexContents, IndexError, PrefetchRange, encode_index};
pub use metadata::MetadataError;
pub use tree::{
    Device, Extent, Meta, Node, NodeId, NodeKind, Timestamp, Tree, TreeError, ValidTree, Xattr, xattr_supported,
};
