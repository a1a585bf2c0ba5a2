//! The server, with a small node behind it.
