//! What the serving process must know and nobody else may see: logins, on the command line or in the environment of `lazo mount`,
//! which goes as soon as the mount is there. The serving process stays, as does what anyone can read of its command line. So it gets
//! these on its standard input.

use std::ffi::OsString;
use std::io::{self, Read as _};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// Options whose values may hold logins.
const OPTIONS: [&str; 2] = ["--creds", "--source"];

/// The variable that has the same meaning as `--creds`.
pub(super) const VARIABLE: &str = "LAZO_CREDS";

/// Most bytes that are read: what fits on a command line, twice, as JSON may need it.
const MAX: u64 = 4 << 20;

/// Values of the options that are left out of the serving process's command line.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Secrets {
    /// With the password.
    pub(super) creds: Option<String>,
    pub(super) sources: Vec<String>,
}

impl Secrets {
    /// What the parent has sent.
    ///
    /// # Errors
    /// When that cannot be read or understood.
    pub(super) fn receive() -> anyhow::Result<Self> {
        let mut bytes = Vec::new();
        io::stdin().lock().take(MAX).read_to_end(&mut bytes).context("cannot read logins from standard input")?;
        // serde's message might quote a login.
        serde_json::from_slice(&bytes).ok().context("cannot understand the logins on standard input")
    }
}

/// Arguments without the options that may hold logins, and their values.
pub(super) fn without(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        if text == "--" {
            kept.push(argument);
            kept.extend(arguments);
            break;
        }
        if OPTIONS.contains(&&*text) {
            arguments.next();
        } else if !OPTIONS.iter().any(|option| text.strip_prefix(option).is_some_and(|rest| rest.starts_with('='))) {
            kept.push(argument);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_left_out() {
        for (all, kept) in [
            ("mount --creds u:p image dir", "mount image dir"),
            ("--creds=u:p mount image --source https://u:p@h/ dir --source=oci:x", "mount image dir"),
            ("mount --credsx y --ca a image dir", "mount --credsx y --ca a image dir"),
            ("mount --creds u -- --creds dir", "mount -- --creds dir"),
        ] {
            let found = without(all.split(' ').map(OsString::from));
            assert_eq!(found, kept.split(' ').map(OsString::from).collect::<Vec<_>>(), "{all}");
        }
    }
}
