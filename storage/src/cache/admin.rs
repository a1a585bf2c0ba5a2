//! The cache from outside: what is in it, and taking things out. Works beside any number of processes that use it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use lazo_format::Index;
use serde::{Serialize, Serializer};

use super::files::{DATA, READY};
use super::ledger::Ledger;
use super::{check_version, dirs};
use crate::error::{Error, Result};
use crate::mapped::Mapped;

/// Metadata of an image as young as this stays: a mount that is being made may need it in a moment.
const YOUNG: Duration = Duration::from_secs(60);

/// Fewest hex digits that name something: as many as are shown in lists and told apart at a glance.
const MIN_PREFIX: usize = 6;

/// A blob in the cache.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct CachedBlob {
    /// The blob's digest.
    pub digest: String,
    /// Its directory. A blob that two images describe differently has two.
    pub dir: PathBuf,
    /// Real disk space, bytes.
    pub disk_bytes: u64,
    /// Bytes when all of it is there.
    pub device_bytes: u64,
    /// How much of it is there, percent of its chunks, rounded down.
    pub complete_percent: u8,
    /// When a process last opened, used or closed it. Serialized as seconds since 1970.
    #[serde(serialize_with = "unix_seconds")]
    pub last_used: SystemTime,
    /// Whether a process uses it.
    pub in_use: bool,
    /// Digests of the kept images that have it.
    pub images: Vec<String>,
}

fn unix_seconds<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    serializer.serialize_u64(since.as_secs())
}

/// Metadata of an image, kept so that it can be mounted without a registry.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KeptImage {
    /// Digest of the manifest; or of an image index, if images for several platforms are behind it.
    pub digest: String,
    /// Digests of its blobs.
    pub blobs: Vec<String>,
    /// Of an image index: the manifests that were chosen from it.
    chosen: Vec<String>,
    dir: PathBuf,
    modified: SystemTime,
}

/// What a state directory holds at a moment.
#[derive(Debug)]
#[non_exhaustive]
pub struct Inventory {
    /// The one used last comes first.
    pub blobs: Vec<CachedBlob>,
    /// In no order.
    pub images: Vec<KeptImage>,
}

/// What somebody wants to be removed.
#[derive(Debug)]
#[non_exhaustive]
pub struct Selection<'a> {
    /// Blobs, with all directories that each has.
    pub blobs: Vec<&'a CachedBlob>,
    /// Images, by digest or because they are behind an image index.
    pub images: Vec<&'a KeptImage>,
}

/// Why nothing can be selected by a name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// Neither a digest nor the beginning of one.
    #[error(
        "{0:?} is no digest; give sha256:HEX, or at least {MIN_PREFIX} of its hex digits, as `lazo cache ls` shows them"
    )]
    NoDigest(String),
    /// Nothing has this name.
    #[error("the cache has no blob or image {0}; see what it has with: lazo cache ls")]
    NotThere(String),
    /// Several things have it.
    #[error("{0} is the beginning of several digests: {1}")]
    Ambiguous(String, String),
}

/// What was taken out of the cache.
#[derive(Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Removed {
    /// Directories of blobs.
    pub blobs: u64,
    /// Images' metadata.
    pub images: u64,
    /// Disk space of the blobs, bytes.
    pub bytes: u64,
}

impl Inventory {
    /// Looks at a state directory. One that is not there is empty.
    ///
    /// # Errors
    /// When it cannot be read, or is another version's.
    pub fn read(state_dir: &Path) -> Result<Self> {
        check_version(state_dir)?;
        let (blobs, images) = (state_dir.join("blobs"), state_dir.join("images"));
        let images = kept_images(&images).map_err(Error::io("read", &images))?;
        let dirs = dirs::scan(&blobs).map_err(Error::io("read", &blobs))?;
        let mut blobs: Vec<CachedBlob> = dirs.iter().filter_map(|dir| cached_blob(dir, &images)).collect();
        blobs.sort_by_key(|blob| std::cmp::Reverse(blob.last_used));
        Ok(Self { blobs, images })
    }

