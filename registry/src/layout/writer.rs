//! OCI image layouts: writing.
//!
//! Until the commit everything lies in a staging directory beside the destination, on the same filesystem. The commit
//! moves blobs first and `index.json` last, each by a rename, so that a reader sees the old image or the new one.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lazo_format::{Digest, Hasher};
use oci_spec::image::{Descriptor, MediaType, OciLayoutBuilder, SCHEMA_VERSION};
use serde_json::{Map, Value};
use tempfile::{NamedTempFile, TempDir};

use super::{Files, blob_path, check_version};
use crate::{
    choice::{REF_NAME, annotation},
    destination::Outcome,
    document::{Document, digest_of, parse_index, to_json},
    error::{Error, Result},
    json::is_field,
};

/// How staging directories begin, so that a killed run's are recognised.
const STAGING_PREFIX: &str = ".lazo-";
/// Age from which an unlocked staging directory is a killed run's: far more than passes between its making and its lock.
const STALE_AGE: Duration = Duration::from_secs(3600);
/// Bytes copied at a time.
const COPY_PIECE: usize = 1 << 20;

/// Where a layout goes.
enum Target {
    /// A layout directory; it may hold images already.
    Directory,
    /// A new tar file, in place of any before it.
    Archive,
}

/// A layout being written. Its calls block.
pub(crate) struct Writer {
    target: Target,
    path: PathBuf,
    tag: Option<String>,
    staging: TempDir,
    /// Tells other processes that the staging directory is in use.
    _lock: File,
    /// Blobs in the staging directory, with their sizes.
    staged: Mutex<BTreeMap<Digest, u64>>,
    /// The directory was made here, and goes again if nothing comes of it.
    made: bool,
}

impl Writer {
    /// A layout directory, new or to be added to.
    pub(crate) fn directory(path: &Path, tag: Option<&str>) -> Result<Self> {
        let made = !path.exists();
        fs::create_dir_all(path).map_err(|e| Error::io(format_args!("cannot make {}", path.display()), e))?;
        if !made {
            check_layout_or_empty(path)?;
        }
        Self::new(Target::Directory, path, path, tag, made)
    }

    /// An archive file.
    pub(crate) fn archive(path: &Path, tag: Option<&str>) -> Result<Self> {
        if path.is_dir() {
            return Err(Error::invalid(path.display(), "it is a directory; an archive is a file"));
        }
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self::new(Target::Archive, path, parent, tag, false)
    }

    fn new(target: Target, path: &Path, beside: &Path, tag: Option<&str>, made: bool) -> Result<Self> {
        let fail = |e| Error::io(format_args!("cannot write in {}", beside.display()), e);
        if let Some(tag) = tag.filter(|tag| tag.starts_with('@')) {
            let reason = format_args!("{tag} chooses an image that is there; name a tag to write one");
            return Err(Error::invalid(path.display(), reason));
        }
        remove_stale(beside);
        let staging = tempfile::Builder::new().prefix(STAGING_PREFIX).tempdir_in(beside).map_err(fail)?;
        let lock = File::open(staging.path()).map_err(fail)?;
        lock.lock().map_err(fail)?;
        let (path, tag) = (path.to_owned(), tag.map(str::to_owned));
        let writer = Self { target, path, tag, staging, _lock: lock, staged: Mutex::default(), made };
        for directory in [writer.incoming(), writer.staging.path().join("blobs")] {
            fs::create_dir(&directory)
                .map_err(|e| Error::io(format_args!("cannot make {}", directory.display()), e))?;
        }
        Ok(writer)
    }

    /// Where callers write their files.
    pub(crate) fn incoming(&self) -> PathBuf {
        self.staging.path().join("incoming")
    }

    pub(crate) fn has_blob(&self, digest: &Digest, size: u64) -> bool {
        if self.staged().contains_key(digest) {
            return true;
        }
        let old = matches!(self.target, Target::Directory).then(|| fs::metadata(self.path.join(blob_path(digest))));
        old.is_some_and(|m| m.is_ok_and(|m| m.is_file() && m.len() == size))
    }

    /// Takes a file over: by rename from [`Self::incoming`], where the caller vouches for the digest; else by a copy that
    /// is checked.
    pub(crate) fn put_file(&self, file: &Path, digest: &Digest, size: u64) -> Result<Outcome> {
        let own = file.starts_with(self.incoming());
        if self.has_blob(digest, size) {
            if own {
                fs::remove_file(file).map_err(|e| Error::io(format_args!("cannot remove {}", file.display()), e))?;
            }
            return Ok(Outcome::Existed);
        }
        let fail =
            |e| Error::io(format_args!("cannot store {} as {digest} in {}", file.display(), self.path.display()), e);
        if !own {
            let copy = NamedTempFile::new_in(self.incoming()).map_err(fail)?;
            copy_checked(file, copy.as_file(), digest, size)?;
            let (_, path) = copy.keep().map_err(|e| fail(e.error))?;
            return self.take(&path, digest, size).map_err(fail);
        }
        let actual = fs::metadata(file).map_err(fail)?.len();
        if actual != size {
            return Err(Error::SizeMismatch { what: file.display().to_string(), expected: size, actual });
        }
        self.take(file, digest, size).map_err(fail)
    }

