//! The program that the demo's image is for: whatever scripting language this machine has, started the way an
//! application is, with a good part of its library.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Where the application's script lies in the image.
pub(crate) const SCRIPT: &str = "/app/main";

/// An interpreter of this machine, and the script that is run by it inside the image.
#[derive(Debug)]
pub(crate) struct Program {
    /// The interpreter's path, here and in the image.
    pub(crate) interpreter: &'static str,
    /// Arguments before the script.
    pub(crate) arguments: &'static [&'static str],
    /// Text of the script.
    pub(crate) script: &'static str,
    /// Prints the interpreter's library directories, one a line.
    directories: &'static str,
}

/// In order of preference. Perl is there on any Debian; its base alone is enough for the last script.
const PROGRAMS: &[Program] = &[
    Program {
        interpreter: "/usr/bin/python3",
        // Isolated from the environment, and nothing is written.
        arguments: &["-I", "-B"],
        script: "import asyncio, decimal, email, hashlib, http.client, json, logging, random, sqlite3, ssl, sys
import unittest, urllib.request, xml.etree.ElementTree
print('python', sys.version.split()[0], 'with', len(sys.modules), 'modules,', ssl.OPENSSL_VERSION)
",
        directories: "import sys; print('\\n'.join(sys.path))",
    },
    Program {
        interpreter: "/usr/bin/perl",
        arguments: &[],
        script: "use strict; use warnings; use POSIX; use Socket; use IO::Socket::INET; use IPC::Open3; use File::Temp;
use Getopt::Long; use List::Util; use Hash::Util; use Text::Wrap; use Cwd;
printf \"perl %vd with %d modules\\n\", $^V, scalar keys %INC;
",
        directories: "print map { \"$_\\n\" } @INC",
    },
];

impl Program {
    /// The first program that this machine can run.
    ///
    /// # Errors
    /// When there is neither a complete python3 nor perl.
    pub(crate) fn choose() -> Result<&'static Self> {
        let works = |program: &&Self| program.evaluate(program.script).is_ok();
        PROGRAMS.iter().find(works).context("neither /usr/bin/python3 nor /usr/bin/perl works here: install perl-base")
    }

    /// The interpreter's command line inside the image.
    pub(crate) fn command(&self) -> Vec<&'static str> {
        let mut command = vec![self.interpreter];
        command.extend(self.arguments);
        command.push(SCRIPT);
        command
    }

    /// Directories the interpreter loads its modules from.
    ///
    /// # Errors
    /// When the interpreter does not run.
    pub(crate) fn library(&self) -> Result<Vec<PathBuf>> {
        let listed = self.evaluate(self.directories)?;
        let lines = listed.split(|&byte| byte == b'\n');
        let directories = lines.map(|line| PathBuf::from(OsString::from_vec(line.to_vec())));
        Ok(directories.filter(|path| path.starts_with("/usr") && path.is_dir()).collect())
    }

    fn evaluate(&self, code: &str) -> Result<Vec<u8>> {
        let option = if self.interpreter.contains("python") { "-c" } else { "-e" };
        let mut command = Command::new(self.interpreter);
        let output = command.args(self.arguments).arg(option).arg(code).env_clear().output()?;
        if !output.status.success() {
            bail!(
                "{} ended with {}: {}",
                self.interpreter,
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(output.stdout)
    }
}

/// The shared libraries that programs or libraries need, as the dynamic linker finds them, itself included.
///
/// # Errors
/// When `ldd` cannot be run. What it says of files that are not dynamic is ignored.
pub(crate) fn shared_libraries(files: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let output =
        Command::new("ldd").args(files).env_clear().env("PATH", "/usr/bin:/bin").output().context("run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut found: Vec<PathBuf> = text.lines().filter_map(library_in).collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// The path in a line of `ldd`: `libc.so.6 => /lib/libc.so.6 (0x7f..)`, or `/lib64/ld-linux.so.2 (0x7f..)`.
fn library_in(line: &str) -> Option<PathBuf> {
    let (named, _) = line.strip_prefix('\t')?.rsplit_once(" (0x")?;
    let path = Path::new(named.rsplit(" => ").next()?);
    path.is_absolute().then(|| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_program() {
        let program = Program::choose().unwrap();
        assert!(!program.library().unwrap().is_empty());
        let libraries = shared_libraries(&[PathBuf::from(program.interpreter)]).unwrap();
        assert!(libraries.iter().any(|path| path.to_string_lossy().contains("libc.so")), "{libraries:?}");
    }

    #[test]
    fn lines_of_ldd() {
        assert_eq!(library_in("\tlibc.so.6 => /lib/libc.so.6 (0x00007f)"), Some(PathBuf::from("/lib/libc.so.6")));
        assert_eq!(library_in("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)"), Some("/lib64/ld-linux-x86-64.so.2".into()));
        assert_eq!(library_in("\tlinux-vdso.so.1 (0x00007f)"), None);
        assert_eq!(library_in("\tnot a dynamic executable"), None);
        assert_eq!(library_in("/usr/bin/perl:"), None);
    }
}
