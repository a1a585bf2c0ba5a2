//! The configuration file: TOML, one flat table. A key is called as the flag of `lazo mount` that does the same.
//!
//! docs/CONFIGURATION.md and packaging/lazo.toml are made of the table in this file.

#[cfg(test)]
mod docs;

use std::fmt;
use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use lazo_registry::Options;
use lazo_storage::cache::{CacheOptions, Limit, parse_size};
use lazo_storage::{Policy, SourceSpec, SpecError};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use super::protocol::{Mode, Prefetch};
use crate::endpoint::MetricsAddr;

/// Read if it is there and no other is named.
pub const CONFIG_FILE: &str = "/etc/lazo/lazo.toml";

/// In the state directory: logins that came with the kubelet's requests, in the format of docker's `config.json`.
pub const CREDENTIALS: &str = "credentials.json";

/// In place of a directory: none.
pub const NO_HOSTS_DIR: &str = "none";

/// Longest outage limit, in seconds: a day. Beyond it, a program that hangs is the greater trouble.
pub const MAX_OUTAGE_LIMIT: u64 = 86_400;

/// Longest configuration file, bytes; thousands of sources and certificates fit.
const MAX_FILE: u64 = 1 << 20;

/// What a setting is, for documentation.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Setting {
    /// Its key.
    pub name: &'static str,
    /// Its default as TOML, or an example if it has none.
    pub value: &'static str,
    /// Whether [`Self::value`] is the default.
    pub has_default: bool,
    /// What it does.
    pub help: &'static str,
}

