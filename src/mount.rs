//! `lazo mount`: show an image's tree at once, fetch what is read.
//!
//! A node daemon makes the mount if one runs (`node`). Otherwise the command starts itself once more, as the process that serves the mount, and waits until that says on a pipe, which is its
//! standard output, that the mount can be used, or why not.

mod node;
mod secrets;

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::num::NonZeroU64;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::builder::RangedU64ValueParser;
use lazo_daemon::node::client::Client;
use lazo_daemon::node::protocol;
use lazo_daemon::{MetricsAddr, MountOptions, Restrictions};
use lazo_registry::{ImageRef, Platform};
use lazo_storage::cache::{CacheOptions, Limit, parse_size};
use lazo_storage::{Policy, SourceSpec, SpecError};
use rustix::process::{Signal, set_parent_process_death_signal};

use self::secrets::Secrets;
use crate::global::{Creds, Global};
use crate::{logfile, output};

/// What the serving process says when the mount can be used.
const READY: &str = "ready\n";

/// Where the serving process finds the name of its log, which also tells it what it is.
const LOG: &str = "LAZO_MOUNT_LOG";

/// Longest log name made of a mount point; a file name may have 255 bytes.
const MAX_LOG_NAME: usize = 200;

/// Bytes of the log shown when the serving process ends without a word.
const LOG_TAIL: usize = 2000;

/// Where the cache's limit may be named, for all mounts.
const CACHE_LIMIT: &str = "LAZO_CACHE_LIMIT";

/// Mount a lazo image: its tree is there at once, its data comes as it is read
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image: docker://HOST/REPO[:TAG|@DIGEST], HOST/REPO:TAG, oci:DIR[:TAG] or oci-archive:FILE[:TAG]
    image: ImageRef,
    /// An existing directory to mount it at
    dir: PathBuf,
    /// How to serve it
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    mode: Mode,
    /// Serve it from a process of its own, even if a node daemon runs
    #[arg(long)]
    standalone: bool,
    /// Which of the image's platforms, as OS/ARCH[/VARIANT] or just ARCH [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    /// What files of the image can do, as for mount(8), several joined by commas: by default, set-user-ID bits, file capabilities and
    /// device files have no effect; `-o suid,dev` gives them theirs
    #[arg(short = 'o', value_name = "OPTION", value_enum, value_delimiter = ',')]
    mount_options: Vec<MountOption>,
    /// Serve the mount from this very process, with its log on stderr, until it is unmounted or interrupted
    #[arg(long)]
    foreground: bool,
    /// Answer GET /metrics at this address, besides the mount's own socket: HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDR")]
    metrics: Option<MetricsAddr>,
    #[command(flatten)]
    data: Data,
    #[command(flatten)]
    of_daemon: node::OfDaemon,
    /// Log file; makes this the serving process, with a parent that waits on its standard output
    #[arg(long, hide = true, env = LOG)]
    background_log: Option<PathBuf>,
}

/// Where data comes from and stays.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Data")]
struct Data {
    /// Take data from here before the image's own registry or layout is asked: oci:DIR, https://HOST/PATH/, http://HOST/PATH/ or
    /// s3://BUCKET[/PREFIX]; may be repeated
    #[arg(long, value_name = "SOURCE")]
    source: Vec<Source>,
    /// How long reads wait when no source answers, before they fail with an I/O error [default: 60, or as the node daemon is
    /// configured]
    #[arg(long, value_name = "SECONDS", value_parser = outage_limit())]
    outage_limit: Option<u64>,
    /// What to fetch before it is read [default: hints, or as the node daemon is configured]
    #[arg(long, value_enum)]
    prefetch: Option<Prefetch>,
    /// Most bytes a second to fetch ahead of readers, for --prefetch too: a number, or one with K, M or G [default: no limit]
    #[arg(long, value_name = "BYTES/S", value_parser = rate)]
    background_rate: Option<NonZeroU64>,
    /// Most requests a second to make ahead of readers, for --prefetch too [default: no limit]
    #[arg(long, value_name = "N/S")]
    background_requests: Option<NonZeroU64>,
    /// Most disk space that all cached data may take: a size such as 20G, a part of the file system such as 50%, or none
    /// [default: 50%]
    #[arg(long, value_name = "SIZE|PERCENT", env = CACHE_LIMIT)]
    cache_limit: Option<Limit>,
}

