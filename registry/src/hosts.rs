//! containerd's `hosts.toml` directories: which hosts to ask for a registry's images, in which order, and how.
//!
//! Read as containerd reads them, with one difference: a file that it would pass over with a line in its log is an error
//! here, for images would else come from somewhere else than the operator meant.

pub(crate) mod file;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::header::HeaderMap;

use crate::{
    error::{Error, Result},
    shared::Identity,
};

/// Name of the file in a registry's directory.
const FILE: &str = "hosts.toml";
/// The directory for registries that have none of their own.
const DEFAULT_DIRECTORY: &str = "_default";
/// Largest file read, bytes; real ones have some hundred.
const MAX_FILE: u64 = 1 << 20;
/// Most certificate files of one directory.
const MAX_CERTIFICATES: usize = 256;

/// One host, and how to talk to it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct HostConfig {
    /// Where its API is; `None` for the registry itself, by its name.
    pub(crate) server: Option<Server>,
    pub(crate) may: Abilities,
    pub(crate) ca: Vec<PathBuf>,
    pub(crate) identity: Option<Identity>,
    pub(crate) skip_verify: Option<bool>,
    /// Whether redirects are followed that others could forge.
    pub(crate) insecure_redirects: Option<bool>,
    pub(crate) headers: HeaderMap,
    pub(crate) dial_timeout: Option<Duration>,
    pub(crate) proxy: Option<String>,
}

impl HostConfig {
    /// Whether something is said about certificates.
    pub(crate) fn speaks_tls(&self) -> bool {
        !self.ca.is_empty() || self.identity.is_some() || self.skip_verify.is_some()
    }
}

/// The address of a host's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) tls: bool,
    /// Host and port as written.
    pub(crate) authority: String,
    /// From the root to before the repository: `/v2`, or empty.
    pub(crate) path: String,
}

/// What a host is trusted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Abilities {
    /// To give what is named by its digest.
    pub(crate) pull: bool,
    /// To say what a tag stands for.
    pub(crate) resolve: bool,
    /// To take images.
    pub(crate) push: bool,
}

impl Default for Abilities {
    fn default() -> Self {
        Self { pull: true, resolve: true, push: true }
    }
}

/// The hosts for a registry, in order, the registry itself or what stands for it last; `None` where the directory says
/// nothing of it. Blocking.
pub(crate) fn load(root: &Path, registry: &str) -> Result<Option<Vec<HostConfig>>> {
    for name in directory_names(registry) {
        let directory = root.join(name);
        match fs::metadata(&directory) {
            Ok(_) => return load_directory(&directory).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(format_args!("cannot look for {}", directory.display()), e)),
        }
    }
    Ok(None)
}

/// Under which a registry's directory may be, the first that exists counting.
fn directory_names(registry: &str) -> Vec<String> {
    let with_port = registry.rsplit_once(':').filter(|(_, port)| !port.contains(']'));
    let ported = with_port.map(|(host, port)| format!("{host}_{port}_"));
    ported.into_iter().chain([registry.to_owned(), DEFAULT_DIRECTORY.to_owned()]).collect()
}

fn load_directory(directory: &Path) -> Result<Vec<HostConfig>> {
    let path = directory.join(FILE);
    let cannot_read = |e| Error::io(format_args!("cannot read {}", path.display()), e);
    let text = match fs::metadata(&path) {
        Ok(found) if found.len() > MAX_FILE => {
            return Err(Error::TooLarge { what: path.display().to_string(), limit: MAX_FILE });
        }
        Ok(_) => fs::read_to_string(&path).map_err(cannot_read)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(cannot_read(e)),
    };
    if text.is_empty() {
        return Ok(vec![certificates(directory)?]);
    }
    let (hosts, ignored) = file::parse(directory, &text).map_err(|reason| Error::invalid(path.display(), reason))?;
    for note in ignored {
        tracing::warn!(file = %path.display(), "{note}");
    }
    Ok(hosts)
}

