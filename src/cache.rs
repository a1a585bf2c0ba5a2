//! `lazo cache`: what the cache holds, and making room in it. Never disturbs a mount.

use std::fmt::Write as _;
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use indicatif::{HumanBytes, HumanDuration};
use lazo_storage::cache::admin::{CachedBlob, Inventory, KeptImage, Removed, Selection};
use lazo_storage::cache::{LimitError, parse_size};
use serde::Serialize;

use crate::global::Global;
use crate::output;
use crate::table::table;
use crate::users::{self, User};

/// Hex digits of a digest in lists, as docker shows them.
const SHOWN_DIGITS: usize = 12;

/// Show the cached blobs, or remove some; what a mount uses stays
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the cached blobs, the one used last first
    Ls {
        /// Print it as JSON, with whole digests and sizes in bytes
        #[arg(long)]
        json: bool,
    },
    /// Remove blobs; or images, with those of their blobs that no other cached image has
    Rm {
        /// Digests of blobs or images, or the beginnings of some
        #[arg(required = true, value_name = "DIGEST")]
        digests: Vec<String>,
    },
    /// Remove what no mount uses, and what images have no more use for
    Prune {
        /// Only until so much is left, what was used last staying longest: bytes, or a number with K, M, G or T
        #[arg(long, value_name = "SIZE", value_parser = size)]
        to: Option<u64>,
        /// Print what was removed as JSON
        #[arg(long)]
        json: bool,
    },
}

fn size(text: &str) -> Result<u64, LimitError> {
    parse_size(text)
}

impl Args {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let inventory = Inventory::read(global.state_dir())?;
        let mounts = users::users(global)?;
        match self.command {
            Command::Ls { json: true } => output::print(json(&List::of(&inventory, &mounts))?),
            Command::Ls { json: false } => output::print(list(&inventory, &mounts)?),
            Command::Rm { digests } => remove(&inventory, &mounts, &digests),
            Command::Prune { to, json } => prune(global, &inventory, &mounts, to, json),
        }
    }
}

fn json(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

#[derive(Serialize)]
struct List<'a> {
    disk_bytes: u64,
    blobs: Vec<Item<'a>>,
}

#[derive(Serialize)]
struct Item<'a> {
    #[serde(flatten)]
    blob: &'a CachedBlob,
    /// Mount points of those who may use it: all mounts of images that have it.
    mounts: Vec<&'a str>,
}

impl<'a> List<'a> {
    fn of(inventory: &'a Inventory, mounts: &'a [User]) -> Self {
        let item = |blob| Item { blob, mounts: users(blob, mounts).map(|mount| &*mount.mount_point).collect() };
        Self { disk_bytes: inventory.disk_bytes(), blobs: inventory.blobs.iter().map(item).collect() }
    }
}

/// The mounts of images that have a blob.
fn users<'a>(blob: &'a CachedBlob, mounts: &'a [User]) -> impl Iterator<Item = &'a User> {
    mounts.iter().filter(|mount| blob.in_use && blob.images.contains(&mount.manifest))
}

fn list(inventory: &Inventory, mounts: &[User]) -> anyhow::Result<String> {
    let mut rows = vec![["BLOB", "ON DISK", "OF", "CHUNKS", "LAST USED", "IN USE BY", "IMAGES"].map(str::to_owned)];
    rows.extend(inventory.blobs.iter().map(|blob| row(blob, mounts)));
    let mut text = table(&rows);
    writeln!(text, "{} in {} blobs", HumanBytes(inventory.disk_bytes()), inventory.blobs.len())?;
    Ok(text)
}

