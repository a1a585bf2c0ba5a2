//! Downloads what a mount needs at once, verifies it, and puts it under `STATE/images`.

use std::fs::{self, File};
use std::io::{self, Read, Seek as _, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use lazo_base::compression::{Compression, Decoder, ZstdWindow};
use lazo_base::tar::{self, Fault, Input, Stream};
use lazo_format::media::{BOOTSTRAP_PATH, INDEX_PATH};
use lazo_format::{Digest, Hasher};
use lazo_registry::oci_spec::image::Descriptor;
use lazo_registry::{Config, LazoLayers, Manifest, Source, digest_of};

use super::keep::{self, BOOTSTRAP, CONFIG, INDEX, Kept, MANIFEST, STAMP};
use super::stamp::Stamp;
use super::verify::verify;
use super::{damaged, sound};
use crate::cache::make_dir;
use crate::error::{Error, Result};
use crate::mapped::Mapped;

/// Most bytes the bootstrap layer may unpack to: ten million entries take 2 GiB, by estimate. Bounds the disk that a small hostile
/// layer can fill.
pub(super) const MAX_UNPACKED: u64 = 8 << 30;

/// Most stored bytes of the bootstrap layer, for the same reason.
const MAX_LAYER: u64 = 4 << 30;

/// How often a bootstrap layer is fetched whose bytes are wrong, as often as chunks are.
const LAYER_ATTEMPTS: u32 = 3;

/// Bytes handed on at a time while unpacking.
pub(super) const BUFFER: usize = 128 << 10;

/// Prefix of directories in the making, below `STATE/images`.
const TEMPORARY: &str = ".tmp-";

/// Age from which an unlocked one is a killed process's: far more than passes between its making and its lock.
const STALE_AGE: Duration = Duration::from_secs(60);

/// What the bootstrap layer holds.
struct Unpacked {
    bootstrap: File,
    index: File,
}

/// Where it is unpacked to.
#[derive(Clone, Copy)]
enum Names {
    /// Files of their names.
    Kept,
    /// Files without names, which go with the process.
    None,
}

/// Downloads bootstrap layer and config, verifies them, and keeps them.
pub(super) async fn download(
    source: &Source,
    images: &Path,
    manifest: &Manifest,
    layers: &LazoLayers,
    name: &str,
) -> Result<Kept> {
    let digest = digest_of(&manifest.descriptor)?;
    let config = source.document(manifest.manifest.config()).await?;
    let parsed = Config::parse(config.descriptor.digest(), &config.bytes)?;
    let diff_id = sound(name, layers.sound_diff_id(parsed.diff_ids()))?;
    let temporary = Temporary::new(images)?;
    let dir = temporary.path();
    let layer = fetch_layer(source, dir, &layers.bootstrap, name).await?;
    let unpacked = unpack(layer, dir.to_owned(), Names::Kept, diff_id, name.to_owned()).await?;
    let documents = [(MANIFEST, manifest.bytes.as_slice()), (CONFIG, config.bytes.as_slice())];
    temporary.keep(name, &digest, (unpacked.bootstrap, unpacked.index), &documents)
}

/// A directory in the making, which other processes leave alone.
pub(super) struct Temporary<'a> {
    images: &'a Path,
    dir: tempfile::TempDir,
    /// Locked.
    in_use: File,
}