/// The registry itself, with the certificates that docker's directories hold: `*.crt` authorities, `*.cert` with `*.key` for
/// the client.
fn certificates(directory: &Path) -> Result<HostConfig> {
    let cannot_read = |e| Error::io(format_args!("cannot read {}", directory.display()), e);
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(cannot_read)? {
        let path = entry.map_err(cannot_read)?.path();
        if !path.is_dir() {
            files.push(path);
        }
        if files.len() > MAX_CERTIFICATES {
            return Err(Error::invalid(directory.display(), format_args!("over {MAX_CERTIFICATES} files")));
        }
    }
    files.sort();
    let ending =
        |wanted: &'static str| files.iter().filter(move |path| path.extension().is_some_and(|e| e == wanted)).cloned();
    let identities: Vec<Identity> = ending("cert")
        .map(|certificate| {
            let key = Some(certificate.with_extension("key")).filter(|key| key.exists());
            Identity { certificate, key }
        })
        .collect();
    if identities.len() > 1 {
        tracing::warn!(directory = %directory.display(), "several client certificates: the first is used");
    }
    Ok(HostConfig { ca: ending("crt").collect(), identity: identities.into_iter().next(), ..HostConfig::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_directories_as_containerd_does() {
        for (registry, names) in [
            ("docker.io", vec!["docker.io", "_default"]),
            ("h.example:5000", vec!["h.example_5000_", "h.example:5000", "_default"]),
            ("[::1]", vec!["[::1]", "_default"]),
            ("[::1]:5000", vec!["[::1]_5000_", "[::1]:5000", "_default"]),
        ] {
            assert_eq!(directory_names(registry), names);
        }
        let root = tempfile::tempdir().unwrap();
        let found = |registry: &str| {
            let hosts = load(root.path(), registry).unwrap()?;
            Some(hosts.first()?.server.as_ref()?.authority.clone())
        };
        for name in ["_default", "h:5000", "h_5000_"] {
            assert_eq!(found("other:1").is_some(), name != "_default");
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join(FILE), format!("[host.'http://{name}']")).unwrap();
            assert_eq!(found("h:5000").unwrap(), name);
        }
        assert_eq!(found("other:1").unwrap(), "_default");
    }

    #[test]
    fn takes_dockers_certificates_where_there_is_no_file() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("h.example");
        fs::create_dir(&directory).unwrap();
        for name in ["b.crt", "a.crt", "client.cert", "client.key", "other.cert", "readme.txt"] {
            fs::write(directory.join(name), "").unwrap();
        }
        let [host] = load(root.path(), "h.example").unwrap().unwrap().try_into().unwrap();
        assert_eq!(host.ca, [directory.join("a.crt"), directory.join("b.crt")]);
        let (certificate, key) = (directory.join("client.cert"), Some(directory.join("client.key")));
        assert_eq!(host.identity, Some(Identity { certificate, key }));
        assert_eq!((host.server, host.may), (None, Abilities::default()));
        assert!(load(root.path(), "else.example").unwrap().is_none());
    }

    #[test]
    fn errors_name_file_and_key() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("h.example");
        fs::create_dir(&directory).unwrap();
        for (text, expected) in [
            ("server = 5", "server"),
            ("server = 'ftp://x'", "server"),
            ("capabilities = ['pull', 'dance']", "capabilities"),
            ("capabilities = 'pull'", "capabilities"),
            ("ca = 5", "ca"),
            ("ca = ['a', 5]", "ca"),
            ("client = [['a']]", "client"),
            ("client = [['a', 'b', 'c']]", "client"),
            ("client = true", "client"),
            ("skip_verify = 'yes'", "skip_verify"),
            ("insecure_redirects = 'yes'", "insecure_redirects"),
            ("dial_timeout = '1 minute'", "dial_timeout"),
            ("dial_timeout = 5", "dial_timeout"),
            ("override_path = 1", "override_path"),
            ("proxy = 'ftp://x'", "proxy"),
            ("proxy = 'http://user:secret-pw@x/path'", "proxy"),
            ("[header]\nx-secret = 5", "header.x-secret"),
            ("[header]\nx-secret = \"secret-value\\n\"", "header.x-secret"),
            ("[header]\n'bad name' = 'secret-value'", "header.bad name"),
            ("header = 'secret-value'", "header"),
            ("host = 'http://x'", "host"),
            ("[host.'http://m.example']\ncapabilities = ['x']", "host.\"http://m.example\".capabilities"),
            ("[host.'ftp://m.example']", "host.\"ftp://m.example\""),
            ("[host]\n'http://m.example' = 1", "host.\"http://m.example\""),
            ("server = 'x'\n[header\nx = 'secret-value'", "line 2"),
        ] {
            fs::write(directory.join(FILE), text).unwrap();
            let error = load(root.path(), "h.example").unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("h.example/hosts.toml") && shown.contains(expected), "{text}: {shown}");
            assert!(!shown.contains("secret-"), "{shown}");
        }
    }
}
