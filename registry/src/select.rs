//! From what a reference names to image manifests: one for a platform, some, or all.

use std::collections::{HashMap, HashSet};

use oci_spec::image::Descriptor;

use crate::{
    choice::{LeftOut, artifact_type, candidates, is_attestation, platforms_of},
    config::Config,
    document::{Content, Document, MAX_INDEX_DEPTH, MAX_INDEX_ENTRIES, Manifest},
    error::{Error, Result},
    lazo::LazoLayers,
    media,
    platform::Platform,
    source::Source,
};

/// Most documents fetched to find one platform's manifest. An index that names its platforms needs two; one that does not has
/// its entries looked into, of which real ones have a handful.
const MAX_LOOKED_AT: usize = 64;
/// Most bytes of the manifests below one index together, bytes. The largest official images have 100 KB.
const MAX_MANIFESTS: u64 = 64 << 20;
/// Most platforms listed in a message.
const MAX_LISTED: usize = 32;

/// The manifest for a platform, and the way to it.
#[derive(Debug, Clone)]
pub struct Found {
    /// The indexes that lead to it, outermost first.
    pub indexes: Vec<Document>,
    /// The image's manifest.
    pub manifest: Manifest,
    /// What else these indexes hold.
    pub left_out: Vec<LeftOut>,
}

/// The manifests for several platforms.
#[derive(Debug, Clone)]
pub struct Selected {
    /// In the order asked for, each once.
    pub manifests: Vec<Manifest>,
    /// Annotations of the outermost index, if there is one.
    pub annotations: Option<HashMap<String, String>>,
    /// What else the indexes hold.
    pub left_out: Vec<LeftOut>,
}

/// All images below a reference.
#[derive(Debug)]
pub struct Images {
    /// In the index's order, each once: what the index says, and the manifest or why it cannot be had.
    pub images: Vec<(Descriptor, Result<Manifest>)>,
    /// Annotations of the outermost index, if there is one.
    pub annotations: Option<HashMap<String, String>>,
    /// What is no image: attestations, signatures, other artifacts.
    pub left_out: Vec<LeftOut>,
}

impl Source {
    /// The image manifest for a platform. A reference to a single manifest is that one, whatever its platform.
    ///
    /// # Errors
    /// As [`Self::root`]; when no manifest suits, which lists those there are; when indexes nest deeper than
    /// [`MAX_INDEX_DEPTH`].
    pub async fn resolve(&self, platform: &Platform) -> Result<Manifest> {
        Ok(self.find(platform).await?.manifest)
    }

