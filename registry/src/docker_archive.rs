//! What `docker save` writes: layers and a config in a tar, named by a `manifest.json`, but without an OCI manifest.
//! One is made up from them. Uncompressed layers take their digest from the config's diffIDs, to be checked when they
//! are read; compressed ones are hashed when the archive is opened.

use std::{collections::HashMap, path::Path};

use lazo_format::{Algorithm, Digest, Hasher};
use oci_spec::image::{Descriptor, ImageManifest, ImageManifestBuilder, MediaType, SCHEMA_VERSION};
use serde::Deserialize;

use crate::{
    archive::Archive,
    document::{Document, MAX_DOCUMENT, descriptor, to_json},
    error::{Error, Result},
    reference::normalized_name,
    section::Section,
};

/// Most layers of an image. Overlayfs takes 500, docker makes 127.
const MAX_LAYERS: usize = 4096;
/// Bytes hashed at a time.
const HASH_PIECE: usize = 1 << 20;

/// An opened archive.
pub(crate) struct DockerArchive {
    path: String,
    root: Document,
    config: Document,
    layers: HashMap<Digest, Section>,
}

/// An image in `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The part of an image's config that counts here; the rest is passed on as it is.
#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

impl DockerArchive {
    /// Reads the archive's directory and makes up the manifest. Blocking.
    pub(crate) fn open(path: &Path, reference: Option<&str>) -> Result<Self> {
        let archive = Archive::open(path)?;
        let what = format!("docker archive {}", archive.path());
        let manifest = read(&archive, "manifest.json")?;
        let entries = parse_entries(&manifest).map_err(|e| Error::invalid(format_args!("{what}: manifest.json"), e))?;
        let entry = choose(&entries, reference).map_err(|reason| Error::invalid(&what, reason))?;
        let config = Document::new(MediaType::ImageConfig, read(&archive, &entry.config)?);
        let image: Config = serde_json::from_slice(&config.bytes)
            .map_err(|e| Error::invalid(format_args!("{what}: {}", entry.config), e))?;
        let diff_ids = image.rootfs.diff_ids;
        if diff_ids.len() != entry.layers.len() || diff_ids.len() > MAX_LAYERS {
            let reason =
                format!("{} layers, but {} diffIDs (at most {MAX_LAYERS})", entry.layers.len(), diff_ids.len());
            return Err(Error::invalid(what, reason));
        }
        let mut layers = HashMap::new();
        let mut descriptors = Vec::with_capacity(diff_ids.len());
        for (name, diff_id) in entry.layers.iter().zip(diff_ids) {
            let shown = format!("layer {name} of {what}");
            let section = archive.find(name)?.ok_or_else(|| Error::NotFound { what: shown.clone() })?;
            let (digest, layer) = describe(&section, diff_id, &shown)?;
            layers.insert(digest, section);
            descriptors.push(layer);
        }
        let root = synthesize(&config.descriptor, descriptors)?;
        Ok(Self { path: archive.path().to_owned(), root, config, layers })
    }

    pub(crate) fn root(&self) -> &Document {
        &self.root
    }

    /// The config, or the manifest that was made up.
    pub(crate) fn document(&self, digest: &Digest) -> Result<Document> {
        for document in [&self.config, &self.root] {
            if document.digest()? == *digest {
                return Ok(document.clone());
            }
        }
        Err(Error::NotFound { what: self.blob_name(digest) })
    }

    pub(crate) fn section(&self, digest: &Digest, size: u64) -> Result<Section> {
        let what = || self.blob_name(digest);
        let section = self.layers.get(digest).ok_or_else(|| Error::NotFound { what: what() })?;
        if section.len() != size {
            return Err(Error::SizeMismatch { what: what(), expected: size, actual: section.len() });
        }
        Ok(section.clone())
    }

    /// As references name it, without the image.
    pub(crate) fn name(&self) -> String {
        format!("docker-archive:{}", self.path)
    }

    pub(crate) fn blob_name(&self, digest: &Digest) -> String {
        format!("layer {digest} of docker archive {}", self.path)
    }
}

fn read(archive: &Archive, name: &str) -> Result<Vec<u8>> {
    let what = || format!("{name} of docker archive {}", archive.path());
    let section = archive.find(name)?.ok_or_else(|| Error::NotFound { what: what() })?;
    if section.len() > MAX_DOCUMENT {
        return Err(Error::TooLarge { what: what(), limit: MAX_DOCUMENT });
    }
    section.read_all().map_err(|e| Error::io(format_args!("cannot read {}", what()), e))
}

/// The images in `manifest.json`.
pub(crate) fn parse_entries(bytes: &[u8]) -> Result<Vec<Entry>, serde_json::Error> {
    serde_json::from_slice(bytes)
}

/// The image that a reference names, or the only one there is.
pub(crate) fn choose<'a>(entries: &'a [Entry], reference: Option<&str>) -> Result<&'a Entry, String> {
    let tags = || {
        let tags: Vec<&str> = entries.iter().flat_map(|e| e.repo_tags.iter().flatten()).map(String::as_str).collect();
        if tags.is_empty() { "no tags".to_owned() } else { tags.join(", ") }
    };
    let Some(reference) = reference else {
        return match entries {
            [only] => Ok(only),
            [] => Err("it holds no image".to_owned()),
            _ => Err(format!("it holds {} images; name one (or @0, @1, ...): {}", entries.len(), tags())),
        };
    };
    if let Some(number) = reference.strip_prefix('@') {
        let found = number.parse().ok().and_then(|n: usize| entries.get(n));
        return found.ok_or_else(|| format!("it has no image {reference}, only {}", entries.len()));
    }
    let wanted = normalized_name(reference);
    let named = |e: &&Entry| e.repo_tags.iter().flatten().any(|t| normalized_name(t) == wanted);
    entries.iter().find(named).ok_or_else(|| format!("it has no image {reference}; it has: {}", tags()))
}

/// A layer's digest and descriptor, from its first bytes and its diffID.
fn describe(section: &Section, diff_id: Digest, what: &str) -> Result<(Digest, Descriptor)> {
    let mut magic = [0; 4];
    let known = section.len() >= 4;
    if known {
        section.read_exact_at(&mut magic, 0).map_err(|e| Error::io(format_args!("cannot read {what}"), e))?;
    }
    let media_type = match magic {
        [0x1f, 0x8b, ..] => MediaType::ImageLayerGzip,
        [0x28, 0xb5, 0x2f, 0xfd] => MediaType::ImageLayerZstd,
        _ => MediaType::ImageLayer,
    };
    let digest = match media_type {
        MediaType::ImageLayer => diff_id,
        _ => hash(section).map_err(|e| Error::io(format_args!("cannot read {what}"), e))?,
    };
    Ok((digest, descriptor(media_type, &digest, section.len())))
}

fn hash(section: &Section) -> std::io::Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut piece = vec![0; HASH_PIECE];
    let mut position = 0;
    while position < section.len() {
        let len = piece.len().min(usize::try_from(section.len() - position).unwrap_or(usize::MAX));
        section.read_exact_at(&mut piece[..len], position)?;
        hasher.update(&piece[..len]);
        position += len as u64;
    }
    Ok(hasher.finish())
}

fn synthesize(config: &Descriptor, layers: Vec<Descriptor>) -> Result<Document> {
    let manifest = ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(config.clone())
        .layers(layers)
        .build();
    let manifest: ImageManifest = manifest.map_err(|e| Error::invalid("manifest of a docker archive", e))?;
    Ok(Document::new(MediaType::ImageManifest, to_json(&manifest)?))
}
