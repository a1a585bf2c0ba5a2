//! A lazo mount made by this very binary, gone when the value is dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long an unfinished `lazo mount` may go on when the demo is interrupted: it must end before it can be undone.
const FINISH: Duration = Duration::from_secs(5);
/// Between two looks at a process.
const POLL: Duration = Duration::from_millis(2);

/// The lazo binary with the demo's own state.
#[derive(Clone, Debug)]
pub(crate) struct Lazo {
    program: PathBuf,
    state: PathBuf,
    run: PathBuf,
}

impl Lazo {
    /// This binary, keeping everything below `work`.
    ///
    /// # Errors
    /// When the running executable's path is not known.
    pub(crate) fn below(work: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("find this executable")?;
        Ok(Self { program, state: work.join("state"), run: work.join("run") })
    }

    /// A command line that starts with the global options.
    pub(crate) fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(subcommand).arg("--state-dir").arg(&self.state).arg("--run-dir").arg(&self.run);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Throws the cache away, so that the next mount starts from nothing.
    ///
    /// # Errors
    /// When the directory cannot be removed.
    pub(crate) fn forget(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.state) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.state.display()))
            }
            _ => Ok(()),
        }
    }
}

/// A mount, or one that is being made.
pub(crate) struct Mounted {
    lazo: Lazo,
    directory: PathBuf,
    mounting: Child,
}

impl Mounted {
    /// Mounts `image` at the existing directory and waits until it is ready.
    ///
    /// # Errors
    /// When `lazo mount` fails; it says why on stderr.
    pub(crate) async fn new(lazo: &Lazo, image: &str, directory: &Path) -> Result<Self> {
        let mounting = lazo.command("mount").arg(image).arg(directory).spawn().context("start lazo mount")?;
        let mut mounted = Self { lazo: lazo.clone(), directory: directory.to_path_buf(), mounting };
        loop {
            match mounted.mounting.try_wait()? {
                Some(status) if status.success() => return Ok(mounted),
                Some(status) => bail!("lazo mount {image} ended with {status}"),
                None => tokio::time::sleep(POLL).await,
            }
        }
    }

    fn wait_for_mount_command(&mut self) {
        let deadline = Instant::now() + FINISH;
        while let Ok(None) = self.mounting.try_wait() {
            if Instant::now() > deadline {
                let _ = self.mounting.kill();
                let _ = self.mounting.wait();
                return;
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.wait_for_mount_command();
        let unmounted = self.lazo.command("umount").arg(&self.directory).stderr(Stdio::null()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            // Nothing is mounted after a mount that failed; otherwise the last resort.
            let _ = rustix::mount::unmount(&self.directory, rustix::mount::UnmountFlags::DETACH);
        }
    }
}