    /// The same, with the way to it and what is left out.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub async fn find(&self, platform: &Platform) -> Result<Found> {
        self.find_below(self.root().await?, platform).await
    }

    /// The manifests for some platforms.
    ///
    /// # Errors
    /// As [`Self::resolve`], if there is none for any of them.
    pub async fn select(&self, platforms: &[Platform]) -> Result<Selected> {
        let root = self.root().await?;
        let annotations = match root.content()? {
            Content::Index(index) => index.annotations().clone(),
            Content::Manifest(_) => None,
        };
        let mut selected = Selected { manifests: Vec::new(), annotations, left_out: Vec::new() };
        let mut taken = HashSet::new();
        for platform in platforms {
            let found = self.find_below(root.clone(), platform).await?;
            taken.extend(found.indexes.iter().map(|index| index.descriptor.digest().to_string()));
            if taken.insert(found.manifest.descriptor.digest().to_string()) {
                selected.manifests.push(found.manifest);
            }
            selected.left_out.extend(found.left_out);
        }
        selected.left_out.retain(|other| taken.insert(other.digest.clone()));
        Ok(selected)
    }

    /// Looks depth first, best entries first.
    async fn find_below(&self, root: Document, platform: &Platform) -> Result<Found> {
        let mut way: Vec<Document> = Vec::new();
        let mut others: Vec<Descriptor> = Vec::new();
        let mut looked_at = 0;
        // The documents to look at, last first, with their depth.
        let mut pending: Vec<(usize, Next)> = vec![(0, Next::Document(root))];
        while let Some((depth, next)) = pending.pop() {
            let (document, is_sure) = match next {
                Next::Document(document) => (document, true),
                Next::Entry(entry, is_sure) => (self.document(&entry).await?, is_sure),
            };
            looked_at += 1;
            if looked_at > MAX_LOOKED_AT {
                let text = format_args!("no image for {platform} among the first {MAX_LOOKED_AT} documents below it");
                return Err(Error::invalid(self.reference(), text));
            }
            way.truncate(depth);
            match document.content()? {
                Content::Manifest(manifest) => {
                    let manifest = Manifest::new(document, *manifest);
                    if is_sure || self.suits(&manifest, platform).await? {
                        return Ok(found(way, manifest, &others));
                    }
                }
                Content::Index(_) if depth == MAX_INDEX_DEPTH => return Err(self.too_deep()),
                Content::Index(index) => {
                    let entries = index.manifests();
                    let below = candidates(entries, platform).into_iter().rev();
                    pending.extend(below.map(|c| (depth + 1, Next::Entry(c.entry.clone(), c.is_sure))));
                    others.extend_from_slice(entries);
                    way.push(document);
                }
            }
        }
        Err(self.no_platform(platform, &others))
    }

    /// Whether a manifest of which the index does not name the platform is for this one.
    async fn suits(&self, manifest: &Manifest, platform: &Platform) -> Result<bool> {
        if artifact_type(&manifest.manifest).is_some() {
            return Ok(false);
        }
        let config = self.config(manifest).await?;
        Ok(config.platform().is_some_and(|own| platform.accepts(&own)))
    }

    /// An image's config, parsed.
    ///
    /// # Errors
    /// As [`Self::document`], and when it is no config.
    pub async fn config(&self, manifest: &Manifest) -> Result<Config> {
        let document = self.document(manifest.manifest.config()).await?;
        Config::parse(document.descriptor.digest(), &document.bytes)
    }

    fn no_platform(&self, platform: &Platform, entries: &[Descriptor]) -> Error {
        let mut platforms = platforms_of(entries);
        let mut seen = HashSet::new();
        platforms.retain(|platform| seen.insert(platform.clone()));
        platforms.truncate(MAX_LISTED);
        let available = if platforms.is_empty() { "none that is named".to_owned() } else { platforms.join(", ") };
        Error::NoPlatform { what: self.reference().to_string(), wanted: platform.to_string(), available }
    }

    /// All images, in order and each once; for a single manifest, itself. What is no image is listed as left out.
    ///
    /// # Errors
    /// As [`Self::root`], and beyond [`MAX_INDEX_DEPTH`], [`MAX_INDEX_ENTRIES`] or the bound on the manifests' bytes.
    pub async fn images(&self) -> Result<Images> {
        let root = self.root().await?;
        let mut images = Images { images: Vec::new(), annotations: None, left_out: Vec::new() };
        let index = match root.content()? {
            Content::Manifest(manifest) => {
                images.images.push((root.descriptor.clone(), Ok(Manifest::new(root, *manifest))));
                return Ok(images);
            }
            Content::Index(index) => index,
        };
        images.annotations.clone_from(index.annotations());
        let (mut seen, mut bytes) = (HashSet::new(), 0);
        // Depth first, so that order is kept; what is to be visited is bounded with what was seen.
        let mut pending: Vec<(usize, Descriptor)> = index.manifests().iter().rev().map(|d| (1, d.clone())).collect();
        while let Some((depth, entry)) = pending.pop() {
            if !seen.insert(entry.digest().to_string()) {
                continue;
            }
            if seen.len() + pending.len() > MAX_INDEX_ENTRIES {
                return Err(Error::invalid(self.reference(), format_args!("over {MAX_INDEX_ENTRIES} index entries")));
            }
            if is_attestation(&entry) {
                images.left_out.push(LeftOut::entry(&entry));
                continue;
            }
            bytes = entry.size().saturating_add(bytes);
            if bytes > MAX_MANIFESTS {
                let text = format_args!("the manifests below it have over {MAX_MANIFESTS} bytes together");
                return Err(Error::invalid(self.reference(), text));
            }
            let document = self.document(&entry).await;
            match document.and_then(|document| Ok((document.content()?, document))) {
                Ok((Content::Index(_), _)) if depth > MAX_INDEX_DEPTH => return Err(self.too_deep()),
                Ok((Content::Index(nested), _)) => {
                    pending.extend(nested.manifests().iter().rev().map(|d| (depth + 1, d.clone())));
                }
                Ok((Content::Manifest(manifest), document)) => match artifact_type(&manifest) {
                    // What is offered for a platform is what a node of that platform takes.
                    Some(kind) if entry.platform().is_none() && !LazoLayers::are_in(&manifest) => {
                        images.left_out.push(LeftOut::artifact(&entry, kind));
                    }
                    _ => images.images.push((entry, Ok(Manifest::new(document, *manifest)))),
                },
                Err(error) if media::is_index(entry.media_type()) => return Err(error),
                Err(error) => images.images.push((entry, Err(error))),
            }
        }
        Ok(images)
    }

    fn too_deep(&self) -> Error {
        Error::invalid(self.reference(), format_args!("indexes nest deeper than {MAX_INDEX_DEPTH}"))
    }
}

/// Something to look at.
enum Next {
    Document(Document),
    /// An index's entry, and whether nothing more needs to be known of it.
    Entry(Descriptor, bool),
}

fn found(indexes: Vec<Document>, manifest: Manifest, entries: &[Descriptor]) -> Found {
    let way = indexes.iter().map(|index| &index.descriptor).chain([&manifest.descriptor]);
    let mut taken: HashSet<String> = way.map(|descriptor| descriptor.digest().to_string()).collect();
    let others = entries.iter().filter(|entry| taken.insert(entry.digest().to_string()));
    let left_out = others.map(LeftOut::entry).collect();
    Found { indexes, manifest, left_out }
}
