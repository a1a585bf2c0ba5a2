//! End-to-end tests: the binary, real registries, the kernel. They need root and what scripts/install-deps installs.

mod cache;
mod check;
mod containerd;
mod convert;
mod costs;
mod crash;
mod daemon;
mod demo;
mod fairness;
mod faults;
mod hostile;
mod images;
mod interop;
mod lazy;
mod load;
mod logins;
mod metrics;
mod mirrors;
mod mount;
mod neighbours;
mod options;
mod references;
mod rights;
mod semantics;
#[path = "../support/mod.rs"]
mod support;
mod survive;
mod systemd;
mod tree;
mod verified;
mod whole;
