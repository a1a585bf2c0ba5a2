//! By which names containerd knows the lazo images that are unpacked here.
//!
//! containerd asks a snapshotter for nothing when it pulls an image whose layers are all there, and tells it no name: it looks whether the
//! snapshots exist (`Stat`), and then makes a record of the name. So the names come from containerd's own records: all of them when the
//! connection begins, and whenever one of them changes. A name whose layers are those of a bootstrap and its blobs is one of that
//! image's; the node daemon is told all of them, and each is a source with a login of its own.
//!
//! Without a connection to containerd an image has the one name with which it was unpacked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lazo_daemon::node::protocol::MAX_REFERENCES;
use lazo_format::Digest;
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::containerd::{Change, Containerd, ContainerdError};
use crate::credentials::repository;
use crate::images::Images;
use crate::proto::containerd::services::images::v1::Image;
use crate::pull::image::chain_ids;
use crate::snapshots::{Error, Snapshots};

/// Between two tries to reach containerd, and to tell the daemon what it has not been told.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Of several changes at a time, such as a pull's three names, the first waits for the others.
const SETTLE: Duration = Duration::from_millis(50);

/// Changes that are looked at together at most.
const TOGETHER: usize = 256;

/// Manifests of an index that are looked at: images are built for a dozen platforms at most.
const MAX_MANIFESTS: usize = 64;

/// How long a pull's answer waits for its name to be known to the daemon.
const PULL_PATIENCE: Duration = Duration::from_secs(5);

/// The kubelet's images.
pub(crate) const KUBELET: &str = "k8s.io";

/// Looks after the names of images.
pub(crate) struct References {
    address: PathBuf,
    snapshots: Arc<Snapshots>,
    images: Images,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By digest of what a name stands for, under which names the snapshots of its layers are kept.
    chains: HashMap<String, Arc<[String]>>,
    /// Images whose names the daemon has not been told, by their snapshots.
    untold: BTreeSet<String>,
    /// Whether it was told all of them since this process began.
    begun: bool,
}

/// Why names are not known now.
#[derive(Debug, thiserror::Error)]
enum Unknown {
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    #[error(transparent)]
    Snapshots(#[from] Error),
}

impl References {
    pub(crate) fn new(address: PathBuf, snapshots: Arc<Snapshots>, images: Images) -> Arc<Self> {
        Arc::new(Self { address, snapshots, images, state: Mutex::default() })
    }

