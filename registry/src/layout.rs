//! OCI image layouts, in a directory or in a tar: reading. Writing is in [`writer`].

pub(crate) mod writer;

use std::{
    num::NonZeroUsize,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use lazo_format::Digest;
use lru::LruCache;
use oci_spec::image::{Descriptor, MediaType, OciLayout};
use serde_json::json;

use crate::{
    archive::Archive,
    choice::{Choice, NoChoice, REF_NAME, annotation, choose},
    document::{Document, MAX_DOCUMENT, digest_of, parse_index, to_json},
    error::{Error, Result},
    section::{Section, blocking},
};

/// Blobs of a layout kept open, so that range reads cost one system call: far below any limit on open files.
const OPEN_BLOBS: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// The files of a layout.
pub(crate) enum Files {
    Directory(PathBuf),
    Archive(Archive),
}

impl Files {
    /// Opens a file by its path within the layout; `None` when there is none. Blocking.
    fn open(&self, name: &str) -> Result<Option<Section>> {
        match self {
            Self::Archive(archive) => archive.find(name),
            Self::Directory(root) => match Section::open(&root.join(name)) {
                Ok(section) => Ok(Some(section)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(Error::io(format_args!("cannot open {}", root.join(name).display()), e)),
            },
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Directory(root) => format!("layout {}", root.display()),
            Self::Archive(archive) => format!("archive {}", archive.path()),
        }
    }

    /// The entries of `index.json`; blocking.
    pub(crate) fn entries(&self) -> Result<Vec<Descriptor>> {
        check_version(self)?;
        let bytes = self.read("index.json")?;
        Ok(parse_index(&format!("index.json of {}", self.shown()), &bytes)?.manifests().clone())
    }

    /// A small document at the top; blocking.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>> {
        let what = || format!("{name} of {}", self.shown());
        let section = self.open(name)?.ok_or_else(|| Error::NotFound { what: what() })?;
        if section.len() > MAX_DOCUMENT {
            return Err(Error::TooLarge { what: what(), limit: MAX_DOCUMENT });
        }
        section.read_all().map_err(|e| Error::io(format_args!("cannot read {}", what()), e))
    }
}

/// A layout to read.
#[derive(Clone)]
pub(crate) struct Layout(Arc<Inner>);

struct Inner {
    files: Files,
    tag: Option<String>,
    opened: Mutex<LruCache<Digest, Section>>,
}

impl Layout {
    pub(crate) fn new(files: Files, tag: Option<String>) -> Self {
        Self(Arc::new(Inner { files, tag, opened: Mutex::new(LruCache::new(OPEN_BLOBS)) }))
    }

    /// The document that the tag names, or the only one there is.
    pub(crate) async fn root(&self) -> Result<Document> {
        let inner = self.0.clone();
        let found = blocking(move || inner.find_root()).await.map_err(|e| Error::io("cannot read layout", e))??;
        match found {
            Root::Entry(descriptor) => self.document(&descriptor).await,
            Root::Whole(document) => Ok(*document),
        }
    }

    /// What a commit with this tag would replace: of a directory the entries with just this tag, and all of an archive.
    pub(crate) async fn replaced(&self) -> Result<Vec<Document>> {
        let inner = self.0.clone();
        let entries =
            blocking(move || inner.files.entries()).await.map_err(|e| Error::io("cannot read layout", e))??;
        let is_archive = matches!(self.0.files, Files::Archive(_));
        let mut replaced = Vec::new();
        for entry in entries.iter().filter(|entry| is_archive || annotation(entry, REF_NAME) == self.0.tag.as_deref()) {
            replaced.push(self.document(entry).await?);
        }
        Ok(replaced)
    }

    pub(crate) async fn document(&self, descriptor: &Descriptor) -> Result<Document> {
        let section = self.section(&digest_of(descriptor)?, descriptor.size()).await?;
        let what = format!("blob {} of {}", descriptor.digest(), self.0.files.shown());
        if section.len() > MAX_DOCUMENT {
            return Err(Error::TooLarge { what, limit: MAX_DOCUMENT });
        }
        let bytes = section.bytes().await.map_err(|e| Error::io(format_args!("cannot read {what}"), e))?;
        Document { descriptor: descriptor.clone(), bytes: bytes.into() }.check(&what)
    }

    /// A blob's bytes, whose number is `size`.
    pub(crate) async fn section(&self, digest: &Digest, size: u64) -> Result<Section> {
        let known = self.0.opened.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned();
        let section = match known {
            Some(section) => section,
            None => {
                let (inner, digest) = (self.0.clone(), *digest);
                let opened = blocking(move || inner.files.open(&blob_path(&digest))).await;
                let opened = opened.map_err(|e| Error::io("cannot open blob", e))??;
                opened.ok_or_else(|| Error::NotFound { what: self.blob_name(&digest) })?
            }
        };
        if section.len() != size {
            return Err(Error::SizeMismatch { what: self.blob_name(digest), expected: size, actual: section.len() });
        }
        self.0.opened.lock().unwrap_or_else(PoisonError::into_inner).put(*digest, section.clone());
        Ok(section)
    }

    /// As references name it, without the tag.
    pub(crate) fn name(&self) -> String {
        match &self.0.files {
            Files::Directory(root) => format!("oci:{}", root.display()),
            Files::Archive(archive) => format!("oci-archive:{}", archive.path()),
        }
    }

    pub(crate) fn blob_name(&self, digest: &Digest) -> String {
        format!("blob {digest} of {}", self.0.files.shown())
    }
}

enum Root {
    /// An entry of `index.json`.
    Entry(Box<Descriptor>),
    /// An index made of several entries, one a platform.
    Whole(Box<Document>),
}

impl Inner {
    fn find_root(&self) -> Result<Root> {
        let entries = self.files.entries()?;
        match choose(&entries, self.tag.as_deref()) {
            Ok(Choice::One(number)) => Ok(Root::Entry(Box::new(entries[number].clone()))),
            Ok(Choice::Platforms(numbers)) => {
                let chosen: Vec<Descriptor> = numbers.into_iter().map(|number| entries[number].clone()).collect();
                let index = json!({ "schemaVersion": 2, "mediaType": MediaType::ImageIndex, "manifests": chosen });
                Ok(Root::Whole(Box::new(Document::new(MediaType::ImageIndex, to_json(&index)?))))
            }
            Err(NoChoice::Several(which)) => Err(Error::invalid(self.what(), which)),
            Err(NoChoice::Missing(what_there_is)) => {
                let wanted = self.tag.as_ref().map_or_else(|| "any image".to_owned(), |tag| format!("image {tag}"));
                Err(Error::NotFound { what: format!("{wanted} in {}, {what_there_is}", self.what()) })
            }
        }
    }

    fn what(&self) -> String {
        self.files.shown()
    }
}

/// Refuses what is no image layout of a version known here.
pub(crate) fn check_version(files: &Files) -> Result<()> {
    let what = files.shown();
    let bytes = files.read("oci-layout").map_err(|e| match e {
        Error::NotFound { .. } => {
            Error::NotFound { what: format!("{what} is no OCI image layout: its file oci-layout") }
        }
        e => e,
    })?;
    is_known_version(&bytes).map_err(|reason| Error::invalid(what, reason))
}

/// Whether the content of `oci-layout` is of a version known here; `Err` says why not.
pub(crate) fn is_known_version(bytes: &[u8]) -> Result<(), String> {
    let layout: OciLayout = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let version = layout.image_layout_version();
    if version.split('.').next() == Some("1") {
        return Ok(());
    }
    Err(format!("image layout version {version:?} is not 1.x"))
}

/// Where a layout keeps a blob.
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}
