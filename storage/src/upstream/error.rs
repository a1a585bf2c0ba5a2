//! Why no source gave what was asked for.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lazo_format::Digest;

use crate::source::{ErrorKind, SourceError};

/// Longest text of one cause, in characters. Servers put whole pages into their errors.
const MAX_CAUSE: usize = 400;

/// What went wrong at a source, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// The kind of error.
    pub kind: ErrorKind,
    /// The error with its causes, in words.
    pub text: Arc<str>,
}

impl Cause {
    pub(super) fn new(kind: ErrorKind, text: &str) -> Self {
        Self { kind, text: text.into() }
    }
}

impl From<&SourceError> for Cause {
    fn from(error: &SourceError) -> Self {
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next.filter(|_| text.len() < MAX_CAUSE) {
            let more = cause.to_string();
            if !text.contains(&more) {
                text = format!("{text}: {more}");
            }
            next = cause.source();
        }
        if let Some((end, _)) = text.char_indices().nth(MAX_CAUSE) {
            text.truncate(end);
            text.push('…');
        }
        Self::new(error.kind, &text)
    }
}

/// A source, and what went wrong there last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// The source's name.
    pub source: Arc<str>,
    /// What went wrong; nothing when it was not asked.
    pub cause: Option<Cause>,
}

/// Why the search for a source ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// No source served the blob until its outage limit ran out.
    Outage,
    /// Each source gave a definite answer: it does not have the blob, refuses, or is not to be believed. Waiting does not help.
    Refused,
    /// No source is healthy, and the request was not one to wait.
    Unhealthy,
}

/// No source gives a blob's bytes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UpstreamError {
    /// The blob.
    pub blob: Digest,
    /// Why no more was tried.
    pub reason: Reason,
    /// Every source, in the order configured.
    pub tried: Vec<Tried>,
    /// How long this request waited.
    pub waited: Duration,
}

impl UpstreamError {
    /// The kind of error that says most: of those which waiting does not cure the first, unless the reason is an outage.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        let kinds = || self.tried.iter().filter_map(|tried| tried.cause.as_ref()).map(|cause| cause.kind);
        let outage = self.reason != Reason::Refused;
        kinds().find(|kind| kind.is_outage() == outage).or_else(|| kinds().next()).unwrap_or(ErrorKind::Unreachable)
    }

    /// What the user can do.
    fn advice(&self) -> &'static str {
        match self.kind() {
            ErrorKind::Denied => "log in again, for example with `docker login`, or check the rights at the source",
            ErrorKind::NotFound => "was the image deleted there? Push it again, or add a source that has it",
            ErrorKind::BadAnswer => "check the source, and any proxy before it, with `lazo check`",
            ErrorKind::Untrusted => "check the certificate, or configure the authority that signed it",
            ErrorKind::Local => "check the disk and directory that hold the source",
            ErrorKind::Busy => {
                "the source limits requests: wait, log in, or add a mirror; reads work again once it answers"
            }
            _ => "check the network and the source, or add a mirror; reads work again once one answers",
        }
    }
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (blob, seconds) = (self.blob, self.waited.as_secs_f64());
        match self.reason {
            Reason::Outage => write!(f, "no source gave blob {blob} (waited {seconds:.1} s)")?,
            Reason::Refused => write!(f, "no source has a usable blob {blob} (after {seconds:.1} s)")?,
            Reason::Unhealthy => write!(f, "no source is healthy that may give blob {blob} (after {seconds:.1} s)")?,
        }
        for (at, tried) in self.tried.iter().enumerate() {
            let cause = tried.cause.as_ref().map_or("not asked", |cause| &*cause.text);
            write!(f, "{}{}: {cause}", if at == 0 { ": " } else { "; " }, tried.source)?;
        }
        write!(f, ". {}", self.advice())
    }
}

impl StdError for UpstreamError {}
