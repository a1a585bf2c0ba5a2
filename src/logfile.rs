//! The log of a process that serves a mount: one file and the one before it, each of bounded size.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// When a log has this many bytes, a new one begins. With lines in their bounds, one holds hours of an outage, and else months.
const MAX_LOG: u64 = 8 << 20;

/// Opens a log for appending. One that is full becomes `NAME.1`, in place of what was called so.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        lazo_daemon::make_private_dir(dir)?;
    }
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() >= MAX_LOG) {
        fs::rename(path, before(path))?;
    }
    append(path)
}

/// For this user alone: logs name images, paths and hosts.
fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// What a log is called when another has begun.
fn before(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".1");
    name.into()
}

/// Writes to a log, and begins a new file when it is full.
#[derive(Debug)]
pub(crate) struct Bounded {
    path: PathBuf,
    file: File,
    written: u64,
    most: u64,
    /// Whether standard error goes where the log goes: what panics and libraries say belongs there as well.
    with_stderr: bool,
}

impl Bounded {
    /// For the log at `path`, which standard error is already.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let file = append(path)?;
        let written = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, written, most: MAX_LOG, with_stderr: true })
    }

    fn begin_another(&mut self) -> io::Result<()> {
        fs::rename(&self.path, before(&self.path))?;
        self.file = append(&self.path)?;
        if self.with_stderr {
            rustix::stdio::dup2_stderr(&self.file)?;
        }
        Ok(())
    }
}

impl Write for Bounded {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.written >= self.most {
            // If it cannot be, as when the directory is gone, the next try is a full log later.
            let _ = self.begin_another();
            self.written = 0;
        }
        let length = self.file.write(line)?;
        self.written += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_gives_way_to_a_new_one_when_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/mnt.log");
        for (length, name) in [(MAX_LOG - 1, "mnt.log"), (MAX_LOG, "mnt.log.1")] {
            open(&path).unwrap().set_len(length).unwrap();
            open(&path).unwrap();
            assert_eq!(fs::metadata(path.with_file_name(name)).unwrap().len(), length);
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    }

    #[test]
    fn a_log_that_is_written_to_stays_within_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mnt.log");
        let mut log = Bounded { most: 100, with_stderr: false, ..Bounded::new(&path).unwrap() };
        for number in 0..50 {
            // At once, as log lines come.
            log.write_all(format!("line {number:04}\n").as_bytes()).unwrap();
        }
        let texts = [before(&path), path].map(|path| fs::read_to_string(path).unwrap());
        assert!(texts.iter().all(|text| text.len() <= 110), "{texts:?}");
        let kept: Vec<String> = texts.concat().lines().map(str::to_owned).collect();
        let last: Vec<String> = (50 - kept.len()..50).map(|number| format!("line {number:04}")).collect();
        assert!(kept.len() >= 10 && kept == last, "{kept:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
