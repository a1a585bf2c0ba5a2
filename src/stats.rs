//! `lazo stats`: what is being served, and how well.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant, SystemTime};

use indicatif::{HumanBytes, HumanDuration};
use lazo_daemon::live_mounts;
use lazo_daemon::node::client::Client;
use lazo_daemon::node::protocol::{Health, ImageInfo, MountInfo, Version};
use lazo_daemon::node::stats::{SourceStats, Stats};
use serde::Serialize;

use crate::global::Global;
use crate::output;
use crate::table::table;

/// Images and mounts shown at most, so that a view fits on a screen; `--json` has them all.
const MAX_ROWS: usize = 20;

/// Moves to the corner of the terminal and clears what is below.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Show what the node daemon and mounts of their own do: mounts, sources, cache, and who waits
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print everything once, as JSON
    #[arg(long)]
    json: bool,
    /// Seconds between two looks, on a terminal
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
}

impl Args {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let view = View::look(global)?;
        if self.json {
            return output::print(serde_json::to_string_pretty(&view)? + "\n");
        }
        if !std::io::stdout().is_terminal() {
            return output::print(view.text(None)?);
        }
        let interval = Duration::from_secs(self.interval);
        let mut before = view;
        output::print(format!("{CLEAR}{}", before.text(None)?))?;
        loop {
            std::thread::sleep(interval);
            let view = View::look(global)?;
            output::print(format!("{CLEAR}{}", view.text(Some(&before))?))?;
            std::io::stdout().flush()?;
            before = view;
        }
    }
}

/// Everything at a moment.
#[derive(Debug, Serialize)]
struct View {
    /// Missing if none runs.
    daemon: Option<Daemon>,
    /// Mounts with processes of their own.
    standalone: Vec<Standalone>,
    #[serde(skip)]
    when: Instant,
}

#[derive(Debug, Serialize)]
struct Daemon {
    version: Version,
    health: Health,
    stats: Stats,
    images: Vec<ImageInfo>,
    mounts: Vec<MountInfo>,
}

#[derive(Debug, Serialize)]
struct Standalone {
    mount_point: String,
    image: String,
    manifest: String,
    pid: u32,
    /// Missing if it does not answer.
    stats: Option<Stats>,
}

impl View {
    fn look(global: &Global) -> anyhow::Result<Self> {
        let daemon = Client::find(global.run_dir())?.map(|client| Daemon::look(&client)).transpose()?;
        let standalone = live_mounts(global.run_dir()).into_iter().map(|mount| Standalone {
            stats: mount.control.and_then(|socket| Client::at(socket).scrape().ok()),
            mount_point: mount.mount_point,
            image: mount.image,
            manifest: mount.manifest,
            pid: mount.pid,
        });
        Ok(Self { daemon, standalone: standalone.collect(), when: Instant::now() })
    }

    fn text(&self, before: Option<&Self>) -> anyhow::Result<String> {
        let seconds = before.map(|before| self.when.duration_since(before.when).as_secs_f64());
        let mut text = String::new();
        if let Some(daemon) = &self.daemon {
            let before = before.and_then(|before| before.daemon.as_ref());
            daemon.write(&mut text, before.map(|b| &b.stats).zip(seconds))?;
        }
        if !self.standalone.is_empty() {
            let before: BTreeMap<u32, &Stats> = before
                .iter()
                .flat_map(|view| &view.standalone)
                .filter_map(|mount| Some((mount.pid, mount.stats.as_ref()?)))
                .collect();
            writeln!(text, "{}", standalone(&self.standalone, &before, seconds))?;
        }
        if text.is_empty() {
            text.push_str("nothing is mounted, and no node daemon runs\n");
        }
        Ok(text)
    }
}

impl Daemon {
    fn look(client: &Client) -> anyhow::Result<Self> {
        Ok(Self {
            version: client.version()?,
            health: client.health()?,
            stats: client.stats()?,
            images: client.images()?,
            mounts: client.mounts()?,
        })
    }

    fn write(&self, text: &mut String, before: Option<(&Stats, f64)>) -> anyhow::Result<()> {
        let (health, stats) = (&self.health, &self.stats);
        writeln!(
            text,
            "node daemon {} · {} · up {} · {} restarts, {} upgrades · {} of memory",
            self.version.version,
            health.mode,
            age(health.since),
            health.restarts,
            health.upgrades,
            HumanBytes(stats.resident_bytes)
        )?;
        for problem in &health.problems {
            writeln!(text, "  ! {problem}")?;
        }
        let failed =
            if stats.failed_images > 0 { format!(", {} cannot be served", stats.failed_images) } else { String::new() };
        writeln!(text, "mounts    {} of {} images{failed}", stats.mounts, stats.images)?;
        write_figures(text, stats, before)?;
        if !stats.sources.is_empty() {
            write!(text, "\n{}", sources(&stats.sources))?;
        }
        if !self.images.is_empty() {
            write!(text, "\n{}", images(&self.images))?;
        }
        text.push('\n');
        Ok(())
    }
}

