//! The bootstrap: a metadata-only EROFS image whose files point into one device per blob.
//!
//! [`write_bootstrap`] makes it from a [`crate::ValidTree`]; [`Bootstrap`] reads it in place, without building
//! a tree, and trusts no byte of it. The kernel reads the same image, and is the judge of both.

pub(crate) mod ondisk;
mod reader;
mod writer;

pub use reader::{Bootstrap, BootstrapError, DirEntries, DirEntry, FileType, Inode, Mapping, Slot, Summary, Xattrs};
pub use writer::write_bootstrap;
