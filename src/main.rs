//! The `lazo` command: arguments in, library call out. One file a subcommand.
//!
//! To add a subcommand: its module, a variant of [`Command`] and its arm in [`Command::run`].

mod cache;
mod check;
mod convert;
mod daemon;
mod demo;
mod global;
mod inspect;
mod interrupt;
mod logfile;
mod login;
mod mount;
mod output;
mod pull;
mod snapshotter;
mod stats;
mod table;
mod umount;
mod users;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use rustix::fs::Mode;
use rustix::process::umask;

use global::Global;

/// Start containers before their image has arrived.
#[derive(Debug, Parser)]
#[command(name = "lazo", version, propagate_version = true, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Convert(Box<convert::Args>),
    Mount(Box<mount::Args>),
    Umount(umount::Args),
    Check(check::Args),
    Inspect(inspect::Args),
    Cache(cache::Args),
    Daemon(daemon::Args),
    Pull(Box<pull::Args>),
    Snapshotter(snapshotter::Args),
    Stats(stats::Args),
    Demo(demo::Args),
    Login(login::LoginArgs),
    Logout(login::LogoutArgs),
}

impl Command {
    /// What is logged unless `--log-level` says otherwise.
    fn log_level(&self, global: &Global) -> anyhow::Result<String> {
        match self {
            Self::Mount(args) => Ok(args.log_level().to_owned()),
            Self::Daemon(args) => args.log_level(global),
            Self::Snapshotter(args) => args.log_level(global),
            _ => Ok("warn".to_owned()),
        }
    }

    /// The log file that standard error is, if it is to be kept within its bounds.
    fn log_file(&self) -> Option<&Path> {
        match self {
            Self::Mount(args) => args.log_file(),
            _ => None,
        }
    }

    /// Whether it writes files that are meant for others: images that it makes. All else is lazo's own.
    fn writes_for_others(&self) -> bool {
        matches!(self, Self::Convert(_) | Self::Demo(_))
    }

    fn run(self, global: &Global) -> anyhow::Result<()> {
        match self {
            Self::Convert(args) => args.run(global),
            Self::Mount(args) => args.run(global),
            Self::Umount(args) => args.run(global),
            Self::Check(args) => args.run(global),
            Self::Inspect(args) => args.run(global),
            Self::Cache(args) => args.run(global),
            Self::Daemon(args) => args.run(global),
            Self::Pull(args) => args.run(global),
            Self::Snapshotter(args) => args.run(global),
            Self::Stats(args) => args.run(global),
            Self::Demo(args) => args.run(global),
            Self::Login(args) => args.run(global),
            Self::Logout(args) => args.run(global),
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if !cli.command.writes_for_others() {
        umask(Mode::RWXG | Mode::RWXO);
    }
    let level = cli.command.log_level(&cli.global);
    let logging = level.and_then(|level| cli.global.start_logging(&level, cli.command.log_file()));
    match logging.and_then(|()| cli.command.run(&cli.global)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::report(&error),
    }
}
