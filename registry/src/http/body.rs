//! Request bodies that can be sent again.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use futures_util::TryStreamExt;

use crate::section::Section;

/// What a request carries.
#[derive(Clone)]
pub(crate) enum Body {
    /// No body, and no Content-Length.
    Empty,
    /// Bytes in memory.
    Bytes(Bytes),
    /// A stretch of a file, streamed.
    File(Section),
}

impl Body {
    /// Bytes in it; `None` for none at all.
    pub(crate) fn len(&self) -> Option<u64> {
        match self {
            Self::Empty => None,
            Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::File(section) => Some(section.len()),
        }
    }

    /// The body afresh; `progress` counts the bytes handed out.
    pub(crate) fn to_reqwest(&self, progress: &Arc<AtomicU64>) -> reqwest::Body {
        match self {
            Self::Empty => reqwest::Body::default(),
            Self::Bytes(bytes) => bytes.clone().into(),
            Self::File(section) => {
                let progress = progress.clone();
                let stream = section.clone().stream().inspect_ok(move |bytes| {
                    progress.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                });
                reqwest::Body::wrap_stream(stream)
            }
        }
    }
}
