//! A converted corpus image behind a docker-registry, and the original tree that every byte read is compared with.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    Corpus, Scratch, converted, layout::Manifest, mounted::Mounted, once, random::Random, registry::Registry,
    run_directory,
};

/// The image's name in its registry.
pub(crate) const NAME: &str = "app:lazo";
/// Bytes asked for at a time.
const PIECE: usize = 64 << 10;
/// Of a large file, bytes: few of them share a chunk.
const LARGE: u64 = 16 << 10;

/// The image in a registry of the test's own; the registry's storage is shared by all tests, and none may change it.
pub(crate) struct Served {
    pub(crate) scratch: Scratch,
    pub(crate) registry: Registry,
    pub(crate) layout: PathBuf,
    pub(crate) manifest: Manifest,
    corpus: &'static str,
    original: Original,
}

impl Served {
    pub(crate) fn new(corpus: &'static str) -> Self {
        Self::with(corpus, "")
    }

    /// `more`: of the registry's configuration.
    pub(crate) fn with(corpus: &'static str, more: &str) -> Self {
        let (scratch, layout) = (Scratch::new(), converted(corpus, "gzip"));
        let registry = Registry::over(&scratch, "registry", &pushed(corpus), more);
        let manifest = Manifest::of(&layout, "lazo");
        Self { scratch, registry, layout, manifest, corpus, original: Original::of(corpus) }
    }

    /// `docker://HOST/NAME` at the registry itself.
    pub(crate) fn image(&self) -> String {
        self.registry.image(NAME)
    }

    /// Mounts at a new directory `mount`, with a cache of this test's own.
    pub(crate) fn mount(&self, image: &str, options: &[&str]) -> Mounted<'_> {
        Mounted::with(&self.scratch, image, "mount", options)
    }

    /// Ends the registry.
    pub(crate) fn without_registry(self) -> (Scratch, Original) {
        (self.scratch, self.original)
    }

    /// The directory where a docker-registry has the image, for one of the test's own. Nothing there may be changed.
    pub(crate) fn storage(&self) -> PathBuf {
        pushed(self.corpus)
    }

    /// The tree that it was made of.
    pub(crate) fn original(&self) -> &Original {
        &self.original
    }

    /// Bytes of all blobs as stored.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.manifest.blobs().iter().map(|(_, size)| size).sum()
    }
}

/// The storage directory of a docker-registry that has the image.
fn pushed(corpus: &str) -> PathBuf {
    let storage = once(&format!("pushed {corpus}"), || {
        let storage = run_directory().join(format!("pushed-{corpus}"));
        fs::create_dir_all(&storage).expect("a directory");
        let scratch = Scratch::new();
        Registry::over(&scratch, "registry", &storage, "").push(&converted(corpus, "gzip"), "lazo", NAME);
        storage
    });
    (*storage).clone()
}

/// What an image was made of, as `umoci unpack` has it.
pub(crate) struct Original {
    root: PathBuf,
    files: Arc<Vec<PathBuf>>,
    large: Arc<Vec<PathBuf>>,
    taken: AtomicUsize,
}

impl Original {
    fn of(corpus: &str) -> Self {
        let files = once(&format!("files of {corpus}"), || {
            let corpus = Corpus::get(corpus);
            let mut files = Vec::new();
            find(&corpus.reference(), Path::new(""), &mut files);
            let excepted = corpus.exceptions();
            files.retain(|path| !excepted.iter().any(|(name, _)| name == path.as_os_str().as_encoded_bytes()));
            files.sort();
            Random::new(1).shuffle(&mut files);
            files
        });
        let root = Corpus::get(corpus).reference();
        let large = once(&format!("large files of {corpus}"), || {
            let size = |path: &&PathBuf| fs::metadata(root.join(path)).expect("an original").len();
            files.iter().filter(|path| size(path) >= LARGE).cloned().collect::<Vec<_>>()
        });
        Self { root, files, large, taken: AtomicUsize::new(0) }
    }

    /// Where it is.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Paths of all regular files with data, in an order that has nothing to do with where their data lies.
    pub(crate) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Those that no chunk holds many of.
    pub(crate) fn large(&self) -> &[PathBuf] {
        &self.large
    }

    /// The next large file, which nobody has been given by this function.
    pub(crate) fn next(&self) -> &Path {
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        self.large.get(number).unwrap_or_else(|| panic!("all {number} files are taken"))
    }

    /// Reads a file of a mount to its end or to the first error.
    ///
    /// # Panics
    /// When a byte that came is not the original's, whether or not an error came after it.
    pub(crate) fn compare(&self, mount: &Path, path: &Path) -> io::Result<u64> {
        let (mut file, mut original) = (File::open(mount.join(path))?, self.open(path));
        let (mut found, mut expected) = (vec![0; PIECE], vec![0; PIECE]);
        let mut offset = 0;
        loop {
            let length = file.read(&mut found)?;
            if length == 0 {
                assert_eq!(original.read(&mut expected).expect("an original"), 0, "{}: too short", path.display());
                return Ok(offset);
            }
            original.read_exact(&mut expected[..length]).expect("an original as long");
            assert!(found[..length] == expected[..length], "{}: wrong bytes after {offset}", path.display());
            offset += length as u64;
        }
    }

    /// Reads a file of a mount, which must be right to its end.
    pub(crate) fn assert_same(&self, mount: &Path, path: &Path) {
        self.compare(mount, path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Reads all files of a mount, which must all be right.
    pub(crate) fn assert_all_same(&self, mount: &Path) {
        for path in self.files.iter() {
            self.assert_same(mount, path);
        }
    }

    pub(crate) fn open(&self, path: &Path) -> File {
        File::open(self.root.join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

fn find(root: &Path, directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(root.join(directory)).expect("a directory") {
        let entry = entry.expect("an entry");
        let (path, metadata) = (directory.join(entry.file_name()), entry.metadata().expect("its metadata"));
        if metadata.is_dir() {
            find(root, &path, files);
        } else if metadata.is_file() && metadata.len() > 0 {
            files.push(path);
        }
    }
}
