//! One place that blobs come from, asked once: what a fetch scheduler builds its own policy upon.

use std::{fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use lazo_format::Digest;

use crate::{
    docker_archive::DockerArchive,
    error::{Error, Result},
    layout::Layout,
    registry::Registry,
    section::Section,
};

/// Bytes of a range as they arrive: exactly those asked for, then the end, or an error. Dropping it cancels the request.
pub type RangeStream = BoxStream<'static, Result<Bytes>>;

/// An answer to a request for a range.
pub struct RangeAnswer {
    /// The range, or all of the blob.
    pub stream: RangeStream,
    /// Whether it is all of the blob, from its first byte on: the server ignores ranges.
    pub whole: bool,
}

/// A mirror, the registry itself, or a local layout or archive, with one repository in it. Clones share its connections
/// and logins.
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

struct Inner {
    name: String,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Registry(Registry),
    Local(Local),
}

/// A layout or an archive.
#[derive(Clone)]
pub(crate) enum Local {
    Layout(Layout),
    DockerArchive(Arc<DockerArchive>),
}

impl Endpoint {
    pub(crate) fn registry(registry: Registry) -> Self {
        Self(Arc::new(Inner { name: registry.name().to_owned(), kind: Kind::Registry(registry) }))
    }

    pub(crate) fn local(local: Local) -> Self {
        let name = match &local {
            Local::Layout(layout) => layout.name(),
            Local::DockerArchive(archive) => archive.name(),
        };
        Self(Arc::new(Inner { name, kind: Kind::Local(local) }))
    }

    /// For logs and metric labels, without secrets: `docker://HOST/REPOSITORY`, for a mirror `https://HOST`, else `oci:DIR`,
    /// `oci-archive:FILE` or `docker-archive:FILE`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Opens `range` of a blob of `blob_size` bytes, in one attempt: it may log in and follow redirects, but tries nothing
    /// again that failed. Resolves when the head of the answer is there and right. The content is NOT verified.
    ///
    /// The only time limits are those of [`crate::Options`].
    ///
    /// # Errors
    /// When the range does not lie in the blob, or the endpoint cannot give just these bytes of a blob of just that size;
    /// [`Error::kind`] tells what that means.
    pub async fn open_range(&self, digest: &Digest, blob_size: u64, range: Range<u64>) -> Result<RangeStream> {
        check_bounds(digest, blob_size, &range)?;
        if range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        match &self.0.kind {
            Kind::Registry(registry) => Ok(registry.open_range(digest, blob_size, range).await?.stream()),
            Kind::Local(local) => {
                let (what, section) = local.section(digest, blob_size).await?;
                let part = section.slice(range).ok_or_else(|| Error::invalid(&what, "range outside of it"))?;
                Ok(part.blob_stream(what))
            }
        }
    }
}

impl Endpoint {
    /// As [`Self::open_range`]; but a server that ignores ranges is let send all of the blob, rather than that what comes before the range is
    /// passed over and what comes after it is not taken.
    ///
    /// # Errors
    /// As there.
    pub async fn open_answer(&self, digest: &Digest, blob_size: u64, range: Range<u64>) -> Result<RangeAnswer> {
        check_bounds(digest, blob_size, &range)?;
        match &self.0.kind {
            Kind::Registry(registry) if !range.is_empty() => registry.open_answer(digest, blob_size, range).await,
            _ => Ok(RangeAnswer { stream: self.open_range(digest, blob_size, range).await?, whole: false }),
        }
    }
}

impl Local {
    /// A blob, and its name for errors.
    pub(crate) async fn section(&self, digest: &Digest, size: u64) -> Result<(String, Section)> {
        match self {
            Self::Layout(layout) => Ok((layout.blob_name(digest), layout.section(digest, size).await?)),
            Self::DockerArchive(archive) => Ok((archive.blob_name(digest), archive.section(digest, size)?)),
        }
    }
}

/// Refuses a range that does not lie in the blob.
pub(crate) fn check_bounds(digest: &Digest, blob_size: u64, range: &Range<u64>) -> Result<()> {
    if range.start <= range.end && range.end <= blob_size {
        return Ok(());
    }
    let reason = format!("bytes {}-{} do not lie in its {blob_size} bytes", range.start, range.end);
    Err(Error::invalid(format_args!("blob {digest}"), reason))
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Endpoint").field(&self.0.name).finish()
    }
}