/// Defines [`Config`] and [`SETTINGS`] from one table: help text, key, type, default, and that or an example as TOML.
macro_rules! settings {
    ($($(#[doc = $help:literal])+ $(#[serde($($serde:tt)+)])? $field:ident: $type:ty = $default:expr, $how:ident $shown:literal;)*) => {
        /// What an operator sets for a daemon. All paths are absolute.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Config {
            $($(#[doc = $help])+ $(#[serde($($serde)+)])? pub $field: $type,)*
        }

        impl Default for Config {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        /// All settings, in the order of the documentation.
        pub const SETTINGS: &[Setting] = &[$(Setting {
            name: stringify!($field),
            value: $shown,
            has_default: settings!(@ $how),
            help: concat!($($help),+),
        },)*];
    };
    (@ default) => { true };
    (@ example) => { false };
}

settings! {
    /// Where fetched images and chunks are kept. On tmpfs or overlayfs the kernel's EROFS cannot be used.
    state_dir: PathBuf = "/var/lib/lazo".into(), default r#""/var/lib/lazo""#;
    /// Where the control socket, the daemon's own mounts and its records of live mounts are. It should not survive a reboot.
    run_dir: PathBuf = "/run/lazo".into(), default r#""/run/lazo""#;
    /// How images are served: "erofs" lets the kernel's EROFS do all but bring the bytes, "fuse" is a FUSE mount of each tree, and
    /// "auto" is "erofs" if a trial at the start shows that the kernel can.
    mode: Mode = Mode::Auto, default r#""auto""#;
    /// Lets the kernel read blobs past their own page cache, for machines with little memory: nothing is there twice then, not even
    /// until the daemon has dropped the second copy some seconds later. Over FUSE, cold reads take 1.6 times as long. Of "erofs" only.
    directio: bool = false, default "false";
    /// What to fetch before it is read: "none", "hints" (what the image's prefetch list names) or "all" (that, and then the whole
    /// image, whenever no program waits for data).
    prefetch: Prefetch = Prefetch::Hints, default r#""hints""#;
    /// How long reads wait when no source answers, before they fail with an I/O error: seconds, at most a day.
    outage_limit: u64 = 60, default "60";
    /// Most disk space that all cached data may take: a size such as "20G", a part of the file system such as "50%", or "none".
    #[serde(with = "text")]
    cache_limit: Limit = Limit::default(), default r#""50%""#;
    /// Most bytes a second to fetch ahead of readers, for each image: a number, or one with K, M or G. No limit if not set.
    #[serde(deserialize_with = "rate")]
    background_rate: Option<NonZeroU64> = None, example r#""50M""#;
    /// Most requests a second to make ahead of readers, for each image. No limit if not set.
    background_requests: Option<NonZeroU64> = None, example "20";
    /// Places that are asked for data before the image's own registry or layout: "oci:DIR", "https://HOST/PATH/",
    /// "http://HOST/PATH/" or "s3://BUCKET/PREFIX", in this order. Keys of buckets come from the daemon's environment.
    sources: Vec<String> = Vec::new(), default "[]";
    /// Talk plain HTTP to registries, always. Otherwise it is for loopback hosts only, as long as they do not turn out to speak TLS.
    plain_http: bool = false, default "false";
    /// Accept any certificate of the registries that images name, and speak plain HTTP where they have no TLS. For mirrors, and for a single
    /// registry, a hosts.toml says so (skip_verify).
    insecure: bool = false, default "false";
    /// Follow redirects that others could forge: from https to plain http, and from a plain-HTTP host to another host. Content is
    /// verified in any case; what is at stake is which servers this machine asks. A hosts.toml can say so for one host.
    insecure_redirects: bool = false, default "false";
    /// CA certificates (PEM files) to trust besides the system's.
    ca: Vec<PathBuf> = Vec::new(), default "[]";
    /// Registry credentials, in the format of docker's config.json, read anew when they are needed. If not set:
    /// what the daemon's environment names, as docker and podman look for it, without HOME in the home directory of its user.
    authfile: Option<PathBuf> = None, example r#""/etc/lazo/auth.json""#;
    /// A file with a bearer token for images' registries, read anew whenever a token is needed; comes before authfile.
    token_file: Option<PathBuf> = None, example r#""/run/secrets/registry-token""#;
    /// Mirrors, certificates and headers of registries, in containerd's hosts.toml directories; "none" to read no such directory.
    hosts_dir: PathBuf = "/etc/containerd/certs.d".into(), default r#""/etc/containerd/certs.d""#;
    /// Answer GET /metrics at this address, besides the control socket: "HOST:PORT" or "unix:PATH".
    #[serde(with = "maybe_text")]
    metrics: Option<MetricsAddr> = None, example r#""127.0.0.1:9464""#;
    /// A group, by name or number, whose members may use the control socket. That is as much as being root: whoever may mount
    /// images decides what programs on them may do.
    control_group: Option<String> = None, example r#""lazo""#;
    /// Users, by number, who may use the control socket besides root.
    control_uids: Vec<u32> = Vec::new(), default "[]";
    /// Where `lazo snapshotter` listens for containerd, unless it is given a socket by its service manager. If not set: snapshotter.sock
    /// in run_dir.
    snapshotter_socket: Option<PathBuf> = None, example r#""/run/lazo/snapshotter.sock""#;
    /// Where `lazo snapshotter` takes the kubelet's image requests, to learn the credentials that come with them: the kubelet's
    /// image service endpoint. Everything is passed on to containerd. Not offered if not set.
    cri_socket: Option<PathBuf> = None, example r#""/run/lazo/cri.sock""#;
    /// containerd's own socket: for cri_socket, and to see by which names images are known.
    containerd_socket: PathBuf = "/run/containerd/containerd.sock".into(), default r#""/run/containerd/containerd.sock""#;
    /// What to log to standard error: "error", "warn", "info", "debug", "trace", or tracing directives.
    log_level: String = "info".into(), default r#""info""#;
}

/// A configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Its text.
    #[error("the configuration {} is wrong; docs/CONFIGURATION.md has all keys: {reason}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
}

impl Config {
    /// Reads a file; without a name [`CONFIG_FILE`] if it is there, and else the defaults.
    ///
    /// # Errors
    /// When it cannot be read, or something in it is wrong.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(CONFIG_FILE));
        let failed = |source| ConfigError::Read { path: file.to_owned(), source };
        match fs::metadata(file) {
            Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(failed(error)),
            Ok(metadata) if metadata.len() > MAX_FILE => return Err(failed(io::ErrorKind::FileTooLarge.into())),
            Ok(_) => {}
        }
        let text = fs::read_to_string(file).map_err(failed)?;
        Self::parse(&text).map_err(|reason| ConfigError::Wrong { path: file.to_owned(), reason })
    }

    /// # Errors
    /// What is wrong with the text, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.outage_limit > MAX_OUTAGE_LIMIT {
            return Err(format!("outage_limit is more than {MAX_OUTAGE_LIMIT} seconds"));
        }
        self.source_specs().map_err(|error| format!("sources: {error}"))?;
        let socket = match &self.metrics {
            Some(MetricsAddr::Unix(path)) => Some(("metrics", path)),
            _ => None,
        };
        let hosts_dir = (self.hosts_dir != Path::new(NO_HOSTS_DIR)).then_some(("hosts_dir", &self.hosts_dir));
        let paths = [("state_dir", &self.state_dir), ("run_dir", &self.run_dir)].into_iter();
        let paths = paths.chain(self.ca.iter().map(|path| ("ca", path))).chain(socket).chain(hosts_dir);
        let paths = paths.chain(self.authfile.iter().map(|path| ("authfile", path)));
        let paths = paths.chain(self.snapshotter_socket.iter().map(|path| ("snapshotter_socket", path)));
        let paths = paths.chain(self.cri_socket.iter().map(|path| ("cri_socket", path)));
        let paths = paths.chain([("containerd_socket", &self.containerd_socket)]);
        let mut paths = paths.chain(self.token_file.iter().map(|path| ("token_file", path)));
        match paths.find(|(_, path)| !path.is_absolute()) {
            Some((key, path)) => Err(format!("{key}: {} is not an absolute path", path.display())),
            None => Ok(()),
        }
    }

    /// How to talk to registries, unless a request says otherwise.
    #[must_use]
    pub fn registry_options(&self) -> Options {
        Options {
            plain_http: self.plain_http,
            insecure: self.insecure,
            insecure_redirects: self.insecure_redirects,
            extra_ca: self.ca.clone(),
            auth_file: self.authfile.clone(),
            kept_auth_file: Some(self.state_dir.join(CREDENTIALS)),
            token_file: self.token_file.clone(),
            hosts_dir: hosts_dir(&self.hosts_dir),
            ..Options::default()
        }
    }

    /// The sources that images have unless a request names more.
    ///
    /// # Errors
    /// When one is none.
    pub fn source_specs(&self) -> Result<Vec<SourceSpec>, SpecError> {
        self.sources.iter().map(|source| source.parse()).collect()
    }

    /// How patient to be with sources, unless a request says otherwise.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy { outage_limit: Duration::from_secs(self.outage_limit), ..Policy::default() }
    }

    /// How the cache of chunks is kept.
    #[must_use]
    pub fn cache_options(&self) -> CacheOptions {
        CacheOptions { limit: self.cache_limit }
    }
}

