//! The EROFS structures this crate writes and reads, and their constants.
//!
//! Names and values are those of the Linux kernel's on-disk format; docs/FORMAT.md has the same as tables. Fields called `unused` have
//! no meaning in the images of this crate and are zero.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::tree::Xattr;

/// A structure as it lies on disk.
macro_rules! on_disk {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
        #[repr(C)]
        pub(crate) struct $name {
            $($(#[$field_doc])* pub(crate) $field: $kind,)*
        }
    )*};
}

on_disk! {
    /// At [`SUPERBLOCK_OFFSET`].
    Superblock {
        magic: U32,
        checksum: U32,
        feature_compat: U32,
        block_bits: u8,
        extension_slots: u8,
        root_nid: U16,
        inodes: U64,
        unused_times: [u8; 12],
        blocks: U32,
        meta_block: U32,
        xattr_block: U32,
        uuid: [u8; 16],
        unused_volume_name: [u8; 16],
        feature_incompat: U32,
        unused_compression: U16,
        devices: U16,
        /// In units of a slot's size.
        device_table: U16,
        directory_block_bits: u8,
        xattr_prefixes: u8,
        unused_end: [u8; 36],
    }
    /// One entry of the device table.
    DeviceSlot {
        tag: [u8; 64],
        blocks: U32,
        flat_block: U32,
        unused_end: [u8; 56],
    }
    /// `struct erofs_inode_extended`.
    ExtendedInode {
        format: U16,
        xattr_count: U16,
        mode: U16,
        unused_block_high: U16,
        size: U64,
        /// First block, chunk format or device number, as layout and type say.
        u: U32,
        unused_number: U32,
        uid: U32,
        gid: U32,
        mtime: I64,
        mtime_nanoseconds: U32,
        nlink: U32,
        unused_end: [u8; 16],
    }
    /// One entry of a directory's block; the names follow all entries.
    Dirent {
        nid: U64,
        name_offset: U16,
        file_type: u8,
        unused: u8,
    }
    /// Before the attributes behind an inode.
    XattrHeader {
        name_filter: U32,
        shared_count: u8,
        unused: [u8; 7],
    }
    /// Before the name and value of one attribute.
    XattrEntry {
        name_length: u8,
        namespace: u8,
        value_length: U16,
    }
    /// One entry of a chunk map.
    MapEntry {
        unused_block_high: U16,
        /// Position in the device table plus 1.
        device: U16,
        block: U32,
    }
}

/// Offset of the superblock in bytes.
pub(crate) const SUPERBLOCK_OFFSET: usize = 1024;
/// Size of the superblock in bytes.
pub(crate) const SUPERBLOCK_SIZE: usize = size_of::<Superblock>();
/// First field of the superblock.
pub(crate) const MAGIC: u32 = 0xE0F5_E1E2;
/// log2 of the block size.
pub(crate) const BLOCK_BITS: u8 = 12;
/// Superblock checksum, and inodes that carry mtime.
pub(crate) const FEATURE_COMPAT: u32 = 0x1 | 0x2;
/// Chunk-based files, and a device table.
pub(crate) const FEATURE_INCOMPAT: u32 = 0x4 | 0x8;
/// Size and alignment of a slot of the device table in bytes.
pub(crate) const SLOT_SIZE: usize = size_of::<DeviceSlot>();
/// Alignment of an inode in bytes, and the unit of inode numbers.
pub(crate) const INODE_UNIT: u64 = 32;
/// Size of an extended inode in bytes.
pub(crate) const INODE_SIZE: usize = size_of::<ExtendedInode>();
/// Bit of `i_format` that marks an extended inode.
pub(crate) const EXTENDED: u16 = 1;
/// Data layouts, bits 1 to 3 of `i_format`.
pub(crate) const FLAT_PLAIN: u16 = 0;
/// Whole blocks elsewhere, the rest behind the inode.
pub(crate) const FLAT_INLINE: u16 = 2;
/// A chunk map behind the inode.
pub(crate) const CHUNK_BASED: u16 = 4;
/// Flag of the chunk format: 8-byte map entries.
pub(crate) const CHUNK_INDEXES: u32 = 0x20;
/// Low bits of the chunk format: log2 of the chunk size in blocks.
pub(crate) const CHUNK_BITS_MASK: u32 = 0x1f;
/// Size and alignment of a chunk map entry in bytes.
pub(crate) const MAP_ENTRY_SIZE: u64 = size_of::<MapEntry>() as u64;
/// Block address of a hole.
pub(crate) const NULL_ADDR: u32 = u32::MAX;
/// Size of a directory entry without its name in bytes.
pub(crate) const DIRENT_SIZE: usize = size_of::<Dirent>();
/// Header of the attributes behind an inode in bytes, before shared ids.
pub(crate) const XATTR_HEADER_SIZE: u64 = size_of::<XattrHeader>() as u64;
/// Header of one attribute in bytes.
pub(crate) const XATTR_ENTRY_SIZE: u64 = size_of::<XattrEntry>() as u64;
/// Most shared attributes one inode can refer to: its count has 8 bits.
pub(crate) const MAX_SHARED_XATTRS: usize = 255;

