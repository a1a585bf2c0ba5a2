//! What goes wrong with containerd, and what can be done about it.

use std::io;
use std::path::{Path, PathBuf};

use tonic::{Code, Status};

/// containerd cannot be asked, or says no.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerdError {
    /// Nobody listens.
    #[error("containerd does not answer at {}; is it running? --address names its socket if that is elsewhere", address.display())]
    Absent {
        /// Its socket.
        address: PathBuf,
        /// Cause.
        source: tonic::transport::Error,
    },
    /// The user may not connect.
    #[error("not allowed to use containerd at {}; run this as root", address.display())]
    Forbidden {
        /// Its socket.
        address: PathBuf,
        /// Cause.
        source: tonic::transport::Error,
    },
    /// No name for a namespace.
    #[error("{namespace:?} cannot be the name of a namespace of containerd")]
    Namespace {
        /// What was given.
        namespace: String,
    },
    /// It has no such snapshotter.
    #[error(
        "containerd has no snapshotter {snapshotter:?}; for lazo's, its /etc/containerd/config.toml needs\n\n  \
         [proxy_plugins.lazo]\n    type = \"snapshot\"\n    address = \"/run/lazo/snapshotter.sock\"\n\n\
         and containerd must be restarted then; --snapshotter chooses another (containerd says: {message})"
    )]
    NoSnapshotter {
        /// Its name.
        snapshotter: String,
        /// containerd's own words.
        message: String,
    },
    /// The snapshotter is not there.
    #[error(
        "{what}: containerd cannot reach the snapshotter {snapshotter}; is `lazo snapshotter` running? (containerd says: {message})"
    )]
    SnapshotterAbsent {
        /// What was asked for.
        what: String,
        /// Its name.
        snapshotter: String,
        /// containerd's own words.
        message: String,
    },
    /// It refuses.
    #[error("{what}: {message}")]
    Refused {
        /// What was asked for.
        what: String,
        /// Its own words.
        message: String,
        /// What kind of refusal.
        code: Code,
    },
}

impl ContainerdError {
    pub(super) fn connect(address: &Path, source: tonic::transport::Error) -> Self {
        let address = address.to_owned();
        match io_kind(&source) {
            Some(io::ErrorKind::PermissionDenied) => Self::Forbidden { address, source },
            _ => Self::Absent { address, source },
        }
    }

    pub(super) fn snapshotter(snapshotter: &str, what: &str, status: Status) -> Self {
        let (snapshotter, message) = (snapshotter.to_owned(), status.message().to_owned());
        // The only way to tell: containerd gives the same code for arguments that make no sense.
        if message.starts_with("snapshotter not loaded") {
            return Self::NoSnapshotter { snapshotter, message };
        }
        if status.code() == Code::Unavailable {
            return Self::SnapshotterAbsent { what: what.to_owned(), snapshotter, message };
        }
        named(what)(status)
    }

    /// What kind of refusal, if it is one.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        if let Self::Refused { code, .. } = self { Some(*code) } else { None }
    }
}

/// Makes an error of a status; `what` could not be done.
pub(crate) fn named(what: impl Into<String>) -> impl FnOnce(Status) -> ContainerdError {
    |status| ContainerdError::Refused {
        what: what.into(),
        message: match status.message() {
            "" => status.code().description().to_owned(),
            message => message.to_owned(),
        },
        code: status.code(),
    }
}

/// An answer that makes no sense.
pub(crate) fn refused(what: impl Into<String>, message: impl Into<String>) -> ContainerdError {
    ContainerdError::Refused { what: what.into(), message: message.into(), code: Code::Unknown }
}

fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        next = error.source();
    }
    None
}
