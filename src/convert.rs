//! `lazo convert`: an OCI image in, a lazo image out.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{HumanBytes, HumanCount, ProgressBar};
use lazo_converter::{ImageSummary, Options, Platforms, PrefetchList, Progress, Silent, Summary};
use lazo_format::Digest;
use lazo_registry::{ImageRef, Platform};

use crate::global::{Creds, Global};
use crate::output::{self, UsageError};

/// Largest prefetch list that is read, bytes.
const MAX_PREFETCH_LIST: u64 = 64 << 20;
/// Lines of the prefetch list that a warning names.
const MAX_NAMED_LINES: usize = 10;
/// How long an interrupted conversion may take to wind up before its temporary files are removed under it.
const WIND_UP: Duration = Duration::from_secs(5);

/// Convert an OCI or docker image into a lazo image
///
/// SRC and DST are docker://HOST/REPO[:TAG|@DIGEST] (or just HOST/REPO:TAG), oci:DIR[:TAG], oci-archive:FILE[:TAG];
/// SRC may be docker-archive:FILE[:REF] too. Of a layout or archive with several images, TAG may be an image's whole name, @N for
/// the N-th from 0, or @DIGEST; REF is NAME:TAG or @N. DST is written when all of SRC has been read and verified, its tag last.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image to convert
    #[arg(value_name = "SRC")]
    source: ImageRef,
    /// Where the lazo image goes
    #[arg(value_name = "DST")]
    destination: ImageRef,
    /// Choose these of a multi-platform image, as OS/ARCH[/VARIANT] or just ARCH, separated by commas; of several the result is
    /// an index again [default: this machine's]
    #[arg(long, value_delimiter = ',', conflicts_with = "all_platforms")]
    platform: Vec<Platform>,
    /// Convert all platforms; the result is an index again
    #[arg(long)]
    all_platforms: bool,
    /// Replace an ordinary image at DST
    #[arg(long)]
    force: bool,
    /// Paths and globs in the order in which a start reads them, one a line; '-' is stdin
    #[arg(long, value_name = "FILE", help_heading = "Layout")]
    prefetch: Option<PathBuf>,
    /// Leave out data that upper layers hide; images with equal base layers then share no blobs
    #[arg(long, help_heading = "Layout")]
    compact: bool,
    /// Largest chunk, in KiB of uncompressed data: a power of two from 4 to 4096
    #[arg(long, value_name = "KIB", default_value_t = lazo_format::DEFAULT_CHUNK_SIZE / 1024, help_heading = "Layout")]
    chunk_size: u32,
    /// zstd level
    #[arg(long, value_name = "LEVEL", default_value_t = lazo_converter::DEFAULT_COMPRESSION_LEVEL,
          value_parser = clap::value_parser!(i32).range(1..=22), help_heading = "Layout")]
    compression_level: i32,
    /// Have the image served as a FUSE tree, so that its programs can open files with O_DIRECT: for one whose programs fail with
    /// "Invalid argument"; the label lazo.direct-io=true of the image does the same
    #[arg(long, help_heading = "Layout")]
    direct_io: bool,
    /// Largest window of a layer packed with zstd, in MiB, up to 2048: memory that unpacking it may take. containerd's is 512
    #[arg(long, value_name = "MIB", default_value_t = lazo_converter::ZstdWindow::DEFAULT.bytes() >> 20,
          value_parser = clap::value_parser!(u64).range(1..=2048))]
    zstd_window: u64,
    /// Threads that compress [default: one a core]; the result does not depend on it
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// A repository on DST's registry whose blobs can be mounted instead of uploaded
    #[arg(long, value_name = "HOST/REPO")]
    mount_from: Option<ImageRef>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sides: Sides,
}

/// What is said of one side's registry, in place of what is said of both.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Registries")]
struct Sides {
    /// As --creds, for SRC's registry
    #[arg(long, value_name = "USER[:PASSWORD]", env = "LAZO_SRC_CREDS", hide_env_values = true)]
    src_creds: Option<Creds>,
    /// As --creds, for DST's registry
    #[arg(long, value_name = "USER[:PASSWORD]", env = "LAZO_DEST_CREDS", hide_env_values = true)]
    dest_creds: Option<Creds>,
    /// As --insecure, for SRC's registry alone
    #[arg(long)]
    src_insecure: bool,
    /// As --insecure, for DST's registry alone
    #[arg(long)]
    dest_insecure: bool,
}

