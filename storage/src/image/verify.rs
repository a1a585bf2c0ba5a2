//! The full look at an image's metadata: made once, then a stamp vouches for the files ([`super::stamp`]).
//!
//! The kernel, and the readers of this program, are shown only what has passed it. `lazo check` makes the same look.

use std::sync::{Mutex, PoisonError};

use lazo_format::metadata::{self, Validation, Watch};
use lazo_format::{BlobIndex, ChunkRecord, Index, MetadataError};

use super::damaged;
use crate::error::{Error, Result};
use crate::mapped::{Mapped, Pass};
use crate::table::{Table, Tables};

/// Bytes of metadata from which on images are looked at one at a time: by estimate half a million entries. What a look takes of memory and
/// disk grows with the image; one after the other, many large ones need no more than one.
const LARGE: usize = 64 << 20;

/// Bytes of a record of the chunk table.
const RECORD: u64 = 57;

/// What was found out about metadata that is right.
pub(super) struct Verified {
    /// BLAKE3 of bootstrap and chunk index in hex.
    pub(super) digests: [String; 2],
    /// Digests of the blobs' tables.
    pub(super) tables: Box<[Table]>,
}

/// Validates the metadata of an image. Blocks for a time that is linear in its size.
///
/// # Errors
/// The first rule that is broken.
pub(super) fn verify(image: &str, bootstrap: &Mapped, index: &Mapped) -> Result<Verified> {
    let (validation, tables) = look(bootstrap, index);
    match validation.errors.into_iter().next() {
        None => {}
        Some(MetadataError::Index(source)) => return Err(Error::Index { image: image.to_owned(), source }),
        Some(MetadataError::Bootstrap(source)) => return Err(Error::Bootstrap { image: image.to_owned(), source }),
        Some(error) => return damaged(image, &error.to_string()),
    }
    let digests = [bootstrap, index].map(|part| part.blake3().to_hex().to_string());
    Ok(Verified { digests, tables })
}

/// The look itself: all that is wrong, and the digests of the blobs' tables, which mean something if nothing is.
pub(crate) fn look(bootstrap: &Mapped, index: &Mapped) -> (Validation, Box<[Table]>) {
    static TURN: Mutex<()> = Mutex::new(());
    let size = bootstrap.as_ref().len().saturating_add(index.as_ref().len());
    let _turn = (size >= LARGE).then(|| TURN.lock().unwrap_or_else(PoisonError::into_inner));
    let mut watching =
        Watching { tables: Tables::default(), bootstrap: Pass::over(bootstrap), index: Pass::over(index) };
    let validation = metadata::validate(bootstrap.as_ref(), index.as_ref(), &mut watching);
    let blobs = Index::parse(index.as_ref()).map_or(0, |index| index.blob_count());
    (validation, watching.tables.finish(blobs))
}

struct Watching<'a> {
    tables: Tables,
    bootstrap: Pass<'a>,
    index: Pass<'a>,
}

impl Watch for Watching<'_> {
    fn chunk(&mut self, blob: BlobIndex, chunk: &ChunkRecord) {
        self.tables.add(blob, chunk);
        self.index.passed(RECORD);
    }

    fn bootstrap(&mut self, bytes: u64) {
        self.bootstrap.passed(bytes);
    }
}