/// A source, and what a daemon is told of it: the text, which may hold a login, with an absolute path if it is one.
#[derive(Clone, Debug)]
struct Source {
    spec: SourceSpec,
    text: String,
}

impl FromStr for Source {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let spec: SourceSpec = text.parse()?;
        let text = if text.starts_with("oci:") { spec.to_string() } else { text.to_owned() };
        Ok(Self { spec, text })
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Mode {
    /// The best that this machine can do; as configured, with a node daemon; fuse for an image that asks for direct I/O
    Auto,
    /// The kernel's EROFS on blobs that the node daemon serves
    Erofs,
    /// A FUSE mount of the whole tree
    Fuse,
}

impl From<Mode> for protocol::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Auto => Self::Auto,
            Mode::Erofs => Self::Erofs,
            Mode::Fuse => Self::Fuse,
        }
    }
}

/// As mount(8) takes them: of two that contradict each other, the later one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum MountOption {
    /// Set-user-ID and set-group-ID bits and file capabilities mean nothing: the default
    Nosuid,
    /// They have their effect
    Suid,
    /// Device files cannot be opened: the default
    Nodev,
    /// They can be
    Dev,
    /// Nothing can be executed
    Noexec,
    /// Programs can be: the default
    Exec,
}

fn restrictions(options: &[MountOption]) -> Restrictions {
    let mut result = Restrictions::default();
    for option in options {
        match option {
            MountOption::Nosuid => result.nosuid = true,
            MountOption::Suid => result.nosuid = false,
            MountOption::Nodev => result.nodev = true,
            MountOption::Dev => result.nodev = false,
            MountOption::Noexec => result.noexec = true,
            MountOption::Exec => result.noexec = false,
        }
    }
    result
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Prefetch {
    /// Nothing
    None,
    /// What the image's prefetch list names
    Hints,
    /// That, and then the whole image, whenever no program waits for data
    All,
}

impl From<Prefetch> for protocol::Prefetch {
    fn from(prefetch: Prefetch) -> Self {
        match prefetch {
            Prefetch::None => Self::None,
            Prefetch::Hints => Self::Hints,
            Prefetch::All => Self::All,
        }
    }
}

impl Args {
    /// What is logged unless told otherwise: a log file that nobody sees has room for more.
    pub(crate) fn log_level(&self) -> &'static str {
        if self.foreground || self.background_log.is_some() { "info" } else { "warn" }
    }

    /// The log that standard error is, if this process serves a mount in the background.
    pub(crate) fn log_file(&self) -> Option<&Path> {
        self.background_log.as_deref()
    }

    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        if let Some(log) = &self.background_log {
            return self.serve_in_background(global, log);
        }
        let daemon = if self.standalone { None } else { Client::find(global.run_dir())? };
        if let Some(daemon) = daemon {
            return node::mount(&self, global, &daemon);
        }
        if let Some(option) = self.needs_daemon() {
            bail!(
                "{option} needs the node daemon{}",
                if self.standalone {
                    ", so that it does not go with --standalone".to_owned()
                } else {
                    format!(", and none runs at {}; start it: lazo daemon", global.run_dir().display())
                }
            );
        }
        if self.foreground {
            return Ok(lazo_daemon::serve(&self.options(global)?, || Ok(()))?);
        }
        self.start(global)
    }

    /// The first option that a process for one mount cannot do, if any is set.
    fn needs_daemon(&self) -> Option<&'static str> {
        if let Mode::Erofs = self.mode { Some("--mode erofs") } else { self.of_daemon.first() }
    }

    /// The image, with an absolute path if it has one.
    fn image(&self) -> io::Result<ImageRef> {
        let mut image = self.image.clone();
        if let ImageRef::OciLayout { path, .. }
        | ImageRef::OciArchive { path, .. }
        | ImageRef::DockerArchive { path, .. } = &mut image
        {
            *path = std::path::absolute(&path)?;
        }
        Ok(image)
    }

    /// Everything with absolute paths, as the serving process leaves the working directory.
    fn options(&self, global: &Global) -> anyhow::Result<MountOptions> {
        let global = global.absolute()?;
        let mut policy = Policy::default();
        if let Some(seconds) = self.data.outage_limit {
            policy.outage_limit = Duration::from_secs(seconds);
        }
        Ok(MountOptions {
            image: self.image()?,
            platform: self.platform.clone().unwrap_or_else(Platform::host),
            mount_point: std::path::absolute(&self.dir)?,
            registry: global.registry_options()?,
            state_dir: global.state_dir().to_owned(),
            cache: CacheOptions { limit: self.data.cache_limit.unwrap_or_default() },
            run_dir: global.run_dir().to_owned(),
            metrics: self.metrics.clone().map(absolute).transpose()?,
            prefetch: protocol::Prefetch::from(self.data.prefetch.unwrap_or(Prefetch::Hints)).into(),
            background_bytes: self.data.background_rate,
            background_requests: self.data.background_requests,
            sources: self.data.source.iter().map(|source| source.spec.clone()).collect(),
            policy,
            log: self.background_log.clone(),
            restrictions: restrictions(&self.mount_options),
        })
    }

    fn serve_in_background(&self, global: &Global, log: &Path) -> anyhow::Result<()> {
        let options = Secrets::receive().and_then(|secrets| {
            let mut global = global.clone();
            global.creds = secrets.creds.map(Creds::from);
            let sources: Result<_, SpecError> = secrets.sources.iter().map(|source| source.parse()).collect();
            Ok(MountOptions { sources: sources?, ..self.options(&global)? })
        });
        let served = options.and_then(|options| {
            // Nobody wants the mount any more when the command is gone before there is one.
            set_parent_process_death_signal(Some(Signal::TERM)).context("cannot ask to hear of the command's end")?;
            rustix::process::setsid().context("cannot leave the session of the terminal")?;
            std::env::set_current_dir("/")?;
            Ok(lazo_daemon::serve(&options, || say_ready(log))?)
        });
        if let Err(error) = &served {
            // Nobody hears this once the mount was ready, or when the parent has been interrupted; the log has it as well.
            let _ = io::stdout().write_all(output::chain(error).as_bytes());
        }
        served
    }

    fn start(&self, global: &Global) -> anyhow::Result<()> {
        let run_dir = global.absolute()?.run_dir().to_owned();
        let log = run_dir.join("logs").join(log_name(&std::path::absolute(&self.dir)?));
        let failed = || format!("cannot write the log {}; choose another place with --run-dir", log.display());
        lazo_daemon::node::make_run_dir(&run_dir).with_context(failed)?;
        let file = logfile::open(&log).with_context(failed)?;
        let log_start = file.metadata().with_context(failed)?.len();
        // The process that serves has no terminal to ask on.
        let secrets = Secrets {
            creds: global.creds.as_ref().map(Creds::complete).transpose()?,
            sources: self.data.source.iter().map(|source| source.text.clone()).collect(),
        };
        let mut child = Command::new("/proc/self/exe")
            .arg0("lazo")
            .args(secrets::without(std::env::args_os().skip(1)))
            .env(LOG, &log)
            .env_remove(secrets::VARIABLE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .context("cannot start the process that is to serve the mount")?;
        if let Some(stdin) = child.stdin.take() {
            // An error: the process has ended, and says why below.
            let _ = serde_json::to_writer(stdin, &secrets);
        }
        let mut said = String::new();
        if let Some(mut pipe) = child.stdout.take() {
            pipe.read_to_string(&mut said).context("cannot hear from the process that is to serve the mount")?;
        }
        match said.as_str() {
            READY => Ok(()),
            "" => bail!("{}", last_words(&mut child, &log, log_start)),
            error => bail!("{error}"),
        }
    }
}

