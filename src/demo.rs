//! `lazo demo`: the whole thing in one command, with nothing but this machine.
//!
//! Builds an image out of the machine's own files, converts it, serves both through a registry that is slow in a stated
//! way, and starts a program of the image twice: after a full pull, and lazily. Convert and mount are this binary's own
//! subcommands, run as a user would run them.

mod image;
mod link;
mod measure;
mod mounted;
mod pick;
mod program;
mod registry;
mod report;
mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::global::Global;
use crate::interrupt::interrupted;
use crate::output;
use link::Link;
use measure::Bench;
use mounted::Lazo;
use program::Program;
use registry::Registry;
use report::{Conversion, Report};

/// How long tasks may take to end when the demo is over or interrupted.
const SHUTDOWN: Duration = Duration::from_secs(10);
/// Repositories of the embedded registry, each a layout directory of the same name.
const ORIGINAL: &str = "original";
const LAZY: &str = "lazy";
const PREFETCHED: &str = "prefetched";
/// Tag of the converted images.
const TAG: &str = "lazo";

/// Show what lazy loading gains, with nothing but this machine: about a minute, and nothing is left behind
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Bandwidth of the registry, shared by all its connections, in Mbit/s
    #[arg(long, value_name = "MBIT", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    bandwidth: u64,
    /// Time the registry takes before each reply, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    latency: u64,
    /// Keep the images and the unpacked tree, and say where they are
    #[arg(long)]
    keep: bool,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(crate) fn run(self, _global: &Global) -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            bail!("the demo mounts an image and changes its root directory: run it as root");
        }
        let mut work = tempfile::Builder::new().prefix("lazo-demo-").tempdir().context("make a temporary directory")?;
        work.disable_cleanup(self.keep);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start tokio")?;
        let result = runtime.block_on(async {
            tokio::select! {
                result = self.demonstrate(work.path()) => result,
                name = interrupted() => bail!("stopped by {name}"),
            }
        });
        // Threads that still write into the directory end first.
        runtime.shutdown_timeout(SHUTDOWN);
        if self.keep {
            eprintln!("kept: {}", work.path().display());
        } else {
            let path = work.path().to_path_buf();
            work.close().with_context(|| format!("remove {}", path.display()))?;
        }
        let report = result?;
        if self.json { output::print(format_args!("{}\n", report.json())) } else { output::print(report) }
    }

    async fn demonstrate(&self, work: &Path) -> Result<Report> {
        let program = Program::choose()?;
        let layouts = [ORIGINAL, LAZY, PREFETCHED].map(|name| (name.to_owned(), work.join(name)));
        // A megabit is 125,000 bytes.
        let link = Link::new(Duration::from_millis(self.latency), self.bandwidth * 125_000);
        let registry = Registry::start(BTreeMap::from(layouts), link).await.context("start the registry")?;
        let bench = Bench { registry: &registry, program, work };
        let lazo = Lazo::below(work)?;

        step(&format!("building an image of this machine's files, to run {}", program.interpreter));
        let built = build(work.join(ORIGINAL), program).await?;
        step("converting it");
        let conversion = convert(&lazo, work, LAZY, None).await?;
        step(&format!("full pull at {} Mbit/s and {} ms a request", self.bandwidth, self.latency));
        let (full, unpacked, accesses) = bench.full_pull(&bench.reference(ORIGINAL, image::TAG)).await?;
        step("lazy start");
        let (lazy, mount, mounted) = bench.lazy_start(&lazo, &bench.reference(LAZY, TAG)).await?;
        step("comparing the mounted tree with the unpacked one");
        let entries = tokio::task::spawn_blocking(move || tree::compare(&unpacked, &mounted)).await??;
        drop(mount);
        let mut starts = vec![("full pull", full), ("lazy start", lazy)];
        if !accesses.is_empty() {
            step("converting again, with the files that the program read as its prefetch list");
            let list = work.join("prefetch.txt");
            std::fs::write(&list, accesses.join("\n") + "\n")?;
            convert(&lazo, work, PREFETCHED, Some(&list)).await?;
            step("lazy start with the prefetch list");
            let (start, mount, _) = bench.lazy_start(&lazo, &bench.reference(PREFETCHED, TAG)).await?;
            drop(mount);
            starts.push(("lazy, prefetch list", start));
        }
        if let Some((name, start)) = starts.iter().find(|(_, start)| start.output != starts[0].1.output) {
            bail!("{name} printed {:?}, the full pull {:?}", start.output, starts[0].1.output);
        }
        Ok(Report { bandwidth: self.bandwidth, latency: self.latency, built, conversion, entries, starts })
    }
}

fn step(what: &str) {
    eprintln!("lazo demo: {what}");
}

async fn build(layout: PathBuf, program: &'static Program) -> Result<image::Built> {
    /// Tells the threads to stop when the demo is interrupted.
    struct Cancel(Arc<AtomicBool>);
    impl Drop for Cancel {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let cancel = Cancel(Arc::default());
    let flag = Arc::clone(&cancel.0);
    tokio::task::spawn_blocking(move || image::build(&layout, program, &flag)).await?.context("build the image")
}

async fn convert(lazo: &Lazo, work: &Path, name: &str, prefetch: Option<&Path>) -> Result<Conversion> {
    let destination = work.join(name);
    let mut command = lazo.command("convert");
    command.arg(format!("oci:{}:{}", work.join(ORIGINAL).display(), image::TAG));
    command.arg(format!("oci:{}:{TAG}", destination.display()));
    if let Some(list) = prefetch {
        command.arg("--prefetch").arg(list);
    }
    let start = Instant::now();
    let status =
        tokio::process::Command::from(command).kill_on_drop(true).status().await.context("run lazo convert")?;
    if !status.success() {
        bail!("lazo convert ended with {status}");
    }
    let elapsed = start.elapsed();
    Ok(Conversion { elapsed, bytes: blob_bytes(&destination)? })
}

fn blob_bytes(layout: &Path) -> Result<u64> {
    let entries = std::fs::read_dir(layout.join("blobs/sha256"))?;
    entries.map(|entry| Ok(entry?.metadata()?.len())).sum()
}
