//! A stretch of a local file, read at positions: a blob in a layout directory, or an entry of an archive.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, path::Path, sync::Arc};

use bytes::Bytes;
use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use lazo_base::compression::{Compression, DETECTED_BY};

/// Bytes a read takes at a time while streaming: enough that the hop to a blocking thread costs under 5 %.
const READ_SIZE: u64 = 256 * 1024;

/// A stretch of an open file. Clones share the file.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    file: Arc<File>,
    offset: u64,
    len: u64,
}

impl Section {
    /// A whole regular file.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        // Before opening, which would wait for the other end of a FIFO.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Self::of(File::open(path)?)
    }

    /// All of an open file.
    pub(crate) fn of(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), offset: 0, len })
    }

    /// How it is packed, by its first bytes; blocking.
    pub(crate) fn compression(&self) -> io::Result<Compression> {
        let mut first = [0; DETECTED_BY];
        let length = usize::try_from(self.len).unwrap_or(DETECTED_BY).min(DETECTED_BY);
        self.read_exact_at(&mut first[..length], 0)?;
        Ok(Compression::detect(&first[..length]))
    }

    /// The bytes `range` of this section as a section, if they lie within it.
    pub(crate) fn slice(&self, range: Range<u64>) -> Option<Self> {
        let len = range.end.checked_sub(range.start)?;
        (range.end <= self.len).then(|| Self { file: self.file.clone(), offset: self.offset + range.start, len })
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `out` from `position` on; blocking.
    pub(crate) fn read_exact_at(&self, out: &mut [u8], position: u64) -> io::Result<()> {
        if position.checked_add(out.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_exact_at(out, self.offset + position)
    }

    /// All of it; blocking. The caller has looked at [`Self::len`].
    pub(crate) fn read_all(&self) -> io::Result<Vec<u8>> {
        let len = usize::try_from(self.len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut out = vec![0; len];
        self.read_exact_at(&mut out, 0)?;
        Ok(out)
    }

    /// The same without blocking the caller's task.
    pub(crate) async fn bytes(self) -> io::Result<Bytes> {
        blocking(move || self.read_all().map(Bytes::from)).await?
    }

    /// All of it in pieces.
    pub(crate) fn stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::try_unfold((self, 0), |(section, position)| async move {
            let end = section.len.min(position + READ_SIZE);
            let Some(piece) = section.slice(position..end).filter(|p| p.len > 0) else {
                return Ok(None);
            };
            Ok(Some((piece.bytes().await?, (section, end))))
        })
    }

    /// [`Self::stream`] with errors that name `what`.
    pub(crate) fn blob_stream(self, what: String) -> BoxStream<'static, crate::Result<Bytes>> {
        self.stream().map(move |r| r.map_err(|e| crate::Error::io(format_args!("cannot read {what}"), e))).boxed()
    }
}

/// Runs `work` on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}
