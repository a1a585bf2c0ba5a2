//! A bootstrap and a chunk index as the two parts of one image: each by itself, and against each other.
//!
//! What passes here may be shown to a kernel, which checks little of what it mounts, and read without further looks at rules
//! that concern more than one record.

use thiserror::Error;

use crate::digest::ChunkDigest;
use crate::erofs::{Bootstrap, BootstrapError, Summary};
use crate::ids::BlobIndex;
use crate::index::{ChunkRecord, Header, Index, IndexError};

/// Bytes of the bootstrap that are hashed between two words to [`Watch`].
const PIECE: usize = 1 << 20;

/// Why metadata is not that of an image.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MetadataError {
    /// The chunk index by itself.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The bootstrap by itself, or its device table against the index.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The bootstrap is not the one that the index speaks of.
    #[error(
        "bootstrap: it is not the one that its chunk index was made for: it has {size} bytes, {digest}; \
         the index is for one of {expected_size} bytes, {expected}"
    )]
    OtherBootstrap {
        /// Its size in bytes.
        size: u64,
        /// Its digest.
        digest: ChunkDigest,
        /// Size by the index.
        expected_size: u64,
        /// Digest by the index.
        expected: ChunkDigest,
    },
    /// A sum in the index's header.
    #[error("chunk index: it counts {expected} {what}, the tree has {actual}")]
    Count {
        /// Of what.
        what: &'static str,
        /// By the index.
        expected: u64,
        /// By the bootstrap.
        actual: u64,
    },
    /// A flag in the index's header.
    #[error("chunk index: it says that no file has {0}, but some have")]
    Flag(&'static str),
}

impl MetadataError {
    /// Whether the chunk index is to blame, rather than the bootstrap.
    pub fn is_of_index(&self) -> bool {
        matches!(self, Self::Index(_) | Self::Count { .. } | Self::Flag(_))
    }
}

/// Sees how a validation goes on, and what it looks at.
pub trait Watch {
    /// The next chunk of the table, once the rules that concern it have been checked.
    fn chunk(&mut self, blob: BlobIndex, chunk: &ChunkRecord) {
        let _ = (blob, chunk);
    }

    /// So many more bytes of the bootstrap were hashed or accounted for: at most twice its length in all.
    fn bootstrap(&mut self, bytes: u64) {
        let _ = bytes;
    }
}

/// Looks on at nothing.
impl Watch for () {}

/// What a validation found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Validation {
    /// What the tree holds, if it is sound.
    pub summary: Option<Summary>,
    /// What is wrong: the first fault of each part, and all that is wrong between them. Empty for the metadata of an image.
    pub errors: Vec<MetadataError>,
}

/// Validates both parts. Linear in their sizes; memory as [`Bootstrap::validate`] and [`Index::validate`].
pub fn validate(bootstrap: &[u8], index: &[u8], watch: &mut impl Watch) -> Validation {
    let mut found = Validation::default();
    let index = found.keep(Index::parse(index));
    if let Some(index) = &index {
        found.check_digest(bootstrap, index.header(), watch);
    }
    let tree = found.keep(Bootstrap::parse(bootstrap));
    if let (Some(tree), Some(index)) = (&tree, &index) {
        found.keep(tree.check_devices(index));
    }
    if let Some(index) = &index {
        found.keep(index.validate_with(|blob, chunk| watch.chunk(blob, chunk)));
    }
    if let Some(tree) = &tree {
        found.summary = found.keep(tree.validate_with(|bytes| watch.bootstrap(bytes)));
    }
    if let (Some(summary), Some(index)) = (found.summary, &index) {
        found.check_header(&summary, index.header());
    }
    found
}

impl Validation {
    fn keep<T, E: Into<MetadataError>>(&mut self, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.errors.push(error.into())).ok()
    }

    fn check_digest(&mut self, bootstrap: &[u8], header: &Header, watch: &mut impl Watch) {
        let mut hasher = blake3::Hasher::new();
        for piece in bootstrap.chunks(PIECE) {
            hasher.update(piece);
            watch.bootstrap(piece.len() as u64);
        }
        let (size, digest) = (bootstrap.len() as u64, ChunkDigest(*hasher.finalize().as_bytes()));
        let (expected_size, expected) = (header.bootstrap_size, header.bootstrap_digest);
        if (size, digest) != (expected_size, expected) {
            self.errors.push(MetadataError::OtherBootstrap { size, digest, expected_size, expected });
        }
    }

    fn check_header(&mut self, tree: &Summary, header: &Header) {
        let counts =
            [("entries", header.entries, tree.entries), ("bytes of files", header.file_bytes, tree.file_bytes)];
        let wrong = counts.into_iter().filter(|(_, expected, actual)| expected != actual);
        self.errors.extend(wrong.map(|(what, expected, actual)| MetadataError::Count { what, expected, actual }));
        let flags = [
            ("extended attributes", header.has_xattrs, tree.inodes_with_xattrs),
            ("a POSIX ACL", header.has_acls, tree.inodes_with_acls),
        ];
        let missing = flags.into_iter().filter(|(_, said, found)| !said && *found > 0);
        self.errors.extend(missing.map(|(what, ..)| MetadataError::Flag(what)));
    }
}
