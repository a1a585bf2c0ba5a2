//! containerd's snapshotter: the root file systems of lazo images, and of ordinary ones.
//!
//! ```text
//! cri          the kubelet's image requests, for the credentials in them
//! server       `lazo snapshotter`: sockets, start and end
//! authority    gRPC clients that take a socket's path for a host
//! caller       whether containerd sees the mounts of images
//! service      gRPC requests and answers, translated for the core
//! snapshots    the core: what containerd expects of a snapshotter
//!   store      metadata, in redb
//!   filter     containerd's filter language
//!   references by which names containerd knows an image
//!   images     image mounts, by orders to the node daemon
//! pull         `lazo pull`: brings an image into containerd, its blobs left out
//!   containerd containerd's API, as a client
//! proto        messages of containerd's API
//! labels       labels that containerd and lazo understand
//! ```

mod authority;
pub mod caller;
pub mod containerd;
mod credentials;
mod cri;
pub mod filter;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod images;
pub mod labels;
pub mod proto;
pub mod pull;
mod references;
mod server;
pub mod service;
pub mod snapshots;
pub mod store;

pub use server::{Error, run};
