//! Credential helpers: programs called `docker-credential-NAME` that keep logins.
//!
//! `get` is given a server's name on its input and prints a login; `store` and `erase` keep and forget one. One that fails prints
//! why, which is passed on, for nobody else knows. What it says to standard error is for the log alone: an error may be
//! shown to people who may not read that.

use std::{
    fmt, io,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::credentials::{Credentials, Secret};

/// Longest wait for a helper. Those of clouds ask a server, and take some seconds.
pub const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes read from a helper's output. A login has some kilobytes.
const MAX_OUTPUT: u64 = 64 * 1024;
/// Most bytes kept of what it says to standard error.
const MAX_COMPLAINT: usize = 4096;
/// How long its last words may take when it has ended; what it has started may hold its standard error open for ever.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Most characters of its own words that a message shows.
const SHOWN: usize = 300;
/// How names end of what nobody else may see: `Secret`, `access_token`.
const SECRET_NAMES: [&str; 3] = ["secret", "password", "token"];
/// The user name by which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// The protocol's way to say that there is no such login.
const NOT_FOUND: &str = "credentials not found";

/// What came of a helper.
#[derive(Clone, Serialize, Deserialize)]
pub struct HelperOutcome {
    /// Whether it ended well.
    success: bool,
    /// How it ended, for messages.
    status: String,
    /// The login, or why there is none.
    output: Vec<u8>,
    /// What it said to standard error, cut.
    complaint: Vec<u8>,
}

impl HelperOutcome {
    pub(crate) fn new(status: ExitStatus, output: Vec<u8>, complaint: Vec<u8>) -> Self {
        Self { success: status.success(), status: status.to_string(), output, complaint }
    }

    /// Why it has failed, in its own words; what it said to standard error goes to the log.
    fn failure(&self, program: &str) -> String {
        let (output, complaint) = (words(&self.output), words(&self.complaint));
        if !complaint.is_empty() {
            tracing::warn!(program, complaint, "a credential helper failed");
        }
        let why = match (output.as_str(), complaint.as_str()) {
            ("", "") => "it did not say why",
            ("", _) => "it said why on its standard error, which is in the log only",
            (output, _) => output,
        };
        format!("failed ({}): {why}", self.status)
    }
}

/// What a helper said, fit for a message: nothing of what may be a login.
fn words(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let text = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let text = text.collect::<Vec<_>>().join(" ");
    if names_secret(&text) {
        return "what it said may hold a login, and is not shown".to_owned();
    }
    text.chars().take(SHOWN).collect()
}

/// Whether a text gives a value to something that is called a secret, as JSON, variables and forms do.
fn names_secret(text: &str) -> bool {
    let text = text.to_lowercase();
    SECRET_NAMES
        .iter()
        .flat_map(|name| text.match_indices(name))
        .any(|(at, name)| text[at + name.len()..].trim_start_matches(['"', '\'', '\\', ' ']).starts_with([':', '=']))
}

impl fmt::Debug for HelperOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HelperOutcome").field("status", &self.status).finish_non_exhaustive()
    }
}

/// Runs helpers elsewhere than in this process.
pub trait RunHelper: Send + Sync {
    /// Runs `docker-credential-NAME get` for a server, as [`run_helper`] does.
    fn run(&self, name: String, server: String) -> BoxFuture<'static, io::Result<HelperOutcome>>;
}

/// How helpers are run: by this process, unless another one is to, that may do more.
#[derive(Clone, Default)]
pub struct Helpers(Option<Arc<dyn RunHelper>>);

impl Helpers {
    /// Has them run elsewhere.
    pub fn by(runner: impl RunHelper + 'static) -> Self {
        Self(Some(Arc::new(runner)))
    }
}

impl fmt::Debug for Helpers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Helpers(elsewhere)" } else { "Helpers(here)" })
    }
}

/// What a helper prints to `get`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: Secret,
}

/// What a helper is to keep.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Kept<'a> {
    #[serde(rename = "ServerURL")]
    server_url: &'a str,
    username: &'a str,
    secret: &'a str,
}

/// The login that a helper has for a server.
pub(super) async fn get(helpers: &Helpers, name: &str, server: &str) -> Result<Option<Credentials>, String> {
    let program = program(name)?;
    let outcome = match &helpers.0 {
        Some(elsewhere) => elsewhere.run(name.to_owned(), server.to_owned()).await,
        None => run_helper(name, server).await,
    };
    understand(&program, &outcome.map_err(|error| format!("cannot run {program}: {error}"))?)
}

/// Has a helper keep a login.
pub(super) async fn store(name: &str, server: &str, user: &str, password: &Secret) -> Result<(), String> {
    let kept = Kept { server_url: server, username: user, secret: password.reveal() };
    let input = serde_json::to_vec(&kept).map_err(|_| "this login cannot be given to a credential helper")?;
    change(name, "store", &input).await
}

