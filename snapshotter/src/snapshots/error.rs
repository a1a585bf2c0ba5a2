//! Why a call fails.

use std::io;
use std::path::{Path, PathBuf};

use crate::filter::FilterError;
use crate::images::ImageError;
use crate::labels;
use crate::store::StoreError;

/// A call fails. `{0}` is mostly the name or key of the snapshot in question.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such snapshot.
    #[error("snapshot {0} does not exist")]
    NotFound(String),
    /// There is no such parent.
    #[error("parent snapshot {0} does not exist")]
    NoParent(String),
    /// There is one already.
    #[error("snapshot {0} exists already")]
    Exists(String),
    /// It has children.
    #[error("cannot remove snapshot {0}: it is the parent of others")]
    HasChildren(String),
    /// Only what is being written can be committed.
    #[error("snapshot {0} is not active")]
    NotActive(String),
    /// Committed snapshots have no mounts.
    #[error("snapshot {0} is committed; mounts have those that are active, and views")]
    Committed(String),
    /// Only committed snapshots can be parents.
    #[error("parent snapshot {0} is not committed")]
    ParentNotCommitted(String),
    /// A name is missing.
    #[error("a snapshot needs a name")]
    NoName,
    /// A field that never changes.
    #[error("field {0:?} of a snapshot cannot be updated; only labels can")]
    Immutable(String),
    /// A filter is wrong.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A blob does not lie on blobs.
    #[error("snapshot {0} is for a lazo blob, which lies above other blobs only; this is not an image that lazo made")]
    BlobPlace(String),
    /// A bootstrap does not lie on blobs.
    #[error(
        "snapshot {0} is for a lazo image's bootstrap, which lies above blobs only; this is not an image that lazo made"
    )]
    BootstrapPlace(String),
    /// A blob that is not part of an unpacking.
    #[error("snapshot {0} is for a lazo blob, but the label {target} does not say which", target = labels::TARGET)]
    BlobTarget(String),
    /// The name of a blob is in use for something else.
    #[error("snapshot {0} exists already, and it is not the lazo blob that it should be")]
    OtherBlob(String),
    /// Nobody says where the blobs come from.
    #[error(
        "snapshot {0} is for a layer of a lazo image, but the label {name} does not say which image; pull it with `lazo pull`, or have \
         containerd pass annotations to snapshotters (disable_snapshot_annotations = false)", name = labels::IMAGE_REF
    )]
    NoImage(String),
    /// A container over blobs, without their bootstrap.
    #[error("snapshot {0} lies above blobs of a lazo image, whose bootstrap is missing")]
    BareBlobs(String),
    /// The bootstrap layer lacks a file.
    #[error("snapshot {key} has no file {path}, so it is not the bootstrap of a lazo image")]
    NoBootstrap {
        /// Which.
        key: String,
        /// Below the snapshot's directory.
        path: &'static str,
    },
    /// The bootstrap layer's chunk index cannot be read.
    #[error("snapshot {key} is for a lazo image's bootstrap, and its file image/index is damaged; pull the image anew")]
    Index {
        /// Which.
        key: String,
        /// Cause.
        source: lazo_format::IndexError,
    },
    /// A bootstrap over the blobs of another image.
    #[error(
        "snapshot {0} is for a lazo image's bootstrap, which is about other blobs than those below it; this is not an image that lazo made"
    )]
    OtherBlobs(String),
    /// Two user namespaces, or half of one.
    #[error("the labels for a user namespace's IDs cannot be understood: {0}")]
    Map(&'static str),
    /// Files would have to be changed one by one.
    #[error(
        "snapshot {0} is to have the owners of all files of a lazo image changed, which would fetch the whole image; with containerd 2.1 or \
         newer, give the snapshotter the capability remap-ids, and owners are shifted when the image is mounted"
    )]
    RemappedCopy(String),
    /// The image cannot be mounted.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The database fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file cannot be made, read or removed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// Names what was tried on which file.
pub(super) fn file<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::File { action, path: path.to_owned(), source }
}
