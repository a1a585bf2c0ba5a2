//! By which names containerd knows the lazo images that are unpacked here.
//!
//! containerd asks a snapshotter for nothing when it pulls an image whose layers are all there, and tells it no name: it looks whether the
//! snapshots exist (`Stat`), and then makes a record of the name. So the names come from containerd's own records: all of them when the
//! connection begins, and whenever one of them changes. A name whose layers are those of a bootstrap and its blobs is one of that
//! image's; the node daemon is told all of them, and each is a source with a login of its own.
//!
//! Without a connection to containerd an image has the one name with which it was unpacked.

mod chains;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lazo_daemon::node::protocol::MAX_REFERENCES;
use tokio::sync::Mutex;

use self::chains::{Documents, chains_of};
use crate::containerd::{Change, Containerd, ContainerdError};
use crate::credentials::repository;
use crate::images::Images;
use crate::proto::containerd::services::images::v1::Image;
use crate::snapshots::{Error, Snapshots};

/// Between two tries to reach containerd, and to tell the daemon what it has not been told.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Of several changes at a time, such as a pull's three names, the first waits for the others.
const SETTLE: Duration = Duration::from_millis(50);

/// Changes that are looked at together at most.
const TOGETHER: usize = 256;

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
    /// Held while the daemon is told one image's names, so that the last word is the latest.
    telling: Mutex<()>,
}

#[derive(Default)]
struct State {
    /// By namespace and digest of what a name stands for, under which names the snapshots of its layers are kept.
    chains: HashMap<(String, String), Arc<BTreeSet<String>>>,
    /// Images whose names the daemon has not been told, by their snapshots, and when that was noted.
    untold: BTreeMap<String, u64>,
    /// Notes so far.
    notes: u64,
    /// Whether names have gone whose logins may be kept still.
    gone: bool,
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
        Arc::new(Self { address, snapshots, images, state: Mutex::default(), telling: Mutex::default() })
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
                    self.tell().await;
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
            self.tell().await;
        }
    }

    async fn look_at_all(&self, containerd: &Containerd) -> Result<(), Unknown> {
        for namespace in self.snapshots.images_by_namespace().await?.keys() {
            self.look(containerd, namespace, &BTreeSet::new()).await?;
        }
        self.state.lock().await.begun = true;
        self.tell().await;
        Ok(())
    }

    /// The kubelet has pulled an image. Returns when the daemon knows of it, if it is one of lazo's.
    pub(crate) async fn pulled(self: &Arc<Self>, image: &str) {
        let (references, name) = (Arc::clone(self), image.to_owned());
        // Goes on when the kubelet does not wait any longer.
        let looked = tokio::spawn(async move {
            if let Err(error) = references.look_at_pulled(&name).await {
                let error: &dyn std::error::Error = &error;
                tracing::debug!(image = name, error, "cannot see which image was pulled");
            }
        });
        if tokio::time::timeout(PULL_PATIENCE, looked).await.is_err() {
            tracing::debug!(image, "it is not known in time which image was pulled");
        }
    }

    async fn look_at_pulled(&self, image: &str) -> Result<(), Unknown> {
        if !self.snapshots.images_by_namespace().await?.contains_key(KUBELET) {
            return Ok(());
        }
        let containerd = Containerd::connect(&self.address, KUBELET).await?;
        // Others wait for those who watch.
        for snapshot in self.look(&containerd, KUBELET, &BTreeSet::from([image.to_owned()])).await? {
            self.tell_one(snapshot).await;
        }
        self.forget_gone().await;
        Ok(())
    }

    /// Compares a namespace's names with what is known of its images, and notes what the daemon is to be told. Of the names in `fresh`, sources
    /// are to be tried again: gives the snapshots of images that have them.
    async fn look(
        &self,
        containerd: &Containerd,
        namespace: &str,
        fresh: &BTreeSet<String>,
    ) -> Result<Vec<String>, Unknown> {
        let mut pulled = Vec::new();
        let Some(unpacked) = self.snapshots.images_by_namespace().await?.remove(namespace) else { return Ok(pulled) };
        let containerd = containerd.within(namespace)?;
        // One at a time, so that the last word is the latest.
        let mut state = self.state.lock().await;
        let listed = state.names(&containerd, namespace, &containerd.list_images().await?, fresh).await;
        let fresh: BTreeSet<String> = fresh.iter().filter_map(|name| Some(repository(name)?.1)).collect();
        for (snapshot, before) in unpacked {
            let chain = snapshot.rsplit('/').next().unwrap_or_default();
            let names = merged(&before, listed.names.get(chain).map_or(&[], Vec::as_slice), &listed.unclear);
            // An image that is being pulled has no name yet, and one that is being removed none any more.
            let names = if names.is_empty() { before.clone() } else { names };
            let is_fresh = names.iter().filter_map(|name| repository(name)).any(|(_, name)| fresh.contains(&name));
            let untold = !state.begun && names.len() > 1;
            if names != before {
                tracing::info!(snapshot, ?names, "an image has these names");
                state.gone |= before.iter().any(|name| !names.contains(name));
                self.snapshots.name_image(snapshot.clone(), names.clone()).await?;
            } else if !is_fresh && !untold {
                continue;
            }
            // Now, as a login is on offer only as long as its pull takes.
            for name in names {
                self.images.keep_login(name).await;
            }
            if is_fresh {
                pulled.push(snapshot.clone());
            }
            state.note(snapshot);
        }
        Ok(pulled)
    }

    /// Tells the daemon what it has not been told. What it cannot be told now stays for later.
    async fn tell(&self) {
        let untold: Vec<String> = self.state.lock().await.untold.keys().cloned().collect();
        for snapshot in untold {
            self.tell_one(snapshot).await;
        }
        self.forget_gone().await;
    }

    async fn tell_one(&self, snapshot: String) {
        let _one = self.telling.lock().await;
        let Some(noted) = self.state.lock().await.untold.get(&snapshot).copied() else { return };
        let told = match self.snapshots.image_named(snapshot.clone()).await {
            Ok(Some((ids, names))) => self.refer(ids, &names).await,
            // It has been removed.
            Ok(None) => true,
            Err(_) => false,
        };
        if told {
            self.state.lock().await.told(&snapshot, noted);
        }
    }

    /// Whether the daemon knows the names for all mounts of an image.
    async fn refer(&self, ids: Vec<u64>, names: &[String]) -> bool {
        let mut told = true;
        for id in ids {
            told &= self.images.refer(id, names.to_vec()).await;
        }
        told
    }

    /// Forgets the logins of names that have gone. Not before the daemon knows of it: it would ask without.
    async fn forget_gone(&self) {
        let mut state = self.state.lock().await;
        if state.untold.is_empty() && std::mem::take(&mut state.gone) {
            drop(state);
            self.snapshots.forget_logins().await;
        }
    }
}

