//! Logins that only the kubelet knows: they come with its pull requests, and never as labels of snapshots.
//!
//! One is held in memory while its pull is under way, and written down when the image turns out to be one of lazo's, whose
//! blobs will be fetched long after the pull: to `STATE/credentials.json`, in the format of docker's `config.json`, under the image's
//! repository. The node daemon looks there first. It is removed with the repository's last image on this machine.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lazo_registry::ImageRef;
use serde::{Deserialize, Serialize};

/// How docker's own registry is called in the addresses that logins name.
const DOCKER_HUB: &[&str] = &["docker.io", "index.docker.io", "registry-1.docker.io"];

/// A login, as docker's `config.json` has it.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Login {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) password: String,
    /// `USER:PASSWORD` in base64.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) auth: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) identitytoken: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) registrytoken: String,
}

/// The file of kept logins.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct File {
    #[serde(default)]
    pub(crate) auths: BTreeMap<String, Login>,
}

/// Logins on offer, and those that are kept.
pub(crate) struct Credentials {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Of pulls under way, by repository; of several for one, the latest counts.
    offered: BTreeMap<String, Vec<(u64, Login)>>,
    next: u64,
}

/// A login on offer until this is dropped.
pub(crate) struct Offer<'a> {
    credentials: &'a Credentials,
    repository: String,
    number: u64,
}

impl Credentials {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, state: Mutex::default() }
    }

    /// Holds a login while an image is pulled. None if it is none, or another registry's (`server`, if it names one).
    pub(crate) fn offer(&self, image: &str, server: &str, login: Login) -> Option<Offer<'_>> {
        let (host, repository) = repository(image)?;
        if login == Login::default() || !is_for(server, &host) {
            return None;
        }
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.offered.entry(repository.clone()).or_default().push((number, login));
        drop(state);
        // Of an image that is here already, no layer will be seen, and the login may be a newer one.
        let known = read(&self.path).is_ok_and(|file| file.auths.contains_key(&repository));
        if known && let Err(error) = self.keep(image) {
            tracing::error!(image, %error, "cannot replace a kept login");
        }
        Some(Offer { credentials: self, repository, number })
    }

    /// Writes down the login on offer for an image, if there is one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn keep(&self, image: &str) -> io::Result<()> {
        let Some((_, repository)) = repository(image) else { return Ok(()) };
        let state = self.state();
        let Some((_, login)) = state.offered.get(&repository).and_then(|offers| offers.last()) else { return Ok(()) };
        let mut file = read(&self.path)?;
        if file.auths.get(&repository) == Some(login) {
            return Ok(());
        }
        file.auths.insert(repository, login.clone());
        write(&self.path, &file)
    }

    /// Removes logins of repositories of which none of these images is.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub(crate) fn retain<'a>(&self, images: impl Iterator<Item = &'a str>) -> io::Result<()> {
        let _state = self.state();
        let mut file = read(&self.path)?;
        if file.auths.is_empty() {
            return Ok(());
        }
        let needed: BTreeSet<String> = images.filter_map(|image| Some(repository(image)?.1)).collect();
        let before = file.auths.len();
        file.auths.retain(|repository, _| needed.contains(repository));
        if file.auths.len() == before { Ok(()) } else { write(&self.path, &file) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Offer<'_> {
    fn drop(&mut self) {
        let mut state = self.credentials.state();
        if let Some(offers) = state.offered.get_mut(&self.repository) {
            offers.retain(|(number, _)| *number != self.number);
            if offers.is_empty() {
                state.offered.remove(&self.repository);
            }
        }
    }
}

/// Host and `HOST/REPOSITORY` of an image in a registry.
pub(crate) fn repository(image: &str) -> Option<(String, String)> {
    match with_host(image).parse() {
        Ok(ImageRef::Docker(reference)) => {
            Some((reference.host.clone(), format!("{}/{}", reference.host, reference.repository)))
        }
        _ => None,
    }
}

