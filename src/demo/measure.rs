//! The two ways to start the program, timed, through the same slow registry.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use lazo_registry::{ImageRef, Options, Platform, Source};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::mounted::{Lazo, Mounted};
use super::program::Program;
use super::registry::{Registry, Traffic};
use super::tree;

/// One way to start, measured.
pub(crate) struct Start {
    /// Until the program's root directory was there.
    pub(crate) ready: Duration,
    /// From then on until the program had ended.
    pub(crate) run: Duration,
    /// Requests and bytes until then.
    pub(crate) traffic: Traffic,
    /// What the program printed.
    pub(crate) output: String,
}

impl Start {
    /// From nothing to the program's end.
    pub(crate) fn total(&self) -> Duration {
        self.ready + self.run
    }
}

/// The images' registry and the program to start, the same for all ways.
pub(crate) struct Bench<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) program: &'a Program,
    pub(crate) work: &'a Path,
}

impl Bench<'_> {
    /// The reference of a tag in one of the registry's repositories.
    pub(crate) fn reference(&self, repository: &str, tag: &str) -> String {
        format!("docker://{}/{repository}:{tag}", self.registry.address())
    }

    /// Downloads all layers, unpacking each while it arrives, then runs the program. Also answers where the image is
    /// unpacked and which files the program read, in order.
    pub(crate) async fn full_pull(&self, image: &str) -> Result<(Start, PathBuf, Vec<String>)> {
        let root = self.work.join("unpacked");
        std::fs::create_dir(&root)?;
        let before = self.registry.traffic();
        let start = Instant::now();
        pull(image, &root).await.with_context(|| format!("pull {image}"))?;
        let ready = start.elapsed();
        // Not part of the pull, hence not of its time.
        tree::forget_accesses(&root)?;
        let (run, output) = self.run_program(&root).await?;
        let traffic = self.registry.traffic().since(before);
        let accesses = tree::accesses(&root)?;
        Ok((Start { ready, run, traffic, output }, root, accesses))
    }

    /// Mounts with an empty cache, then runs the program. The mount stays until the value is dropped.
    pub(crate) async fn lazy_start(&self, lazo: &Lazo, image: &str) -> Result<(Start, Mounted, PathBuf)> {
        lazo.forget()?;
        let root = self.work.join("mounted");
        std::fs::create_dir_all(&root)?;
        let before = self.registry.traffic();
        let start = Instant::now();
        let mounted = Mounted::new(lazo, image, &root).await?;
        let ready = start.elapsed();
        let (run, output) = self.run_program(&root).await?;
        let traffic = self.registry.traffic().since(before);
        Ok((Start { ready, run, traffic, output }, mounted, root))
    }

    /// Runs the program with `root` as its root directory, in a mount namespace of its own.
    async fn run_program(&self, root: &Path) -> Result<(Duration, String)> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "chroot"]).arg(root).args(self.program.command());
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let start = Instant::now();
        let output =
            command.stdin(Stdio::null()).kill_on_drop(true).output().await.context("run unshare (util-linux)")?;
        let elapsed = start.elapsed();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{} in {} ended with {}: {}", self.program.interpreter, root.display(), output.status, said.trim());
        }
        Ok((elapsed, String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }
}

async fn pull(image: &str, root: &Path) -> Result<()> {
    let source = Source::open(&image.parse::<ImageRef>()?, &Options::default()).await?;
    let manifest = source.resolve(&Platform::host()).await?;
    for layer in manifest.manifest.layers() {
        let mut blob = source.blob(layer).await?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--gzip", "--numeric-owner", "--preserve-permissions", "--directory"]).arg(root);
        let mut tar = tar.stdin(Stdio::piped()).kill_on_drop(true).spawn().context("run tar")?;
        let mut input = tar.stdin.take().context("tar has no stdin")?;
        while let Some(piece) = blob.next().await {
            input.write_all(&piece?).await.context("write to tar")?;
        }
        drop(input);
        let status = tar.wait().await?;
        if !status.success() {
            bail!("tar ended with {status}");
        }
    }
    Ok(())
}
