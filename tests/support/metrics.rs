//! Reading a mount's metrics.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{Scratch, run};

/// How long anything may take to be seen.
const LIMIT: Duration = Duration::from_secs(30);

/// Waits until `look` finds something.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < LIMIT, "{what}: not in {LIMIT:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// What curl gets at a socket.
pub(crate) fn curl(socket: &Path, url: &str, more: &[&str]) -> String {
    let socket = socket.to_str().expect("a plain path");
    run("curl", ["--silent", "--show-error", "--max-time", "10", "--unix-socket", socket, url].iter().chain(more))
}

/// The metrics of the one mount of a scratch directory.
pub(crate) fn scrape(scratch: &Scratch) -> String {
    curl(&one(scratch, "mounts", ".sock"), "http://lazo/metrics", &[])
}

/// The value of a sample, as `NAME` or `NAME{LABEL="VALUE"}`.
pub(crate) fn value(text: &str, sample: &str) -> f64 {
    let found = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {sample} in:\n{text}")).parse().expect("a number")
}

/// The one file in a directory of the run directory whose name ends so.
pub(crate) fn one(scratch: &Scratch, directory: &str, ending: &str) -> PathBuf {
    let entries = fs::read_dir(scratch.join("run").join(directory)).expect("the directory");
    let mut paths = entries.map(|entry| entry.expect("an entry").path());
    paths.find(|path| path.to_string_lossy().ends_with(ending)).unwrap_or_else(|| panic!("no *{ending}"))
}

/// A metric, all its labels together.
pub(crate) fn sum(text: &str, name: &str) -> f64 {
    let samples = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    let mut values =
        samples.map(|line| line.rsplit_once(' ').expect("a value").1.parse::<f64>().expect("a number")).peekable();
    assert!(values.peek().is_some(), "no {name} in:\n{text}");
    values.sum()
}
