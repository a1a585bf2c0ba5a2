//! Options that every subcommand takes, and what follows from them.

use std::fmt;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context as _, bail};
use lazo_daemon::node::config::{Config, NO_HOSTS_DIR};
use lazo_registry::Login;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::{logfile, login};

/// Read unless told otherwise, and if it is there: containerd 2 does so too, and who has set up mirrors or authorities for a
/// node's images wants them for all of its images.
const HOSTS_DIR: &str = "/etc/containerd/certs.d";

const STATE_DIR: &str = "/var/lib/lazo";

const RUN_DIR: &str = "/run/lazo";

/// Options that every subcommand takes.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Talk plain HTTP to registries; loopback hosts are talked to so by default, unless they turn out to speak TLS
    #[arg(long, global = true)]
    pub(crate) plain_http: bool,
    /// Trust this CA certificate (PEM) besides the system's; may be repeated
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Vec<PathBuf>,
    /// Accept any certificate of the registry that the image names, and plain HTTP where it has no TLS; mirrors are not concerned, and
    /// what a hosts.toml says of the registry comes before this
    #[arg(long, global = true)]
    pub(crate) insecure: bool,
    /// Log in to the registry that the image names with this; without a password, it is asked for, or read from standard input. Whoever
    /// lists processes sees what is given here: LAZO_CREDS or `lazo login` is for passwords
    #[arg(long, global = true, value_name = "USER[:PASSWORD]", env = "LAZO_CREDS", hide_env_values = true)]
    pub(crate) creds: Option<Creds>,
    /// Registry credentials, in the format of docker's config.json [default: ~/.docker/config.json]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) authfile: Option<PathBuf>,
    /// A file with a bearer token for the image's registry, read anew whenever a token is needed; comes before --authfile
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Mirrors, certificates and headers of registries, in containerd's hosts.toml directories; none to read no such
    /// directory [default: /etc/containerd/certs.d if there is one]
    #[arg(long, global = true, value_name = "DIR", env = "LAZO_HOSTS_DIR", value_parser = hosts_dir)]
    pub(crate) hosts_dir: Option<PathBuf>,
    /// Where fetched images and chunks are kept [default: /var/lib/lazo]
    #[arg(long = "state-dir", global = true, value_name = "DIR", env = "LAZO_STATE_DIR")]
    given_state_dir: Option<PathBuf>,
    /// Where the node daemon's socket, and the records and logs of live mounts are kept [default: /run/lazo]
    #[arg(long = "run-dir", global = true, value_name = "DIR", env = "LAZO_RUN_DIR")]
    given_run_dir: Option<PathBuf>,
    /// What to log to stderr: error, warn, info, debug, trace, or tracing directives [default: warn, info in a mount's log]
    #[arg(long, global = true, value_name = "LEVEL", env = "LAZO_LOG")]
    pub(crate) log_level: Option<String>,
}

/// `USER[:PASSWORD]`. Any text is taken, for an error of the command line would show it.
#[derive(Clone)]
pub(crate) struct Creds(String);

impl Creds {
    /// `USER:PASSWORD`; the password is asked for if it was not given.
    ///
    /// # Errors
    /// When there is no password.
    pub(crate) fn complete(&self) -> anyhow::Result<String> {
        let user = self.0.split(':').next().unwrap_or_default();
        if user.is_empty() {
            bail!("--creds: the user's name is missing; expected USER[:PASSWORD]");
        }
        if user.len() < self.0.len() {
            return Ok(self.0.clone());
        }
        Ok(format!("{user}:{}", login::password_of(user)?))
    }

    /// # Errors
    /// As [`Self::complete`].
    pub(crate) fn login(&self) -> anyhow::Result<Login> {
        let complete = self.complete()?;
        let (user, password) = complete.split_once(':').unwrap_or_default();
        Ok(Login::new(user, password))
    }
}

impl From<String> for Creds {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Creds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Global {
    /// Sends log lines of the chosen level, or else of `default`, to stderr; to be kept within bounds if that is a log file.
    ///
    /// # Errors
    /// When `--log-level` is not a level nor a list of tracing directives.
    pub(crate) fn start_logging(&self, default: &str, file: Option<&Path>) -> anyhow::Result<()> {
        let level = self.log_level.as_deref().unwrap_or(default);
        let filter = EnvFilter::builder().parse(level).with_context(|| format!("--log-level {level:?} is no level"))?;
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let writer = match file {
            Some(path) => BoxMakeWriter::new(Mutex::new(logfile::Bounded::new(path)?)),
            None => BoxMakeWriter::new(std::io::stderr),
        };
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(colour).init();
        Ok(())
    }

