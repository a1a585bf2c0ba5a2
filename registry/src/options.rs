//! How to reach registries.

use std::{path::PathBuf, time::Duration};

use crate::{Helpers, Login, Shared};

/// Settings of a [`crate::Source`] or [`crate::Destination`]. The default reads docker's `config.json`, when needed.
#[derive(Debug, Clone)]
pub struct Options {
    /// Plain HTTP, always. Otherwise it is for loopback hosts only, as long as they do not turn out to speak TLS.
    pub plain_http: bool,
    /// HTTPS for loopback hosts, always.
    pub loopback_tls: bool,
    /// PEM files of certificate authorities trusted beside the system's.
    pub extra_ca: Vec<PathBuf>,
    /// Credentials file, of docker's or containers' form, in place of `REGISTRY_AUTH_FILE` and what [`crate::login_files`] names.
    pub auth_file: Option<PathBuf>,
    /// A file of the same form that may be missing and comes before [`Self::auth_file`]: logins that others have left for single
    /// repositories.
    pub kept_auth_file: Option<PathBuf>,
    /// A file with a bearer token for the registry that the reference names, read anew whenever a token is needed; it
    /// comes before what [`Self::auth_file`] holds. It is never sent to a mirror.
    pub token_file: Option<PathBuf>,
    /// The login for the registry that the reference names, in place of all that is kept. It is never sent to a mirror.
    pub login: Option<Login>,
    /// How credential helpers are run.
    pub helpers: Helpers,
    /// Accept any certificate of the registry that the reference names, and speak plain HTTP to it where it does not speak TLS. Mirrors
    /// are not concerned.
    pub insecure: bool,
    /// A directory of containerd's `hosts.toml` files (`/etc/containerd/certs.d`): mirrors, authorities, client
    /// certificates and headers of each registry.
    pub hosts_dir: Option<PathBuf>,
    /// Longest wait for a connection. 10 s.
    pub connect_timeout: Duration,
    /// Follow redirects that others could forge: from https to plain http, and from a plain-HTTP host to another host. No.
    pub insecure_redirects: bool,
    /// Longest time that all attempts at a manifest, config or token take together, without pauses that a server asks for: 60 s. Larger
    /// ones, and layers, get as much more as they take at 16 KiB a second, counted while they are waited for.
    pub document_timeout: Duration,
    /// Longest wait without a byte moved on a connection. 60 s.
    pub stall_timeout: Duration,
    /// Attempts a request has before its error is reported, the first included. 5.
    pub attempts: u32,
    /// Bytes of a blob sent in one request; what a broken connection costs at most. 64 MiB.
    pub upload_chunk: u64,
    /// Where staged blobs lie before an upload, in place of TMPDIR or /var/tmp. Layouts and archives
    /// stage beside their destination, so that a rename suffices.
    pub staging_parent: Option<PathBuf>,
    /// Connections and logins; clones of these options share them.
    pub shared: Shared,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            plain_http: false,
            loopback_tls: false,
            extra_ca: Vec::new(),
            auth_file: None,
            kept_auth_file: None,
            token_file: None,
            login: None,
            helpers: Helpers::default(),
            insecure: false,
            hosts_dir: None,
            insecure_redirects: false,
            document_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
            attempts: 5,
            upload_chunk: 64 << 20,
            staging_parent: None,
            shared: Shared::default(),
        }
    }
}
