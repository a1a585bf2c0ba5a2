//! The kernel's list of FUSE connections.

use std::fs::File;
use std::io::Write as _;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::Refusal;
use super::context::Context;

/// Ends a connection: whoever reads gets I/O errors. One that is not there has ended already.
///
/// The list is usually mounted at `/sys/fs/fuse/connections`, but need not be: here it is mounted for the moment, and nowhere.
pub(in crate::node) fn abort(connection: u32) -> Result<(), Refusal> {
    let what = || format!("end the FUSE connection {connection}");
    let list = Context::new("fusectl")?.create(MountAttrFlags::empty())?;
    match openat(&list, format!("{connection}/abort"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => File::from(file).write_all(b"1").map_err(Refusal::io(what())),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(Refusal::io(what())(error)),
    }
}