fn outage_limit() -> RangedU64ValueParser {
    RangedU64ValueParser::new().range(0..=lazo_daemon::node::config::MAX_OUTAGE_LIMIT)
}

fn rate(text: &str) -> anyhow::Result<NonZeroU64> {
    let rate = parse_size(text)?;
    NonZeroU64::new(rate).context("nothing would ever come; to fetch nothing ahead, use --prefetch none")
}

fn absolute(address: MetricsAddr) -> io::Result<MetricsAddr> {
    match address {
        MetricsAddr::Unix(path) => Ok(MetricsAddr::Unix(std::path::absolute(path)?)),
        tcp @ MetricsAddr::Tcp(_) => Ok(tcp),
    }
}

/// Tells the parent, and lets go of the pipe.
fn say_ready(log: &Path) -> io::Result<()> {
    set_parent_process_death_signal(None)?;
    let mut stdout = io::stdout();
    stdout.write_all(READY.as_bytes())?;
    stdout.flush()?;
    rustix::stdio::dup2_stdout(OpenOptions::new().append(true).open(log)?)?;
    Ok(())
}

/// Where a mount's log is: its mount point with hyphens.
fn log_name(mount_point: &Path) -> OsString {
    let name = mount_point.to_string_lossy().trim_matches('/').replace('/', "-");
    let start = name.len().saturating_sub(MAX_LOG_NAME);
    let start = (start..=name.len()).find(|&at| name.is_char_boundary(at)).unwrap_or(0);
    format!("{}.log", &name[start..]).into()
}

