//! A bound on how many log lines of a kind are written.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

/// Lines of a kind in one [`WINDOW`]. Enough to see which files and sources an outage hits; at 300 bytes a line and with all
/// kinds at their bound, a log grows by 1 KiB/s.
const LINES: u32 = 10;

/// After the first line, how long it takes until [`LINES`] more may be written.
const WINDOW: Duration = Duration::from_secs(10);

/// Lets some lines pass and counts the others; that count is a line of its own when the window has passed, or with the last
/// owner.
#[derive(Debug)]
pub(crate) struct Lines {
    /// What was not written, for the line that counts it.
    what: &'static str,
    runtime: Handle,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    end: Option<Instant>,
    written: u32,
    suppressed: u64,
}

impl Lines {
    pub(crate) fn new(what: &'static str, runtime: Handle) -> Self {
        Self { what, runtime, window: Mutex::default() }
    }

    /// Whether a line may be written now.
    pub(crate) fn admit(self: &Arc<Self>) -> bool {
        let now = Instant::now();
        let mut window = self.lock();
        let end = match window.end {
            Some(end) if now < end => end,
            _ => {
                self.tell(&mut window);
                *window = Window { end: Some(now + WINDOW), ..Window::default() };
                now + WINDOW
            }
        };
        if window.written < LINES {
            window.written += 1;
            return true;
        }
        window.suppressed += 1;
        if window.suppressed == 1 {
            let lines = Arc::downgrade(self);
            self.runtime.spawn(async move {
                tokio::time::sleep_until(end).await;
                if let Some(lines) = lines.upgrade() {
                    lines.tell(&mut lines.lock());
                }
            });
        }
        false
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, window: &mut Window) {
        let suppressed = std::mem::take(&mut window.suppressed);
        if suppressed > 0 {
            tracing::warn!(suppressed, "{}", self.what);
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let mut window = std::mem::take(self.window.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.tell(&mut window);
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// What the log has got.
    #[derive(Debug, Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        fn take(&self) -> Vec<String> {
            let text = String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap();
            text.lines().map(str::to_owned).collect()
        }
    }

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log() -> (Log, tracing::subscriber::DefaultGuard) {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).without_time();
        (log, tracing::subscriber::set_default(subscriber.with_target(false).finish()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_a_few_lines_and_a_count() {
        let (log, _default) = log();
        let lines = Arc::new(Lines::new("more of these", Handle::current()));
        let admitted = (0..64).filter(|_| lines.admit()).count();
        assert_eq!(admitted, LINES as usize);
        assert_eq!(log.take(), Vec::<String>::new());
        tokio::time::sleep(WINDOW + Duration::from_millis(1)).await;
        assert_eq!(log.take(), [" WARN more of these suppressed=54"]);
        assert!(lines.admit(), "a new window");
        tokio::time::sleep(2 * WINDOW).await;
        assert_eq!(log.take(), Vec::<String>::new(), "nothing to tell");
        assert_eq!((0..64).filter(|_| lines.admit()).count(), LINES as usize);
        drop(lines);
        assert_eq!(log.take(), [" WARN more of these suppressed=54"], "told at the end at the latest");
    }
}
