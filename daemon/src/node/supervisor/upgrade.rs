//! An upgrade under way, and the answer to whoever has asked for it.
//!
//! The worker that is asked is the one that ends, so it gives its connection away: here the answer is written when a worker serves again.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::net::SendFlags;
use serde::Serialize;

use super::program::Program;
use crate::node::protocol::{ApiError, ErrorKind, UpgradeInfo};

/// A program, and its version.
type Version = (Arc<Program>, String);

/// A new program that has yet to get ready, or has failed to.
pub(super) struct Trial {
    before: Version,
    asker: Option<OwnedFd>,
    begun: Instant,
    /// Why the program before is used again.
    failed: Option<String>,
}

impl Trial {
    pub(super) fn begin(before: Version, asker: Option<OwnedFd>) -> Self {
        Self { before, asker, begun: Instant::now(), failed: None }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// The program of this version does not get ready. Gives the one before.
    pub(super) fn fail(&mut self, version: &str, reason: &str) -> Version {
        let (program, before) = &self.before;
        self.failed = Some(format!("lazo {version} did not get ready, so that {before} serves on: {reason}"));
        (Arc::clone(program), before.clone())
    }

    /// A worker of this version is ready.
    pub(super) fn end(self, version: &str, worker_pid: u32) {
        let pause_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let Some(asker) = self.asker else { return };
        match self.failed {
            None => write(&asker, 200, &UpgradeInfo { version: version.to_owned(), worker_pid, pause_ms }),
            Some(failed) => {
                let error = ApiError::new(ErrorKind::Internal, failed);
                write(&asker, error.kind.status(), &error);
            }
        }
    }
}

/// One answer, on a connection that is closed after it. Whoever does not take it has gone.
fn write(asker: &OwnedFd, status: u16, body: &impl Serialize) {
    let body = serde_json::to_string(body).unwrap_or_default();
    let reason = if status == 200 { "OK" } else { "Internal Server Error" };
    let answer = format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // Nothing was written to it before: all of it fits what the kernel keeps.
    if let Err(error) = rustix::net::send(asker, answer.as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        tracing::debug!(%error, "nobody waits for the end of the upgrade");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    fn trial() -> (Trial, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let program = Arc::new(Program::open(Path::new("/proc/self/exe")).unwrap());
        (Trial::begin((program, "1.0".to_owned()), Some(ours.into())), theirs)
    }

    fn read(mut stream: UnixStream) -> (String, String) {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    #[test]
    fn the_answer_says_what_serves_now() {
        let (trial, asker) = trial();
        trial.end("2.0", 7);
        let (status, body) = read(asker);
        let info: UpgradeInfo = serde_json::from_str(&body).unwrap();
        assert_eq!((&*status, &*info.version, info.worker_pid), ("HTTP/1.1 200 OK", "2.0", 7));
    }

    #[test]
    fn the_answer_says_why_the_old_one_serves_on() {
        let (mut trial, asker) = trial();
        assert!(!trial.has_failed());
        assert_eq!(trial.fail("2.0", "it is broken").1, "1.0");
        assert!(trial.has_failed());
        trial.end("1.0", 8);
        let (status, body) = read(asker);
        let error: ApiError = serde_json::from_str(&body).unwrap();
        assert!(status.starts_with("HTTP/1.1 500") && error.kind == ErrorKind::Internal, "{status}");
        assert!(error.error.contains("2.0") && error.error.contains("1.0 serves on: it is broken"), "{error}");
    }
}