/// File types in directory entries.
pub(crate) const FT_REGULAR: u8 = 1;
pub(crate) const FT_DIRECTORY: u8 = 2;
pub(crate) const FT_CHAR: u8 = 3;
pub(crate) const FT_BLOCK: u8 = 4;
pub(crate) const FT_FIFO: u8 = 5;
pub(crate) const FT_SOCKET: u8 = 6;
pub(crate) const FT_SYMLINK: u8 = 7;

/// File types in `i_mode`.
pub(crate) const S_IFMT: u16 = 0o170_000;
pub(crate) const S_IFREG: u16 = 0o100_000;
pub(crate) const S_IFDIR: u16 = 0o040_000;
pub(crate) const S_IFCHR: u16 = 0o020_000;
pub(crate) const S_IFBLK: u16 = 0o060_000;
pub(crate) const S_IFIFO: u16 = 0o010_000;
pub(crate) const S_IFSOCK: u16 = 0o140_000;
pub(crate) const S_IFLNK: u16 = 0o120_000;

/// Namespaces of extended attributes: number on disk and prefix. The ACLs are names of their own.
const NAMESPACES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// Namespace number and the rest of the name.
pub(crate) fn split_xattr_name(name: &[u8]) -> Option<(u8, &[u8])> {
    NAMESPACES.iter().find_map(|(number, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        // A namespace needs a name behind it, an ACL must have none.
        (rest.is_empty() != prefix.ends_with(b".")).then_some((*number, rest))
    })
}

/// Prefix of a namespace number.
pub(crate) fn xattr_prefix(number: u8) -> Option<&'static [u8]> {
    NAMESPACES.iter().find(|(known, _)| *known == number).map(|(_, prefix)| *prefix)
}

/// Bytes one attribute takes: header, name without namespace, value, padded to 4.
pub(crate) fn xattr_entry_size(xattr: &Xattr) -> u64 {
    let name = split_xattr_name(&xattr.name).map_or(0, |(_, rest)| rest.len());
    (XATTR_ENTRY_SIZE + (name + xattr.value.len()) as u64).next_multiple_of(4)
}

/// The kernel's new_encode_dev, for 12 bits of major and 20 bits of minor.
pub(crate) fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

/// Major and minor number of an encoded device.
pub(crate) fn decode_device(encoded: u32) -> (u32, u32) {
    (encoded >> 8 & 0xfff, encoded & 0xff | encoded >> 12 & 0xf_ff00)
}

/// Checksum of the superblock's block from the superblock on, its checksum field being zero: CRC32C
/// without the final inversion.
pub(crate) fn superblock_checksum(bytes: &[u8]) -> u32 {
    !crc32c::crc32c(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_of_the_kernel_s() {
        assert_eq!((SUPERBLOCK_SIZE, SLOT_SIZE, INODE_SIZE, DIRENT_SIZE), (128, 128, 64, 12));
        assert_eq!((XATTR_HEADER_SIZE, XATTR_ENTRY_SIZE, MAP_ENTRY_SIZE), (12, 4, 8));
    }

    #[test]
    fn device_numbers() {
        for (major, minor, encoded) in
            [(0, 0, 0), (8, 1, 0x801), (4095, 1_048_575, u32::MAX), (259, 0x12345, 0x1231_0345)]
        {
            assert_eq!(encode_device(major, minor), encoded);
            assert_eq!(decode_device(encoded), (major, minor));
        }
    }

    #[test]
    fn xattr_names() {
        assert_eq!(split_xattr_name(b"user.a"), Some((1, &b"a"[..])));
        assert_eq!(split_xattr_name(b"security.capability"), Some((6, &b"capability"[..])));
        assert_eq!(split_xattr_name(b"system.posix_acl_access"), Some((2, &b""[..])));
        for name in [&b"user."[..], b"system.posix_acl_accessx", b"system.nfs4_acl", b"lustre.x", b"", b"user"] {
            assert_eq!(split_xattr_name(name), None, "{}", name.escape_ascii());
        }
    }
}
