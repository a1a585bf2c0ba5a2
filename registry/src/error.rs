//! What can go wrong between an image reference and its bytes.
//!
//! No variant ever holds a secret: URLs are shown without query and user information, request headers never.

use std::{fmt, io, time::Duration};

use lazo_format::Digest;

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a source, a destination or a reference; says what failed, on what, and where known what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no image reference.
    #[error("invalid image reference {reference:?}: {reason}")]
    Reference {
        /// The text given.
        reference: String,
        /// What is wrong, and what is accepted.
        reason: String,
    },
    /// Content that does not hash to what its descriptor or URL promised.
    #[error("{what}: digest mismatch: expected {expected}, got {actual}")]
    DigestMismatch {
        /// The object and where it came from.
        what: String,
        /// Digest asked for.
        expected: Box<Digest>,
        /// Digest of the bytes received.
        actual: Box<Digest>,
    },
    /// Content longer or shorter than its descriptor says.
    #[error("{what}: size mismatch: expected {expected} bytes, got {actual}")]
    SizeMismatch {
        /// The object and where it came from.
        what: String,
        /// Bytes promised.
        expected: u64,
        /// Bytes received, or received so far when the content is too long.
        actual: u64,
    },
    /// A document over its bound.
    #[error("{what} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// The object.
        what: String,
        /// The bound, bytes.
        limit: u64,
    },
    /// The object does not exist.
    #[error("{what}: not found")]
    NotFound {
        /// The object and where it was looked for.
        what: String,
    },
    /// The registry refuses these (or no) credentials.
    #[error("{what}: access denied: {reason}")]
    Denied {
        /// The object or host.
        what: String,
        /// Why, and what the user can do.
        reason: String,
    },
    /// An answer that is neither success nor one of the cases above.
    #[error("{what}: {request} answered {status}{detail}")]
    Status {
        /// The object asked for.
        what: String,
        /// HTTP method and URL, without query.
        request: String,
        /// HTTP status code.
        status: u16,
        /// The registry's own words, with a leading ": ", or empty.
        detail: String,
        /// The wait asked for by `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// No answer: connection refused, reset or cut, TLS failure, or a stall longer than the timeout.
    #[error("{what}: cannot reach {url}")]
    Transport {
        /// The object asked for.
        what: String,
        /// URL without query.
        url: String,
        /// Cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A TLS connection that cannot be trusted, or cannot be had.
    #[error("{what}: no TLS connection to {url}: {reason}")]
    Untrusted {
        /// The object asked for.
        what: String,
        /// URL without query.
        url: String,
        /// What is wrong, and what the user can do.
        reason: String,
    },
    /// A server that was asked by TLS, and does not speak it.
    #[error(
        "{what}: {url} does not speak TLS, but plain HTTP as it seems; if that is meant, --plain-http, `plain_http` in \
         lazo.toml, or http:// in the registry's hosts.toml has it asked so"
    )]
    NotTls {
        /// The object asked for.
        what: String,
        /// URL without query.
        url: String,
    },
    /// An answer or document that breaks the protocol or the format.
    #[error("{what}: {reason}")]
    Invalid {
        /// The object.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The image has no manifest for the platform.
    #[error("{what} has no image for {wanted}; choose another one with --platform, it has: {available}")]
    NoPlatform {
        /// The image.
        what: String,
        /// Platform asked for.
        wanted: String,
        /// Platforms found, separated by commas.
        available: String,
    },
    /// A credential file or helper that cannot be used.
    #[error("credentials for {host}: {reason}")]
    Credentials {
        /// Registry host.
        host: String,
        /// What failed, never the credential.
        reason: String,
    },
    /// Reading or writing a local file.
    #[error("{what}")]
    Io {
        /// What was done, and on which path.
        what: String,
        /// Cause.
        source: io::Error,
    },
}

/// What a failure means to whoever decides what to do next: wait, ask another source, or give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorKind {
    /// No connection, or one that broke: refused, no route, unknown name, reset, cut in the middle.
    Unreachable,
    /// No answer, or no further byte, in time.
    Timeout,
    /// 401 or 403 with the credentials that are there now, or credentials that cannot be had.
    Denied,
    /// The source does not have the object.
    NotFound,
    /// 429; see [`Error::retry_after`].
    Busy,
    /// 408 or 5xx.
    Server,
    /// An answer that breaks the protocol, or is not what was asked for: bounds, length, digest.
    BadAnswer,
    /// No TLS connection that can be trusted.
    Untrusted,
    /// A local file: a layout's, an archive's, one of the configuration.
    Local,
}

