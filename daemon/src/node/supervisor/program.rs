//! Programs that workers are started from.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a program may take to say its version.
const VERSION: Duration = Duration::from_secs(5);

/// A program file that stays the same when another one takes its name.
pub(super) struct Program(File);

impl Program {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.0.as_raw_fd()));
        command.arg0("lazo");
        for name in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET"] {
            command.env_remove(name);
        }
        command
    }

    /// Whether it is a lazo, and which.
    pub(super) fn version(&self) -> std::result::Result<String, String> {
        let mut command = self.command();
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|error| format!("it cannot be run: {error}"))?;
        let begin = Instant::now();
        while child.try_wait().map_err(|error| error.to_string())?.is_none() {
            if begin.elapsed() > VERSION {
                let _ = child.kill();
            }
            thread::sleep(Duration::from_millis(2));
        }
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        match text.trim().strip_prefix("lazo ") {
            Some(version) if output.status.success() => Ok(version.to_owned()),
            _ => Err(format!("it does not say that it is lazo, but ends with {}", output.status)),
        }
    }
}
