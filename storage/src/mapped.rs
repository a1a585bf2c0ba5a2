//! Read-only memory maps of the files under `STATE/images`, the crate's only unsafe code.
#![expect(unsafe_code, reason = "mapping a file is unsafe in Rust, as others could change it")]

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// A file of an image's metadata, mapped read-only.
#[derive(Debug)]
pub struct Mapped(Mmap);

impl Mapped {
    /// Maps a whole file that lies under `STATE/images`.
    ///
    /// # Errors
    /// When it is empty, or the kernel refuses.
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the bytes of a mapping must not change while they are borrowed. Files under STATE/images, a directory
        // that only their owner may enter, are written elsewhere, synced and renamed into place; from then on they are
        // replaced or removed as a whole, never written to or cut, so that this inode's content stays as it is. An adopted image's
        // files have another name as well, in a directory of which who hands it over promises the same.
        unsafe { Mmap::map(file) }.map(Self)
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
