//! `lazo daemon`: serve all images of this machine from one place.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use lazo_daemon::node::client::Client;
use lazo_daemon::node::protocol::{Held, StopInfo};
use lazo_daemon::node::{self, config::Config};

use crate::global::Global;
use crate::output;

/// Serve all images of this machine, whatever happens to the process that does it
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(flatten)]
    run: Run,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Go on with another program; programs that read wait for a moment and notice nothing else
    Upgrade {
        /// The program [default: this very one]
        binary: Option<PathBuf>,
    },
    /// End the daemon; while images are in use, it says by whom, serves them on, and ends after the last of them. Refused while a service
    /// manager runs it, which would start it again: stop the unit instead
    Stop {
        /// End at once: whoever still reads gets I/O errors. Where no daemon runs any more, takes away the mounts that a killed one has left
        #[arg(long)]
        force: bool,
    },
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
        Ok(match self {
            Self { command: Some(_), .. } => "warn".to_owned(),
            // Who starts it says it in the environment.
            Self { run: Run { process: Some(_), .. }, .. } => Config::default().log_level,
            _ => self.config(global)?.log_level,
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
        match &self.command {
            Some(Command::Upgrade { binary }) => return upgrade(global, binary.as_ref()),
            Some(Command::Stop { force }) => return stop(global, *force),
            None => {}
        }
        match &self.run.process {
            Some(name) => Ok(node::run_process(name)?),
            None => {
                global.refuse_creds("the node daemon")?;
                Ok(node::run(self.config(global)?)?)
            }
        }
    }
}

fn find(global: &Global) -> anyhow::Result<Client> {
    match Client::find(global.run_dir())? {
        Some(daemon) => Ok(daemon),
        None => bail!("no node daemon runs at {}", global.run_dir().display()),
    }
}

fn stop(global: &Global, force: bool) -> anyhow::Result<()> {
    let run_dir = global.run_dir();
    // Not by the socket alone, which a service manager may keep for the next daemon.
    if node::is_abandoned(run_dir) {
        if !force {
            bail!(
                "no node daemon runs at {}; --force takes away the mounts that one may have left there",
                run_dir.display()
            );
        }
        return take_away(run_dir);
    }
    let StopInfo { held, cut } = find(global)?.stop(force)?;
    for Held { image, mount_points, users } in &held {
        let places: Vec<String> = mount_points.iter().chain(users).map(|place| place.display().to_string()).collect();
        let places = if places.is_empty() { "another mount namespace".to_owned() } else { places.join(", ") };
        output::print(format!("{image}: {} {places}\n", if cut { "cut off from" } else { "in use at" }))?;
    }
    output::print(if held.is_empty() || cut {
        "the daemon ends\n".to_owned()
    } else {
        "these images are served on, and the daemon ends after the last of them; --force cuts them off\n".to_owned()
    })
}

/// Ends what a daemon has left that was killed.
fn take_away(run_dir: &Path) -> anyhow::Result<()> {
    for place in node::take_away(run_dir)? {
        output::print(format!("unmounted {}\n", place.display()))?;
    }
    output::print("no node daemon runs, and nothing is left of one\n".to_owned())
}

fn upgrade(global: &Global, binary: Option<&PathBuf>) -> anyhow::Result<()> {
    let daemon = find(global)?;
    let binary = match binary {
        Some(binary) => std::fs::canonicalize(binary),
        None => std::env::current_exe(),
    };
    let now = daemon.upgrade(Some(&binary.context("cannot find the program")?))?;
    output::print(format!(
        "lazo {} serves now, as process {}, after {} ms\n",
        now.version, now.worker_pid, now.pause_ms
    ))
}