    /// Goes on until it is dropped.
    pub(crate) async fn watch(&self) {
        let mut pause = PAUSE;
        loop {
            match self.watch_once(&mut pause).await {
                Ok(()) => tracing::debug!("containerd has ended the stream of its events"),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::debug!(error, "the names of images are not known now");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn watch_once(&self, pause: &mut Duration) -> Result<(), Unknown> {
        let containerd = Containerd::connect(&self.address, KUBELET).await?;
        // Before all are looked at, so that none is missed; and once more for what may have been all the same.
        let mut changes = containerd.changes();
        self.look_at_all(&containerd).await?;
        let again = tokio::time::sleep(PAUSE);
        tokio::pin!(again);
        let mut looked = false;
        *pause = PAUSE;
        loop {
            let untold = !self.state.lock().await.untold.is_empty();
            let first = tokio::select! {
                change = changes.next() => change?,
                () = &mut again, if !looked => {
                    looked = true;
                    self.look_at_all(&containerd).await?;
                    continue;
                }
                () = tokio::time::sleep(PAUSE), if untold => {
                    self.tell_untold().await;
                    continue;
                }
            };
            let Some(first) = first else { return Ok(()) };
            let mut changed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            let mut note = |Change { namespace, name }| changed.entry(namespace).or_default().extend([name]);
            note(first);
            let settled = tokio::time::sleep(SETTLE);
            tokio::pin!(settled);
            for _ in 0..TOGETHER {
                tokio::select! {
                    change = changes.next() => match change? {
                        Some(change) => note(change),
                        None => break,
                    },
                    () = &mut settled => break,
                }
            }
            for (namespace, names) in &changed {
                self.look(&containerd, namespace, names).await?;
            }
        }
    }

    async fn look_at_all(&self, containerd: &Containerd) -> Result<(), Unknown> {
        for namespace in self.snapshots.images_by_namespace().await?.keys() {
            self.look(containerd, namespace, &BTreeSet::new()).await?;
        }
        self.state.lock().await.begun = true;
        Ok(())
    }

    /// The kubelet has pulled an image. Returns when the daemon knows of it, if it is one of lazo's.
    pub(crate) async fn pulled(&self, image: &str) {
        let looked = async {
            if !self.snapshots.images_by_namespace().await?.contains_key(KUBELET) {
                return Ok(());
            }
            let containerd = Containerd::connect(&self.address, KUBELET).await?;
            self.look(&containerd, KUBELET, &BTreeSet::from([image.to_owned()])).await
        };
        match tokio::time::timeout(PULL_PATIENCE, looked).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error: &dyn std::error::Error = &error;
                tracing::debug!(image, error, "cannot see which image was pulled");
            }
            Err(_) => tracing::debug!(image, "containerd does not say in time which image was pulled"),
        }
    }

    /// Compares a namespace's names with what is known of its images. Of the names in `fresh`, sources are to be tried again.
    async fn look(&self, containerd: &Containerd, namespace: &str, fresh: &BTreeSet<String>) -> Result<(), Unknown> {
        let Some(unpacked) = self.snapshots.images_by_namespace().await?.remove(namespace) else { return Ok(()) };
        let containerd = containerd.within(namespace)?;
        // One at a time, so that the last word is the latest.
        let mut state = self.state.lock().await;
        let named = state.names(&containerd, &containerd.list_images().await?).await;
        let fresh: BTreeSet<String> = fresh.iter().filter_map(|name| Some(repository(name)?.1)).collect();
        let mut gone = false;
        for (snapshot, before) in unpacked {
            let chain = snapshot.rsplit('/').next().unwrap_or_default();
            let names = named.get(chain).map(|listed| merged(&before, listed)).unwrap_or_default();
            // An image that is being pulled has no name yet, and one that is being removed none any more.
            let names = if names.is_empty() { before.clone() } else { names };
            let is_fresh = names.iter().filter_map(|name| repository(name)).any(|(_, name)| fresh.contains(&name));
            let untold = !state.begun && names.len() > 1;
            if names != before {
                tracing::info!(snapshot, ?names, "an image has these names");
                gone |= before.iter().any(|name| !names.contains(name));
                self.snapshots.name_image(snapshot.clone(), names).await?;
            } else if !is_fresh && !untold {
                continue;
            }
            state.untold.insert(snapshot);
        }
        self.tell(&mut state).await;
        if gone {
            self.snapshots.forget_logins().await;
        }
        Ok(())
    }

    async fn tell_untold(&self) {
        self.tell(&mut *self.state.lock().await).await;
    }

    /// Tells the daemon. What it cannot be told now stays for later.
    async fn tell(&self, state: &mut State) {
        for snapshot in std::mem::take(&mut state.untold) {
            let Ok(Some((id, names))) = self.snapshots.image_named(snapshot.clone()).await else { continue };
            for name in &names {
                self.images.keep_login(name.clone()).await;
            }
            if !self.images.refer(id, names).await {
                state.untold.insert(snapshot);
            }
        }
    }
}

impl State {
    /// The names of images, the latest first, by each of the snapshots that their layers are.
    async fn names(&mut self, containerd: &Containerd, listed: &[Image]) -> HashMap<String, Vec<String>> {
        let mut listed: Vec<(&Image, &str)> =
            listed.iter().filter_map(|image| Some((image, image.target.as_ref()?.digest.as_str()))).collect();
        let time = |image: &Image| image.updated_at.map(|time| (time.seconds, time.nanos));
        listed.sort_by_key(|(image, _)| std::cmp::Reverse(time(image)));
        let targets: BTreeSet<&str> = listed.iter().map(|(_, target)| *target).collect();
        self.chains.retain(|target, _| targets.contains(target.as_str()));
        let mut names: HashMap<String, Vec<String>> = HashMap::new();
        for (image, target) in listed.into_iter().filter(|(image, _)| is_reference(&image.name)) {
            let chain = match self.chains.get(target) {
                Some(chain) => Arc::clone(chain),
                None => {
                    // What is not there yet is looked for again.
                    let Some(chain) = chain_of(containerd, target).await else { continue };
                    self.chains.insert(target.to_owned(), Arc::clone(&chain));
                    chain
                }
            };
            for id in chain.iter() {
                names.entry(id.clone()).or_default().push(image.name.clone());
            }
        }
        names
    }
}

/// What this reads of an index, a manifest or a config.
#[derive(Deserialize)]
struct Fields {
    #[serde(default)]
    manifests: Vec<Link>,
    config: Option<serde_json::Value>,
    rootfs: Option<RootFs>,
}

#[derive(Deserialize)]
struct Link {
    digest: Digest,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

/// Under which names the snapshots of an image's layers are kept, as far as its documents are in the content store. They were compared with
/// their digests when they came there.
async fn chain_of(containerd: &Containerd, target: &str) -> Option<Arc<[String]>> {
    let fields = read(containerd, target).await?;
    if let Some(config) = &fields.config {
        return chain_of_config(containerd, config).await;
    }
    // Of an index, the manifests of other platforms are not there.
    for link in fields.manifests.iter().take(MAX_MANIFESTS) {
        let Some(manifest) = read(containerd, &link.digest.to_string()).await else { continue };
        if let Some(chain) = chain_of_config(containerd, &manifest.config?).await {
            return Some(chain);
        }
    }
    None
}

async fn chain_of_config(containerd: &Containerd, config: &serde_json::Value) -> Option<Arc<[String]>> {
    let config = read(containerd, config.get("digest")?.as_str()?).await?;
    let ids: Vec<String> = config.rootfs?.diff_ids.iter().map(ToString::to_string).collect();
    Some(chain_ids(&ids).into())
}

async fn read(containerd: &Containerd, digest: &str) -> Option<Fields> {
    let bytes = containerd.document(digest).await.ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Whether blobs can be had by a name: containerd also calls images by the digests of their configs.
fn is_reference(name: &str) -> bool {
    let host = name.split_once('/').map_or("", |(host, _)| host);
    (host == "localhost" || host.contains(['.', ':'])) && !name.starts_with("sha256:") && repository(name).is_some()
}

/// The names that an image is to have: a name for each repository, those that it has first. `listed` are there now, the latest first.
fn merged(before: &[String], listed: &[String]) -> Vec<String> {
    let mut by_repository: Vec<(String, &String)> = Vec::new();
    for name in listed {
        let Some((_, repository)) = repository(name) else { continue };
        match by_repository.iter().position(|(known, _)| *known == repository) {
            // CRI has a name by digest beside each, which says less to people.
            Some(place) if by_repository[place].1.contains('@') => by_repository[place].1 = name,
            Some(_) => {}
            None if by_repository.len() < MAX_REFERENCES => by_repository.push((repository, name)),
            None => {}
        }
    }
    let mut names = Vec::new();
    for name in before {
        let place = repository(name).and_then(|(_, own)| by_repository.iter().position(|(known, _)| *known == own));
        if let Some(place) = place {
            by_repository.remove(place);
            names.push(name.clone());
        }
    }
    names.extend(by_repository.into_iter().map(|(_, name)| name.clone()));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn an_image_has_a_name_for_each_repository() {
        let before = names(&["a.example/app:1", "gone.example/app:1"]);
        let listed = [
            "new.example/app@sha256:00",
            "new.example/app:1",
            "a.example/app:2",
            "a.example/app@sha256:00",
            "new.example/app:0",
        ];
        assert_eq!(merged(&before, &names(&listed)), names(&["a.example/app:1", "new.example/app:1"]));
        assert!(merged(&before, &[]).is_empty());
        let many: Vec<String> = (0..100).map(|number| format!("r{number}.example/app:1")).collect();
        assert_eq!(merged(&[], &many), many[..MAX_REFERENCES]);
    }

    #[test]
    fn not_every_name_says_where_an_image_is() {
        for name in ["a.example/app:1", "127.0.0.1:5000/app", "localhost/app", "docker.io/library/app:1"] {
            assert!(is_reference(name), "{name}");
        }
        for name in ["sha256:0123", "app", "app/part", "import-2024", "a.example/", ""] {
            assert!(!is_reference(name), "{name}");
        }
    }
}