    /// Where fetched images and chunks are kept.
    pub(crate) fn state_dir(&self) -> &Path {
        self.given_state_dir.as_deref().unwrap_or(Path::new(STATE_DIR))
    }

    /// The same if it was named, rather than taken for granted.
    pub(crate) fn given_state_dir(&self) -> Option<&Path> {
        self.given_state_dir.as_deref()
    }

    /// Where the node daemon's socket, and the records and logs of live mounts are kept.
    pub(crate) fn run_dir(&self) -> &Path {
        self.given_run_dir.as_deref().unwrap_or(Path::new(RUN_DIR))
    }

    /// Puts what was said on the command line or in the environment in the place of what a file says. Paths must be absolute.
    pub(crate) fn override_config(&self, config: &mut Config) {
        let paths = [
            (&mut config.state_dir, &self.given_state_dir),
            (&mut config.run_dir, &self.given_run_dir),
            (&mut config.hosts_dir, &self.hosts_dir),
        ];
        for (setting, given) in paths {
            if let Some(path) = given {
                setting.clone_from(path);
            }
        }
        for (setting, given) in [(&mut config.authfile, &self.authfile), (&mut config.token_file, &self.token_file)] {
            if given.is_some() {
                setting.clone_from(given);
            }
        }
        config.plain_http |= self.plain_http;
        config.insecure |= self.insecure;
        config.ca.extend(self.ca.iter().cloned());
        if let Some(level) = &self.log_level {
            config.log_level.clone_from(level);
        }
    }

    /// The same with absolute paths, for a process that leaves the working directory.
    pub(crate) fn absolute(&self) -> std::io::Result<Self> {
        let mut global = self.clone();
        let dirs = [&mut global.given_state_dir, &mut global.given_run_dir].into_iter().flatten();
        for path in dirs.chain(&mut global.ca).chain(&mut global.authfile).chain(&mut global.token_file) {
            *path = std::path::absolute(&path)?;
        }
        if let Some(dir) = global.hosts_dir.as_mut().filter(|dir| *dir != Path::new(NO_HOSTS_DIR)) {
            *dir = std::path::absolute(&dir)?;
        }
        Ok(global)
    }

    /// The login that was given, with its password.
    ///
    /// # Errors
    /// When there is no password.
    pub(crate) fn login(&self) -> anyhow::Result<Option<Login>> {
        self.creds.as_ref().map(Creds::login).transpose()
    }

    /// Refuses a login that `whom` would not keep.
    ///
    /// # Errors
    /// When one was given.
    pub(crate) fn refuse_creds(&self, whom: &str) -> anyhow::Result<()> {
        if self.creds.is_some() {
            bail!(
                "{whom} needs logins for as long as it runs, and keeps none from --creds: use `lazo login` or --authfile"
            );
        }
        Ok(())
    }

    /// How to talk to registries.
    ///
    /// # Errors
    /// As [`Self::login`].
    pub(crate) fn registry_options(&self) -> anyhow::Result<lazo_registry::Options> {
        Ok(lazo_registry::Options { login: self.login()?, ..self.options_without_login() })
    }

    /// The same without the login that was given.
    pub(crate) fn options_without_login(&self) -> lazo_registry::Options {
        lazo_registry::Options {
            plain_http: self.plain_http,
            insecure: self.insecure,
            extra_ca: self.ca.clone(),
            auth_file: self.authfile.clone(),
            token_file: self.token_file.clone(),
            hosts_dir: match &self.hosts_dir {
                None => Some(HOSTS_DIR.into()),
                Some(dir) if dir == Path::new(NO_HOSTS_DIR) => None,
                Some(dir) => Some(dir.clone()),
            },
            ..lazo_registry::Options::default()
        }
    }
}

/// A directory that was asked for must be there: otherwise images would silently come from somewhere else.
fn hosts_dir(text: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(text);
    if text == NO_HOSTS_DIR || path.is_dir() { Ok(path) } else { Err("there is no such directory") }
}
