//! The node daemon: one for all images of a machine, in three processes.
//!
//! ```text
//! supervisor   started first; holds the FUSE files and the control socket, restarts the worker, replaces it on upgrade
//!  └ worker    serves bytes and the control API; holds no right to mount
//!     └ mounter  makes and ends mounts: all that might wait for the worker itself
//! ```

mod api;
pub mod client;
pub mod config;
mod handover;
mod harden;
mod link;
mod mounter;
pub mod protocol;
pub mod stats;
mod supervisor;
mod worker;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Error, Result};
use config::Config;

/// Locked by the daemon of a run directory.
const LOCK: &str = "lazo.lock";

/// Runs a daemon until it is told to end (SIGTERM, SIGINT, SIGHUP).
///
/// # Errors
/// When it cannot begin, or the run directory has one already.
pub fn run(config: Config) -> Result<()> {
    let _lock = lock(&config.run_dir)?;
    supervisor::run(config)
}

fn lock(run_dir: &Path) -> Result<File> {
    let path = run_dir.join(LOCK);
    let failed = || Error::io::<io::Error>(format!("lock {}", path.display()));
    DirBuilder::new().recursive(true).mode(0o711).create(run_dir).map_err(failed())?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed())?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(failed()(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "another node daemon runs; give this one a run directory of its own with --run-dir",
        ))),
        Err(error) => Err(failed()(error.into())),
    }
}

/// Runs one of the processes that a daemon starts. It is told all else by the one that starts it.
///
/// # Errors
/// When it cannot begin, or go on, or there is no such process.
pub fn run_process(name: &str) -> Result<()> {
    match name {
        "worker" => worker::run(),
        "mounter" => mounter::run_mounter(),
        "userns" => mounter::run_user_namespace(),
        _ => Err(Error::io("be a process of the daemon")(io::Error::other(format!("there is none called {name}")))),
    }
}