impl Args {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let cancel = Arc::new(AtomicBool::new(false));
        let mut options = self.options(cancel.clone())?;
        let [registry, destination] = self.registries(global)?;
        options.destination = Some(destination);
        let bar = std::io::stderr().is_terminal().then(|| Arc::new(Bar(output::byte_bar())));
        let progress: Arc<dyn Progress> = match &bar {
            Some(bar) => bar.clone(),
            None => Arc::new(Silent),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let summary = runtime.block_on(async {
            let conversion = lazo_converter::convert(&self.source, &self.destination, &options, &registry, progress);
            tokio::pin!(conversion);
            tokio::select! {
                result = &mut conversion => result,
                () = interrupted() => {
                    cancel.store(true, Ordering::Relaxed);
                    let wound_up = tokio::time::timeout(WIND_UP, conversion).await;
                    wound_up.unwrap_or(Err(lazo_converter::Error::Interrupted))
                }
            }
        });
        runtime.shutdown_background();
        if let Some(bar) = bar {
            bar.0.finish_and_clear();
        }
        let summary = summary.with_context(|| format!("cannot convert {} to {}", self.source, self.destination))?;
        warn(&summary);
        match self.json {
            true => output::print(format_args!("{}\n", serde_json::to_string_pretty(&summary)?)),
            false => output::print(describe(&summary)?),
        }
    }

    /// How to reach SRC's and DST's registries.
    fn registries(&self, global: &Global) -> anyhow::Result<[lazo_registry::Options; 2]> {
        let host = |image: &ImageRef| match image {
            ImageRef::Docker(image) => Some(image.host.clone()),
            _ => None,
        };
        let (from, to) = (host(&self.source), host(&self.destination));
        let differ = from.is_some() && to.is_some() && from != to;
        let Sides { src_creds, dest_creds, .. } = &self.sides;
        let all_said = src_creds.is_some() && dest_creds.is_some();
        if global.creds.is_some() && differ && !all_said {
            let reason = "--creds is for one registry, and SRC and DST name two: use --src-creds and --dest-creds";
            return Err(UsageError(reason.to_owned()).into());
        }
        let shared = if all_said { None } else { global.login()? };
        // Both sides share connections and logins, as far as these are the same.
        let both = global.options_without_login();
        let side = |creds: &Option<Creds>, insecure: bool| {
            let own = creds.as_ref().map(Creds::login).transpose()?;
            let options = both.clone();
            anyhow::Ok(lazo_registry::Options {
                login: own.or_else(|| shared.clone()),
                insecure: options.insecure || insecure,
                ..options
            })
        };
        Ok([side(src_creds, self.sides.src_insecure)?, side(dest_creds, self.sides.dest_insecure)?])
    }

    fn options(&self, cancel: Arc<AtomicBool>) -> anyhow::Result<Options> {
        let mut options = Options {
            compact: self.compact,
            direct_io: self.direct_io,
            force: self.force,
            cancel,
            ..Options::default()
        };
        let mut seen = HashSet::new();
        let mut platforms = self.platform.clone();
        platforms.retain(|platform| seen.insert(platform.clone()));
        options.platforms = match (platforms.as_slice(), self.all_platforms) {
            (_, true) => Platforms::All,
            ([], false) => options.platforms,
            ([platform], false) => Platforms::One(platform.clone()),
            (_, false) => Platforms::Some(platforms),
        };
        if let Some(jobs) = self.jobs {
            options.jobs = jobs;
        }
        if let Some(path) = &self.prefetch {
            options.prefetch = PrefetchList::parse(&read_list(path)?)
                .with_context(|| format!("cannot use the prefetch list {}", path.display()))?;
        }
        options.chunk_size = self.chunk_size.saturating_mul(1024);
        options.compression_level = self.compression_level;
        options.zstd_window =
            lazo_converter::ZstdWindow::of_bytes(self.zstd_window << 20).context("--zstd-window is too large")?;
        options.mount_from = self.mount_from.clone();
        Ok(options)
    }
}

fn read_list(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_PREFETCH_LIST + 1).read_to_end(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_PREFETCH_LIST + 1).read_to_end(&mut text))
    };
    read.with_context(|| format!("cannot read the prefetch list {}", path.display()))?;
    anyhow::ensure!(
        text.len() as u64 <= MAX_PREFETCH_LIST,
        "the prefetch list is larger than {MAX_PREFETCH_LIST} bytes"
    );
    Ok(text)
}