fn write_figures(text: &mut String, stats: &Stats, before: Option<(&Stats, f64)>) -> std::fmt::Result {
    let per_second = |of: fn(&Stats) -> u64| rate(of(stats), before.map(|(stats, seconds)| (of(stats), seconds)));
    writeln!(
        text,
        "read      {}{} · {} from the cache · {} reads failed",
        HumanBytes(stats.read_bytes),
        per_second(|s| s.read_bytes),
        percent(stats.cached_reads, stats.reads),
        stats.failed_reads
    )?;
    writeln!(
        text,
        "fetched   {}{} · for each byte read {} fetched, {} decoded",
        HumanBytes(stats.fetched_bytes),
        per_second(|s| s.fetched_bytes),
        factor(stats.fetched_per_read),
        factor(stats.decoded_per_read)
    )?;
    let mean = if stats.stalls > 0 {
        #[expect(clippy::cast_precision_loss, reason = "shown with a digit")]
        let mean = stats.stall_seconds * 1000.0 / stats.stalls as f64;
        format!(", {mean:.1} ms each")
    } else {
        String::new()
    };
    writeln!(text, "waiting   {} reads now · {} have waited{mean}", stats.stalled_readers, stats.stalls)?;
    let limit = match stats.cache_limit_bytes {
        0 => "no limit".to_owned(),
        limit => format!("limit {}", HumanBytes(limit)),
    };
    writeln!(
        text,
        "cache     {} · {limit} · {} given back",
        HumanBytes(stats.cache_bytes),
        HumanBytes(stats.evicted_bytes)
    )
}

fn sources(sources: &[SourceStats]) -> String {
    let head = ["SOURCE", "STATE", "REQUESTS", "RECEIVED", "ERRORS", "WRONG CHUNKS", "FIRST BYTE"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(sources.iter().map(|source| {
        [
            source.name.clone(),
            if source.up { "up".to_owned() } else { "left alone".to_owned() },
            source.requests.to_string(),
            HumanBytes(source.bytes).to_string(),
            source.errors.to_string(),
            source.wrong_chunks.to_string(),
            source.first_byte_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms")),
        ]
    }));
    table(&rows)
}

fn images(images: &[ImageInfo]) -> String {
    let mut rows = vec![["IMAGE", "MODE", "MOUNTS", "BLOBS", "OF THEM LOCAL", "STATE"].map(str::to_owned)];
    rows.extend(images.iter().take(MAX_ROWS).map(|image| {
        [
            image.image.clone(),
            image.mode.to_string(),
            image.mounts.to_string(),
            image.blobs.to_string(),
            image.plain_blobs.to_string(),
            image.failed.clone().unwrap_or_else(|| "good".to_owned()),
        ]
    }));
    table(&rows) + &more(images.len())
}

fn standalone(mounts: &[Standalone], before: &BTreeMap<u32, &Stats>, seconds: Option<f64>) -> String {
    let mut rows = vec![["MOUNT POINT", "IMAGE", "PROCESS", "READ", "FETCHED", "WAITING"].map(str::to_owned)];
    rows.extend(mounts.iter().take(MAX_ROWS).map(|mount| {
        let figures = mount.stats.as_ref().map(|stats| {
            let before = before.get(&mount.pid).zip(seconds);
            let with_rate = |of: fn(&Stats) -> u64| {
                let rate = rate(of(stats), before.map(|(stats, seconds)| (of(stats), seconds)));
                format!("{}{rate}", HumanBytes(of(stats)))
            };
            [with_rate(|s| s.read_bytes), with_rate(|s| s.fetched_bytes), stats.stalled_readers.to_string()]
        });
        let [read, fetched, waiting] = figures.unwrap_or_else(|| ["no answer", "-", "-"].map(str::to_owned));
        [mount.mount_point.clone(), mount.image.clone(), mount.pid.to_string(), read, fetched, waiting]
    }));
    table(&rows) + &more(mounts.len())
}

fn more(count: usize) -> String {
    match count.checked_sub(MAX_ROWS) {
        None | Some(0) => String::new(),
        Some(more) => format!("… and {more} more\n"),
    }
}

/// How much a second, if there was a look before.
fn rate(now: u64, before: Option<(u64, f64)>) -> String {
    // A process that was started again has counted less.
    let Some((then, seconds)) = before.filter(|(then, seconds)| *then <= now && *seconds > 0.0) else {
        return String::new();
    };
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shown with three digits"
    )]
    let rate = ((now - then) as f64 / seconds) as u64;
    format!(" ({}/s)", HumanBytes(rate))
}

fn percent(part: u64, whole: u64) -> String {
    let percent = u128::from(part) * 100;
    percent.checked_div(u128::from(whole)).map_or_else(|| "-".to_owned(), |percent| format!("{percent} %"))
}

fn factor(factor: Option<f64>) -> String {
    factor.map_or_else(|| "-".to_owned(), |factor| format!("{factor:.2}"))
}

fn age(since: u64) -> String {
    let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(since);
    HumanDuration(begin.elapsed().unwrap_or_default()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_shown_with_their_change() {
        let mut before = Stats::default();
        before.read_bytes = 1 << 20;
        let mut now = before.clone();
        (now.read_bytes, now.reads, now.cached_reads) = (3 << 20, 4, 3);
        (now.fetched_per_read, now.stalls, now.stall_seconds) = (Some(0.254), 2, 0.05);
        let mut text = String::new();
        write_figures(&mut text, &now, Some((&before, 2.0))).unwrap();
        assert!(text.contains("read      3.00 MiB (1.00 MiB/s) · 75 % from the cache · 0 reads failed\n"), "{text}");
        assert!(text.contains("for each byte read 0.25 fetched, - decoded"), "{text}");
        assert!(text.contains("2 have waited, 25.0 ms each"), "{text}");
        assert_eq!(rate(5, Some((9, 1.0))), "", "after a restart");
    }
}
