//! Builds a real image out of this machine's own files: three layers in an OCI layout directory, tar and gzip, the same
//! bytes each time for the same files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use lazo_format::digest::{Algorithm, Digest, Hasher};
use serde_json::{Value, json};

use super::pick::Picker;
use super::program::{Program, SCRIPT, shared_libraries};

/// The tag under which the image lies in its layout.
pub(crate) const TAG: &str = "gzip";

const MEGABYTE: u64 = 1_000_000;
/// Uncompressed bytes that each part may take. Together about 400 MB, the size of an ordinary application image, where
/// the machine has as much; small enough for the demo's two minutes on two cores.
const BINARIES: u64 = 50 * MEGABYTE;
const LIBRARIES: u64 = 120 * MEGABYTE;
const RUNTIME: u64 = 100 * MEGABYTE;
const SHARED: u64 = 80 * MEGABYTE;
const FURTHER: u64 = 60 * MEGABYTE;
/// gzip -6, what image builders use.
const LEVEL: u32 = 6;
/// Seconds since 1970 of the files that the demo writes itself: any constant.
const WRITTEN: u64 = 1_700_000_000;

/// What was built.
pub(crate) struct Built {
    /// Files, links and directories.
    pub(crate) entries: u64,
    /// Bytes of the layers' tar streams.
    pub(crate) uncompressed: u64,
    /// Bytes of the layers as they lie in the layout.
    pub(crate) compressed: u64,
    /// Number of layers.
    pub(crate) layers: usize,
}

/// Writes the image that `program` runs in to the layout directory `layout`, tagged [`TAG`].
///
/// # Errors
/// When a file cannot be written, or as soon as `cancelled` is set.
pub(crate) fn build(layout: &Path, program: &Program, cancelled: &AtomicBool) -> Result<Built> {
    fs::create_dir_all(layout.join("blobs/sha256")).with_context(|| format!("create {}", layout.display()))?;
    let layers = choose(program)?;
    let built: Result<Vec<Layer>> = std::thread::scope(|scope| {
        let script = |number| (number + 1 == layers.len()).then_some(program.script);
        let spawn = |(number, files)| {
            let script = script(number);
            scope.spawn(move || write_layer(layout, number, files, script, cancelled))
        };
        let threads: Vec<_> = layers.iter().enumerate().map(spawn).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Layer>>| match thread.join() {
            Ok(layer) => layer,
            Err(_) => bail!("a thread that writes a layer panicked"),
        };
        threads.into_iter().map(join).collect()
    });
    let built = built?;
    write_documents(layout, program, &built)?;
    Ok(Built {
        entries: built.iter().map(|layer| layer.entries).sum(),
        uncompressed: built.iter().map(|layer| layer.uncompressed).sum(),
        compressed: built.iter().map(|layer| layer.compressed).sum(),
        layers: built.len(),
    })
}

type Files = BTreeMap<PathBuf, fs::Metadata>;

/// The layers from the lowest up: a base system, a language's runtime, an application's data.
fn choose(program: &Program) -> Result<Vec<Files>> {
    let mut picker = Picker::default();
    let triplet = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let library = program.library()?;
    let mut binaries = vec![PathBuf::from(program.interpreter)];
    binaries.extend(library.iter().flat_map(|directory| native_modules(directory, 0)));
    for path in base_files().chain(shared_libraries(&binaries)?) {
        picker.add(&path);
    }
    picker.add_tree(Path::new("/usr/bin"), BINARIES);
    picker.add_tree(Path::new(&triplet), LIBRARIES);
    let base = picker.finish_layer();

    picker.add(Path::new(program.interpreter));
    let mut budget = RUNTIME;
    for directory in &library {
        budget = picker.add_tree(directory, budget);
    }
    let runtime = picker.finish_layer();

    picker.add_tree(Path::new("/usr/share"), SHARED);
    picker.add_tree(Path::new("/usr/lib"), FURTHER);
    Ok(vec![base, runtime, picker.finish_layer()])
}

fn base_files() -> impl Iterator<Item = PathBuf> {
    let names = ["/bin", "/sbin", "/lib", "/lib64", "/etc/passwd", "/etc/group", "/etc/os-release", "/bin/sh"];
    names.into_iter().map(PathBuf::from)
}

