//! Who has images mounted on this machine: the node daemon, and processes with a mount of their own.

use lazo_daemon::live_mounts;
use lazo_daemon::node::client::Client;

use crate::global::Global;

/// A mount, whoever serves it.
#[derive(Debug, Clone)]
pub(crate) struct User {
    /// Where it is.
    pub(crate) mount_point: String,
    /// Digest of its image's manifest.
    pub(crate) manifest: String,
    /// Who serves it, for messages.
    pub(crate) server: String,
}

/// All mounts that the run directory knows of.
pub(crate) fn users(global: &Global) -> anyhow::Result<Vec<User>> {
    let mut users: Vec<User> = live_mounts(global.run_dir())
        .into_iter()
        .map(|mount| User {
            mount_point: mount.mount_point,
            manifest: mount.manifest,
            server: format!("process {}", mount.pid),
        })
        .collect();
    if let Some(daemon) = Client::find(global.run_dir())? {
        users.extend(daemon.mounts()?.into_iter().map(|mount| User {
            mount_point: mount.mount_point.display().to_string(),
            manifest: mount.manifest,
            server: "the node daemon".to_owned(),
        }));
    }
    Ok(users)
}
