//! The writer's input: a tree of nodes in an arena, and the proof that it can be written.

mod chunking;
mod validate;

use std::collections::BTreeMap;

use thiserror::Error;

use crate::digest::Digest;
use crate::ids::{BlobIndex, DeviceAddr};

pub(crate) use chunking::{chunking, runs};
pub use validate::{
    MAX_BOOTSTRAP_SIZE, MAX_MAP_ENTRIES, MAX_NAME, MAX_SYMLINK, MAX_XATTR_AREA, MAX_XATTR_VALUE, ValidTree,
    xattr_supported,
};

/// Position of a node in [`Tree::nodes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// A point in time: seconds since 1970 (negative before), and nanoseconds below 10^9 to add.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// Nanoseconds to add.
    pub nanoseconds: u32,
}

/// One extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xattr {
    /// Full name, such as `user.foo`; see [`xattr_supported`].
    pub name: Box<[u8]>,
    /// Value.
    pub value: Box<[u8]>,
}

/// What every inode has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// Mode without the file type: `mode & 0o7777`.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Extended attributes, in any order.
    pub xattrs: Vec<Xattr>,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory: names without `.` and `..`.
    Directory(BTreeMap<Box<[u8]>, NodeId>),
    /// A regular file; the extents' lengths add up to the size.
    Regular {
        /// Length in bytes.
        size: u64,
        /// Where its content lies, in file order; empty for an empty file.
        extents: Vec<Extent>,
    },
    /// A symbolic link and its target.
    Symlink(Box<[u8]>),
    /// A character device.
    CharDevice {
        /// At most 4095.
        major: u32,
        /// At most 1048575.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// At most 4095.
        major: u32,
        /// At most 1048575.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// A piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes: a multiple of the block size but for the file's last extent.
    pub length: u64,
    /// Blob and block-aligned device address; `None` for a hole.
    pub location: Option<(BlobIndex, DeviceAddr)>,
}

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Owner, mode, times, attributes.
    pub meta: Meta,
    /// Type and content.
    pub kind: NodeKind,
}

/// A blob as the bootstrap sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The blob's SHA-256; its hex digits go into the device table as a label.
    pub digest: Digest,
    /// Size of the blob's device space in bytes: whole blocks.
    pub size: u64,
}

/// A file tree. Nodes that no directory reaches are not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// All nodes. A node other than a directory may be named more than once: those names are hard links.
    pub nodes: Vec<Node>,
    /// The root directory.
    pub root: NodeId,
    /// One a blob, in [`BlobIndex`] order.
    pub devices: Vec<Device>,
}

impl Tree {
    /// Checks that the tree can be written, and counts links.
    ///
    /// # Errors
    /// The first rule that is broken; see [`TreeError`].
    pub fn validate(self) -> Result<ValidTree, TreeError> {
        validate::validate(self)
    }
}

/// A tree that EROFS cannot express. Paths are shown with unprintable bytes escaped.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TreeError {
    /// A directory names a node that does not exist, or the root does not.
    #[error("{path}: node {} does not exist", node.0)]
    NoNode {
        /// Where.
        path: String,
        /// Which.
        node: NodeId,
    },
    /// The root is not a directory.
    #[error("the root is not a directory")]
    Root,
    /// A directory is reached twice: EROFS has no hard links to directories, and a loop has no end.
    #[error("{path}: the directory is reached a second time")]
    DirectoryTwice {
        /// Its second path.
        path: String,
    },
    /// A value is outside what EROFS can store.
    #[error("{path}: {what} is {value}, the format allows {max}")]
    TooLarge {
        /// Where.
        path: String,
        /// Which value.
        what: &'static str,
        /// The value.
        value: u64,
        /// Its bound.
        max: u64,
    },
    /// A rule is broken.
    #[error("{path}: {what}")]
    Invalid {
        /// Where.
        path: String,
        /// Which rule.
        what: &'static str,
    },
    /// An extended attribute that EROFS cannot store or that must not be passed on.
    #[error("{path}: extended attribute {name}: {what}")]
    Xattr {
        /// Where.
        path: String,
        /// The attribute's name.
        name: String,
        /// Why not.
        what: &'static str,
    },
    /// A device breaks a rule.
    #[error("device {index}: {what}")]
    Device {
        /// Which.
        index: usize,
        /// Which rule.
        what: &'static str,
    },
}
