//! Read-only memory maps of the files under `STATE/images`, the crate's only unsafe code.
#![expect(unsafe_code, reason = "mapping a file is unsafe in Rust, as others could change it")]

use std::fs::File;
use std::io;

use memmap2::{Mmap, UncheckedAdvice};

/// Bytes of a mapping that are looked at in order before their pages are given back: what a pass over a large file adds to the
/// process's memory at most.
const PASS: u64 = 8 << 20;

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

    /// BLAKE3 of all of it.
    pub(crate) fn blake3(&self) -> blake3::Hash {
        let (mut hasher, mut pass) = (blake3::Hasher::new(), Pass::over(self));
        for piece in self.0.chunks(1 << 20) {
            hasher.update(piece);
            pass.passed(piece.len() as u64);
        }
        hasher.finalize()
    }

    /// Takes the pages out of the process's memory; what is read again comes from the page cache.
    fn let_go(&self) {
        // SAFETY: the mapping is of a file, shared and read-only, so that the kernel has every page again from that file, with
        // the same content as before.
        let advised = unsafe { self.0.unchecked_advise(UncheckedAdvice::DontNeed) };
        // Then the pages stay until the kernel wants them for others.
        drop(advised);
    }
}

/// A look at all of a mapping that leaves little of it in the process's memory. Its end gives back the rest.
pub(crate) struct Pass<'a> {
    over: &'a Mapped,
    since: u64,
}

impl<'a> Pass<'a> {
    pub(crate) fn over(over: &'a Mapped) -> Self {
        Self { over, since: 0 }
    }

    /// So many more bytes have been looked at.
    pub(crate) fn passed(&mut self, bytes: u64) {
        self.since += bytes;
        if self.since >= PASS {
            self.since = 0;
            self.over.let_go();
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.over.let_go();
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
