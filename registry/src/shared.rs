//! Connections and logins that several sources and destinations share.

use std::{
    fmt,
    num::NonZeroUsize,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lru::LruCache;
use reqwest::Client;
use tokio::runtime::{self, Handle};

use crate::auth::{Auth, credentials::Store};

/// Clients kept: one for each way of connecting, of which a node has a handful.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");
/// Logins kept: one a repository and host. A node runs some hundred images; one that is dropped logs in again.
const MAX_LOGINS: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Hosts of which it is kept what they were found to speak: a node has a handful on itself.
const MAX_FOUND: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// How long that is believed: a request in five minutes that is made twice costs nothing, and a server that was set up
/// otherwise, or was mistaken for something else, is found again without a restart.
const FOUND_HOLDS: Duration = Duration::from_secs(300);

/// Connections and logins, shared by everything that is opened with clones of the same [`crate::Options`].
#[derive(Clone)]
pub struct Shared(Arc<Mutex<State>>);

struct State {
    clients: LruCache<ClientKey, Client>,
    logins: LruCache<LoginKey, Auth>,
    /// Whether hosts speak TLS, by host and port, where it was found out, and when that was.
    found_tls: LruCache<String, (bool, Instant)>,
    /// Hosts of which it was said that they are insecure.
    insecure: LruCache<String, ()>,
}

/// How a host is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Transport {
    /// PEM files of authorities trusted beside the system's.
    pub(crate) ca: Vec<PathBuf>,
    /// PEM files with certificate and key that vouch for us.
    pub(crate) identity: Option<Identity>,
    /// Trust every certificate.
    pub(crate) skip_verify: bool,
    /// Longest wait for a connection.
    pub(crate) connect_timeout: Duration,
    /// A proxy for this host, in place of the environment's.
    pub(crate) proxy: Option<String>,
}

/// Where a client certificate is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    /// Where its key is, when not in the same file.
    pub(crate) key: Option<PathBuf>,
}

/// What tells clients apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ClientKey {
    pub(crate) tls: bool,
    pub(crate) loopback: bool,
    pub(crate) transport: Transport,
    /// Pooled connections belong to the runtime that they were made in.
    runtime: Option<runtime::Id>,
}

impl ClientKey {
    pub(crate) fn new(tls: bool, loopback: bool, transport: &Transport) -> Self {
        let runtime = Handle::try_current().ok().map(|handle| handle.id());
        Self { tls, loopback, transport: transport.clone(), runtime }
    }
}

/// What tells logins apart: a token is for one repository of one host, and comes from one place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LoginKey {
    /// API address of the repository.
    pub(crate) base: String,
    pub(crate) store: Store,
    pub(crate) transport: Transport,
}

impl Shared {
    pub(crate) fn client(&self, key: &ClientKey) -> Option<Client> {
        self.state().clients.get(key).cloned()
    }

    /// Keeps a client, unless there is one by now; the one to use.
    pub(crate) fn keep_client(&self, key: ClientKey, client: Client) -> Client {
        self.state().clients.get_or_insert(key, || client).clone()
    }

    pub(crate) fn forget_client(&self, key: &ClientKey) {
        self.state().clients.pop(key);
    }

    /// The login for `key`, made when there is none.
    pub(crate) fn login(&self, key: LoginKey, make: impl FnOnce() -> Auth) -> Auth {
        self.state().logins.get_or_insert(key, make).clone()
    }

    /// Whether a host was found to speak TLS, or not to, a short while ago; `None` if it was as expected, or nothing is
    /// known.
    pub(crate) fn found_tls(&self, authority: &str) -> Option<bool> {
        let found = self.state().found_tls.get(authority).copied();
        found.filter(|(_, since)| since.elapsed() < FOUND_HOLDS).map(|(tls, _)| tls)
    }

    /// Keeps what was found out. Whether it is something else than before.
    pub(crate) fn find_tls(&self, authority: &str, tls: bool) -> bool {
        let before = self.state().found_tls.put(authority.to_owned(), (tls, Instant::now()));
        before.is_none_or(|(before, _)| before != tls)
    }

    /// Whether nobody was told yet that a host is insecure.
    pub(crate) fn is_first_insecure(&self, authority: &str) -> bool {
        self.state().insecure.put(authority.to_owned(), ()).is_none()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Shared {
    fn default() -> Self {
        let state = State {
            clients: LruCache::new(MAX_CLIENTS),
            logins: LruCache::new(MAX_LOGINS),
            found_tls: LruCache::new(MAX_FOUND),
            insecure: LruCache::new(MAX_FOUND),
        };
        Self(Arc::new(Mutex::new(state)))
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_out_holds_for_a_while() {
        let shared = Shared::default();
        assert!(shared.find_tls("h", false) && !shared.find_tls("h", false));
        assert_eq!(shared.found_tls("h"), Some(false));
        let long_ago = Instant::now().checked_sub(FOUND_HOLDS).expect("this machine has run for some minutes");
        shared.state().found_tls.put("h".to_owned(), (false, long_ago));
        assert_eq!(shared.found_tls("h"), None);
        assert!(!shared.find_tls("h", false), "it is no news");
        assert!(shared.find_tls("h", true));
    }
}