/// Has a helper forget a login; one that it does not have is forgotten.
pub(super) async fn erase(name: &str, server: &str) -> Result<(), String> {
    change(name, "erase", server.as_bytes()).await
}

async fn change(name: &str, action: &str, input: &[u8]) -> Result<(), String> {
    let program = program(name)?;
    let outcome = run(&program, action, input).await.map_err(|error| format!("cannot run {program}: {error}"))?;
    if outcome.success || String::from_utf8_lossy(&outcome.output).contains(NOT_FOUND) {
        return Ok(());
    }
    Err(format!("{program} {action} {}", outcome.failure(&program)))
}

/// `docker-credential-NAME`, which is looked for in PATH.
pub(crate) fn program(name: &str) -> Result<String, String> {
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        return Err(format!("bad credential helper name {name:?}"));
    }
    Ok(format!("docker-credential-{name}"))
}

/// What a helper answers: it ends well with a login, or fails and says that it has none.
pub(crate) fn understand(program: &str, outcome: &HelperOutcome) -> Result<Option<Credentials>, String> {
    if !outcome.success {
        if String::from_utf8_lossy(&outcome.output).contains(NOT_FOUND) {
            return Ok(None);
        }
        return Err(format!("{program} {}", outcome.failure(program)));
    }
    // Its words might be the login.
    let answer: Answer =
        serde_json::from_slice(&outcome.output).map_err(|_| format!("{program} gave no valid answer"))?;
    Ok(match (answer.username.as_str(), answer.secret) {
        (_, secret) if secret.reveal().is_empty() => None,
        (TOKEN_USER, secret) => Some(Credentials::Identity(secret)),
        (user, password) => Some(Credentials::Password { user: user.to_owned(), password }),
    })
}

/// Runs `docker-credential-NAME get` for a server, in this process and with its environment. HOME is set for it if it
/// is not.
///
/// # Errors
/// When the name is none, there is no such program, or it takes longer than [`HELPER_TIMEOUT`].
pub async fn run_helper(name: &str, server: &str) -> io::Result<HelperOutcome> {
    let program = program(name).map_err(|reason| io::Error::new(io::ErrorKind::InvalidInput, reason))?;
    run(&program, "get", server.as_bytes()).await
}

async fn run(program: &str, action: &str, input: &[u8]) -> io::Result<HelperOutcome> {
    // On a terminal it may have to ask there, which only those may that are in the terminal's own group.
    let group = std::fs::File::open("/dev/tty").is_err();
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("it did not answer within {HELPER_TIMEOUT:?}"));
    tokio::time::timeout(HELPER_TIMEOUT, run_to_end(program, action, input, group)).await.map_err(late)?
}

/// Ends the programs of a process group, unless their leader has ended by itself: what it has left behind then, an agent for instance,
/// is there to stay.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // An error: all have ended.
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

/// Runs a helper, if told so as the leader of a process group, which ends with it if nobody waits any more.
async fn run_to_end(program: &str, action: &str, input: &[u8], group: bool) -> io::Result<HelperOutcome> {
    let mut command = tokio::process::Command::new(program);
    command.arg(action).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    if let (None, Some(home)) = (std::env::var_os("HOME"), home()) {
        command.env("HOME", home);
    }
    if group {
        command.process_group(0);
    }
    let mut child = command.spawn()?;
    let leader = child.id().and_then(|id| i32::try_from(id).ok()).filter(|_| group);
    let mut group = Group(leader.map(Pid::from_raw));
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut output, mut complaint) = (Vec::new(), Vec::new());
    let status = {
        let mut drained = std::pin::pin!(drain(stderr, &mut complaint));
        let mut ended = std::pin::pin!(async {
            if let Some(mut stdin) = stdin {
                match stdin.write_all(input).await {
                    // A helper may answer without having read its input.
                    Err(e) if e.kind() != io::ErrorKind::BrokenPipe => return Err(e),
                    _ => {}
                }
            }
            if let Some(stdout) = stdout {
                stdout.take(MAX_OUTPUT).read_to_end(&mut output).await?;
            }
            let status = child.wait().await;
            group.0 = None;
            status
        });
        tokio::select! {
            ended = &mut ended => {
                let _ = tokio::time::timeout(LAST_WORDS, drained).await;
                ended?
            }
            () = &mut drained => ended.await?,
        }
    };
    Ok(HelperOutcome::new(status, output, complaint))
}

/// Reads to the end, so that the writer never has to wait, and keeps the beginning.
async fn drain(from: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let room = MAX_COMPLAINT.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..read.min(room)]);
    }
}

