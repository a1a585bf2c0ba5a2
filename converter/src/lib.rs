//! lazo: converter.