/// The directory of `hosts.toml` files, if one is to be read.
pub(super) fn hosts_dir(path: &Path) -> Option<PathBuf> {
    (path != Path::new(NO_HOSTS_DIR)).then(|| path.to_owned())
}

/// What is written as a string.
mod text {
    use super::{Deserialize as _, Deserializer, FromStr, Serializer, de, fmt};

    pub(super) fn serialize<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: fmt::Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The same, or nothing.
mod maybe_text {
    use super::{Deserialize as _, Deserializer, FromStr, Serialize as _, Serializer, de, fmt};

    pub(super) fn serialize<T: fmt::Display, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().map(T::to_string).serialize(serializer)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: fmt::Display>,
        D: Deserializer<'de>,
    {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(de::Error::custom)).transpose()
    }
}

/// A number, or a string with a unit.
/// Only the settings that are not at their defaults: who reads them may be an older program, which does not know all of them.
pub(in crate::node) fn without_defaults<S: Serializer>(config: &Config, serializer: S) -> Result<S::Ok, S::Error> {
    let all = |config: &Config| serde_json::to_value(config).map_err(ser::Error::custom);
    let (mut told, defaults) = (all(config)?, all(&Config::default())?);
    if let Some(settings) = told.as_object_mut() {
        settings.retain(|name, value| defaults.get(name) != Some(value));
    }
    told.serialize(serializer)
}

fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NonZeroU64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a number of bytes, or a string such as \"50M\"")]
    enum Rate {
        Bytes(u64),
        Text(String),
    }
    let bytes = match Option::<Rate>::deserialize(deserializer)? {
        None => return Ok(None),
        Some(Rate::Bytes(bytes)) => bytes,
        Some(Rate::Text(text)) => parse_size(&text).map_err(de::Error::custom)?,
    };
    let rate = NonZeroU64::new(bytes);
    rate.map(Some).ok_or_else(|| de::Error::custom("nothing would ever come; to fetch nothing ahead, set prefetch"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_library_and_the_flags() {
        let config = Config::parse("").unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(config.policy().outage_limit, Policy::default().outage_limit);
        assert_eq!(config.cache_options().limit, CacheOptions::default().limit);
    }

    #[test]
    fn values_are_understood() {
        let text = "cache_limit = '20G'\nbackground_rate = 1000\nsources = ['oci:/nas', 's3://bucket/prefix']\n\
            mode = 'fuse'\nmetrics = 'unix:/run/metrics'\nhosts_dir = 'none'\nbackground_requests = 5";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.cache_limit, Limit::Bytes(20 << 30));
        assert_eq!(config.background_rate, NonZeroU64::new(1000));
        assert_eq!(config.background_requests, NonZeroU64::new(5));
        assert_eq!(config.sources.len(), 2);
        assert_eq!(config.mode, Mode::Fuse);
        assert_eq!(config.registry_options().hosts_dir, None);
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config, "{json}");
        let json = serde_json::to_string(&Config::default()).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), Config::default(), "{json}");
        assert_eq!(Config::parse("background_rate = '1M'").unwrap().background_rate, NonZeroU64::new(1 << 20));
    }

    #[test]
    fn defaults_are_not_told() {
        let told = |config: &Config| without_defaults(config, serde_json::value::Serializer).unwrap();
        assert_eq!(told(&Config::default()), serde_json::json!({}));
        let config = Config { mode: Mode::Fuse, insecure: true, ..Config::default() };
        assert_eq!(told(&config), serde_json::json!({ "mode": "fuse", "insecure": true }));
        assert_eq!(serde_json::from_value::<Config>(told(&config)).unwrap(), config);
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_named() {
        for (text, names) in [
            ("sate_dir = '/x'", "sate_dir"),
            ("[cache]\nlimit = '20G'", "cache"),
            ("state_dir = 'here'", "state_dir"),
            ("metrics = 'unix:here'", "metrics"),
            ("metrics = 'here'", "metrics"),
            ("ca = ['/a', 'b']", "ca: b"),
            ("token_file = 't'", "token_file"),
            ("mode = 'best'", "best"),
            ("cache_limit = '1K'", "1K"),
            ("cache_limit = 5", "cache_limit"),
            ("background_rate = 0", "background_rate"),
            ("background_rate = 'fast'", "fast"),
            ("background_requests = 0", "background_requests"),
            ("outage_limit = 86401", "outage_limit"),
            ("outage_limit = -1", "outage_limit"),
            ("sources = ['docker://host/app']", "docker://host/app"),
            ("control_uids = ['root']", "control_uids"),
            ("not toml", "line 1"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(error.contains(names), "{text}: {error}");
        }
    }

    #[test]
    fn only_the_default_file_may_be_missing() {
        let missing = Path::new("/not/there/lazo.toml");
        assert!(Config::load(Some(missing)).unwrap_err().to_string().contains("/not/there/lazo.toml"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lazo.toml");
        fs::write(&path, "unknown = 1").unwrap();
        let error = Config::load(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("unknown") && error.contains("lazo.toml"), "{error}");
        fs::write(&path, "mode = 'erofs'").unwrap();
        assert_eq!(Config::load(Some(&path)).unwrap().mode, Mode::Erofs);
    }
}
