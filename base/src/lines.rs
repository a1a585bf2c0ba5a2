//! A bound on log lines of a kind.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines of a kind in one [`WINDOW`]. Enough to see what is concerned; the rest is more of the same.
const LINES: u32 = 10;

/// After the first line, how long it takes until [`LINES`] more may be written.
const WINDOW: Duration = Duration::from_secs(10);

/// Lets some lines pass and counts the others. For lines that a busy reader, a bad image or a registry that is away could cause without end.
#[derive(Debug, Default)]
pub struct Lines(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    begin: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Lines {
    /// None written yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Window { begin: None, written: 0, left_out: 0 }))
    }

    /// Has a line written by `write` if one may be written now, and counts it otherwise. `write` is given how many were left out since the
    /// last one, if there were any.
    pub fn write(&self, write: impl FnOnce(Option<u64>)) {
        if let Some(left_out) = self.admit(Instant::now()) {
            write(Some(left_out).filter(|left_out| *left_out > 0));
        }
    }

    fn admit(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.begin.is_none_or(|begin| now.saturating_duration_since(begin) >= WINDOW) {
            (window.begin, window.written) = (Some(now), 0);
        }
        if window.written >= LINES {
            window.left_out += 1;
            return None;
        }
        window.written += 1;
        Some(std::mem::take(&mut window.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_and_a_count() {
        let (lines, begin) = (Lines::new(), Instant::now());
        let written = (0..64).filter(|_| lines.admit(begin).is_some()).count();
        assert_eq!(written, LINES as usize);
        assert_eq!(lines.admit(begin + WINDOW), Some(54), "what was left out is told with the next line");
        assert_eq!(lines.admit(begin + WINDOW), Some(0));
        let mut told = Vec::new();
        Lines::new().write(|left_out| told.push(left_out));
        assert_eq!(told, [None]);
    }
}