impl<'a> Temporary<'a> {
    pub(super) fn new(images: &'a Path) -> Result<Self> {
        make_dir(images).map_err(Error::io("make the directory", images))?;
        remove_stale(images);
        let dir = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(images);
        let dir = dir.map_err(Error::io("make a directory in", images))?;
        let path = dir.path();
        let in_use = File::open(path).and_then(|dir| dir.lock().map(|()| dir)).map_err(Error::io("lock", path))?;
        Ok(Self { images, dir, in_use })
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Verifies bootstrap and index, which are in it, and makes it the image of this digest, with other documents that were verified before.
    pub(super) fn keep(
        self,
        name: &str,
        digest: &Digest,
        (bootstrap, index): (File, File),
        documents: &[(&str, &[u8])],
    ) -> Result<Kept> {
        let (images, dir) = (self.images, self.dir.path());
        let (bootstrap, index) = (with_map(bootstrap, dir)?, with_map(index, dir)?);
        let verified = verify(name, &bootstrap.1, &index.1)?;
        let stamp = Stamp::of(digest, [(BOOTSTRAP, &bootstrap.0), (INDEX, &index.0)], verified);
        let stamp = stamp.and_then(|stamp| stamp.to_json()).map_err(Error::io("read", dir))?;
        for (name, content) in documents.iter().copied().chain([(STAMP, stamp.as_slice())]) {
            write_synced(dir, name, content)?;
        }
        sync(dir)?;
        // Other processes may be at the same image: one at a time from here on, and the first one's is as good as this one.
        let installing = File::open(images).and_then(|dir| dir.lock().map(|()| dir));
        let installing = installing.map_err(Error::io("lock", images))?;
        if let Some(kept) = keep::open(images, digest) {
            return Ok(kept);
        }
        install(self.dir, images, digest)?;
        let kept = keep::open(images, digest);
        drop((installing, self.in_use));
        match kept {
            Some(kept) => Ok(kept),
            None => damaged(name, "what was just kept cannot be read back; is the state directory's disk in order?"),
        }
    }
}

/// Bootstrap and chunk index by themselves, in files of `dir` that have no names: layer and tar have the digests that they should have, what
/// is in them has not been looked at.
pub(crate) async fn unpack_metadata(
    source: &Source,
    dir: &Path,
    layer: &Descriptor,
    diff_id: &Digest,
    image: &str,
) -> Result<(Mapped, Mapped)> {
    let layer = fetch_layer(source, dir, layer, image).await?;
    let unpacked = unpack(layer, dir.to_owned(), Names::None, *diff_id, image.to_owned()).await?;
    Ok((with_map(unpacked.bootstrap, dir)?.1, with_map(unpacked.index, dir)?.1))
}

/// The bootstrap layer as a file without a name, its digest verified.
async fn fetch_layer(source: &Source, dir: &Path, layer: &Descriptor, image: &str) -> Result<File> {
    if layer.size() > MAX_LAYER {
        return damaged(image, &format!("its bootstrap layer has {} bytes, over {MAX_LAYER}", layer.size()));
    }
    let mut attempts = 1..LAYER_ATTEMPTS;
    loop {
        match fetch_layer_once(source, dir, layer).await {
            // A mirror that gave it is asked last the next time.
            Err(Error::Registry(error)) if is_wrong(&error) && attempts.next().is_some() => {
                tracing::warn!(image, %error, "the bootstrap layer came damaged; fetching it again");
            }
            done => return done,
        }
    }
}

fn is_wrong(error: &lazo_registry::Error) -> bool {
    matches!(error, lazo_registry::Error::DigestMismatch { .. } | lazo_registry::Error::SizeMismatch { .. })
}

async fn fetch_layer_once(source: &Source, dir: &Path, layer: &Descriptor) -> Result<File> {
    let failed = || Error::io("write the bootstrap layer in", dir);
    let mut file = tempfile::tempfile_in(dir).map_err(failed())?;
    let mut stream = source.blob(layer).await?;
    while let Some(bytes) = stream.next().await {
        file.write_all(&bytes?).map_err(failed())?;
    }
    file.rewind().map_err(failed())?;
    Ok(file)
}

/// Writes the layer's two files, and checks its diffID. On a thread for what blocks, so that a signal is heard meanwhile.
async fn unpack(layer: File, dir: PathBuf, names: Names, diff_id: Digest, image: String) -> Result<Unpacked> {
    let place = dir.clone();
    let unpack = move || unpack_now(layer, &dir, names, &diff_id, &image);
    match tokio::task::spawn_blocking(unpack).await {
        Ok(unpacked) => unpacked,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(Error::io("unpack the bootstrap layer in", place)(io::Error::other(error))),
        },
    }
}

fn unpack_now(layer: File, dir: &Path, names: Names, diff_id: &Digest, image: &str) -> Result<Unpacked> {
    let failed = || Error::io("unpack the bootstrap layer in", dir);
    let stored = io::BufReader::with_capacity(BUFFER, layer);
    let unpacked = Decoder::new(stored, Compression::Gzip, ZstdWindow::DEFAULT).map_err(failed())?.take(MAX_UNPACKED);
    // Without extended headers, as the format has it: what containerd unpacks of such a layer is what is read here.
    let hashing = Hashing { inner: unpacked, hasher: Hasher::new(diff_id.algorithm()) };
    let mut archive = tar::Reader::without_extensions(Stream(hashing));
    let too_large = || damaged(image, &format!("its bootstrap layer unpacks to more than {MAX_UNPACKED} bytes"));
    let files = unpack_files(&mut archive, dir, names, image);
    let mut rest = archive.into_inner().0;
    // What was cut off at the bound looks like a truncated archive.
    if rest.inner.limit() == 0 {
        return too_large();
    }
    let files = files?;
    io::copy(&mut rest, &mut io::sink()).map_err(failed())?;
    if rest.inner.limit() == 0 {
        return too_large();
    }
    let actual = rest.hasher.finish();
    if actual != *diff_id {
        return damaged(image, &format!("its bootstrap layer unpacks to {actual}, its config says {diff_id}"));
    }
    match files {
        (Some(bootstrap), Some(index)) => Ok(Unpacked { bootstrap, index }),
        _ => damaged(image, &format!("its bootstrap layer has not both {BOOTSTRAP_PATH} and {INDEX_PATH}")),
    }
}

