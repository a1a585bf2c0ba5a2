//! lazo: daemon.