fn row(blob: &CachedBlob, mounts: &[User]) -> [String; 7] {
    let points: Vec<&str> = users(blob, mounts).map(|mount| &*mount.mount_point).collect();
    let users = match (blob.in_use, points.is_empty()) {
        (false, _) => "-".to_owned(),
        (true, true) => "a mount".to_owned(),
        (true, false) => points.join(", "),
    };
    let images: Vec<&str> = blob.images.iter().map(|digest| short(digest)).collect();
    [
        short(&blob.digest).to_owned(),
        HumanBytes(blob.disk_bytes).to_string(),
        HumanBytes(blob.device_bytes).to_string(),
        format!("{} %", blob.complete_percent),
        ago(blob.last_used),
        users,
        if images.is_empty() { "-".to_owned() } else { images.join(", ") },
    ]
}

fn short(digest: &str) -> &str {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.get(..SHOWN_DIGITS).unwrap_or(hex)
}

fn ago(time: SystemTime) -> String {
    match time.elapsed() {
        Ok(age) if age.as_secs() > 0 => format!("{} ago", HumanDuration(age)),
        _ => "now".to_owned(),
    }
}

fn remove(inventory: &Inventory, mounts: &[User], names: &[String]) -> anyhow::Result<()> {
    let mut refused = Vec::new();
    for name in names {
        match remove_one(inventory, mounts, name) {
            Ok(removed) => output::print(format!("{name}: {}\n", describe(&removed)))?,
            Err(error) => refused.push(output::chain(&error)),
        }
    }
    if refused.is_empty() { Ok(()) } else { bail!("{}", refused.join("; ")) }
}

fn remove_one(inventory: &Inventory, mounts: &[User], name: &str) -> anyhow::Result<Removed> {
    let selection = inventory.select(name)?;
    if let Some(user) = user_of(&selection, mounts) {
        bail!("{name} is in use by {user}; unmount it first: lazo umount DIR");
    }
    let removed = selection.remove().with_context(|| format!("cannot remove {name}"))?;
    if removed.blobs < selection.blobs.len() as u64 {
        bail!("{name} is in use by a mount that has just been made");
    }
    Ok(removed)
}

/// Who uses something of what is to be removed.
fn user_of(selection: &Selection<'_>, mounts: &[User]) -> Option<String> {
    let describe = |mount: &User| format!("the mount {} ({})", mount.mount_point, mount.server);
    let image = |image: &&KeptImage| mounts.iter().find(|mount| mount.manifest == image.digest);
    if let Some(mount) = selection.images.iter().find_map(image) {
        return Some(describe(mount));
    }
    let blob = selection.blobs.iter().find(|blob| blob.in_use)?;
    Some(users(blob, mounts).next().map_or_else(|| "a mount".to_owned(), describe))
}

fn describe(removed: &Removed) -> String {
    let count = |number, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    format!(
        "{} freed, {} and the metadata of {} removed",
        HumanBytes(removed.bytes),
        count(removed.blobs, "blob"),
        count(removed.images, "image")
    )
}

#[derive(Serialize)]
struct Pruned {
    removed: Removed,
    disk_bytes: u64,
    in_use_bytes: u64,
}

fn prune(
    global: &Global,
    inventory: &Inventory,
    mounts: &[User],
    to: Option<u64>,
    as_json: bool,
) -> anyhow::Result<()> {
    let mounted: Vec<String> = mounts.iter().map(|mount| mount.manifest.clone()).collect();
    let removed = inventory.prune(to.unwrap_or(0), &mounted)?;
    let left = Inventory::read(global.state_dir())?;
    let in_use_bytes = left.blobs.iter().filter(|blob| blob.in_use).map(|blob| blob.disk_bytes).sum();
    let pruned = Pruned { removed, disk_bytes: left.disk_bytes(), in_use_bytes };
    let (left, used) = (HumanBytes(pruned.disk_bytes), HumanBytes(pruned.in_use_bytes));
    output::print(if as_json {
        json(&pruned)?
    } else {
        format!("{}; {left} left, {used} of it in use\n", describe(&pruned.removed))
    })?;
    match to {
        Some(to) if pruned.disk_bytes > to => {
            bail!("{left} are more than {}: the rest is in use by mounts, and stays", HumanBytes(to))
        }
        _ => Ok(()),
    }
}
