//! A mount that a running node daemon makes.

use std::path::{Path, PathBuf};

use anyhow::bail;
use lazo_daemon::Restrictions;
use lazo_daemon::node::client::Client;
use lazo_daemon::node::protocol::{MountRequest, RegistryOptions, Writable};
use lazo_storage::cache::parse_size;

use super::{Args, CACHE_LIMIT, restrictions};
use crate::global::Global;

/// What only the node daemon can do.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "With the node daemon only")]
pub(super) struct OfDaemon {
    /// Make it writable: what is written goes to an existing DIR of your own, below upper, and stays there, or to memory, of SIZE at most, and goes with the mount
    #[arg(long, value_name = "DIR|tmpfs[:SIZE]", value_parser = writable)]
    rw: Option<Writable>,
    /// Show files as other users', for user namespaces: INSIDE:OUTSIDE:COUNT, several joined by +; groups as users unless given
    #[arg(long, value_name = "UIDS[,GIDS]")]
    map: Option<String>,
}

impl OfDaemon {
    /// The first of them that is set, if any, as the user wrote it.
    pub(super) fn first(&self) -> Option<&'static str> {
        let set = [(self.rw.is_some(), "--rw"), (self.map.is_some(), "--map")];
        set.into_iter().find_map(|(set, name)| set.then_some(name))
    }
}

fn writable(text: &str) -> anyhow::Result<Writable> {
    match text.split_once(':') {
        None if text == "tmpfs" => Ok(Writable::Tmpfs { size: None }),
        Some(("tmpfs", size)) => match parse_size(size)? {
            0 => bail!("nothing could be written"),
            size => Ok(Writable::Tmpfs { size: Some(size) }),
        },
        _ if text.is_empty() => bail!("give a directory, tmpfs, or tmpfs:SIZE"),
        _ => Ok(Writable::Directory(std::path::absolute(text)?)),
    }
}

/// Has the daemon make the mount.
pub(super) fn mount(args: &Args, global: &Global, daemon: &Client) -> anyhow::Result<()> {
    if let Some(option) = daemons_own(args) {
        bail!(
            "{option} is not for a single mount when a node daemon runs, as it does at {}: set it in the daemon's \
             configuration, or let the mount have a process of its own with --standalone",
            daemon.socket().display()
        );
    }
    global.refuse_creds("the node daemon")?;
    let global = global.absolute()?;
    if let Some(dir) = global.given_state_dir() {
        let version = daemon.version()?;
        if version.state_dir != dir {
            bail!(
                "the node daemon keeps its data in {}, not in {}; leave out --state-dir, or use --standalone",
                version.state_dir.display(),
                dir.display()
            );
        }
    }
    daemon.mount(&request(args, &global)?)?;
    Ok(())
}

/// The first option that belongs to the process which serves, if any is set.
fn daemons_own(args: &Args) -> Option<&'static str> {
    // One that is in the environment is meant for the processes that take it.
    let environment = std::env::var(CACHE_LIMIT).ok().and_then(|limit| limit.parse().ok());
    let limit = args.data.cache_limit.is_some() && args.data.cache_limit != environment;
    let set = [
        (args.foreground, "--foreground"),
        (args.metrics.is_some(), "--metrics"),
        (limit, "--cache-limit"),
        (args.data.background_rate.is_some(), "--background-rate"),
        (args.data.background_requests.is_some(), "--background-requests"),
    ];
    set.into_iter().find_map(|(set, name)| set.then_some(name))
}

fn request(args: &Args, global: &Global) -> anyhow::Result<MountRequest> {
    let Restrictions { nosuid, nodev, noexec } = restrictions(&args.mount_options);
    Ok(MountRequest {
        platform: args.platform.as_ref().map(ToString::to_string),
        mode: args.mode.into(),
        prefetch: args.data.prefetch.map(Into::into),
        writable: args.of_daemon.rw.clone(),
        map: args.of_daemon.map.clone(),
        nosuid,
        nodev,
        noexec,
        sources: args.data.source.iter().map(|source| source.text.clone()).collect(),
        outage_limit: args.data.outage_limit,
        registry: RegistryOptions {
            plain_http: global.plain_http,
            insecure: global.insecure,
            ca: global.ca.clone(),
            authfile: global.authfile.clone().or_else(credentials),
            token_file: global.token_file.clone(),
            hosts_dir: global.hosts_dir.clone(),
        },
        ..MountRequest::new(args.image()?.to_string(), lazo_daemon::check_mount_point(&args.dir)?)
    })
}

/// This user's credentials file, which the daemon's own environment does not lead to. What is missing is left to the daemon.
fn credentials() -> Option<PathBuf> {
    let named = std::env::var_os("REGISTRY_AUTH_FILE").filter(|value| !value.is_empty()).map(PathBuf::from);
    let usual = || lazo_registry::login_files().into_iter().find(|path| is_readable(path));
    named.or_else(usual).and_then(|path| std::path::absolute(path).ok())
}

fn is_readable(path: &Path) -> bool {
    std::fs::File::open(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_to_write_to() {
        assert_eq!(writable("tmpfs").unwrap(), Writable::Tmpfs { size: None });
        assert_eq!(writable("tmpfs:2M").unwrap(), Writable::Tmpfs { size: Some(2 << 20) });
        assert_eq!(writable("/a:b").unwrap(), Writable::Directory("/a:b".into()));
        assert_eq!(writable("./tmpfs").unwrap(), Writable::Directory(std::path::absolute("tmpfs").unwrap()));
        for wrong in ["", "tmpfs:", "tmpfs:0", "tmpfs:x"] {
            assert!(writable(wrong).is_err(), "{wrong}");
        }
    }
}