impl ErrorKind {
    /// The name in metrics and logs.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::Busy => "busy",
            Self::Server => "server",
            Self::BadAnswer => "bad_answer",
            Self::Untrusted => "untrusted",
            Self::Local => "local",
        }
    }

    /// Whether the same request may well succeed later.
    #[must_use]
    pub fn is_outage(self) -> bool {
        matches!(self, Self::Unreachable | Self::Timeout | Self::Busy | Self::Server)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl Error {
    pub(crate) fn io(what: impl fmt::Display, source: io::Error) -> Self {
        Self::Io { what: what.to_string(), source }
    }

    pub(crate) fn digest(what: impl fmt::Display, expected: Digest, actual: Digest) -> Self {
        Self::DigestMismatch { what: what.to_string(), expected: Box::new(expected), actual: Box::new(actual) }
    }

    pub(crate) fn invalid(what: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self::Invalid { what: what.to_string(), reason: reason.to_string() }
    }

    pub(crate) fn transport(
        what: impl fmt::Display,
        url: impl fmt::Display,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Transport { what: what.to_string(), url: url.to_string(), source: source.into() }
    }

    /// The same error for somebody else who waited for the same thing; causes become text.
    pub(crate) fn duplicate(&self) -> Self {
        let text = |source: &dyn std::error::Error| crate::http::chain(source);
        match self {
            Self::Transport { what, url, source } => {
                let kind = if is_timeout(source.as_ref()) { io::ErrorKind::TimedOut } else { io::ErrorKind::Other };
                Self::transport(what, url, io::Error::new(kind, text(source.as_ref())))
            }
            Self::Io { what, source } => Self::io(what, io::Error::new(source.kind(), text(source))),
            Self::Denied { what, reason } => Self::Denied { what: what.clone(), reason: reason.clone() },
            Self::Credentials { host, reason } => Self::Credentials { host: host.clone(), reason: reason.clone() },
            Self::NotFound { what } => Self::NotFound { what: what.clone() },
            Self::Untrusted { what, url, reason } => {
                Self::Untrusted { what: what.clone(), url: url.clone(), reason: reason.clone() }
            }
            Self::NotTls { what, url } => Self::NotTls { what: what.clone(), url: url.clone() },
            Self::Status { what, request, status, detail, retry_after } => Self::Status {
                what: what.clone(),
                request: request.clone(),
                status: *status,
                detail: detail.clone(),
                retry_after: *retry_after,
            },
            Self::Invalid { what, reason } => Self::invalid(what, reason),
            other => Self::invalid("login", text(other)),
        }
    }

    /// Whether the same request may succeed a little later: no answer, 408, 429 or a server error.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Transport { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// Whether no connection was made at all.
    pub(crate) fn is_refused_connection(&self) -> bool {
        let Self::Transport { source, .. } = self else { return false };
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(source.as_ref());
        while let Some(error) = next {
            if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
                return true;
            }
            next = error.source();
        }
        false
    }

    /// What the failure means.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Transport { source, .. } if is_timeout(source.as_ref()) => ErrorKind::Timeout,
            Self::Transport { .. } => ErrorKind::Unreachable,
            Self::Denied { .. } | Self::Credentials { .. } => ErrorKind::Denied,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Status { status: 429, .. } => ErrorKind::Busy,
            Self::Status { status: 408 | 500.., .. } => ErrorKind::Server,
            Self::Untrusted { .. } | Self::NotTls { .. } => ErrorKind::Untrusted,
            Self::Io { .. } => ErrorKind::Local,
            Self::Reference { .. }
            | Self::DigestMismatch { .. }
            | Self::SizeMismatch { .. }
            | Self::TooLarge { .. }
            | Self::Status { .. }
            | Self::Invalid { .. }
            | Self::NoPlatform { .. } => ErrorKind::BadAnswer,
        }
    }

    /// Whether the object is known not to exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// The wait that the server asked for before the next attempt.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Whether a cause is that time ran out.
fn is_timeout(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let by_io = error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::TimedOut);
        if by_io || error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_timeout) {
            return true;
        }
        next = error.source();
    }
    false
}

impl From<Error> for io::Error {
    /// Keeps the error as the inner one, so that a reader over a [`crate::BlobStream`] loses nothing.
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Io { source, .. } => source.kind(),
            Error::NotFound { .. } => io::ErrorKind::NotFound,
            Error::Denied { .. } | Error::Credentials { .. } => io::ErrorKind::PermissionDenied,
            Error::DigestMismatch { .. } | Error::SizeMismatch { .. } | Error::Invalid { .. } => {
                io::ErrorKind::InvalidData
            }
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
