//! lazo: format.
