//! `lazo umount`: end a mount.

use std::path::PathBuf;

use lazo_daemon::node::client::Client;
use lazo_daemon::node::protocol::ErrorKind;

use crate::global::Global;

/// Unmount a lazo image; a process that serves only this mount ends with it
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where it is mounted
    dir: PathBuf,
    /// Take it from the tree at once even if it is in use; it is served until its last user lets go of it
    #[arg(long)]
    lazy: bool,
}

impl Args {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        if let Some(daemon) = Client::find(global.run_dir())? {
            let path = lazo_daemon::resolve(&self.dir)?;
            match daemon.umount(&path, self.lazy) {
                // A mount with a process of its own, perhaps.
                Err(error) if error.kind() == Some(ErrorKind::NotFound) => {}
                Err(error) if error.kind() == Some(ErrorKind::Busy) => {
                    return Err(lazo_daemon::Error::Busy { path }.into());
                }
                result => return Ok(result?),
            }
        }
        Ok(lazo_daemon::umount(&self.dir, global.run_dir(), self.lazy)?)
    }
}
