//! Snapshots of an image's layers, one above the other.

use std::collections::BTreeMap;

use tokio::sync::{oneshot, watch};

use super::image::{Config, Image, Layer, LayerKind};
use super::store::descriptor;
use super::{LayerState, Progress, PullError};
use crate::containerd::{Labels, Lease, Prepared, Snapshots};
use crate::labels;

/// Which layers are in the content store.
pub(super) struct Unpacking(watch::Sender<BTreeMap<usize, LayerState>>);

impl Default for Unpacking {
    fn default() -> Self {
        Self(watch::channel(BTreeMap::new()).0)
    }
}

impl Unpacking {
    /// A layer is there.
    pub(super) fn fetched(&self, number: usize, state: LayerState) {
        self.0.send_modify(|fetched| {
            fetched.insert(number, state);
        });
    }

    /// Waits until a layer is there.
    async fn wait(&self, number: usize) -> LayerState {
        let mut fetched = self.0.subscribe();
        match fetched.wait_for(|fetched| fetched.contains_key(&number)).await {
            Ok(fetched) => fetched[&number],
            // The sender is our own.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Gives an image's layers to a snapshotter.
pub(super) struct Unpacker<'a> {
    lease: &'a Lease,
    image: &'a Image,
    config: &'a Config,
    snapshotter: &'a str,
    snapshots: Snapshots,
    progress: &'a dyn Progress,
}

impl<'a> Unpacker<'a> {
    pub(super) fn new(
        lease: &'a Lease,
        image: &'a Image,
        config: &'a Config,
        snapshotter: &'a str,
        progress: &'a dyn Progress,
    ) -> Self {
        let snapshots = lease.containerd().snapshots(snapshotter);
        Self { lease, image, config, snapshotter, snapshots, progress }
    }

    /// All layers. The first that the snapshotter wants to have unpacked is told through `first`.
    pub(super) async fn unpack(
        &self,
        unpacking: &Unpacking,
        first: oneshot::Sender<usize>,
    ) -> Result<Vec<LayerState>, PullError> {
        let mut first = Some(first);
        let mut states = Vec::with_capacity(self.image.layers.len());
        for (number, layer) in self.image.layers.iter().enumerate() {
            self.progress.layer(number + 1, self.image.layers.len(), layer.descriptor.digest().as_ref());
            states.push(self.layer(number, layer, unpacking, &mut first).await?);
        }
        if let (Some(LayerState::Lazy | LayerState::Present), Some(top)) = (states.last(), self.config.chain_ids.last())
        {
            // What this pull has made is under its lease, and so is all below. What it has found need not be.
            self.lease.add_snapshot(self.snapshotter, top).await?;
            if !self.snapshots.exists(top).await? {
                return Err(PullError::Removed);
            }
        }
        Ok(states)
    }

    async fn layer(
        &self,
        number: usize,
        layer: &Layer,
        unpacking: &Unpacking,
        first: &mut Option<oneshot::Sender<usize>>,
    ) -> Result<LayerState, PullError> {
        let chain_id = &self.config.chain_ids[number];
        let parent = number.checked_sub(1).map_or("", |below| &self.config.chain_ids[below]);
        let key = format!("extract-{}-{number} {chain_id}", self.lease.id());
        let mut labels = layer.labels.clone();
        labels.insert(labels::TARGET.to_owned(), chain_id.clone());
        let mounts = match self.snapshots.prepare(&key, parent, &labels).await? {
            Prepared::Exists if layer.kind == LayerKind::Blob => return Ok(LayerState::Lazy),
            Prepared::Exists => return Ok(LayerState::Present),
            Prepared::Mounts(_) if layer.kind == LayerKind::Blob => {
                return Err(PullError::NotLazy { snapshotter: self.snapshotter.to_owned() });
            }
            Prepared::Mounts(mounts) => mounts,
        };
        if let Some(first) = first.take() {
            // Nobody listens only if all has failed.
            let _ = first.send(number);
        }
        let state = unpacking.wait(number).await;
        let (digest, expected) = (layer.descriptor.digest().to_string(), &self.config.diff_ids[number]);
        let found = self.lease.containerd().apply(descriptor(&layer.descriptor), mounts).await?;
        if found != *expected {
            return Err(PullError::DiffId { digest, expected: expected.clone(), found });
        }
        self.snapshots.commit(chain_id, &key, &labels).await?;
        let uncompressed = Labels::from([("containerd.io/uncompressed".to_owned(), found)]);
        self.lease.containerd().content().set_labels(&digest, uncompressed).await?;
        Ok(state)
    }
}
