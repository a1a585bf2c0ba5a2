//! What a daemon that was killed has left, taken away where no daemon is to come after it.
//!
//! A service manager may have kept the FUSE files. Then readers wait for the next daemon, and so does whoever looks into `RUN/blobs`,
//! such as a `rm -r` of the run directory.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use super::ending::lower_dirs;
use super::state::{ImageRecord, MountRecord, State};
use crate::error::{Error, Result};
use crate::kernel::table::{self, Line};
use crate::node::handover;
use crate::node::mounter::{IMAGES, Order, carry_out_here};

/// Whether no daemon's process lives that uses a run directory. Who may not see that is told that one does.
#[must_use]
pub fn is_abandoned(run_dir: &Path) -> bool {
    handover::alone(run_dir).is_ok_and(|alone| alone.is_some())
}

/// Takes away all mounts of a run directory that no daemon serves, and ends their connections with the kernel. Whoever still reads
/// gets I/O errors. Gives where something was mounted.
///
/// # Errors
/// When a daemon lives, or this process may not do it.
pub fn take_away(run_dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = || Error::io::<io::Error>(format!("take away what is left in {}", run_dir.display()));
    let run_dir = &std::fs::canonicalize(run_dir).map_err(failed())?;
    let lives = || io::Error::other("its daemon lives");
    let _alone = handover::alone(run_dir).map_err(failed())?.ok_or_else(lives).map_err(failed())?;
    let state = State::open(run_dir).map_err(failed())?;
    let images: Vec<ImageRecord> = state.load().map_err(failed())?;
    let mounts: Vec<MountRecord> = state.load().map_err(failed())?;
    let table = std::fs::read("/proc/self/mountinfo").map_err(failed())?;
    let lines: Vec<Line> = table::lines(&table).collect();
    let orders = orders(run_dir, &lines, &images, &mounts);
    let mut gone = Vec::new();
    for (path, result) in carry_out_here(run_dir, orders).map_err(failed())? {
        match result {
            Ok(_) if lines.iter().any(|line| line.path == path) => gone.push(path),
            Ok(_) => {}
            Err(refusal) => tracing::warn!(%refusal, "a mount stays"),
        }
    }
    images.iter().for_each(|image| state.remove::<ImageRecord>(image.slot));
    mounts.iter().for_each(|mount| state.remove::<MountRecord>(mount.id));
    Ok(gone)
}

/// FUSE mounts come first: what lies above them may wait for an answer.
fn orders(run_dir: &Path, lines: &[Line], images: &[ImageRecord], mounts: &[MountRecord]) -> Vec<Order> {
    let overlays: Vec<Vec<PathBuf>> =
        lines.iter().filter(|line| line.fs_type == "overlay").map(|line| lower_dirs(&line.options)).collect();
    let fuse = |line: &&Line| line.fs_type == "fuse.lazo";
    let points: HashSet<&Path> = mounts.iter().map(|mount| mount.mount_point.as_path()).collect();
    let below = |line: &&Line| (line.path.starts_with(run_dir) && line.path != run_dir) || points.contains(&*line.path);
    let trees = images.iter().filter_map(|image| {
        let connection = image.connection?;
        let path = run_dir.join(IMAGES).join(image.slot.to_string());
        // The number may be another mount's by now, here or in another mount namespace. If nothing of ours has it, what keeps the tree
        // alive is an overlay of it.
        let device = format!("0:{connection}");
        let same: Vec<&Line> = lines.iter().filter(|line| line.device == device).collect();
        let ours = same.iter().all(|line| fuse(line) && below(line));
        let own = |mount: &MountRecord| mount.slot == image.slot;
        let places: HashSet<&Path> =
            mounts.iter().filter(|mount| own(mount)).map(|m| m.mount_point.as_path()).collect();
        let used = || overlays.iter().any(|lower| lower.iter().any(|dir| *dir == path || places.contains(&**dir)));
        (ours && (!same.is_empty() || used()))
            .then(|| Order::Abort { path: path.clone(), connection: Some(connection) })
    });
    let connections = lines.iter().rev().filter(fuse).filter(below);
    let others = lines.iter().rev().filter(|line| !fuse(line)).filter(below);
    trees
        .chain(connections.map(|line| Order::Abort { path: line.path.clone(), connection: None }))
        .chain(others.map(|line| Order::Unmount { path: line.path.clone(), lazy: true }))
        .collect()
}
