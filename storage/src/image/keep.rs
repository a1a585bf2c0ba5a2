//! Images kept under `STATE/images`.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use lazo_format::{Digest, Hasher};
use lazo_registry::oci_spec::image::ImageManifest;
use lazo_registry::{Document, Platform, parse_index, parse_manifest};

use super::stamp::{Holds, Stamp};
use super::verify::verify;
use crate::cache::make_dir;
use crate::error::{Error, Result};
use crate::mapped::Mapped;
use crate::table::Table;

pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const CONFIG: &str = "config.json";
pub(super) const BOOTSTRAP: &str = "bootstrap";
pub(super) const INDEX: &str = "index";
pub(super) const STAMP: &str = "verified.json";
const PLATFORMS: &str = "index.json";

/// A kept image whose files are the verified ones, and have been validated.
pub(super) struct Kept {
    pub(super) digest: Digest,
    /// None if it came as files.
    pub(super) manifest: Option<ImageManifest>,
    pub(super) bootstrap: Mapped,
    pub(super) index: Mapped,
    /// Digests of the blobs' parts of the index.
    pub(super) tables: Box<[Table]>,
}

/// Finds what a digest stands for: an image, or an index for which the platform has been chosen before.
pub(super) fn find(images: &Path, digest: &Digest, platform: &Platform) -> Option<Kept> {
    open(images, digest).or_else(|| open(images, &chosen(images, digest, platform)?))
}

/// Opens a kept image. One that cannot be used is as good as none: it will be downloaded again.
pub(super) fn open(images: &Path, digest: &Digest) -> Option<Kept> {
    let dir = images.join(digest.hex());
    match try_open(&dir, digest) {
        Ok(kept) => kept,
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(dir = %dir.display(), error, "a kept image cannot be used, it is downloaded again");
            None
        }
    }
}

fn try_open(dir: &Path, digest: &Digest) -> io::Result<Option<Kept>> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{what} is damaged"));
    let manifest: Option<ImageManifest> = match std::fs::read(dir.join(MANIFEST)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Ok(manifest) if !is(&manifest, digest) => return Err(damaged(MANIFEST)),
        manifest => Some(parse_manifest(MANIFEST, &manifest?)?),
    };
    let map = |name: &str| {
        let file = File::open(dir.join(name))?;
        let map = Mapped::new(&file)?;
        io::Result::Ok((file, map))
    };
    let ((bootstrap_file, bootstrap), (index_file, index)) = (map(BOOTSTRAP)?, map(INDEX)?);
    let files = [(BOOTSTRAP, &bootstrap_file, &bootstrap), (INDEX, &index_file, &index)];
    let stamp = Stamp::read(&dir.join(STAMP)).ok_or_else(|| damaged(STAMP))?;
    let holds = stamp.holds(&files).ok_or_else(|| damaged("bootstrap or chunk index"))?;
    let stamp = match holds {
        Holds::Same if stamp.is_validated(digest) => stamp,
        Holds::Equal if stamp.is_validated(digest) => renewed(dir, stamp.renewed(&files)?)?,
        // An older version has kept it, which knew that the files are the right ones, and no more.
        _ => {
            if manifest.is_none() && !is(index.as_ref(), digest) {
                return Err(damaged(INDEX));
            }
            let verified = verify(&dir.display().to_string(), &bootstrap, &index).map_err(io::Error::other)?;
            renewed(dir, Stamp::of(digest, [(BOOTSTRAP, &bootstrap_file), (INDEX, &index_file)], verified)?)?
        }
    };
    Ok(Some(Kept { digest: *digest, manifest, bootstrap, index, tables: stamp.tables() }))
}

fn renewed(dir: &Path, stamp: Stamp) -> io::Result<Stamp> {
    write_atomically(&dir.join(STAMP), &stamp.to_json()?)?;
    Ok(stamp)
}

/// Keeps the choice of a manifest for a platform, so that the index's digest needs no network the next time.
pub(super) fn remember(images: &Path, index: &Document, platform: &Platform, chosen: &Digest) -> Result<()> {
    let dir = images.join(index.digest()?.hex());
    make_dir(&dir).map_err(Error::io("make the directory", &dir))?;
    for (name, content) in
        [(PLATFORMS, index.bytes.as_slice()), (file_name(platform).as_str(), chosen.to_string().as_bytes())]
    {
        let path = dir.join(name);
        write_atomically(&path, content).map_err(Error::io("write", &path))?;
    }
    Ok(())
}

fn chosen(images: &Path, index: &Digest, platform: &Platform) -> Option<Digest> {
    let dir = images.join(index.hex());
    let platforms = std::fs::read(dir.join(PLATFORMS)).ok().filter(|bytes| is(bytes, index))?;
    let platforms = parse_index(PLATFORMS, &platforms).ok()?;
    let chosen = std::fs::read_to_string(dir.join(file_name(platform))).ok()?;
    // Only what the index itself names; a choice deeper down is made again.
    let named = platforms.manifests().iter().any(|m| m.digest().as_ref() == chosen);
    chosen.parse().ok().filter(|_| named)
}

fn file_name(platform: &Platform) -> String {
    platform.to_string().replace('/', "-")
}

fn is(bytes: &[u8], digest: &Digest) -> bool {
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(bytes);
    hasher.finish() == *digest
}

/// Writes a file so that it has its old content or the new one, whatever happens.
fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().map_or_else(PathBuf::new, Path::to_owned);
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
