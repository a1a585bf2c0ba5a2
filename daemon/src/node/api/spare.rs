//! What is said when no more files can be opened.

use std::fs::File;
use std::os::unix::net::UnixStream as StdUnixStream;

use tokio::net::{UnixListener, UnixStream};

use super::ACCEPT_PAUSE;
use crate::node::files;

/// A file that is closed when no other can be opened: then one connection can be taken and told so, rather than be left waiting.
pub(super) struct Spare(Option<File>);

impl Spare {
    pub(super) fn new() -> Self {
        Self(File::open("/dev/null").ok())
    }

    /// Refuses a connection that waits, or waits itself a moment.
    pub(super) async fn refuse_one(&mut self, listener: &UnixListener) {
        let mut refused = false;
        if self.0.take().is_some()
            && let Ok(accepted) = rustix::net::accept_with(listener, rustix::net::SocketFlags::CLOEXEC)
        {
            let stream = StdUnixStream::from(accepted);
            if stream.set_nonblocking(true).is_ok()
                && let Ok(stream) = UnixStream::from_std(stream)
            {
                say(&stream).await;
                refused = true;
            }
        }
        *self = Self::new();
        if !refused {
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

/// The answer to whatever is asked.
async fn say(stream: &UnixStream) {
    // Who has not asked yet would find the connection closed when he does.
    let _ = tokio::time::timeout(ACCEPT_PAUSE, stream.readable()).await;
    let _ = stream.try_read(&mut [0; 4096]);
    let body = serde_json::to_string(&files::none_left()).unwrap_or_default();
    let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n";
    let answer = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    // All of it fits what the kernel keeps.
    let _ = stream.try_write(answer.as_bytes());
}
