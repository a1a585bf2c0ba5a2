//! lazo: registry.
