//! Signals that ask for the end.

use std::io;
use std::sync::mpsc::Sender;
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

use super::Event;

/// Sends an event for each signal that asks for the end.
pub(super) fn watch_signals(events: Sender<Event>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let guard = runtime.enter();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    drop(guard);
    let watch = move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    _ = hangup.recv() => {}
                }
                if events.send(Event::Signal).is_err() {
                    return;
                }
            }
        });
    };
    thread::Builder::new().name("lazo-signals".into()).spawn(watch).map(drop)
}
