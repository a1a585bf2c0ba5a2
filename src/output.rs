//! What the command says: results on stdout, everything else on stderr, and the exit code.

use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};

/// Exit code of a command that could not do what was asked.
const FAILED: u8 = 1;
/// Exit code of a command line that makes no sense; clap uses the same.
const USAGE: u8 = 2;

/// Arguments that parse but do not go together. Ends the command with exit code 2.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// The check that a command was asked to make found something wrong, and it has said so on stdout already: exit code 1
/// and nothing more on stderr.
#[derive(Debug)]
pub(crate) struct Reported;

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the findings are on stdout")
    }
}

impl std::error::Error for Reported {}

/// Writes a result to stdout. A reader that has gone away (`lazo inspect ... | head`) ends the command quietly.
///
/// # Errors
/// When stdout cannot be written, for instance because its disk is full.
pub(crate) fn print(text: impl fmt::Display) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// Says on stderr what failed, with the chain of causes, and gives the exit code for it.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<Reported>() {
        return ExitCode::from(FAILED);
    }
    // stderr may be closed; there is nobody left to tell then.
    let _ = writeln!(io::stderr(), "lazo: {}", chain(error));
    ExitCode::from(if error.is::<UsageError>() { USAGE } else { FAILED })
}

/// The error and its causes in one line, outermost first.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    format!("{error:#}")
}

/// A bar that counts bytes, on a terminal; nothing elsewhere.
pub(crate) fn byte_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
    ProgressBar::new(0).with_style(style)
}
