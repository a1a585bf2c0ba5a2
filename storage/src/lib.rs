//! lazo: storage.
