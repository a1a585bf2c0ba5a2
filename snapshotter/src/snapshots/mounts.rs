//! From a snapshot and its parents to what containerd mounts.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::Error;
use crate::store::{Image, Owners, Record, Role};

/// A mount as containerd understands it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `bind` or `overlay`.
    pub kind: &'static str,
    /// Path, or `overlay`.
    pub source: String,
    /// Options as in fstab.
    pub options: Vec<String>,
}

/// What lies below a snapshot.
#[derive(Debug, Clone, Default)]
pub(super) struct Lower {
    /// Numbers of the snapshots with files, the topmost first.
    pub(super) plain: Vec<u64>,
    /// The lazo image below them.
    pub(super) image: Option<Base>,
}

/// A lazo image.
#[derive(Debug, Clone)]
pub(super) struct Base {
    /// Name of its bootstrap's snapshot.
    pub(super) name: String,
    /// Number of that.
    pub(super) id: u64,
    /// What it stands for.
    pub(super) image: Image,
}

impl Lower {
    /// What the parents hold, the topmost first, which is called `name`; `key` is whose they are.
    pub(super) fn of(key: &str, name: &str, parents: &[Record]) -> Result<Self, Error> {
        let mut lower = Self::default();
        let mut name = name;
        for parent in parents {
            match parent.role() {
                Role::Plain => lower.plain.push(parent.id),
                Role::Blob => return Err(Error::BareBlobs(key.to_owned())),
                Role::Bootstrap => {
                    let image = parent.image.clone().ok_or_else(|| Error::NoImage(key.to_owned()))?;
                    lower.image = Some(Base { name: name.to_owned(), id: parent.id, image });
                    break;
                }
            }
            name = &parent.parent;
        }
        Ok(lower)
    }
}

/// Options that every overlay gets here.
pub(super) fn overlay_options() -> Vec<String> {
    let mut options = Vec::new();
    if in_user_namespace() {
        // There, overlayfs may not use the attributes that it uses otherwise.
        options.push("userxattr".to_owned());
    }
    if Path::new("/sys/module/overlay/parameters/index").exists() {
        // With an index, layers could not be shared by several mounts.
        options.push("index=off".to_owned());
    }
    options
}

fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut numbers = map.split_whitespace();
    // The initial one maps all IDs to themselves.
    !map.is_empty() && [numbers.next(), numbers.next(), numbers.next()] != [Some("0"), Some("0"), Some("4294967295")]
}

/// Directories of a snapshot that can be written to.
#[derive(Debug)]
pub(super) struct Upper {
    pub(super) files: PathBuf,
    pub(super) work: PathBuf,
}

/// Files of its own, without parents.
pub(super) fn bind(directory: &Path, writable: bool, owners: Option<&Owners>) -> Mount {
    let mut options = shifted(owners);
    options.push(if writable { "rw" } else { "ro" }.to_owned());
    options.push("rbind".to_owned());
    Mount { kind: "bind", source: directory.display().to_string(), options }
}

/// Files of its own over those of its parents, or just those: `lower`, the topmost first, is not empty.
pub(super) fn stacked(upper: Option<&Upper>, lower: &[PathBuf], owners: Option<&Owners>, more: &[String]) -> Mount {
    if let (None, [only]) = (upper, lower) {
        return bind(only, false, owners);
    }
    let mut options = shifted(owners);
    if let Some(upper) = upper {
        options.push(format!("workdir={}", upper.work.display()));
        options.push(format!("upperdir={}", upper.files.display()));
    }
    let lower: Vec<String> = lower.iter().map(|path| path.display().to_string()).collect();
    options.push(format!("lowerdir={}", lower.join(":")));
    options.extend_from_slice(more);
    Mount { kind: "overlay", source: "overlay".to_owned(), options }
}

/// Has containerd shift owners.
fn shifted(owners: Option<&Owners>) -> Vec<String> {
    let Some(owners) = owners else { return Vec::new() };
    vec![format!("uidmap={}", owners.users), format!("gidmap={}", owners.groups)]
}
