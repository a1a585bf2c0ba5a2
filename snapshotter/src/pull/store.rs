//! Manifests, configs and layers into the content store, with the labels by which containerd's garbage collector and its clients
//! find their way, named as its own clients name them.

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use lazo_registry::oci_spec::image::{Descriptor, MediaType};
use lazo_registry::{Document, media};
use tokio::sync::oneshot;

use super::image::{Config, Image, Layer, LayerKind};
use super::unpack::Unpacking;
use super::{LayerState, Progress, PullError};
use crate::containerd::{Content, Item, Labels, Lease, WriteError, Written};
use crate::proto::containerd::types;

/// Layers that are fetched at a time, as many as containerd's own pull does.
const PARALLEL: usize = 3;

/// Begins the labels by which content refers to content.
const GC_REF: &str = "containerd.io/gc.ref.content.";

/// Longest value of a label that names repositories; with the name, the label stays below containerd's 4096 bytes.
const MAX_REPOSITORIES: usize = 3500;

/// containerd's content store, for one image.
pub(super) struct Store<'a> {
    content: Content,
    image: &'a Image,
    progress: &'a dyn Progress,
}

impl<'a> Store<'a> {
    pub(super) fn new(lease: &Lease, image: &'a Image, progress: &'a dyn Progress) -> Self {
        Self { content: lease.containerd().content(), image, progress }
    }

    /// Fetches the layers that are needed: all from the one whose number comes through `needed`, but no blobs; and a lazo image's
    /// bootstrap at once, as nothing can do without it.
    pub(super) async fn layers(
        &self,
        needed: oneshot::Receiver<usize>,
        unpacking: &Unpacking,
    ) -> Result<(), PullError> {
        let layers = &self.image.layers;
        let bootstrap = layers.iter().position(|layer| layer.kind == LayerKind::Bootstrap);
        let rest = stream::once(async move { needed.await.unwrap_or(layers.len()) })
            .flat_map(|first| stream::iter(first..layers.len()))
            .filter(move |&number| {
                let is_blob = layers[number].kind == LayerKind::Blob;
                std::future::ready(!is_blob && Some(number) != bootstrap)
            });
        let fetches = stream::iter(bootstrap).chain(rest);
        let fetches = fetches.map(|number| async move { Ok((number, self.layer(&layers[number]).await?)) });
        let mut fetched = std::pin::pin!(fetches.buffered(PARALLEL));
        while let Some(result) = fetched.next().await {
            let (number, state) = result.map_err(|error: PullError| error)?;
            unpacking.fetched(number, state);
        }
        Ok(())
    }

    async fn layer(&self, layer: &Layer) -> Result<LayerState, PullError> {
        let descriptor = &layer.descriptor;
        let fetch = || async {
            self.progress.expect(descriptor.size());
            let blob = self.image.source.blob(descriptor).await?;
            Ok(blob.inspect(|bytes| {
                if let Ok(bytes) = bytes {
                    self.progress.advance(bytes.len() as u64);
                }
            }))
        };
        let written = self.write(descriptor, Labels::new(), fetch).await?;
        Ok(if written == Written::Now { LayerState::Fetched } else { LayerState::Unpacked })
    }

    /// Stores everything but layers.
    pub(super) async fn documents(&self, config: &Document) -> Result<(), PullError> {
        let manifest = &self.image.manifest;
        let mut children = Labels::from([(format!("{GC_REF}config"), config.descriptor.digest().to_string())]);
        for (number, layer) in self.image.layers.iter().enumerate() {
            children.insert(format!("{GC_REF}l.{number}"), layer.descriptor.digest().to_string());
        }
        self.bytes(&config.descriptor, &config.bytes, Labels::new()).await?;
        self.bytes(&manifest.descriptor, &manifest.bytes, children).await?;
        let mut child = &manifest.descriptor;
        for index in self.image.indexes.iter().rev() {
            let kind = if media::is_index(child.media_type()) { "" } else { "m." };
            let refers = Labels::from([(format!("{GC_REF}{kind}0"), child.digest().to_string())]);
            self.bytes(&index.descriptor, &index.bytes, refers).await?;
            child = &index.descriptor;
        }
        Ok(())
    }

