//! Small JSON documents of an image: manifests, indexes, configs. Read whole, within a bound, and checked.

use lazo_format::{Digest, Hasher};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};
use serde::Serialize;

use crate::{
    error::{Error, Result},
    json::Json,
    media,
};

mod parse;

pub use parse::{parse_index, parse_manifest};

/// Largest manifest, index, config or `index.json` read, bytes: what registries take at most for a manifest.
pub const MAX_DOCUMENT: u64 = 4 << 20;
/// Deepest nesting of indexes followed; real images nest once.
pub const MAX_INDEX_DEPTH: usize = 4;
/// Most manifests looked at below one index. The largest official images have about 20.
pub const MAX_INDEX_ENTRIES: usize = 1024;

/// A document together with the descriptor that it matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Media type, digest and size; also annotations and platform where the referring document had them.
    pub descriptor: Descriptor,
    /// The bytes, exactly as stored.
    pub bytes: Vec<u8>,
}

/// What a [`Document`] turns out to be.
#[derive(Debug, Clone)]
pub enum Content {
    /// A manifest of one image.
    Manifest(Box<ImageManifest>),
    /// An index or manifest list.
    Index(Box<ImageIndex>),
}

/// A manifest of one image, parsed.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Its descriptor.
    pub descriptor: Descriptor,
    /// Its bytes, exactly as stored.
    pub bytes: Vec<u8>,
    /// Its content.
    pub manifest: ImageManifest,
}

impl Manifest {
    pub(crate) fn new(document: Document, manifest: ImageManifest) -> Self {
        Self { descriptor: document.descriptor, bytes: document.bytes, manifest }
    }
}

impl Document {
    /// A new document; its digest is SHA-256.
    #[must_use]
    pub fn new(media_type: MediaType, bytes: Vec<u8>) -> Self {
        let descriptor = descriptor(media_type, &Digest::sha256_of(&bytes), bytes.len() as u64);
        Self { descriptor, bytes }
    }

    /// The document's digest.
    ///
    /// # Errors
    /// When it is neither SHA-256 nor SHA-512.
    pub fn digest(&self) -> Result<Digest> {
        digest_of(&self.descriptor)
    }

    /// Parses a manifest or an index.
    ///
    /// # Errors
    /// When it is neither, is Docker's schema 1, or could be read as both.
    pub fn content(&self) -> Result<Content> {
        let (media_type, digest) = (self.descriptor.media_type(), self.descriptor.digest());
        if media::is_index(media_type) {
            return Ok(Content::Index(Box::new(parse_index(&format!("index {digest}"), &self.bytes)?)));
        }
        let what = format!("manifest {digest}");
        if media::is_manifest(media_type) {
            return Ok(Content::Manifest(Box::new(parse_manifest(&what, &self.bytes)?)));
        }
        Err(Error::invalid(what, format_args!("{media_type} is neither an image manifest nor an index")))
    }

    /// Checks size and digest against the descriptor. `what` names the document in errors.
    pub(crate) fn check(self, what: &str) -> Result<Self> {
        let (expected, actual) = (self.descriptor.size(), self.bytes.len() as u64);
        if expected != actual {
            return Err(Error::SizeMismatch { what: what.to_owned(), expected, actual });
        }
        check_digest(what, &self.digest()?, &self.bytes)?;
        Ok(self)
    }
}

/// The media type a document gives itself, if any; shape decides where it is silent.
pub(crate) fn media_type_within(bytes: &[u8]) -> Option<MediaType> {
    let json = Json::new("document", bytes);
    let mut fields = json.root().ok()?.object(&["mediaType", "manifests", "config"]).ok()?;
    let own = fields.read("mediaType", |value| value.text()).ok()?;
    match (own.is_empty(), fields.take("manifests").is_some(), fields.take("config").is_some()) {
        (false, ..) => Some(own.as_str().into()),
        (true, true, false) => Some(MediaType::ImageIndex),
        (true, false, true) => Some(MediaType::ImageManifest),
        _ => None,
    }
}

/// A descriptor for content whose digest is known.
#[must_use]
pub fn descriptor(media_type: MediaType, digest: &Digest, size: u64) -> Descriptor {
    // Both sides accept the same grammar for SHA-256 and SHA-512.
    let digest: oci_spec::image::Digest = digest.to_string().parse().expect("a digest prints as a digest");
    Descriptor::new(media_type, size, digest)
}

/// The digest of a descriptor.
///
/// # Errors
/// When it is neither SHA-256 nor SHA-512.
pub fn digest_of(descriptor: &Descriptor) -> Result<Digest> {
    descriptor.digest().as_ref().parse().map_err(|e| Error::invalid(format_args!("digest {}", descriptor.digest()), e))
}

pub(crate) fn check_digest(what: &str, expected: &Digest, bytes: &[u8]) -> Result<()> {
    let mut hasher = Hasher::new(expected.algorithm());
    hasher.update(bytes);
    let actual = hasher.finish();
    if actual != *expected {
        return Err(Error::digest(what, *expected, actual));
    }
    Ok(())
}

/// JSON with sorted keys: annotations live in hash maps, and equal documents must have equal digests.
///
/// # Errors
/// When the value cannot be JSON (a map whose keys are no strings).
pub fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let fail = |e| Error::invalid("JSON document", e);
    let mut value = serde_json::to_value(value).map_err(fail)?;
    value.sort_all_objects();
    serde_json::to_vec(&value).map_err(fail)
}

#[cfg(test)]
mod tests;
