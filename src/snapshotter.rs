//! `lazo snapshotter`: root file systems for containerd.

use std::path::PathBuf;

use anyhow::Context as _;
use lazo_daemon::node::config::Config;

use crate::global::Global;

/// Serve containerd, as its snapshotter, lazo images by way of the node daemon and ordinary ones by overlayfs
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Settings, the node daemon's [default: /etc/lazo/lazo.toml if there is one]; docs/CONFIGURATION.md has them all
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen for containerd [default: snapshotter.sock in the run directory]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Args {
    /// What is logged unless told otherwise.
    pub(crate) fn log_level(&self, global: &Global) -> anyhow::Result<String> {
        Ok(self.config(global)?.log_level)
    }

    fn config(&self, global: &Global) -> anyhow::Result<Config> {
        let mut config = Config::load(self.config.as_deref())?;
        let global = global.absolute().context("cannot find the working directory")?;
        global.override_config(&mut config);
        if let Some(socket) = &self.socket {
            config.snapshotter_socket = Some(std::path::absolute(socket).context("cannot find the working directory")?);
        }
        Ok(config)
    }

    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        global.refuse_creds("the snapshotter")?;
        Ok(lazo_snapshotter::run(&self.config(global)?)?)
    }
}
