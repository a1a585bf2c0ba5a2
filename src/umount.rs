//! `lazo umount`: end a mount and the process that serves it.

use std::path::PathBuf;

use crate::global::Global;

/// Unmount a lazo image and end the process that serves it
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where it is mounted
    dir: PathBuf,
}

impl Args {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        Ok(lazo_daemon::umount(&self.dir, global.run_dir())?)
    }
}