/// Resolves at the first SIGINT or SIGTERM.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        },
        Err(_) => std::future::pending().await,
    }
}

fn warn(summary: &Summary) {
    for image in &summary.images {
        let warnings = &image.warnings;
        let counted = [
            (warnings.overlay_xattrs, "trusted.overlay.* xattrs were dropped: an overlay mount would obey them"),
            (warnings.unsupported_xattrs, "xattrs of namespaces unknown to EROFS were dropped"),
            (warnings.user_xattrs, "user.* xattrs of links, devices and pipes were dropped: Linux knows none there"),
            (warnings.whiteout_devices, "character devices 0:0 are not shown: an overlay takes them for whiteouts"),
            (
                warnings.mistyped_layers,
                "layers are packed otherwise than their media types say; their first bytes counted",
            ),
        ];
        for (count, what) in counted.into_iter().filter(|(count, _)| *count > 0) {
            tracing::warn!("{count} {what}");
        }
        let unmatched = &image.prefetch_unmatched;
        if unmatched.count > 0 {
            let named: Vec<&str> = unmatched.lines.iter().take(MAX_NAMED_LINES).map(String::as_str).collect();
            let rest = unmatched.count - named.len() as u64;
            let rest = if rest > 0 { format!(", and {rest} more") } else { String::new() };
            let lines = if unmatched.count == 1 { "line names" } else { "lines name" };
            tracing::warn!("{} prefetch {lines} no file of the image: {}{rest}", unmatched.count, named.join(", "));
        }
    }
}

/// The summary for people.
fn describe(summary: &Summary) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    for image in &summary.images {
        describe_image(&mut text, image)?;
    }
    let read: u64 = summary.images.iter().map(|image| image.uncompressed).sum();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shown rounded"
    )]
    let rate = (read as f64 / summary.seconds) as u64;
    for other in &summary.left_out {
        writeln!(text, "left out: {other}")?;
    }
    writeln!(text, "{}", summary.digest)?;
    writeln!(text, "  took         {:.2} s, {}/s of uncompressed layers", summary.seconds, HumanBytes(rate))?;
    Ok(text)
}

fn describe_image(text: &mut String, image: &ImageSummary) -> std::fmt::Result {
    let stored: u64 = image.blobs.iter().map(|blob| blob.size).sum();
    let chunks: usize = image.blobs.iter().map(|blob| blob.chunks).sum();
    let new: u64 = image.blobs.iter().filter(|blob| blob.outcome == "uploaded").map(|blob| blob.size).sum();
    writeln!(text, "{} {}", image.platform.as_deref().unwrap_or("unknown platform"), image.digest)?;
    writeln!(
        text,
        "  read         {} layers, {} compressed, {} uncompressed, {} entries",
        image.layers,
        HumanBytes(image.compressed),
        HumanBytes(image.uncompressed),
        HumanCount(image.entries_read)
    )?;
    writeln!(
        text,
        "  kept         {} entries, {} of file content ({} hidden by upper layers, {} of zeros)",
        HumanCount(image.entries),
        HumanBytes(image.file_bytes),
        HumanBytes(image.hidden_bytes),
        HumanBytes(image.hole_bytes)
    )?;
    writeln!(text, "  deduplicated {}", HumanBytes(image.duplicate_bytes))?;
    writeln!(
        text,
        "  blobs        {} in {} blobs, {} chunks; {} new at the destination",
        HumanBytes(stored),
        image.blobs.len(),
        HumanCount(chunks as u64),
        HumanBytes(new)
    )?;
    writeln!(
        text,
        "  bootstrap    {}: {} tree + {} chunk index, uncompressed; {} chunks to prefetch",
        HumanBytes(image.bootstrap_layer),
        HumanBytes(image.bootstrap),
        HumanBytes(image.index),
        HumanCount(image.prefetch_chunks)
    )
}

/// The progress bar on a terminal.
struct Bar(ProgressBar);

impl Progress for Bar {
    fn layer(&self, number: usize, count: usize, digest: &Digest, size: u64) {
        self.0.reset();
        self.0.set_length(size);
        self.0.set_message(format!("layer {number}/{count} {:.12}", digest.hex()));
    }

    fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    fn upload(&self, digest: &Digest, size: u64) {
        self.0.set_message(format!("writing {:.12} ({})", digest.hex(), HumanBytes(size)));
    }
}