    pub(crate) fn put_bytes(&self, bytes: &[u8], digest: &Digest) -> Result<Outcome> {
        let size = bytes.len() as u64;
        if self.has_blob(digest, size) {
            return Ok(Outcome::Existed);
        }
        let fail = |e| Error::io(format_args!("cannot store {digest} in {}", self.path.display()), e);
        let mut file = NamedTempFile::new_in(self.incoming()).map_err(fail)?;
        file.write_all(bytes).map_err(fail)?;
        let (_, path) = file.keep().map_err(|e| fail(e.error))?;
        self.take(&path, digest, size).map_err(fail)
    }

    fn take(&self, file: &Path, digest: &Digest, size: u64) -> io::Result<Outcome> {
        // A name must never appear before its bytes, not even after a power failure.
        File::open(file)?.sync_data()?;
        let place = self.staging.path().join(blob_path(digest));
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        set_readable(file)?;
        fs::rename(file, place)?;
        self.staged().insert(*digest, size);
        Ok(Outcome::Uploaded)
    }

    /// Points the tag at `root`.
    pub(crate) fn commit(mut self, root: &Document) -> Result<()> {
        self.put_bytes(&root.bytes, &root.digest()?)?;
        let entry = self.entry(&root.descriptor);
        match self.target {
            Target::Directory => self.commit_directory(entry),
            Target::Archive => self.commit_archive(entry),
        }?;
        self.made = false;
        Ok(())
    }

    /// The root's entry in `index.json`.
    fn entry(&self, root: &Descriptor) -> Descriptor {
        let mut entry = root.clone();
        let mut annotations = entry.annotations().clone().unwrap_or_default();
        annotations.remove(REF_NAME);
        if let Some(tag) = &self.tag {
            annotations.insert(REF_NAME.to_owned(), tag.clone());
        }
        entry.set_annotations((!annotations.is_empty()).then_some(annotations));
        entry
    }

    fn commit_directory(&self, entry: Descriptor) -> Result<()> {
        let fail = |e| Error::io(format_args!("cannot write layout {}", self.path.display()), e);
        // Two commits at once would each lose the other's tag.
        let lock = File::open(&self.path).map_err(fail)?;
        lock.lock().map_err(fail)?;
        let files = Files::Directory(self.path.clone());
        let old = match files.read("index.json") {
            Ok(bytes) => Some(bytes),
            Err(Error::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        let index = with_entry(&format!("index.json of {}", self.path.display()), old.as_deref(), &entry)?;
        for digest in self.staged().keys() {
            let place = self.path.join(blob_path(digest));
            if let Some(parent) = place.parent() {
                fs::create_dir_all(parent).map_err(fail)?;
            }
            fs::rename(self.staging.path().join(blob_path(digest)), place).map_err(fail)?;
        }
        if !self.path.join("oci-layout").exists() {
            self.replace("oci-layout", &layout_file()?).map_err(fail)?;
        }
        self.replace("index.json", &index).map_err(fail)
    }

    /// Writes a file of the layout beside it, then renames it into place.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = NamedTempFile::new_in(self.staging.path())?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        set_readable(file.path())?;
        file.persist(self.path.join(name))?;
        File::open(&self.path)?.sync_all()
    }

    /// One tar, the same for the same content: entries sorted, no times, no owners.
    fn commit_archive(&self, entry: Descriptor) -> Result<()> {
        let fail = |e| Error::io(format_args!("cannot write archive {}", self.path.display()), e);
        let index = with_entry("index.json", None, &entry)?;
        let file = NamedTempFile::new_in(self.staging.path()).map_err(fail)?;
        let mut tar = tar::Builder::new(io::BufWriter::with_capacity(COPY_PIECE, file.as_file()));
        let write = |tar: &mut tar::Builder<_>| -> io::Result<()> {
            let staged = self.staged();
            let mut algorithms: Vec<&str> = staged.keys().map(|d| d.algorithm().name()).collect();
            algorithms.dedup();
            append(tar, "blobs/", 0, io::empty())?;
            for algorithm in algorithms {
                append(tar, &format!("blobs/{algorithm}/"), 0, io::empty())?;
                for (digest, size) in staged.iter().filter(|(d, _)| d.algorithm().name() == algorithm) {
                    let path = blob_path(digest);
                    append(tar, &path, *size, File::open(self.staging.path().join(&path))?)?;
                }
            }
            append(tar, "index.json", index.len() as u64, index.as_slice())?;
            let layout = layout_file().map_err(io::Error::other)?;
            append(tar, "oci-layout", layout.len() as u64, layout.as_slice())
        };
        write(&mut tar).map_err(fail)?;
        tar.into_inner().and_then(|mut buffer| buffer.flush()).map_err(fail)?;
        file.as_file().sync_all().map_err(fail)?;
        set_readable(file.path()).map_err(fail)?;
        file.persist(&self.path).map_err(|e| fail(e.error))?;
        Ok(())
    }

    fn staged(&self) -> MutexGuard<'_, BTreeMap<Digest, u64>> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.made {
            drop(fs::remove_dir_all(self.staging.path()));
            // Only if nothing else has come into it.
            drop(fs::remove_dir(&self.path));
        }
    }
}