/// Compiled modules below a directory, whose libraries the image needs too.
fn native_modules(directory: &Path, depth: u32) -> Vec<PathBuf> {
    /// Module directories nest three or four deep.
    const MAX_DEPTH: u32 = 8;
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth < MAX_DEPTH {
            found.extend(native_modules(&entry.path(), depth + 1));
        } else if kind.is_file() && entry.path().extension().is_some_and(|extension| extension == "so") {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

struct Layer {
    digest: Digest,
    diff_id: Digest,
    compressed: u64,
    uncompressed: u64,
    entries: u64,
}

fn write_layer(
    layout: &Path,
    number: usize,
    files: &Files,
    script: Option<&str>,
    cancelled: &AtomicBool,
) -> Result<Layer> {
    let partial = layout.join(format!("layer-{number}.partial"));
    let file = File::create(&partial).with_context(|| format!("create {}", partial.display()))?;
    let compressed = Digesting::new(BufWriter::new(file));
    let gzip = GzEncoder::new(compressed, Compression::new(LEVEL));
    let mut archive = tar::Builder::new(Digesting::new(gzip));
    let mut entries = append_files(&mut archive, files, cancelled)?;
    if let Some(script) = script {
        entries += append_script(&mut archive, script)?;
    }
    let (diff_id, uncompressed, gzip) = archive.into_inner()?.finish();
    let (digest, compressed, mut file) = gzip.finish()?.finish();
    file.flush()?;
    fs::rename(&partial, blob_path(layout, &digest))?;
    Ok(Layer { digest, diff_id, compressed, uncompressed, entries })
}

fn append_files<W: Write>(archive: &mut tar::Builder<W>, files: &Files, cancelled: &AtomicBool) -> Result<u64> {
    let mut entries = 0;
    let mut parents = BTreeSet::new();
    let mut links: HashMap<(u64, u64), &Path> = HashMap::new();
    for (path, metadata) in files {
        if cancelled.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        entries += append_parents(archive, path, &mut parents)?;
        let name = path.strip_prefix("/")?;
        let mut header = header(metadata);
        if metadata.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            archive.append_link(&mut header, name, path.read_link()?)?;
        } else if let Some(first) = links.get(&(metadata.dev(), metadata.ino())) {
            header.set_entry_type(tar::EntryType::Link);
            archive.append_link(&mut header, name, first)?;
        } else {
            // Read whole, so that the length is right even if the file changes just now.
            let contents = fs::read(path).with_context(|| format!("read {}", path.display()))?;
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(contents.len() as u64);
            archive.append_data(&mut header, name, contents.as_slice())?;
            if metadata.nlink() > 1 {
                links.insert((metadata.dev(), metadata.ino()), name);
            }
        }
        entries += 1;
    }
    Ok(entries)
}

fn append_parents<W: Write>(archive: &mut tar::Builder<W>, path: &Path, seen: &mut BTreeSet<PathBuf>) -> Result<u64> {
    let above: Vec<&Path> = path.ancestors().skip(1).take_while(|ancestor| !seen.contains(*ancestor)).collect();
    for directory in above.iter().rev() {
        seen.insert(directory.to_path_buf());
        let name = directory.strip_prefix("/")?;
        if name.as_os_str().is_empty() {
            continue;
        }
        let mut header = header(&directory.symlink_metadata()?);
        header.set_entry_type(tar::EntryType::Directory);
        archive.append_data(&mut header, name, io::empty())?;
    }
    Ok(above.len() as u64)
}

fn header(metadata: &fs::Metadata) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(0);
    header
}

/// The application's own files, and the mount points that a container would have.
fn append_script<W: Write>(archive: &mut tar::Builder<W>, script: &str) -> Result<u64> {
    // What a directory holds follows it at once: `tar` sets its time of modification when it comes to another.
    let entries: [(&str, u32, Option<&str>); 6] = [
        ("app", 0o755, None),
        (SCRIPT.trim_start_matches('/'), 0o755, Some(script)),
        ("dev", 0o755, None),
        ("proc", 0o755, None),
        ("sys", 0o755, None),
        ("tmp", 0o1777, None),
    ];
    for (path, mode, contents) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(contents.map_or(tar::EntryType::Directory, |_| tar::EntryType::Regular));
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(WRITTEN);
        let contents = contents.unwrap_or_default();
        header.set_size(contents.len() as u64);
        archive.append_data(&mut header, path, contents.as_bytes())?;
    }
    Ok(entries.len() as u64)
}

fn write_documents(layout: &Path, program: &Program, layers: &[Layer]) -> Result<()> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Cmd": program.command(), "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| layer.diff_id.to_string()).collect::<Vec<_>>() },
    });
    let config = put(layout, "application/vnd.oci.image.config.v1+json", &config)?;
    let describe = |layer: &Layer| {
        json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": layer.digest.to_string(),
            "size": layer.compressed,
        })
    };
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config,
        "layers": layers.iter().map(describe).collect::<Vec<_>>(),
    });
    let mut manifest = put(layout, media_type, &manifest)?;
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": TAG });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    fs::write(layout.join("index.json"), index.to_string())?;
    Ok(())
}

/// Stores a document as a blob and answers its descriptor.
fn put(layout: &Path, media_type: &str, document: &Value) -> Result<Value> {
    let bytes = document.to_string().into_bytes();
    let digest = Digest::sha256_of(&bytes);
    fs::write(blob_path(layout, &digest), &bytes)?;
    Ok(json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() }))
}

fn blob_path(layout: &Path, digest: &Digest) -> PathBuf {
    layout.join("blobs").join(digest.to_string().replace(':', "/"))
}

/// Hashes and counts what passes to the writer below.
struct Digesting<W> {
    inner: W,
    hasher: Hasher,
    length: u64,
}

impl<W> Digesting<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Hasher::new(Algorithm::Sha256), length: 0 }
    }

    fn finish(self) -> (Digest, u64, W) {
        (self.hasher.finish(), self.length, self.inner)
    }
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
