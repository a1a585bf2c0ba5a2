//! `lazo pull`: an image into containerd, lazily where that is possible.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use indicatif::{HumanBytes, ProgressBar};
use lazo_registry::{DockerRef, ImageRef, Platform};
use lazo_snapshotter::pull::{LayerState, Progress, PullOptions, Pulled, pull};

use crate::global::Global;
use crate::{interrupt, output};

/// Pull an image into containerd; of a lazo image, only its tree
///
/// IMAGE is HOST/REPO[:TAG][@DIGEST], and gets this name in containerd. Other images than lazo's are pulled as a whole. After it,
/// `ctr run --snapshotter lazo IMAGE ID` starts a container.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image: HOST/REPO[:TAG][@DIGEST]
    #[arg(value_parser = image)]
    image: DockerRef,
    /// containerd's socket
    #[arg(
        long,
        short = 'a',
        value_name = "PATH",
        env = "CONTAINERD_ADDRESS",
        default_value = "/run/containerd/containerd.sock"
    )]
    address: PathBuf,
    /// containerd's namespace; k8s.io is the kubelet's
    #[arg(long, short = 'n', value_name = "NAME", env = "CONTAINERD_NAMESPACE", default_value = "default")]
    namespace: String,
    /// Which of containerd's snapshotters gets it
    #[arg(long, value_name = "NAME", env = "CONTAINERD_SNAPSHOTTER", default_value = "lazo")]
    snapshotter: String,
    /// Which of the image's platforms, as OS/ARCH[/VARIANT] or just ARCH [default: this machine's]
    #[arg(long)]
    platform: Option<Platform>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

fn image(text: &str) -> anyhow::Result<DockerRef> {
    match text.parse()? {
        ImageRef::Docker(image) => Ok(image),
        _ => anyhow::bail!("containerd's images come from registries; give HOST/REPO[:TAG][@DIGEST]"),
    }
}

impl Args {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let options = PullOptions {
            address: std::path::absolute(&self.address)?,
            namespace: self.namespace,
            snapshotter: self.snapshotter,
            platform: self.platform.unwrap_or_else(Platform::host),
            registry: global.registry_options()?,
        };
        if global.creds.is_some() {
            tracing::warn!("the node daemon fetches what is read later with logins of its own, and not with --creds");
        }
        let bar = Arc::new(Bar(output::byte_bar()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let cancelled = async {
            interrupt::interrupted().await;
        };
        let pulled = runtime.block_on(pull(&self.image, &options, bar.clone(), cancelled));
        bar.0.finish_and_clear();
        let pulled = pulled.with_context(|| format!("cannot pull {}", self.image))?;
        match self.json {
            true => output::print(format_args!("{}\n", serde_json::to_string_pretty(&pulled)?)),
            false => output::print(describe(&pulled)?),
        }
    }
}

/// The result for people.
fn describe(pulled: &Pulled) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let of = |state| {
        let layers = pulled.layers.iter().filter(move |layer| layer.state == state);
        layers.fold((0, 0), |(count, bytes), layer| (count + 1, bytes + layer.size))
    };
    writeln!(text, "{} {}", pulled.image, pulled.digest)?;
    for (state, what) in [
        (LayerState::Fetched, "fetched and unpacked"),
        (LayerState::Unpacked, "unpacked, nothing fetched"),
        (LayerState::Present, "there already"),
        (LayerState::Lazy, "left in the registry until they are read"),
    ] {
        let (count, bytes) = of(state);
        if count > 0 {
            let layers = if count == 1 { "layer" } else { "layers" };
            writeln!(text, "  {count} {layers}, {}: {what}", HumanBytes(bytes))?;
        }
    }
    writeln!(text, "  took {:.2} s", pulled.seconds)?;
    Ok(text)
}

/// The progress bar, on a terminal.
struct Bar(ProgressBar);

impl Progress for Bar {
    fn expect(&self, bytes: u64) {
        self.0.inc_length(bytes);
    }

    fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    fn layer(&self, number: usize, count: usize, digest: &str) {
        let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
        self.0.set_message(format!("layer {number}/{count} {hex:.12}"));
    }
}
