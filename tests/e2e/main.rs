//! End-to-end tests: the binary, real registries, the kernel. They need root and what scripts/install-deps installs.

mod cache;
mod check;
mod convert;
mod demo;
mod faults;
mod hostile;
mod interop;
mod lazy;
mod metrics;
mod mount;
mod options;
#[path = "../support/mod.rs"]
mod support;
mod tree;
mod verified;
