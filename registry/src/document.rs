//! Small JSON documents of an image: manifests, indexes, configs. Read whole, within a bound, and checked.

use lazo_format::{Digest, Hasher};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    media,
    platform::{self, Platform},
};

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
        let what = || format!("manifest {}", self.descriptor.digest());
        let probe: Probe = serde_json::from_slice(&self.bytes).map_err(|e| Error::invalid(what(), e))?;
        let media_type = self.descriptor.media_type();
        if let Some(own) = &probe.media_type
            && own != media_type.as_ref()
        {
            return Err(Error::invalid(
                what(),
                format_args!("it calls itself {own}, but is referred to as {media_type}"),
            ));
        }
        // A document that two readers could take for two different things must not be accepted as either.
        let index = media::is_index(media_type);
        let ambiguous = if index { probe.config || probe.layers } else { probe.manifests };
        if ambiguous {
            return Err(Error::invalid(what(), "it has the fields of both a manifest and an index"));
        }
        if probe.schema_version != Some(2) {
            return Err(Error::invalid(what(), "its schemaVersion is not 2; push the image again with a newer client"));
        }
        if index {
            return Ok(Content::Index(serde_json::from_slice(&self.bytes).map_err(|e| Error::invalid(what(), e))?));
        }
        if media::is_manifest(media_type) {
            return Ok(Content::Manifest(serde_json::from_slice(&self.bytes).map_err(|e| Error::invalid(what(), e))?));
        }
        Err(Error::invalid(what(), format_args!("{media_type} is neither an image manifest nor an index")))
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

/// The fields that tell the kinds of document apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    schema_version: Option<u32>,
    media_type: Option<String>,
    #[serde(default, deserialize_with = "present")]
    manifests: bool,
    #[serde(default, deserialize_with = "present")]
    layers: bool,
    #[serde(default, deserialize_with = "present")]
    config: bool,
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// The media type a document gives itself, if any; shape decides where it is silent.
pub(crate) fn media_type_within(bytes: &[u8]) -> Option<MediaType> {
    let probe: Probe = serde_json::from_slice(bytes).ok()?;
    probe.media_type.map(|m| m.as_str().into()).or(match (probe.manifests, probe.config) {
        (true, false) => Some(MediaType::ImageIndex),
        (false, true) => Some(MediaType::ImageManifest),
        _ => None,
    })
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
    descriptor.digest().as_ref().parse().map_err(|e| Error::invalid(descriptor.media_type(), e))
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

/// Whether an index entry is no image but something about one: a build attestation or another artifact.
#[must_use]
pub fn is_attestation(entry: &Descriptor) -> bool {
    let annotated = entry.annotations().as_ref().is_some_and(|a| a.contains_key("vnd.docker.reference.type"));
    let unknown = entry.platform().as_ref().is_some_and(|p| p.os().to_string() == "unknown");
    annotated || unknown || entry.artifact_type().is_some()
}

/// The entry of an index that suits `platform` best: the highest variant not above it, the first among equals.
pub(crate) fn choose<'a>(index: &'a ImageIndex, wanted: &Platform) -> Option<&'a Descriptor> {
    let candidates = index.manifests().iter().filter(|d| !is_attestation(d));
    let suiting = candidates.clone().filter_map(|d| Some((wanted.suits(d.platform().as_ref()?)?, d)));
    let best = suiting.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, d)| d);
    // An index of one image need not name its platform.
    best.or_else(|| match candidates.collect::<Vec<_>>().as_slice() {
        [only] if only.platform().is_none() => Some(*only),
        _ => None,
    })
}

/// The platforms of an index, for messages.
pub(crate) fn available(index: &ImageIndex) -> String {
    let names: Vec<String> = index
        .manifests()
        .iter()
        .filter(|d| !is_attestation(d))
        .map(|d| d.platform().as_ref().map_or_else(|| "unnamed".to_owned(), platform::shown))
        .take(32)
        .collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(media_type: &str, json: &str) -> Document {
        Document::new(media_type.into(), json.as_bytes().to_vec())
    }

    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const CONFIG: &str = r#""config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,
        "digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}"#;

    #[test]
    fn tells_kinds_apart() {
        let manifest = document(MANIFEST, &format!(r#"{{"schemaVersion":2,{CONFIG},"layers":[]}}"#));
        assert!(matches!(manifest.content().unwrap(), Content::Manifest(_)));
        let index = document(INDEX, r#"{"schemaVersion":2,"manifests":[]}"#);
        assert!(matches!(index.content().unwrap(), Content::Index(_)));
        assert_eq!(media_type_within(&manifest.bytes), Some(MediaType::ImageManifest));
        assert_eq!(media_type_within(&index.bytes), Some(MediaType::ImageIndex));
    }

    #[test]
    fn refuses_what_is_no_image() {
        let both = format!(r#"{{"schemaVersion":2,{CONFIG},"layers":[],"manifests":[]}}"#);
        for (media_type, json, reason) in [
            (MANIFEST, both.as_str(), "both"),
            (INDEX, both.as_str(), "both"),
            (MANIFEST, r#"{"schemaVersion":1,"fsLayers":[]}"#, "schemaVersion"),
            (MANIFEST, r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json"}"#, "calls itself"),
            ("application/json", r#"{"schemaVersion":2}"#, "neither"),
            (MANIFEST, "{", "EOF"),
            (MANIFEST, r#"{"schemaVersion":2}"#, "missing field"),
        ] {
            let error = document(media_type, json).content().unwrap_err().to_string();
            assert!(error.contains(reason), "{json}: {error}");
        }
    }

    #[test]
    fn checks_size_and_digest() {
        let good = document(MANIFEST, "{}");
        assert!(good.clone().check("it").is_ok());
        let mut long = good.clone();
        long.bytes.push(b' ');
        assert!(matches!(long.check("it"), Err(Error::SizeMismatch { expected: 2, actual: 3, .. })));
        let mut wrong = good;
        wrong.bytes = b"[]".to_vec();
        assert!(matches!(wrong.check("it"), Err(Error::DigestMismatch { .. })));
    }

    #[test]
    fn chooses_from_an_index() {
        let entry = |os: &str, arch: &str| {
            format!(
                r#"{{"mediaType":"{MANIFEST}","size":2,
                "digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
                "platform":{{"os":"{os}","architecture":"{arch}"}}}}"#
            )
        };
        let entries = [entry("unknown", "unknown"), entry("linux", "arm64"), entry("linux", "amd64")].join(",");
        let index = document(INDEX, &format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#));
        let Content::Index(index) = index.content().unwrap() else { panic!("an index") };
        let chosen = choose(&index, &"linux/amd64".parse().unwrap()).unwrap();
        assert_eq!(platform::shown(chosen.platform().as_ref().unwrap()), "linux/amd64");
        assert!(choose(&index, &"linux/s390x".parse().unwrap()).is_none());
        assert_eq!(available(&index), "linux/arm64, linux/amd64");
    }

    #[test]
    fn json_is_sorted() {
        let map: std::collections::HashMap<_, _> = (0..20).map(|n| (format!("k{n:02}"), n)).collect();
        let json = String::from_utf8(to_json(&map).unwrap()).unwrap();
        assert!(json.starts_with(r#"{"k00":0,"k01":1,"#), "{json}");
    }
}