    /// Disk space of all blobs.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.disk_bytes).sum()
    }

    /// What a digest, or the beginning of one, stands for: a blob; or an image with those of its blobs that no other kept image has.
    ///
    /// # Errors
    /// [`SelectError`].
    pub fn select(&self, name: &str) -> Result<Selection<'_>, SelectError> {
        let digits = name.split_once(':').map_or(name, |(_, digits)| digits);
        if digits.len() < MIN_PREFIX || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(SelectError::NoDigest(name.to_owned()));
        }
        let digests = self.blobs.iter().map(|blob| &blob.digest).chain(self.images.iter().map(|image| &image.digest));
        let named: BTreeSet<&String> =
            digests.filter(|d| d.split_once(':').is_some_and(|(_, hex)| hex.starts_with(digits))).collect();
        let mut named = named.into_iter();
        let Some(digest) = named.next() else { return Err(SelectError::NotThere(name.to_owned())) };
        if let Some(other) = named.next() {
            return Err(SelectError::Ambiguous(name.to_owned(), format!("{digest}, {other}")));
        }
        let Some(image) = self.images.iter().find(|image| image.digest == *digest) else {
            let blobs = self.blobs.iter().filter(|blob| blob.digest == *digest).collect();
            return Ok(Selection { blobs, images: Vec::new() });
        };
        let images: Vec<&KeptImage> =
            self.images.iter().filter(|i| i.digest == *digest || image.chosen.contains(&i.digest)).collect();
        let goes = |digest: &String| images.iter().any(|image| image.digest == *digest);
        let of_these = |blob: &&CachedBlob| !blob.images.is_empty() && blob.images.iter().all(goes);
        Ok(Selection { blobs: self.blobs.iter().filter(of_these).collect(), images })
    }

    /// Removes these blobs but those that a process uses, whose digests it returns; and metadata of images of which no blob is left,
    /// unless they are among `mounted` digests.
    ///
    /// # Errors
    /// When a directory cannot be removed.
    pub fn release(&self, blobs: &BTreeSet<String>, mounted: &[String]) -> Result<(Removed, Vec<String>)> {
        let mut removed = Removed::default();
        let mut in_use = Vec::new();
        for blob in self.blobs.iter().filter(|blob| blobs.contains(&blob.digest)) {
            if !remove_blob(blob, &mut removed)? {
                in_use.push(blob.digest.clone());
            }
        }
        let goes = |blob: &String| blobs.contains(blob) && !in_use.contains(blob);
        for image in self.images.iter().filter(|image| !mounted.contains(&image.digest)) {
            if !image.blobs.is_empty() && image.blobs.iter().all(goes) {
                remove_image(image, &mut removed)?;
            }
        }
        Ok((removed, in_use))
    }

    /// Removes blobs that no process uses, the longest unused first, until at most `to` bytes are left; and images' metadata that
    /// is of no more use: no blob of the image is in the cache, and it is not among `mounted` digests.
    ///
    /// # Errors
    /// When a directory cannot be removed.
    pub fn prune(&self, to: u64, mounted: &[String]) -> Result<Removed> {
        let mut removed = Removed::default();
        let mut left = self.disk_bytes();
        let mut gone = BTreeSet::new();
        for blob in self.blobs.iter().rev() {
            if left <= to && to > 0 {
                break;
            }
            if remove_blob(blob, &mut removed)? {
                left = left.saturating_sub(blob.disk_bytes);
                gone.insert(&blob.dir);
            }
        }
        let there: BTreeSet<&String> =
            self.blobs.iter().filter(|blob| !gone.contains(&blob.dir)).map(|blob| &blob.digest).collect();
        let useless = |image: &KeptImage| {
            image.chosen.is_empty()
                && !mounted.contains(&image.digest)
                && image.modified.elapsed().is_ok_and(|age| age > YOUNG)
                && !image.blobs.iter().any(|blob| there.contains(blob))
        };
        let mut kept: BTreeSet<&String> = self.images.iter().map(|image| &image.digest).collect();
        for image in self.images.iter().filter(|image| useless(image)) {
            remove_image(image, &mut removed)?;
            kept.remove(&image.digest);
        }
        for index in self.images.iter().filter(|index| !index.chosen.is_empty()) {
            if !index.chosen.iter().any(|digest| kept.contains(digest)) {
                remove_image(index, &mut removed)?;
            }
        }
        Ok(removed)
    }
}

