//! Which entry of an index, a layout or an archive is meant, and what the others are.

use std::{cmp::Reverse, collections::HashSet, fmt};

use oci_spec::image::{Descriptor, ImageManifest, MediaType};
use serde::Serialize;

use crate::{
    media,
    platform::{self, Platform, Rank},
    reference::normalized_name,
};

/// Annotation that holds an image's tag, or whole name.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation that holds an image's whole name, as containerd and docker write it beside the tag.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";
/// Annotation of buildkit's attestations, and of what they are about.
const ATTESTATION: &str = "vnd.docker.reference.type";
const ATTESTED: &str = "vnd.docker.reference.digest";
/// Ends of the tags under which cosign keeps signatures, attestations and bills of materials.
const COSIGN: [&str; 3] = [".sig", ".att", ".sbom"];
/// Most entries listed in a message.
const MAX_LISTED: usize = 32;

/// Something below an index that was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Its digest.
    pub digest: String,
    /// What it is: "platform", "attestation", "artifact", "image of no named platform" or "index of no named platform".
    pub kind: &'static str,
    /// Which one: the platform, what the attestation is about, the artifact's type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
}

impl LeftOut {
    /// What an index says of an entry.
    #[must_use]
    pub fn entry(entry: &Descriptor) -> Self {
        let (kind, of) = match (nature(entry), entry.platform()) {
            (Nature::Attestation(of), _) => ("attestation", of),
            (Nature::Artifact(of), _) => ("artifact", Some(of)),
            (Nature::Image, Some(platform)) => ("platform", Some(platform::shown(platform))),
            (Nature::Image, None) if media::is_index(entry.media_type()) => ("index of no named platform", None),
            (Nature::Image, None) => ("image of no named platform", None),
        };
        Self { digest: entry.digest().to_string(), kind, of }
    }

    /// An entry whose manifest says that it is an artifact of a type.
    pub(crate) fn artifact(entry: &Descriptor, of: String) -> Self {
        Self { digest: entry.digest().to_string(), kind: "artifact", of: Some(of) }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, &self.of) {
            ("platform", Some(of)) => write!(f, "platform {of}, {}", self.digest),
            (kind, Some(of)) => write!(f, "{kind} ({of}), {}", self.digest),
            (kind, None) => write!(f, "{kind}, {}", self.digest),
        }
    }
}

/// What an index's entry stands for, as far as the index says.
enum Nature {
    Image,
    /// With what it is about.
    Attestation(Option<String>),
    /// With its type.
    Artifact(String),
}

fn nature(entry: &Descriptor) -> Nature {
    if annotation(entry, ATTESTATION).is_some() {
        return Nature::Attestation(annotation(entry, ATTESTED).map(str::to_owned));
    }
    if let Some(kind) = entry.artifact_type() {
        return Nature::Artifact(kind.to_string());
    }
    if entry.platform().as_ref().is_some_and(|p| p.os().to_string() == "unknown") {
        return Nature::Attestation(None);
    }
    if !media::is_index(entry.media_type()) && !media::is_manifest(entry.media_type()) {
        return Nature::Artifact(entry.media_type().to_string());
    }
    match annotation(entry, REF_NAME) {
        Some(tag) if is_cosign(tag) => Nature::Artifact(tag.to_owned()),
        _ => Nature::Image,
    }
}

/// `sha256-<digest>`, alone as the referrers' tag or with an end of cosign's.
fn is_cosign(tag: &str) -> bool {
    let Some(rest) = tag.strip_prefix("sha256-") else { return false };
    let hex = COSIGN.iter().find_map(|end| rest.strip_suffix(end)).unwrap_or(rest);
    hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether an index entry is no image but something about one: a build attestation, a signature or another artifact.
#[must_use]
pub fn is_attestation(entry: &Descriptor) -> bool {
    !matches!(nature(entry), Nature::Image)
}

/// What a manifest is if no image: the type of an artifact. An image has the config of one, and layers that are archives.
pub(crate) fn artifact_type(manifest: &ImageManifest) -> Option<String> {
    let config = manifest.config().media_type();
    let is_config = *config == MediaType::ImageConfig || config.as_ref() == media::DOCKER_CONFIG;
    if !is_config && !config.as_ref().is_empty() {
        return Some(manifest.artifact_type().as_ref().unwrap_or(config).to_string());
    }
    let is_layer =
        |kind: &MediaType| media::layer_kind(kind).is_some() || kind.as_ref() == lazo_format::media::LAZO_BLOB;
    let layers = manifest.layers();
    match layers.first() {
        Some(first) if !layers.iter().any(|layer| is_layer(layer.media_type())) => Some(first.media_type().to_string()),
        _ => None,
    }
}

/// An entry that may be the one for a platform.
pub(crate) struct Candidate<'a> {
    pub(crate) entry: &'a Descriptor,
    /// Nothing more needs to be known: its platform suits, or there is no other.
    pub(crate) is_sure: bool,
}

/// The entries of an index that may be meant by `wanted`, best first: the highest variant not above it, the first among
/// equals, then those whose platform the index does not name.
pub(crate) fn candidates<'a>(entries: &'a [Descriptor], wanted: &Platform) -> Vec<Candidate<'a>> {
    let mut images: Vec<&Descriptor> = entries.iter().filter(|entry| !is_attestation(entry)).collect();
    let mut seen = HashSet::new();
    images.retain(|entry| entry.platform().is_some() || seen.insert(entry.digest()));
    let is_alone = images.len() == 1;
    let mut named: Vec<(Rank, &Descriptor)> =
        images.iter().filter_map(|entry| Some((wanted.suits(entry.platform().as_ref()?)?, *entry))).collect();
    named.sort_by_key(|(rank, _)| Reverse(*rank));
    let named = named.into_iter().map(|(_, entry)| Candidate { entry, is_sure: true });
    let unnamed = images.iter().filter(|entry| entry.platform().is_none());
    named.chain(unnamed.map(|entry| Candidate { entry, is_sure: is_alone })).collect()
}

