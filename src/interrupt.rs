//! Stopping a command so that it clears up behind itself.

use tokio::signal::unix::{SignalKind, signal};

/// Ends with the name of the first signal that asks the command to stop.
pub(crate) async fn interrupted() -> &'static str {
    let kinds =
        [("SIGINT", SignalKind::interrupt()), ("SIGTERM", SignalKind::terminate()), ("SIGHUP", SignalKind::hangup())];
    let mut waiting = tokio::task::JoinSet::new();
    for (name, kind) in kinds {
        // A signal that cannot be waited for keeps its default: it ends the process.
        if let Ok(mut signal) = signal(kind) {
            waiting.spawn(async move { signal.recv().await.map(|()| name) });
        }
    }
    while let Some(received) = waiting.join_next().await {
        if let Ok(Some(name)) = received {
            return name;
        }
    }
    std::future::pending().await
}