impl Selection<'_> {
    /// Removes all of it but what a process uses.
    ///
    /// # Errors
    /// When a directory cannot be removed.
    pub fn remove(&self) -> Result<Removed> {
        let mut removed = Removed::default();
        for blob in &self.blobs {
            remove_blob(blob, &mut removed)?;
        }
        for image in &self.images {
            remove_image(image, &mut removed)?;
        }
        Ok(removed)
    }
}

fn remove_blob(blob: &CachedBlob, removed: &mut Removed) -> Result<bool> {
    let done = dirs::remove(&blob.dir).map_err(Error::io("remove", &blob.dir))?;
    if done {
        removed.blobs += 1;
        removed.bytes += blob.disk_bytes;
        // Whoever has the cache open counts on it.
        if let Some(state_dir) = blob.dir.ancestors().nth(2) {
            Ledger::removed(state_dir, blob.disk_bytes);
        }
    }
    Ok(done)
}

fn remove_image(image: &KeptImage, removed: &mut Removed) -> Result<()> {
    // Who has it mounted has its files mapped, and keeps them.
    dirs::remove_at_once(&image.dir, dirs::IMAGE_GONE).map_err(Error::io("remove", &image.dir))?;
    removed.images += 1;
    Ok(())
}

fn cached_blob(dir: &dirs::Dir, images: &[KeptImage]) -> Option<CachedBlob> {
    let digest = digest_of_hex(dir.name.split('.').next()?)?;
    let device_bytes = fs::metadata(dir.path.join(DATA)).map_or(0, |data| data.len());
    let ready = fs::read(dir.path.join(READY)).unwrap_or_default();
    let ones: u64 = ready.iter().map(|byte| u64::from(byte.count_ones())).sum();
    let percent = (ones * 100).checked_div(ready.len() as u64 * 8).unwrap_or(0);
    Some(CachedBlob {
        images: images.iter().filter(|i| i.blobs.contains(&digest)).map(|i| i.digest.clone()).collect(),
        digest,
        dir: dir.path.clone(),
        disk_bytes: dir.disk,
        device_bytes,
        complete_percent: u8::try_from(percent).unwrap_or(100),
        last_used: dir.last_used,
        in_use: dirs::is_used(&dir.path),
    })
}

fn digest_of_hex(hex: &str) -> Option<String> {
    let algorithm = match hex.len() {
        64 => "sha256",
        128 => "sha512",
        _ => return None,
    };
    hex.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| format!("{algorithm}:{hex}"))
}

fn kept_images(images: &Path) -> io::Result<Vec<KeptImage>> {
    let entries = match fs::read_dir(images) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    Ok(entries.flatten().filter_map(|entry| kept_image(&entry.path())).collect())
}

fn kept_image(dir: &Path) -> Option<KeptImage> {
    let digest = digest_of_hex(dir.file_name()?.to_str()?)?;
    let modified = fs::metadata(dir).and_then(|m| m.modified()).unwrap_or_else(|_| SystemTime::now());
    let manifest = fs::read(dir.join("manifest.json")).ok();
    let manifest = manifest.and_then(|bytes| lazo_registry::parse_manifest("manifest.json", &bytes).ok());
    let blobs = match &manifest {
        Some(manifest) => Some(manifest.layers().iter().map(|layer| layer.digest().to_string()).collect()),
        None => adopted_blobs(dir),
    };
    let chosen = if blobs.is_none() { chosen_manifests(dir) } else { Vec::new() };
    let blobs = blobs.unwrap_or_default();
    Some(KeptImage { digest, blobs, chosen, dir: dir.to_owned(), modified })
}

/// Of an image that came as files: the blobs that its chunk index names.
fn adopted_blobs(dir: &Path) -> Option<Vec<String>> {
    let index = Mapped::new(&fs::File::open(dir.join("index")).ok()?).ok()?;
    let index = Index::parse(&index).ok()?;
    Some(index.blob_numbers().filter_map(|blob| Some(index.blob(blob).ok()?.digest.to_string())).collect())
}

/// Of an image index's directory: the files beside it hold the digest chosen for a platform each.
fn chosen_manifests(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let choices = entries.filter(|entry| entry.file_name() != "index.json");
    let digests: BTreeMap<String, ()> = choices
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .filter(|text| text.split_once(':').and_then(|(_, hex)| digest_of_hex(hex)).is_some_and(|d| d == *text))
        .map(|text| (text, ()))
        .collect();
    digests.into_keys().collect()
}