/// Removes what killed runs left behind: staging directories that nobody holds a lock on.
fn remove_stale(beside: &Path) {
    let Ok(entries) = fs::read_dir(beside) else { return };
    let ours = entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(STAGING_PREFIX));
    for path in ours.map(|e| e.path()) {
        let age = fs::metadata(&path).and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if age.is_some_and(|age| age > STALE_AGE) && File::open(&path).is_ok_and(|f| f.try_lock().is_ok()) {
            tracing::debug!(path = %path.display(), "removing what an earlier run left behind");
            drop(fs::remove_dir_all(path));
        }
    }
}

fn check_layout_or_empty(path: &Path) -> Result<()> {
    let fail = |e| Error::io(format_args!("cannot read {}", path.display()), e);
    let files = Files::Directory(path.to_owned());
    match check_version(&files) {
        Err(Error::NotFound { .. }) => {}
        checked => return checked,
    }
    for entry in fs::read_dir(path).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        if !name.to_string_lossy().starts_with(STAGING_PREFIX) {
            return Err(Error::invalid(
                path.display(),
                "it is neither empty nor an OCI image layout; choose another directory",
            ));
        }
    }
    Ok(())
}

/// The index with `entry` in place of those of the same tag; an untagged one replaces the untagged ones. All else stays as it
/// is, what lazo does not know included. `what` names it in errors.
fn with_entry(what: &str, old: Option<&[u8]>, entry: &Descriptor) -> Result<Vec<u8>> {
    let fail = |e| Error::invalid(what, e);
    let entries = old.map(|old| parse_index(what, old)).transpose()?.map(|index| index.manifests().clone());
    let mut index = match old {
        Some(old) => serde_json::from_slice::<Map<String, Value>>(old).map_err(fail)?,
        None => Map::from_iter([
            ("schemaVersion".to_owned(), SCHEMA_VERSION.into()),
            ("mediaType".to_owned(), MediaType::ImageIndex.as_ref().into()),
        ]),
    };
    let name = index.keys().find(|name| is_field(name, "manifests")).cloned();
    let listed = match name.and_then(|name| index.remove(&name)) {
        Some(Value::Array(listed)) => listed,
        _ => Vec::new(),
    };
    let kept = listed.into_iter().zip(entries.iter().flatten());
    let kept = kept.filter(|(_, old)| annotation(old, REF_NAME) != annotation(entry, REF_NAME)).map(|(value, _)| value);
    let manifests = kept.chain([serde_json::to_value(entry).map_err(fail)?]).collect();
    index.insert("manifests".to_owned(), Value::Array(manifests));
    to_json(&index)
}

fn layout_file() -> Result<Vec<u8>> {
    let layout = OciLayoutBuilder::default().image_layout_version("1.0.0".to_owned()).build();
    to_json(&layout.map_err(|e| Error::invalid("oci-layout", e))?)
}

fn append(tar: &mut tar::Builder<impl Write>, path: &str, size: u64, data: impl Read) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    let directory = path.ends_with('/');
    header.set_entry_type(if directory { tar::EntryType::Directory } else { tar::EntryType::Regular });
    header.set_mode(if directory { 0o755 } else { 0o644 });
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, path, data)
}

/// Temporary files are their owner's alone; an image is for everyone.
fn set_readable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

fn copy_checked(from: &Path, mut to: &File, expected: &Digest, size: u64) -> Result<()> {
    let what = || from.display().to_string();
    let fail = |e| Error::io(format_args!("cannot copy {}", from.display()), e);
    let mut input = File::open(from).map_err(fail)?;
    let mut hasher = Hasher::new(expected.algorithm());
    let mut piece = vec![0; COPY_PIECE];
    let mut copied = 0;
    loop {
        let len = input.read(&mut piece).map_err(fail)?;
        if len == 0 {
            break;
        }
        copied += len as u64;
        if copied > size {
            break;
        }
        hasher.update(&piece[..len]);
        to.write_all(&piece[..len]).map_err(fail)?;
    }
    if copied != size {
        return Err(Error::SizeMismatch { what: what(), expected: size, actual: copied });
    }
    match hasher.finish() {
        actual if actual == *expected => Ok(()),
        actual => Err(Error::digest(what(), *expected, actual)),
    }
}

/// Checks that bytes are what their descriptor says, before they are stored.
pub(crate) fn check_bytes(bytes: &[u8], descriptor: &Descriptor) -> Result<Digest> {
    let document = Document { descriptor: descriptor.clone(), bytes: bytes.to_vec() };
    document.check("content to be stored")?;
    digest_of(descriptor)
}
