//! Options that every subcommand takes, and what follows from them.

use std::path::PathBuf;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

/// Options that every subcommand takes.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Talk plain HTTP to registries; loopback hosts are talked to so by default
    #[arg(long, global = true)]
    pub(crate) plain_http: bool,
    /// Trust this CA certificate (PEM) besides the system's; may be repeated
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Vec<PathBuf>,
    /// Registry credentials, in the format of docker's config.json [default: ~/.docker/config.json]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) authfile: Option<PathBuf>,
    /// Where fetched images and chunks are kept
    #[arg(long, global = true, value_name = "DIR", env = "LAZO_STATE_DIR", default_value = "/var/lib/lazo")]
    pub(crate) state_dir: PathBuf,
    /// Where the records and logs of live mounts are kept
    #[arg(long, global = true, value_name = "DIR", env = "LAZO_RUN_DIR", default_value = "/run/lazo")]
    pub(crate) run_dir: PathBuf,
    /// What to log to stderr: error, warn, info, debug, trace, or tracing directives
    #[arg(long, global = true, value_name = "LEVEL", env = "LAZO_LOG", default_value = "warn")]
    pub(crate) log_level: String,
}

impl Global {
    /// Sends log lines of the chosen level to stderr.
    ///
    /// # Errors
    /// When `--log-level` is not a level nor a list of tracing directives.
    pub(crate) fn start_logging(&self) -> anyhow::Result<()> {
        let filter = EnvFilter::builder()
            .parse(&self.log_level)
            .with_context(|| format!("--log-level {:?} is no level", self.log_level))?;
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
        Ok(())
    }

    /// How to talk to registries.
    pub(crate) fn registry_options(&self) -> lazo_registry::Options {
        let mut options = lazo_registry::Options::default();
        options.plain_http = self.plain_http;
        options.extra_ca.clone_from(&self.ca);
        options.auth_file.clone_from(&self.authfile);
        options
    }
}