/// Writes bootstrap and index, as far as the archive has them.
fn unpack_files(
    archive: &mut tar::Reader<impl Input>,
    dir: &Path,
    names: Names,
    image: &str,
) -> Result<(Option<File>, Option<File>)> {
    let (mut bootstrap, mut index) = (None, None);
    while let Some(member) = archive.next_member().or_else(|error| bad_archive(image, dir, error))? {
        let (name, seen) = match member.name.strip_prefix(b"./").unwrap_or(&member.name) {
            path if path == BOOTSTRAP_PATH.as_bytes() => (BOOTSTRAP, &mut bootstrap),
            path if path == INDEX_PATH.as_bytes() => (INDEX, &mut index),
            _ => continue,
        };
        if seen.is_some() || member.kind != tar::kind::FILE || member.pieces.is_some() {
            return damaged(image, &format!("its bootstrap layer has {name} twice, or as no file"));
        }
        let path = dir.join(name);
        let file = match names {
            Names::Kept => File::options().read(true).write(true).create_new(true).open(&path),
            Names::None => tempfile::tempfile_in(dir),
        };
        let mut file = file.map_err(Error::io("write", &path))?;
        io::copy(archive, &mut file).map_err(Error::io("unpack the bootstrap layer in", dir))?;
        if let Names::Kept = names {
            file.sync_all().map_err(Error::io("sync", &path))?;
        }
        *seen = Some(file);
    }
    Ok((bootstrap, index))
}

/// What is wrong with the layer's archive, or with the disk.
fn bad_archive<T>(image: &str, dir: &Path, error: tar::Error) -> Result<T> {
    match error {
        tar::Error { fault: Fault::Read(error), .. } => Err(Error::io("unpack the bootstrap layer in", dir)(error)),
        error => damaged(image, &format!("its bootstrap layer, {error}: {}", error.fault)),
    }
}

/// Renames the directory to where it is looked for.
fn install(temporary: tempfile::TempDir, images: &Path, digest: &Digest) -> Result<()> {
    let target = images.join(digest.hex());
    let failed = || Error::io("install the image as", &target);
    // What is there already could not be used.
    let aside = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(images).map_err(failed())?;
    match fs::rename(&target, aside.path().join("replaced")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
        _ => {}
    }
    fs::rename(temporary.path(), &target).map_err(failed())?;
    // It is no temporary directory any more.
    let _ = temporary.keep();
    sync(images)
}

/// Removes what killed processes left behind: directories in the making that nobody holds a lock on.
fn remove_stale(images: &Path) {
    let Ok(entries) = fs::read_dir(images) else { return };
    let ours = entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(TEMPORARY));
    for path in ours.map(|e| e.path()) {
        let age = fs::metadata(&path).and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if age.is_some_and(|age| age > STALE_AGE) && File::open(&path).is_ok_and(|dir| dir.try_lock().is_ok()) {
            tracing::debug!(path = %path.display(), "removing what a killed process left behind");
            // If it stays, the next download tries again.
            let _ = fs::remove_dir_all(path);
        }
    }
}

fn with_map(file: File, dir: &Path) -> Result<(File, Mapped)> {
    let map = Mapped::new(&file).map_err(Error::io("map what was unpacked in", dir))?;
    Ok((file, map))
}

fn write_synced(dir: &Path, name: &str, content: &[u8]) -> Result<()> {
    let path = dir.join(name);
    let write = || {
        let mut file = File::create_new(&path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(Error::io("write", &path))
}

fn sync(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io("sync", dir))
}

/// Hashes what passes through.
struct Hashing<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.hasher.update(&buf[..read]);
        Ok(read)
    }
}
