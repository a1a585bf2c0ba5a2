//! Talks to a running daemon.
