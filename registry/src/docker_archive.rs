//! What `docker save` writes: layers and a config in a tar, named by a `manifest.json`, but without an OCI manifest.
//! One is made up from them. Uncompressed layers take their digest from the config's diffIDs, to be checked when they
//! are read; compressed ones are hashed when the archive is opened.

use std::{collections::HashMap, path::Path};

use lazo_base::compression::Compression;
use lazo_format::{Algorithm, Digest, Hasher};
use oci_spec::image::{Descriptor, ImageManifest, ImageManifestBuilder, MediaType, SCHEMA_VERSION};

use crate::{
    archive::Archive,
    config::Config,
    document::{Document, MAX_DOCUMENT, descriptor, to_json},
    error::{Error, Result},
    json::{Json, Value},
    reference::normalized_name,
    section::Section,
};

/// Most layers of an image. Overlayfs takes 500, docker makes 127.
const MAX_LAYERS: usize = 4096;
/// Most images listed in a message.
const MAX_LISTED: usize = 32;
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
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    config: String,
    tags: Vec<String>,
    layers: Vec<String>,
}

impl DockerArchive {
    /// Reads the archive's directory and makes up the manifest. Blocking.
    pub(crate) fn open(path: &Path, reference: Option<&str>) -> Result<Self> {
        let archive = Archive::open(path)?;
        let what = format!("docker archive {}", archive.path());
        let entries = entries(&format!("manifest.json of {what}"), &read(&archive, "manifest.json")?)?;
        let entry = choose(&entries, reference).map_err(|reason| Error::invalid(&what, reason))?;
        let config = Document::new(MediaType::ImageConfig, read(&archive, &entry.config)?);
        let image = Config::parse(format_args!("{} of {what}", entry.config), &config.bytes)?;
        let diff_ids = image.diff_ids();
        if diff_ids.len() != entry.layers.len() || diff_ids.len() > MAX_LAYERS {
            let reason =
                format!("{} layers, but {} diff_ids (at most {MAX_LAYERS})", entry.layers.len(), diff_ids.len());
            return Err(Error::invalid(format_args!("{} of {what}", entry.config), reason));
        }
        let mut layers = HashMap::new();
        let mut descriptors = Vec::with_capacity(diff_ids.len());
        // A member that is named often is read once.
        let mut known: HashMap<&str, Stored> = HashMap::new();
        for (number, (name, diff_id)) in (1..).zip(entry.layers.iter().zip(diff_ids)) {
            let shown = || format!("layer {number} of {} ({name}) of {what}", diff_ids.len());
            if !known.contains_key(name.as_str()) {
                let section = archive.find(name)?.ok_or_else(|| Error::NotFound { what: shown() })?;
                let stored = Stored::of(section).map_err(|e| Error::io(format_args!("cannot read {}", shown()), e))?;
                known.insert(name, stored);
            }
            let Stored { section, media_type, digest } = &known[name.as_str()];
            let digest = digest.unwrap_or(*diff_id);
            layers.insert(digest, section.clone());
            descriptors.push(descriptor(media_type.clone(), &digest, section.len()));
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
pub(crate) fn entries(what: &str, bytes: &[u8]) -> Result<Vec<Entry>> {
    let entry = |value: Value<'_>| {
        let mut fields = value.object(&["Config", "RepoTags", "Layers"])?;
        Ok(Entry {
            config: fields.need("Config")?.text()?,
            tags: fields.read("RepoTags", Value::texts)?,
            layers: fields.read("Layers", Value::texts)?,
        })
    };
    Json::new(what, bytes).root()?.list()?.into_iter().map(entry).collect()
}

/// The image that a reference names, or the only one there is.
pub(crate) fn choose<'a>(entries: &'a [Entry], reference: Option<&str>) -> Result<&'a Entry, String> {
    let tags = || {
        let named = entries.iter().enumerate().map(|(number, entry)| match entry.tags.is_empty() {
            true => format!("@{number} without a name"),
            false => format!("@{number} {}", entry.tags.join(", ")),
        });
        named.take(MAX_LISTED).collect::<Vec<_>>().join("; ")
    };
    let found: Vec<&Entry> = match reference {
        None => entries.iter().collect(),
        Some(reference) => match reference.strip_prefix('@') {
            Some(number) => number.parse().ok().and_then(|n: usize| entries.get(n)).into_iter().collect(),
            None => {
                let wanted = normalized_name(reference);
                let named = |entry: &&Entry| entry.tags.iter().any(|tag| normalized_name(tag) == wanted);
                entries.iter().filter(named).collect()
            }
        },
    };
    let such = reference.map_or_else(String::new, |reference| format!(" {reference}"));
    match found.as_slice() {
        [] if entries.is_empty() => Err("it holds no image".to_owned()),
        [] => Err(format!("it has no image{such}; it has: {}", tags())),
        [first, others @ ..] if others.iter().all(|other| other.is_same(first)) => Ok(first),
        _ => Err(format!("it holds {} images{such}; name one by its tag or @NUMBER: {}", found.len(), tags())),
    }
}

impl Entry {
    /// Whether it is the same image, whatever its tags.
    fn is_same(&self, other: &Self) -> bool {
        self.config == other.config && self.layers == other.layers
    }
}

/// A layer as it lies in the archive.
struct Stored {
    section: Section,
    media_type: MediaType,
    /// `None` for a plain tar, whose digest is its diffID.
    digest: Option<Digest>,
}

impl Stored {
    fn of(section: Section) -> std::io::Result<Self> {
        let (media_type, digest) = match section.compression()? {
            Compression::Gzip => (MediaType::ImageLayerGzip, Some(hash(&section)?)),
            Compression::Zstd => (MediaType::ImageLayerZstd, Some(hash(&section)?)),
            Compression::None => (MediaType::ImageLayer, None),
        };
        Ok(Self { section, media_type, digest })
    }
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
