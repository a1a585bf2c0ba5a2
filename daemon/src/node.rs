//! The node daemon: one for all images of a machine, in four processes.
//!
//! ```text
//! supervisor   started first; holds the FUSE files and the control socket, restarts the worker, replaces it on upgrade
//!  └ worker    serves bytes and the control API; holds no right to mount
//!     ├ mounter  makes and ends mounts: all that might wait for the worker itself
//!     ├ helpers  runs credential helpers, which write where the worker may not
//!     └ holder   keeps the files of a handover until the next daemon serves them
//! ```

mod api;
pub mod client;
pub mod config;
mod files;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod handover;
mod harden;
mod helpers;
mod link;
mod mounter;
mod needs;
pub mod protocol;
pub mod stats;
mod supervisor;
mod worker;

use std::io;

use crate::error::{Error, Result};
use config::Config;
pub use supervisor::inherited;
pub use worker::{is_abandoned, make_run_dir, take_away};

/// Runs a daemon until it is told to end (SIGTERM, SIGINT, SIGHUP).
///
/// # Errors
/// When it cannot begin, or the run directory has one already.
pub fn run(config: Config) -> Result<()> {
    supervisor::run(config)
}

/// Runs one of the processes that a daemon starts. It is told all else by the one that starts it.
///
/// # Errors
/// When it cannot begin, or go on, or there is no such process.
pub fn run_process(name: &str) -> Result<()> {
    match name {
        "worker" => worker::run(),
        "mounter" => mounter::run_mounter(),
        "helpers" => helpers::run_helpers(),
        "holder" => handover::run_holder(),
        "userns" => mounter::run_user_namespace(),
        _ => Err(Error::io("be a process of the daemon")(io::Error::other(format!("there is none called {name}")))),
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs())
}
