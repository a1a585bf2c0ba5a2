//! `lazo daemon`: serve all images of this machine from one place.

use std::path::PathBuf;

use anyhow::Context as _;
use lazo_daemon::node::{self, config::Config};

use crate::global::Global;

/// Serve all images of this machine, whatever happens to the process that does it
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, clap::Args)]
struct Run {
    /// Settings [default: /etc/lazo/lazo.toml if there is one]; docs/CONFIGURATION.md has them all
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Be one of the processes that the daemon starts
    #[arg(long, hide = true, value_name = "NAME")]
    process: Option<String>,
}

impl Args {
    /// What is logged unless told otherwise.
    pub(crate) fn log_level(&self, global: &Global) -> anyhow::Result<String> {
        Ok(match &self.run.process {
            // Who starts it says it in the environment.
            Some(_) => Config::default().log_level,
            None => self.config(global)?.log_level,
        })
    }

    /// What the file says, and what was said otherwise on the command line and in the environment.
    fn config(&self, global: &Global) -> anyhow::Result<Config> {
        let mut config = Config::load(self.run.config.as_deref())?;
        let global = global.absolute().context("cannot find the working directory")?;
        global.override_config(&mut config);
        Ok(config)
    }

    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        match &self.run.process {
            Some(name) => Ok(node::run_process(name)?),
            None => Ok(node::run(self.config(global)?)?),
        }
    }
}
