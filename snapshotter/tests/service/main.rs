//! The snapshots service as containerd sees it: gRPC on a Unix socket, real mounts.

#![expect(clippy::unwrap_used, reason = "tests")]

mod cleanup;
mod crash;
mod files;
mod lazy;
mod life;
mod metadata;
mod owners;
mod support;
