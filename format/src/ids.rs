//! A newtype for every number that addresses something, and the sizes all parts agree on.

use std::fmt;

/// EROFS block size in bytes, and the alignment of everything in a blob's device space.
pub const BLOCK_SIZE: u64 = 4096;

/// Largest uncompressed chunk the converter makes unless told otherwise, in bytes. Large enough for a good
/// zstd ratio and few requests, small enough that a single page fault does not fetch megabytes.
pub const DEFAULT_CHUNK_SIZE: u32 = 256 * 1024;

/// Largest uncompressed chunk a reader accepts, in bytes: it bounds every decode buffer.
pub const MAX_CHUNK_SIZE: u32 = 4 * 1024 * 1024;

/// Most blobs one image may have. The kernel was seen to mount 4000 devices; the device table of 4096 also
/// leaves the root inode below the 2 MiB that EROFS's 16-bit root number reaches.
pub const MAX_BLOBS: usize = 4096;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// Position of a blob in the image's blob table, from 0. EROFS's device id is this plus one.
    BlobIndex(u16)
}
id! {
    /// Position of a chunk in the image's chunk table, from 0, counted over all blobs.
    ChunkIndex(u32)
}
id! {
    /// Byte position in a blob's uncompressed address space.
    DeviceAddr(u64)
}
id! {
    /// EROFS inode number: the inode's byte offset in the bootstrap divided by 32.
    Nid(u64)
}

/// lazo runs on 64-bit systems: a bootstrap and its offsets must fit the address space.
const _: () = assert!(usize::BITS >= 64);

/// An offset or length as an index into memory.
#[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, asserted above")]
pub(crate) const fn to_usize(value: u64) -> usize {
    value as usize
}
