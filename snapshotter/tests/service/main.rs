//! The snapshots service as containerd sees it: gRPC on a Unix socket, real mounts.

#![expect(clippy::unwrap_used, reason = "tests")]

mod crash;
mod support;