/// The platforms of an index's images, for messages.
pub(crate) fn platforms_of(entries: &[Descriptor]) -> Vec<String> {
    let images = entries.iter().filter(|entry| !is_attestation(entry));
    images.filter_map(|entry| entry.platform().as_ref().map(platform::shown)).collect()
}

/// What a name in a layout or archive stands for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// This entry, by its number.
    One(usize),
    /// These entries: images of one name, each for a platform of its own.
    Platforms(Vec<usize>),
}

/// Why no entry is meant, or too many.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoChoice {
    /// There is no such image; the text says what there is.
    Missing(String),
    /// There are several; the text says which, and how to choose.
    Several(String),
}

/// Finds what a name stands for among the entries of a layout's `index.json`. It may be a tag, a whole image name, `@N`
/// for the N-th entry from 0, or `@DIGEST`; without one, the only image is meant. One digest that is listed twice is one
/// image.
pub(crate) fn choose(entries: &[Descriptor], name: Option<&str>) -> Result<Choice, NoChoice> {
    let Some(name) = name else {
        let images = distinct(entries, |entry| !is_attestation(entry));
        let all = if images.is_empty() { distinct(entries, |_| true) } else { images };
        return settle(entries, all, None);
    };
    if let Some(rest) = name.strip_prefix('@') {
        let found = match rest.parse::<usize>() {
            Ok(number) => Some(number).filter(|number| *number < entries.len()),
            Err(_) => entries.iter().position(|entry| entry.digest().as_ref() == rest),
        };
        return found.map(Choice::One).ok_or_else(|| NoChoice::Missing(listed(entries)));
    }
    let by = |key: &str, wanted: &dyn Fn(&str) -> bool| distinct(entries, |e| annotation(e, key).is_some_and(wanted));
    let full = normalized_name(name);
    let is_same = |other: &str| full.is_some() && normalized_name(other) == full;
    let ways: [&dyn Fn() -> Vec<usize>; 4] = [
        &|| by(REF_NAME, &|tag| tag == name),
        &|| by(IMAGE_NAME, &|image| image == name),
        &|| by(IMAGE_NAME, &is_same),
        &|| by(REF_NAME, &is_same),
    ];
    let found = ways.iter().map(|way| way()).find(|found| !found.is_empty()).unwrap_or_default();
    let images: Vec<usize> = found.iter().copied().filter(|number| !is_attestation(&entries[*number])).collect();
    settle(entries, if images.is_empty() { found } else { images }, Some(name))
}

/// Numbers of the entries that `suit`, each digest once.
fn distinct(entries: &[Descriptor], suit: impl Fn(&Descriptor) -> bool) -> Vec<usize> {
    let mut seen = HashSet::new();
    let suiting = entries.iter().enumerate().filter(|(_, entry)| suit(entry));
    suiting.filter(|(_, entry)| seen.insert(entry.digest())).map(|(number, _)| number).collect()
}

fn settle(entries: &[Descriptor], found: Vec<usize>, name: Option<&str>) -> Result<Choice, NoChoice> {
    match found.as_slice() {
        [] => return Err(NoChoice::Missing(listed(entries))),
        [only] => return Ok(Choice::One(*only)),
        _ => {}
    }
    let mut platforms = HashSet::new();
    let own_platform = |number: &usize| {
        let platform = entries[*number].platform().as_ref();
        platform.is_some_and(|platform| platforms.insert(Platform::of(platform)))
    };
    let names: HashSet<_> = found.iter().map(|n| annotation(&entries[*n], IMAGE_NAME)).collect();
    let tags: HashSet<_> = found.iter().map(|n| annotation(&entries[*n], REF_NAME)).collect();
    if names.len() == 1 && tags.len() == 1 && found.iter().all(own_platform) {
        return Ok(Choice::Platforms(found));
    }
    let count = found.len();
    let such = name.map_or_else(String::new, |name| format!(" named {name}"));
    Err(NoChoice::Several(format!(
        "it holds {count} images{such}; name one by its tag, its whole name, @NUMBER or @DIGEST: {}",
        list(entries, found)
    )))
}

/// Everything there is to choose from.
fn listed(entries: &[Descriptor]) -> String {
    match entries.len() {
        0 => "it holds no image".to_owned(),
        _ => format!("it has: {}", list(entries, (0..entries.len()).collect())),
    }
}

fn list(entries: &[Descriptor], numbers: Vec<usize>) -> String {
    let rest = numbers.len().saturating_sub(MAX_LISTED);
    let mut names: Vec<String> =
        numbers.into_iter().take(MAX_LISTED).map(|number| format!("@{number} {}", label(&entries[number]))).collect();
    if rest > 0 {
        names.push(format!("and {rest} more"));
    }
    names.join("; ")
}

/// An entry's names, or what it is where it has none.
fn label(entry: &Descriptor) -> String {
    let (tag, image) = (annotation(entry, REF_NAME), annotation(entry, IMAGE_NAME));
    let name = match (tag, image) {
        (Some(tag), Some(image)) if tag != image => format!("{image} (tag {tag})"),
        (_, Some(name)) | (Some(name), None) => name.to_owned(),
        (None, None) => return LeftOut::entry(entry).to_string(),
    };
    match entry.platform() {
        Some(platform) => format!("{name} for {}", platform::shown(platform)),
        None => name,
    }
}

pub(crate) fn annotation<'a>(entry: &'a Descriptor, key: &str) -> Option<&'a str> {
    entry.annotations().as_ref()?.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests;
