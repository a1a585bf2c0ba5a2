//! The node daemon: one for all images of a machine, in three processes.
//!
//! ```text
//! supervisor   started first; holds the FUSE files and the control socket, restarts the worker, replaces it on upgrade
//!  └ worker    serves bytes and the control API; holds no right to mount
//!     └ mounter  makes and ends mounts: all that might wait for the worker itself
//! ```

#[allow(dead_code, unused_imports, reason = "being built")]
mod api;
pub mod client;
pub mod config;
mod harden;
#[allow(dead_code, reason = "being built")]
mod link;
#[allow(dead_code, unused_imports, reason = "being built")]
mod mounter;
pub mod protocol;
pub mod stats;
// mod supervisor;
mod worker;

use crate::error::{Error, Result};
use config::Config;

/// Runs a daemon until it is told to end.
///
/// # Errors
/// When it cannot begin.
pub fn run(_config: Config) -> Result<()> {
    Err(Error::io("run the node daemon")(std::io::Error::other("it is not built yet")))
}

/// Runs one of the processes that a daemon starts, as [`run`] names them. It is told all else by the one that starts it.
///
/// # Errors
/// When it cannot begin, or there is no such process.
pub fn run_process(name: &str) -> Result<()> {
    Err(Error::io(format!("run the daemon's process {name}"))(std::io::Error::other("it is not built yet")))
}
