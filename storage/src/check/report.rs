//! What a check found.

use std::fmt;

use lazo_format::Digest;
use lazo_registry::oci_spec::image::Descriptor;
use lazo_registry::{LeftOut, shown_platform};
use serde::Serialize;

/// Most faults kept for an image: enough to see the pattern; the rest is only counted.
pub const MAX_FAULTS: usize = 100;
/// Most paths named with a fault.
pub const MAX_PATHS: usize = 10;

/// The outcome of a check.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was checked.
    pub image: String,
    /// One for each lazo image that the reference names.
    pub images: Vec<ImageReport>,
    /// What else the index holds, and was not looked at: images that are not lazo's, attestations, artifacts.
    pub not_checked: Vec<LeftOut>,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.images.iter().all(|image| image.faults.is_empty())
    }
}

/// The outcome for one image. All sizes are bytes.
#[derive(Debug, Clone, Serialize)]
pub struct ImageReport {
    /// Digest of its manifest.
    pub manifest: String,
    /// `OS/ARCHITECTURE[/VARIANT]` where known.
    pub platform: Option<String>,
    /// Names in the tree.
    pub entries: u64,
    /// Sizes of all regular files, each inode once.
    pub file_bytes: u64,
    /// Size of the bootstrap layer.
    pub bootstrap_layer_bytes: u64,
    /// Size of the bootstrap.
    pub bootstrap_bytes: u64,
    /// Number of blobs.
    pub blobs: u64,
    /// Blobs that were found good in another image of the same index, and not fetched again.
    pub blobs_known: u64,
    /// Stored bytes that were read from blobs.
    pub stored_bytes: u64,
    /// Number of chunks that were decoded and verified.
    pub chunks: u64,
    /// Their uncompressed size.
    pub device_bytes: u64,
    /// What is wrong, at most [`MAX_FAULTS`].
    pub faults: Vec<Fault>,
    /// How many more there are.
    pub more_faults: u64,
}

impl ImageReport {
    pub(super) fn new(manifest: &Descriptor) -> Self {
        Self {
            manifest: manifest.digest().to_string(),
            platform: manifest.platform().as_ref().map(shown_platform),
            entries: 0,
            file_bytes: 0,
            bootstrap_layer_bytes: 0,
            bootstrap_bytes: 0,
            blobs: 0,
            blobs_known: 0,
            stored_bytes: 0,
            chunks: 0,
            device_bytes: 0,
            faults: Vec::new(),
            more_faults: 0,
        }
    }

    /// Notes a fault that concerns no blob.
    pub(super) fn add(&mut self, part: Part, message: impl fmt::Display) {
        self.add_fault(Fault::new(part, message));
    }

    pub(super) fn add_fault(&mut self, fault: Fault) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        } else {
            self.more_faults += 1;
        }
    }
}

/// Which part of an image is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The manifest.
    Manifest,
    /// The config.
    Config,
    /// The layer that holds bootstrap and chunk index.
    BootstrapLayer,
    /// The metadata tree.
    Bootstrap,
    /// The chunk index.
    Index,
    /// A blob.
    Blob,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Manifest => "manifest",
            Self::Config => "config",
            Self::BootstrapLayer => "bootstrap layer",
            Self::Bootstrap => "bootstrap",
            Self::Index => "chunk index",
            Self::Blob => "blob",
        })
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, Serialize)]
pub struct Fault {
    /// With what.
    pub part: Part,
    /// With which blob, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blob: Option<Digest>,
    /// With which of the image's chunks, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk: Option<u32>,
    /// What.
    pub message: String,
    /// Files that have content there, at most [`MAX_PATHS`], unprintable bytes escaped.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// How many more files.
    pub more_paths: u64,
}

impl Fault {
    pub(super) fn new(part: Part, message: impl fmt::Display) -> Self {
        Self { part, blob: None, chunk: None, message: message.to_string(), paths: Vec::new(), more_paths: 0 }
    }

    pub(super) fn add_path(&mut self, path: String) {
        if self.paths.len() < MAX_PATHS {
            self.paths.push(path);
        } else {
            self.more_paths += 1;
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.part)?;
        if let Some(blob) = &self.blob {
            write!(f, " {blob}")?;
        }
        if let Some(chunk) = self.chunk {
            write!(f, ", chunk {chunk}")?;
        }
        write!(f, ": {}", self.message)?;
        for path in &self.paths {
            write!(f, "\n    used by {path}")?;
        }
        if self.more_paths > 0 {
            write!(f, "\n    and by {} more files", self.more_paths)?;
        }
        Ok(())
    }
}

/// An error with its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