/// The home directory: what the environment says, or else the password database, as service managers set none for
/// daemons.
pub(crate) fn home() -> Option<PathBuf> {
    let said = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    said.or_else(|| nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|user| user.dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a program, by another process: one that another thread has just forked may have open what this process writes, and then
    /// it cannot be run.
    fn write_program(path: &std::path::Path, text: &str) {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(path).stdin(std::process::Stdio::piped());
        let mut shell = command.spawn().unwrap();
        std::io::Write::write_all(&mut shell.stdin.take().unwrap(), text.as_bytes()).unwrap();
        assert!(shell.wait().unwrap().success());
    }

    async fn ask(script: &str, server: &str) -> Result<Option<Credentials>, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker-credential-t");
        write_program(&path, &format!("#!/bin/sh\n{script}\n"));
        let outcome = run(path.to_str().unwrap(), "get", server.as_bytes()).await.unwrap();
        understand("docker-credential-t", &outcome)
    }

    #[tokio::test]
    async fn asks_helpers() {
        let password = |user: &str, password: &str| {
            Some(Credentials::Password { user: user.into(), password: Secret::new(password.into()) })
        };
        let echo = r#"read s; printf '{"Username":"u","Secret":"for-%s"}' "$s""#;
        assert_eq!(ask(echo, "h.example").await.unwrap(), password("u", "for-h.example"));
        let token = r#"printf '{"Username":"<token>","Secret":"r"}'"#;
        assert_eq!(ask(token, "h").await.unwrap(), Some(Credentials::Identity(Secret::new("r".into()))));
        let none = "echo credentials not found in native keychain; exit 1";
        assert_eq!(ask(none, "h").await.unwrap(), None);
        let chatty = r#"yes complaint | head -c 1000000 >&2; printf '{"Username":"u","Secret":"s"}'"#;
        assert_eq!(ask(chatty, "h").await.unwrap(), password("u", "s"));
        // What it has started keeps its standard error.
        let behind = r#"sleep 3600 </dev/null >/dev/null & printf '{"Username":"u","Secret":"'$!'"}'"#;
        let Some(Credentials::Password { password, .. }) = ask(behind, "h").await.unwrap() else { panic!("no login") };
        std::process::Command::new("kill").arg(password.reveal()).status().unwrap();
    }

    #[tokio::test]
    async fn passes_on_why_a_helper_fails_and_no_login() {
        for (script, expected) in [
            ("printf 'the vault\\n is \\033sealed'; exit 3", "failed (exit status: 3): the vault is sealed"),
            ("echo secret-text >&2; exit 1", "standard error, which is in the log only"),
            ("echo first; echo secret-text >&2; exit 1", ": first"),
            ("echo ExpiredTokenException: the security token is too old; exit 1", "security token is too old"),
            ("exit 1", "it did not say why"),
            (r#"echo '{"Username":"u","Secret":"secret-text"}'; exit 1"#, "may hold a login"),
            (r#"echo '{"username":"u", "secret" : "secret-text"}'; exit 1"#, "may hold a login"),
            (r#"echo '{"access_token":"secret-text"}'; exit 1"#, "may hold a login"),
            ("echo VAULT_PASSWORD=secret-text; exit 1", "may hold a login"),
            ("kill -9 $$", "signal: 9"),
            ("echo secret-text", "gave no valid answer"),
        ] {
            let failed = ask(script, "h").await.unwrap_err();
            assert!(failed.starts_with("docker-credential-t ") && failed.contains(expected), "{script}: {failed}");
            assert!(!failed.contains("secret-text") && !failed.chars().any(char::is_control), "{failed:?}");
        }
        let long = ask("yes | head -c 60000; exit 1", "h").await.unwrap_err();
        assert!(long.chars().count() < SHOWN + 100, "{long}");
    }

    /// A script with a pipe that all that it starts has open; the pipe's end is theirs.
    struct Alive {
        directory: tempfile::TempDir,
    }

    impl Alive {
        fn new(script: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            nix::unistd::mkfifo(&directory.path().join("alive"), nix::sys::stat::Mode::S_IRWXU).unwrap();
            let program = directory.path().join("program");
            let text = format!("#!/bin/sh\nexec 3> {0}/alive\necho begun >&3\n{script}\n", directory.path().display());
            write_program(&program, &text);
            Self { directory }
        }

        fn path(&self, name: &str) -> String {
            self.directory.path().join(name).to_str().unwrap().to_owned()
        }
    }

    #[tokio::test]
    async fn all_that_a_helper_has_started_ends_when_nobody_waits_for_it() {
        let alive = Alive::new("sleep 3600 & sleep 3600");
        let program = alive.path("program");
        let running = tokio::spawn(async move { run_to_end(&program, "get", b"h", true).await });
        let mut pipe = tokio::fs::File::open(alive.path("alive")).await.unwrap();
        let mut begun = [0; 6];
        pipe.read_exact(&mut begun).await.unwrap();
        running.abort();
        // The end of the pipe comes when no process has it open any more.
        assert_eq!(pipe.read(&mut begun).await.unwrap(), 0);
    }
}