    /// Lets the image's config keep its topmost snapshot.
    pub(super) async fn keep_snapshot(&self, config: &Config, snapshotter: &str) -> Result<(), PullError> {
        let Some(top) = config.chain_ids.last() else { return Ok(()) };
        let label = (format!("containerd.io/gc.ref.snapshot.{snapshotter}"), top.clone());
        let digest = config.document.descriptor.digest().to_string();
        Ok(self.content.set_labels(&digest, Labels::from([label])).await?)
    }

    async fn bytes(&self, descriptor: &Descriptor, bytes: &[u8], labels: Labels) -> Result<Written, PullError> {
        let bytes = Bytes::copy_from_slice(bytes);
        self.write(descriptor, labels, || async { Ok(stream::iter([Ok(bytes)])) }).await
    }

    /// Writes what is not there; `labels` it gets in either case.
    async fn write<S, F>(
        &self,
        descriptor: &Descriptor,
        mut labels: Labels,
        open: impl FnOnce() -> F,
    ) -> Result<Written, PullError>
    where
        F: Future<Output = Result<S, lazo_registry::Error>>,
        S: futures_util::Stream<Item = Result<Bytes, lazo_registry::Error>>,
    {
        let digest = descriptor.digest().to_string();
        let source = format!("containerd.io/distribution.source.{}", self.image.reference.host_name());
        let repository = &self.image.reference.repository;
        let mut fresh = labels.clone();
        fresh.insert(source.clone(), repository.clone());
        let reference = write_reference(descriptor);
        let item = Item { digest: &digest, size: descriptor.size(), reference: &reference, labels: fresh };
        let written = match self.content.write(&item, open).await {
            Ok(written) => written,
            Err(WriteError::Containerd(error)) => return Err(error.into()),
            Err(WriteError::Source(error)) => return Err(error.into()),
        };
        if written == Written::Before {
            let has = self.content.labels(&digest).await?;
            if let Some(repositories) = with_repository(has.get(&source).map_or("", String::as_str), repository) {
                labels.insert(source, repositories);
            }
            labels.retain(|name, value| has.get(name) != Some(value));
            if !labels.is_empty() {
                self.content.set_labels(&digest, labels).await?;
            }
        }
        Ok(written)
    }
}

/// A sorted list of repositories with one more in it, unless it is there, or the list too long.
fn with_repository(list: &str, repository: &str) -> Option<String> {
    let mut repositories: Vec<&str> = list.split(',').filter(|name| !name.is_empty()).collect();
    let place = repositories.binary_search(&repository).err()?;
    repositories.insert(place, repository);
    let joined = repositories.join(",");
    (joined.len() <= MAX_REPOSITORIES).then_some(joined)
}

/// The name of a write, the same for all clients, so that two of them do not fetch the same.
fn write_reference(descriptor: &Descriptor) -> String {
    let media_type = descriptor.media_type();
    let kind = match media_type {
        MediaType::ImageConfig => "config",
        other if other.as_ref() == media::DOCKER_CONFIG => "config",
        other if media::is_index(other) => "index",
        other if media::is_manifest(other) => "manifest",
        _ => "layer",
    };
    format!("{kind}-{}", descriptor.digest())
}

/// A descriptor in containerd's words.
pub(super) fn descriptor(descriptor: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type().to_string(),
        digest: descriptor.digest().to_string(),
        size: i64::try_from(descriptor.size()).unwrap_or(i64::MAX),
        annotations: descriptor.annotations().clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_a_sorted_list() {
        for (list, repository, joined) in
            [("", "b", Some("b")), ("a,c", "b", Some("a,b,c")), ("a,b", "b", None), ("b", "a", Some("a,b"))]
        {
            assert_eq!(with_repository(list, repository).as_deref(), joined, "{list} {repository}");
        }
        assert_eq!(with_repository(&"x".repeat(MAX_REPOSITORIES), "b"), None);
    }

    #[test]
    fn writes_are_named_as_containerd_does() {
        let digest = lazo_format::Digest::sha256_of(b"");
        for (media_type, name) in [
            ("application/vnd.oci.image.index.v1+json", "index"),
            ("application/vnd.docker.distribution.manifest.v2+json", "manifest"),
            ("application/vnd.oci.image.config.v1+json", "config"),
            ("application/vnd.docker.container.image.v1+json", "config"),
            ("application/vnd.oci.image.layer.v1.tar+gzip", "layer"),
        ] {
            let descriptor = lazo_registry::descriptor(media_type.into(), &digest, 0);
            assert_eq!(write_reference(&descriptor), format!("{name}-{digest}"));
        }
    }
}
