//! An OCI layout directory, which may well lie on a network file system.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _};
use lazo_format::BlobRecord;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::{Semaphore, oneshot};

use super::{BlobSource, ByteStream, ErrorKind, SourceError, blob_path, check_bounds};

/// Bytes read at a time. From memory that takes 0.2 ms, to which a thread's start and end add 0.03; and a file server of
/// 1 Mbit/s still gives a piece within the time after which a stream counts as stalled.
const PIECE: u64 = 1 << 20;
/// Reads under way at a time. A disk is busy with fewer; more hide the latency of a file server.
const MAX_READS: usize = 16;
/// Stack of a reading thread, bytes: its deepest call is a system call.
const STACK: usize = 128 << 10;

/// Blobs as `DIR/blobs/sha256/HEX`.
///
/// A file server that does not answer holds its readers in the kernel, where nothing can cancel them. So reads have
/// threads of their own, at most [`MAX_READS`], and none of the runtime's is ever held: who waits for a hung read or for
/// a thread can be dropped at any time, and only the reads themselves stay behind until the server answers.
#[derive(Debug)]
pub struct LayoutSource {
    root: PathBuf,
    name: String,
    reads: Arc<Semaphore>,
}

impl LayoutSource {
    /// The layout at `root`, which is not looked at before it is read. Named `oci:ROOT`.
    ///
    /// # Errors
    /// When a relative path cannot be made absolute, for want of a working directory.
    pub fn new(root: &Path) -> Result<Self, SourceError> {
        let absolute = std::path::absolute(root);
        let root = absolute.map_err(|error| failed(ErrorKind::Local, &format!("oci:{}", root.display()), error))?;
        let name = format!("oci:{}", root.display());
        Ok(Self { root, name, reads: Arc::new(Semaphore::new(MAX_READS)) })
    }

    async fn open(&self, blob: &BlobRecord, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let what = format!("blob {} of {}", blob.digest, self.name);
        check_bounds(&what, blob, &range)?;
        let (root, path) = (self.root.clone(), self.root.join(blob_path(&blob.digest)));
        let opened = on_thread(&self.reads, move || open(&path).map_err(|error| (kind_of(&error, &root), error))).await;
        let (file, size) = opened.map_err(|(kind, error)| failed(kind, &what, error))?;
        if size != blob.compressed_size {
            let error = format!("{what} has {size} bytes in place of {}", blob.compressed_size);
            return Err(SourceError::new(ErrorKind::BadAnswer, error));
        }
        let reading = Reading { file: Arc::new(file), left: range, what, reads: self.reads.clone() };
        Ok(stream::try_unfold(reading, Reading::next).boxed())
    }
}

impl BlobSource for LayoutSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn open_range<'a>(
        &'a self,
        blob: &'a BlobRecord,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        Box::pin(self.open(blob, range))
    }
}

/// A range on its way.
struct Reading {
    file: Arc<File>,
    left: Range<u64>,
    what: String,
    reads: Arc<Semaphore>,
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, SourceError> {
        let (file, start) = (self.file.clone(), self.left.start);
        let end = self.left.end.min(start + PIECE);
        if start == end {
            return Ok(None);
        }
        let read = on_thread(&self.reads, move || read(&file, start..end).map_err(|error| (read_kind(&error), error)));
        let bytes = read.await.map_err(|(kind, error)| failed(kind, &self.what, error))?;
        self.left.start = end;
        Ok(Some((bytes, self)))
    }
}

/// Runs `work` on a thread of its own, once fewer than [`MAX_READS`] others run.
async fn on_thread<T: Send + 'static>(
    reads: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, (ErrorKind, io::Error)> + Send + 'static,
) -> Result<T, (ErrorKind, io::Error)> {
    let lost = |error| (ErrorKind::Local, error);
    let permit = reads.clone().acquire_owned().await.map_err(|e| lost(io::Error::other(e)))?;
    let (sender, receiver) = oneshot::channel();
    let thread = std::thread::Builder::new().name("layout".into()).stack_size(STACK);
    let started = thread.spawn(move || {
        // Whoever asked may be gone.
        let _ = sender.send(work());
        drop(permit);
    });
    started.map_err(lost)?;
    receiver.await.map_err(|e| lost(io::Error::other(e)))?
}

/// Opens a regular file, and nothing else: a FIFO would wait for its other end. Blocking.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok((file, metadata.len()))
}

/// Blocking.
fn read(file: &File, range: Range<u64>) -> io::Result<Bytes> {
    let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes.into())
}

/// What an error of opening a blob means. Blocking.
fn kind_of(error: &io::Error, root: &Path) -> ErrorKind {
    match error.kind() {
        // Not one blob is there: the file system with the layout is not mounted.
        io::ErrorKind::NotFound if matches!(root.join("blobs").try_exists(), Ok(false)) => ErrorKind::Unreachable,
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        _ => read_kind(error),
    }
}

/// What an error of reading a blob means: disks fail for good, file servers come back.
fn read_kind(error: &io::Error) -> ErrorKind {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return ErrorKind::BadAnswer;
    }
    match Errno::from_io_error(error) {
        Some(Errno::TIMEDOUT) => ErrorKind::Timeout,
        Some(
            Errno::STALE
            | Errno::NOTCONN
            | Errno::CONNABORTED
            | Errno::CONNREFUSED
            | Errno::CONNRESET
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NETUNREACH,
        ) => ErrorKind::Unreachable,
        _ => ErrorKind::Local,
    }
}

fn failed(kind: ErrorKind, what: &str, source: io::Error) -> SourceError {
    let reason = match kind {
        ErrorKind::NotFound => "it is not there",
        ErrorKind::Unreachable => "the file system is not there; is it mounted, does its server run?",
        _ => "it cannot be read",
    };
    SourceError::new(kind, ReadFailed { text: format!("{what}: {reason}"), source })
}

#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct ReadFailed {
    text: String,
    source: io::Error,
}