/// What to say of a process that has said nothing: the end of its log, which began at `start`.
fn last_words(child: &mut Child, log: &Path, start: u64) -> String {
    let status = child.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
    let text = std::fs::read(log).unwrap_or_default();
    let text = text.get(usize::try_from(start).unwrap_or(usize::MAX)..).unwrap_or_default();
    let tail = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL)..]).into_owned();
    format!("the process that was to serve the mount ended ({status}); the end of its log {}:\n{tail}", log.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_as_the_help_says() {
        assert_eq!(Policy::default().outage_limit, Duration::from_secs(60));
        assert_eq!(Limit::default().to_string(), "50%");
    }

    #[test]
    fn a_daemon_is_told_of_sources_as_they_were_written() {
        let text = |source: &str| source.parse::<Source>().unwrap().text;
        assert_eq!(text("https://user:secret@host/path"), "https://user:secret@host/path");
        assert_eq!(text("oci:nas"), format!("oci:{}", std::path::absolute("nas").unwrap().display()));
    }

    #[test]
    fn what_could_give_rights_has_to_be_asked_for() {
        use MountOption::{Dev, Exec, Nodev, Noexec, Nosuid, Suid};
        for (options, expected) in [
            (&[][..], (true, true, false)),
            (&[Suid], (false, true, false)),
            (&[Suid, Dev], (false, false, false)),
            (&[Dev, Noexec], (true, false, true)),
            (&[Suid, Dev, Nosuid, Nodev, Noexec, Exec], (true, true, false)),
        ] {
            let found = restrictions(options);
            assert_eq!((found.nosuid, found.nodev, found.noexec), expected, "{options:?}");
        }
    }

    #[test]
    fn log_names_are_file_names() {
        assert_eq!(log_name(Path::new("/mnt/a b")), "mnt-a b.log");
        let long = format!("/{}", "ä/".repeat(300));
        assert!(log_name(Path::new(&long)).len() <= MAX_LOG_NAME + ".log".len());
    }
}