/// What containerd's list of images says.
#[derive(Default)]
struct Listed {
    /// The names of images, the latest first, by each of the snapshots that their layers are.
    names: HashMap<String, Vec<String>>,
    /// Repositories of names of which it cannot be seen now what they stand for.
    unclear: BTreeSet<String>,
}

impl State {
    /// The daemon is to be told an image's names.
    fn note(&mut self, snapshot: String) {
        self.notes += 1;
        self.untold.insert(snapshot, self.notes);
    }

    /// It was told what they were when that was `noted`.
    fn told(&mut self, snapshot: &str, noted: u64) {
        if self.untold.get(snapshot) == Some(&noted) {
            self.untold.remove(snapshot);
        }
    }

    /// What `listed` says of a namespace's images. Of those in `fresh`, more may be there than when they were last looked at.
    async fn names(
        &mut self,
        containerd: &impl Documents,
        namespace: &str,
        listed: &[Image],
        fresh: &BTreeSet<String>,
    ) -> Listed {
        let mut listed: Vec<(&Image, &str)> =
            listed.iter().filter_map(|image| Some((image, image.target.as_ref()?.digest.as_str()))).collect();
        let time = |image: &Image| image.updated_at.map(|time| (time.seconds, time.nanos));
        listed.sort_by_key(|(image, _)| std::cmp::Reverse(time(image)));
        let known: BTreeSet<&str> =
            listed.iter().filter(|(image, _)| !fresh.contains(&image.name)).map(|(_, target)| *target).collect();
        self.chains.retain(|(own, target), _| own != namespace || known.contains(target.as_str()));
        let mut found = Listed::default();
        for (image, target) in listed.into_iter().filter(|(image, _)| is_reference(&image.name)) {
            let key = (namespace.to_owned(), target.to_owned());
            let chains = match self.chains.get(&key) {
                Some(chains) => Arc::clone(chains),
                None => match chains_of(containerd, target).await {
                    // What is not there yet is looked for again.
                    Ok(chains) if chains.is_empty() => continue,
                    Ok(chains) => Arc::clone(self.chains.entry(key).or_insert(chains.into())),
                    Err(error) => {
                        let error: &dyn std::error::Error = &error;
                        tracing::warn!(image = image.name, error, "cannot see what an image's name stands for");
                        found.unclear.extend(repository(&image.name).map(|(_, repository)| repository));
                        continue;
                    }
                },
            };
            for id in chains.iter() {
                found.names.entry(id.clone()).or_default().push(image.name.clone());
            }
        }
        found
    }
}

/// Whether blobs can be had by a name: containerd also calls images by the digests of their configs.
fn is_reference(name: &str) -> bool {
    let host = name.split_once('/').map_or("", |(host, _)| host);
    (host == "localhost" || host.contains(['.', ':'])) && !name.starts_with("sha256:") && repository(name).is_some()
}

/// The names that an image is to have: a name for each repository, those that it has first. `listed` are there now, the latest first. Of
/// the repositories in `unclear` nothing is known, so that what it has of them stays.
fn merged(before: &[String], listed: &[String], unclear: &BTreeSet<String>) -> Vec<String> {
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
        let Some((_, own)) = repository(name) else { continue };
        let place = by_repository.iter().position(|(known, _)| *known == own);
        if let Some(place) = place {
            by_repository.remove(place);
        }
        if place.is_some() || unclear.contains(&own) {
            names.push(name.clone());
        }
    }
    names.extend(by_repository.into_iter().map(|(_, name)| name.clone()));
    names.truncate(MAX_REFERENCES);
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
        assert_eq!(
            merged(&before, &names(&listed), &BTreeSet::new()),
            names(&["a.example/app:1", "new.example/app:1"])
        );
        assert!(merged(&before, &[], &BTreeSet::new()).is_empty());
        let unclear = BTreeSet::from([repository("gone.example/app:1").unwrap().1]);
        assert_eq!(merged(&before, &[], &unclear), names(&["gone.example/app:1"]));
        let many: Vec<String> = (0..100).map(|number| format!("r{number}.example/app:1")).collect();
        assert_eq!(merged(&[], &many, &BTreeSet::new()), many[..MAX_REFERENCES]);
    }

    #[test]
    fn what_changes_while_the_daemon_is_told_is_told_as_well() {
        let mut state = State::default();
        state.note("k8s.io/image".to_owned());
        let noted = state.untold["k8s.io/image"];
        state.note("k8s.io/image".to_owned());
        state.told("k8s.io/image", noted);
        assert_eq!(state.untold.len(), 1);
        state.told("k8s.io/image", state.notes);
        assert!(state.untold.is_empty());
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
