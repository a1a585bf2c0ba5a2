//! `lazo pull`: brings an image into containerd through its API, as its own clients do, but lazily.
//!
//! The manifest and config go to the content store, then one layer after the other to the snapshotter, which is told all that the
//! image says of the layer. A layer that it has already, or can do without, as lazo's can without blobs, is not downloaded. Others
//! are fetched some ahead of being unpacked. All happens under a lease, so that nothing is collected meanwhile, and nothing stays of a
//! pull that fails.
//!
//! ```text
//! image    what the registry says: manifest, config, layers, names of snapshots
//! store    into the content store, with the labels by which containerd keeps things
//! unpack   snapshots, layer by layer
//! ```

pub(crate) mod image;
mod store;
mod unpack;

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use lazo_registry::{DockerRef, Platform};
use serde::Serialize;
use tokio::sync::oneshot;

use crate::containerd::{Containerd, ContainerdError, Lease};
use image::Image;
use store::Store;
use unpack::{Unpacker, Unpacking};

/// Where to, and how.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// containerd's socket.
    pub address: PathBuf,
    /// Its namespace.
    pub namespace: String,
    /// Name of the snapshotter.
    pub snapshotter: String,
    /// Which of the image's platforms.
    pub platform: Platform,
    /// How to talk to registries.
    pub registry: lazo_registry::Options,
}

/// The image cannot be pulled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// Because of containerd.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    /// Because of the registry.
    #[error(transparent)]
    Registry(#[from] lazo_registry::Error),
    /// What the registry has is not an image that can be unpacked.
    #[error("it is no image that can be run: {reason}")]
    NoImage {
        /// Why.
        reason: String,
    },
    /// The image is for other machines.
    #[error("the image is for {found} only, not for {wanted}; --platform {found} pulls it all the same")]
    Platform {
        /// What it is for.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// A lazo image for another snapshotter.
    #[error(
        "it is a lazo image, and the snapshotter {snapshotter} would need all of its data as ordinary layers; pull it with \
         --snapshotter lazo, or pull the image that it was converted from"
    )]
    NotLazy {
        /// Name of the snapshotter.
        snapshotter: String,
    },
    /// A layer is not what the image's config says.
    #[error("layer {digest} unpacks to {found}, and not to {expected} as the image's config says; the image is broken")]
    DiffId {
        /// The layer.
        digest: String,
        /// As in the config.
        expected: String,
        /// What it is.
        found: String,
    },
    /// It was there already, but went away at the last moment.
    #[error("somebody removed the image's layers meanwhile; pull it again")]
    Removed,
    /// The caller wants no more of it.
    #[error("interrupted")]
    Interrupted,
}

/// Hears how far it is.
pub trait Progress: Send + Sync {
    /// So many more bytes are to be fetched.
    fn expect(&self, bytes: u64);
    /// So many more of them are there.
    fn advance(&self, bytes: u64);
    /// Layer `number` (from 1) of `count` is being dealt with.
    fn layer(&self, number: usize, count: usize, digest: &str);
}

/// An image that was pulled.
#[derive(Debug, Clone, Serialize)]
pub struct Pulled {
    /// Its name in containerd.
    pub image: String,
    /// containerd's namespace.
    pub namespace: String,
    /// Name of the snapshotter.
    pub snapshotter: String,
    /// Digest of the manifest, or index, that the name stands for.
    pub digest: String,
    /// Digest of the manifest of the platform.
    pub manifest: String,
    /// Name of the topmost layer's snapshot, which containers are made of.
    pub snapshot: String,
    /// Layers, lowest first.
    pub layers: Vec<PulledLayer>,
    /// Bytes of layers that were fetched.
    pub fetched_bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// A layer of an image that was pulled.
#[derive(Debug, Clone, Serialize)]
pub struct PulledLayer {
    /// Digest.
    pub digest: String,
    /// Bytes in the registry.
    pub size: u64,
    /// What was done with it.
    pub state: LayerState,
}

/// What was done with a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerState {
    /// Nothing: its data comes when it is read.
    Lazy,
    /// Nothing: the snapshotter has it.
    Present,
    /// It was in the content store, maybe another namespace's, and was unpacked.
    Unpacked,
    /// It was fetched and unpacked.
    Fetched,
}

/// Pulls an image, unless `cancelled` comes first.
///
/// # Errors
/// When containerd, the snapshotter or the registry is not there or says no, or the image cannot be run on this platform.
pub async fn pull(
    image: &DockerRef,
    options: &PullOptions,
    progress: Arc<dyn Progress>,
    cancelled: impl Future<Output = ()>,
) -> Result<Pulled, PullError> {
    let begin = Instant::now();
    let mut cancelled = pin!(cancelled);
    let found = async {
        let containerd = Containerd::connect(&options.address, &options.namespace).await?;
        let image = Image::find(image, &options.platform, &options.registry).await?;
        Ok::<_, PullError>((containerd, image))
    };
    let (containerd, image) = tokio::select! {
        found = found => found?,
        () = &mut cancelled => return Err(PullError::Interrupted),
    };
    let lease = containerd.lease().await?;
    let brought = tokio::select! {
        brought = bring(&lease, &image, options, progress.as_ref()) => brought,
        () = &mut cancelled => Err(PullError::Interrupted),
    };
    // What a failed pull has left goes with the lease.
    if let Err(error) = lease.end(brought.is_err()).await {
        tracing::warn!(error = &error as &dyn std::error::Error, "the lease of a pull stays until it expires");
    }
    let (snapshot, layers) = brought?;
    let fetched = layers.iter().filter(|layer| layer.state == LayerState::Fetched);
    Ok(Pulled {
        image: image.name.clone(),
        namespace: options.namespace.clone(),
        snapshotter: options.snapshotter.clone(),
        digest: image.target().digest().to_string(),
        manifest: image.manifest.descriptor.digest().to_string(),
        snapshot,
        fetched_bytes: fetched.map(|layer| layer.size).sum(),
        layers,
        seconds: begin.elapsed().as_secs_f64(),
    })
}

/// Everything that is done under the lease.
async fn bring(
    lease: &Lease,
    image: &Image,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<(String, Vec<PulledLayer>), PullError> {
    let store = Store::new(lease, image, progress);
    let unpacking = Unpacking::default();
    let (first, needed) = oneshot::channel();
    let unpacked = async {
        let mut config = image.config(&options.platform).await?;
        let unpacker = Unpacker::new(lease, image, &config, &options.snapshotter, progress);
        let (states, ()) =
            futures_util::try_join!(unpacker.unpack(&unpacking, first), store.documents(&config.document))?;
        store.keep_snapshot(&config, &options.snapshotter).await?;
        Ok::<_, PullError>((states, config.chain_ids.pop().unwrap_or_default()))
    };
    let ((states, snapshot), ()) = futures_util::try_join!(unpacked, store.layers(needed, &unpacking))?;
    lease.containerd().name_image(&image.name, store::descriptor(image.target())).await?;
    let layers = image.layers.iter().zip(states).map(|(layer, state)| PulledLayer {
        digest: layer.descriptor.digest().to_string(),
        size: layer.descriptor.size(),
        state,
    });
    Ok((snapshot, layers.collect()))
}
