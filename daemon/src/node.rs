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
mod harden;
#[allow(dead_code, reason = "being built")]
mod link;
mod mounter;
pub mod protocol;
// mod supervisor;
mod worker;