/// Short names are docker's own registry's, for the kubelet as for docker.
fn with_host(image: &str) -> Cow<'_, str> {
    match image.split_once('/') {
        None => format!("docker.io/library/{image}").into(),
        Some((first, _)) if first != "localhost" && !first.contains(['.', ':']) => format!("docker.io/{image}").into(),
        Some(_) => image.into(),
    }
}

/// Whether a login with this address is for a host. One without is for whatever is pulled.
pub(crate) fn is_for(server: &str, host: &str) -> bool {
    let address = server.split_once("://").map_or(server, |(_, address)| address);
    let address = address.split('/').next().unwrap_or_default();
    address.is_empty() || address == host || [address, host].iter().all(|name| DOCKER_HUB.contains(name))
}

fn read(path: &Path) -> io::Result<File> {
    match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(File::default()),
        bytes => Ok(serde_json::from_slice(&bytes?)?),
    }
}

/// So that it has the old content or the new one, and nobody but root reads it.
fn write(path: &Path, file: &File) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    // Its mode is 0600.
    let mut new = tempfile::NamedTempFile::new_in(dir)?;
    new.write_all(&serde_json::to_vec(file)?)?;
    new.as_file().sync_all()?;
    new.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn login(user: &str) -> Login {
        Login { username: user.into(), password: "secret".into(), ..Login::default() }
    }

    fn kept(credentials: &Credentials) -> Vec<(String, String)> {
        let file = read(&credentials.path).unwrap();
        file.auths.into_iter().map(|(repository, login)| (repository, login.username)).collect()
    }

    #[test]
    fn a_login_is_kept_once_its_image_is_seen_and_until_the_last_one_goes() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = Credentials::new(dir.path().join("credentials.json"));
        let offer = credentials.offer("h.example/team/app:1", "", login("a")).unwrap();
        assert!(!credentials.path.exists(), "nothing is written for an ordinary image");
        credentials.keep("h.example/team/other:1").unwrap();
        assert!(!credentials.path.exists());
        credentials.keep("h.example/team/app:1").unwrap();
        assert_eq!(kept(&credentials), [("h.example/team/app".into(), "a".into())]);
        assert_eq!(std::fs::metadata(&credentials.path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(offer);
        assert!(credentials.state().offered.is_empty());

        let second = credentials.offer("nginx", "https://index.docker.io/v1/", login("hub")).unwrap();
        credentials.keep("docker.io/library/nginx:latest").unwrap();
        credentials.retain(["h.example/team/app@sha256:00", "docker.io/library/nginx:1"].into_iter()).unwrap();
        assert_eq!(kept(&credentials).len(), 1, "a reference that is none keeps nothing");
        credentials.retain(["docker.io/library/nginx:1"].into_iter()).unwrap();
        assert_eq!(kept(&credentials), [("docker.io/library/nginx".into(), "hub".into())]);
        credentials.retain([].into_iter()).unwrap();
        assert!(kept(&credentials).is_empty());
        drop(second);
        // A later pull's login replaces the one that is kept.
        let first = credentials.offer("h.example/app", "", login("old")).unwrap();
        credentials.keep("h.example/app").unwrap();
        drop(first);
        drop(credentials.offer("h.example/app:2", "", login("new")).unwrap());
        assert_eq!(kept(&credentials), [("h.example/app".into(), "new".into())]);
    }

    #[test]
    fn the_latest_login_counts_and_one_of_another_registry_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = Credentials::new(dir.path().join("credentials.json"));
        let first = credentials.offer("h.example/app", "h.example", login("old")).unwrap();
        let second = credentials.offer("h.example/app", "https://h.example/v2/", login("new")).unwrap();
        drop(first);
        credentials.keep("h.example/app").unwrap();
        assert_eq!(kept(&credentials), [("h.example/app".into(), "new".into())]);
        drop(second);
        assert!(credentials.offer("h.example/app", "other.example", login("x")).is_none());
        assert!(credentials.offer("h.example/app", "", Login::default()).is_none());
        assert!(credentials.offer("not an image", "", login("x")).is_none());
    }
}
