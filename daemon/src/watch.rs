//! What is told of reads: counts of all, log lines of those that wait long or fail.
//!
//! In an outage every reader waits, fails and asks again, so each kind of line is bounded ([`Lines`]), and so is the search
//! for the paths that lines name ([`Paths`]). No reply waits for a line.

mod lines;
mod paths;

use std::sync::Arc;
use std::time::Duration;

use lazo_storage::metrics::{From, Metrics};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::fs::{FileSystem, FsError, ReadPlan, Target};
pub(crate) use lines::Lines;
use paths::Paths;

/// A read that waits longer gets a log line. A far source at its worst answers within it.
const STALL: Duration = Duration::from_secs(1);

/// A read of the kernel's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Read {
    pub(crate) target: Target,
    /// In the file or device, in bytes.
    pub(crate) offset: u64,
    /// Bytes asked for.
    pub(crate) length: u32,
    /// The thread that reads, as the serving process sees it; 0 if it is not to be seen there, or is the kernel itself.
    pub(crate) pid: u32,
}

/// Watches the reads of one mount.
#[derive(Debug)]
pub(crate) struct Watch {
    fs: Arc<FileSystem>,
    metrics: Arc<Metrics>,
    runtime: Handle,
    paths: Arc<Paths>,
    stalled: Arc<Lines>,
    resumed: Arc<Lines>,
    failed: Arc<Lines>,
}

impl Watch {
    pub(crate) fn new(fs: Arc<FileSystem>, metrics: Arc<Metrics>, runtime: Handle) -> Self {
        let lines = |what| Arc::new(Lines::new(what, runtime.clone()));
        Self {
            paths: Arc::new(Paths::new(Arc::clone(&fs))),
            stalled: lines("more reads wait for the network"),
            resumed: lines("more reads that waited have ended"),
            failed: lines("more reads failed"),
            fs,
            metrics,
            runtime,
        }
    }

    /// Counts a read that was answered.
    pub(crate) fn answered(&self, from: From, bytes: usize) {
        self.metrics.reads[from].inc();
        self.metrics.read_bytes.inc_by(bytes as u64);
    }

    /// Counts a read that failed, and says so in the log if it is the image's or the source's fault.
    pub(crate) fn failed(&self, read: Read, error: FsError) {
        if !error.is_fault() {
            return;
        }
        self.metrics.failed_reads.inc();
        if !self.failed.admit() {
            return;
        }
        let (fs, paths) = (Arc::clone(&self.fs), Arc::clone(&self.paths));
        self.runtime.spawn(async move {
            let Read { target, offset, length, pid } = read;
            let (path, command) = (paths.find(target, offset).await, command_of(pid));
            let (chunk, error): (_, &dyn std::error::Error) = (error.chunk().map(|c| c.0), &error);
            let image = fs.image().name();
            let (inode, device) = (target.inode(), target.device());
            tracing::error!(image, path, inode, device, offset, length, chunk, pid, command, error, "a read failed");
        });
    }

    /// Waits for the data of a read. When that takes long, the log says so, once when it does and once when it is over.
    pub(crate) async fn wait<T>(
        &self,
        read: Read,
        plan: &ReadPlan,
        data: impl Future<Output = Result<T, FsError>>,
    ) -> Result<T, FsError> {
        let begin = Instant::now();
        let _stalled = Stalled::new(&self.metrics);
        let mut data = std::pin::pin!(data);
        let result = match tokio::time::timeout(STALL, &mut data).await {
            Ok(result) => result,
            Err(_) => {
                let line = self.stalled.admit().then(|| self.say_stalled(read, plan, begin));
                let result = data.await;
                if let Some(line) = line.filter(|_| self.resumed.admit()) {
                    let outcome = result.as_ref().err().map_or_else(|| "done".to_owned(), ToString::to_string);
                    self.say_resumed(read, line, begin.elapsed(), outcome);
                }
                result
            }
        };
        self.metrics.stalls.observe(begin.elapsed());
        result
    }

    /// The task that writes the line gives the path that it found.
    fn say_stalled(&self, read: Read, plan: &ReadPlan, begin: Instant) -> JoinHandle<Option<String>> {
        let (fs, paths) = (Arc::clone(&self.fs), Arc::clone(&self.paths));
        let awaited = self.fs.awaited(plan);
        self.runtime.spawn(async move {
            let Read { target, offset, length, pid } = read;
            // The reader's name first: it may be gone when the path is found.
            let command = command_of(pid);
            let path = paths.find(target, offset).await;
            let (blob, chunk, source) = match awaited {
                Some(awaited) => (Some(awaited.blob.to_string()), Some(awaited.chunk.0), Some(awaited.source)),
                None => (None, None, None),
            };
            let (image, waited_ms) = (fs.image().name(), milliseconds(begin.elapsed()));
            tracing::warn!(
                image,
                path,
                inode = target.inode(),
                device = target.device(),
                offset,
                length,
                blob,
                chunk,
                source,
                pid,
                command,
                waited_ms,
                "a read waits for the network"
            );
            path
        })
    }

    fn say_resumed(&self, read: Read, line: JoinHandle<Option<String>>, waited: Duration, outcome: String) {
        let fs = Arc::clone(&self.fs);
        self.runtime.spawn(async move {
            let path = line.await.ok().flatten();
            let Read { target, offset, length, pid } = read;
            let (image, waited_ms) = (fs.image().name(), milliseconds(waited));
            tracing::info!(
                image,
                path,
                inode = target.inode(),
                device = target.device(),
                offset,
                length,
                pid,
                waited_ms,
                outcome,
                "a read that waited has ended"
            );
        });
    }
}

/// Counts a read among those that wait, as long as it lives.
struct Stalled<'a>(&'a Metrics);

impl<'a> Stalled<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.stalled_readers.inc();
        Self(metrics)
    }
}

impl Drop for Stalled<'_> {
    fn drop(&mut self) {
        self.0.stalled_readers.dec();
    }
}

/// What a thread calls itself.
fn command_of(pid: u32) -> Option<String> {
    let name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(name.trim_ascii_end()).into_owned())
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_have_names_and_the_kernel_has_none() {
        let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
        assert_eq!(command_of(rustix::thread::gettid().as_raw_pid().cast_unsigned()).as_deref(), Some(name.trim_end()));
        assert_eq!(command_of(0), None);
    }
}
