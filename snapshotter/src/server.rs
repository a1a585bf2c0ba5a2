//! `lazo snapshotter`: sockets, start and end.
//!
//! The service manager can hold the sockets, so that a call during a restart waits rather than fails: containerd gives up at once
//! when nobody listens.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lazo_daemon::bind_unix;
use lazo_daemon::node::config::{CREDENTIALS, Config};
use lazo_daemon::node::{inherited, make_run_dir};
use rustix::fs::Mode;
use rustix::process::umask;
use sd_notify::NotifyState;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::credentials::Credentials;
use crate::images::Images;
use crate::references::References;
use crate::snapshots::{self, Snapshots};
use crate::{cri, service};

/// Names of sockets that the service manager holds (`FileDescriptorName=`), and of ours in the run directory.
const SNAPSHOTTER: &str = "snapshotter";
const CRI: &str = "cri";

/// Snapshots and their metadata, below the state directory.
const SNAPSHOTS: &str = "snapshots";

/// The snapshotter cannot start, or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or socket.
    #[error("cannot {action}")]
    Io {
        /// What failed, on what.
        action: String,
        /// Cause.
        source: io::Error,
    },
    /// The snapshots.
    #[error(transparent)]
    Snapshots(#[from] snapshots::Error),
    /// gRPC.
    #[error("cannot serve containerd")]
    Serve(#[from] tonic::transport::Error),
}

fn io_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    |source| Error::Io { action: action.into(), source }
}

/// Serves containerd until a signal asks to stop.
///
/// # Errors
/// When the sockets or the snapshots cannot be used, such as when another snapshotter uses them.
pub fn run(config: &Config) -> Result<(), Error> {
    // Snapshots' roots get their modes one by one; all else is for nobody but this process.
    umask(Mode::RWXG | Mode::RWXO);
    let mut given = inherited().map_err(io_error("use the sockets of the service manager"))?;
    let run_dir = make_run_dir(&config.run_dir).map_err(io_error(format!("make {}", config.run_dir.display())))?;
    let socket = config.snapshotter_socket.clone().unwrap_or_else(|| run_dir.join("snapshotter.sock"));
    let listener = listener(&mut given, SNAPSHOTTER, Some(&socket))?;
    let cri = listener_if(&mut given, CRI, config.cri_socket.as_deref())?;
    let credentials = Arc::new(Credentials::new(config.state_dir.join(CREDENTIALS)));
    let images = Images::new(&run_dir).with_logins(Arc::clone(&credentials));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(io_error("start threads"))?;
    runtime.block_on(async {
        let snapshots = Snapshots::open(&config.state_dir.join(SNAPSHOTS), images.clone())?;
        let references = References::new(config.containerd_socket.clone(), Arc::clone(&snapshots), images);
        let watching = Arc::clone(&references);
        tokio::spawn(async move { watching.watch().await });
        if let Some(cri) = cri {
            let cri = tokio_listener(cri)?;
            tokio::spawn(cri::serve(cri, config.containerd_socket.clone(), credentials, references));
        }
        let listener = tokio_listener(listener)?;
        let stop = stop()?;
        tell(&[NotifyState::Ready]);
        tracing::info!(version = env!("CARGO_PKG_VERSION"), socket = %socket.display(), "serving containerd");
        service::serve(listener, snapshots, stop).await?;
        Ok(())
    })
}

fn listener_if(
    given: &mut BTreeMap<String, OwnedFd>,
    name: &str,
    path: Option<&Path>,
) -> Result<Option<StdUnixListener>, Error> {
    match (given.contains_key(name), path) {
        (false, None) => Ok(None),
        _ => listener(given, name, path).map(Some),
    }
}

/// The service manager's socket of this name; or one of our own, which replaces one that nobody listens at.
fn listener(given: &mut BTreeMap<String, OwnedFd>, name: &str, path: Option<&Path>) -> Result<StdUnixListener, Error> {
    if let Some(file) = given.remove(name) {
        return Ok(file.into());
    }
    let path = path.map_or_else(PathBuf::new, Path::to_owned);
    bind(&path).map_err(io_error(format!("listen at {}", path.display())))
}

/// For root alone: whoever talks to it can read and write snapshots. A directory that is made for it is like the run directory.
fn bind(path: &Path) -> io::Result<StdUnixListener> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o711).create(dir)?;
    }
    bind_unix(path, Mode::RUSR | Mode::WUSR)
}

fn tokio_listener(listener: StdUnixListener) -> Result<UnixListener, Error> {
    let tokio = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
    tokio.map_err(io_error("use a socket"))
}

/// Ends when a signal asks to.
fn stop() -> Result<impl Future<Output = ()>, Error> {
    let failed = || io_error("wait for signals");
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed())?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tell(&[NotifyState::Stopping]);
        tracing::info!("ending after the calls that are under way");
    })
}

fn tell(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}
