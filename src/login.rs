//! `lazo login` and `lazo logout`: logins, kept where docker and podman find them.

use std::io::{self, BufRead as _, IsTerminal as _};

use anyhow::{Context as _, bail};
use console::Term;
use lazo_registry::{Login, Place, check_login, forget_login, keep_login};

use crate::global::Global;
use crate::output;

/// Longest password that is read from standard input, bytes. Tokens of clouds have some kilobytes.
const MAX_PASSWORD: usize = 64 << 10;

/// Check a login with a registry, and keep it where docker and podman find it
///
/// It is kept in --authfile, REGISTRY_AUTH_FILE or docker's config.json, or with the credential helper that this file
/// names; `lazo`, docker, podman, skopeo and others read it there.
#[derive(Debug, clap::Args)]
pub(crate) struct LoginArgs {
    /// The registry, HOST[:PORT]; with a namespace or repository behind it, the login is for that alone
    #[arg(value_name = "HOST[/REPOSITORY]")]
    place: Place,
    /// The user's name
    #[arg(long, short = 'u', value_name = "NAME")]
    username: Option<String>,
    /// Read the password from standard input, to its end
    #[arg(long, requires = "username")]
    password_stdin: bool,
}

/// Forget a login that `lazo login` or docker has kept
#[derive(Debug, clap::Args)]
pub(crate) struct LogoutArgs {
    /// What the login is for, as it was given to `lazo login`
    #[arg(value_name = "HOST[/REPOSITORY]")]
    place: Place,
}

impl LoginArgs {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let options = global.options_without_login();
        let login = self.login(global)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (wanted, kept) = runtime.block_on(async {
            let wanted = check_login(&self.place, &login, &options).await;
            let wanted = wanted.with_context(|| format!("cannot log in to {}", self.place))?;
            anyhow::Ok((wanted, keep_login(&self.place, &login, &options).await?))
        })?;
        let checked = if wanted { "" } else { ", unchecked: the registry lets everyone in" };
        output::print(format_args!("login to {} as {} kept in {kept}{checked}\n", self.place, login.user()))
    }

    fn login(&self, global: &Global) -> anyhow::Result<Login> {
        let Some(user) = &self.username else {
            return match global.login()? {
                Some(login) => Ok(login),
                None => {
                    let user = ask("User name: ", false).context("name the user by --username")?;
                    let password = password_of(&user)?;
                    Ok(Login::new(user, password))
                }
            };
        };
        if !self.password_stdin {
            return Ok(Login::new(user.as_str(), password_of(user)?));
        }
        let mut password = String::new();
        let limit = MAX_PASSWORD as u64 + 1;
        io::Read::read_to_string(&mut io::Read::take(io::stdin().lock(), limit), &mut password)
            .context("cannot read the password from standard input")?;
        Ok(Login::new(user.as_str(), fit(&password, user)?))
    }
}

impl LogoutArgs {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let options = global.options_without_login();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        match runtime.block_on(forget_login(&self.place, &options))? {
            Some(place) => output::print(format_args!("login to {} removed from {place}\n", self.place)),
            None => output::print(format_args!("no login to {} was kept\n", self.place)),
        }
    }
}

/// A user's password, from the terminal, or else the first line of standard input.
///
/// # Errors
/// When there is none.
pub(crate) fn password_of(user: &str) -> anyhow::Result<String> {
    if io::stdin().is_terminal() {
        return fit(&ask(&format!("Password of {user}: "), true)?, user);
    }
    let mut line = String::new();
    let mut stdin = io::Read::take(io::stdin().lock(), MAX_PASSWORD as u64 + 1);
    stdin.read_line(&mut line).context("cannot read the password from standard input")?;
    fit(&line, user)
}

/// A password without the end of its line.
fn fit(text: &str, user: &str) -> anyhow::Result<String> {
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        bail!("no password of {user}: give it after a colon or on standard input, or run this on a terminal");
    }
    if password.len() > MAX_PASSWORD {
        bail!("the password of {user} is longer than {MAX_PASSWORD} bytes");
    }
    Ok(password.to_owned())
}

/// Asks whoever sits at the terminal; what is secret is not shown.
fn ask(question: &str, secret: bool) -> anyhow::Result<String> {
    let terminal = Term::stderr();
    if !io::stdin().is_terminal() || !terminal.is_term() {
        bail!("there is no terminal to ask on");
    }
    terminal.write_str(question)?;
    Ok(if secret { terminal.read_secure_line()? } else { terminal.read_line()? })
}
