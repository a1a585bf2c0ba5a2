//! Requests and answers of the control API, as JSON. docs/API.md describes them for other programs.
//!
//! Requests with unknown fields are refused, as what they ask for would not be done; answers may gain fields.

mod health;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use health::{Health, SourceTrouble, Status, WaitingImage};

/// Version of the API; the first part of each path is `v1`. It grows when a program written for an older one would break.
pub const API_VERSION: u32 = 1;

/// Name of the socket in the run directory.
pub const SOCKET: &str = "lazo.sock";

/// In the run directory: where the snapshotter has its images mounted. All else there is the daemon's own.
pub const SNAPSHOTTER_MOUNTS: &str = "containerd";

/// Most names of an image that are sources of its blobs. An image seldom is in more repositories than one; each costs some kilobytes and,
/// where it refuses, a request a minute. Of more, those stay that were last asked for.
pub const MAX_REFERENCES: usize = 16;

/// How an image is to be served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The best that the machine can do; in a request: what the daemon's configuration says.
    #[default]
    Auto,
    /// The kernel's EROFS on blobs that the daemon serves.
    Erofs,
    /// A FUSE mount of the whole tree.
    Fuse,
}

/// How an image is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Served {
    /// The kernel's EROFS on blobs that the daemon serves.
    Erofs,
    /// A FUSE mount of the whole tree.
    Fuse,
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Erofs => "erofs",
            Self::Fuse => "fuse",
        })
    }
}

/// What to fetch before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prefetch {
    /// Nothing.
    None,
    /// What the image's prefetch list names.
    Hints,
    /// That, and then the whole image.
    All,
}

impl From<Prefetch> for lazo_storage::Prefetch {
    fn from(prefetch: Prefetch) -> Self {
        match prefetch {
            Prefetch::None => Self::None,
            Prefetch::Hints => Self::Hints,
            Prefetch::All => Self::All,
        }
    }
}

/// Where what is written to a mount goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Writable {
    /// To `upper` and `work` in this existing directory, which are made if they are not there. What is written stays after the unmount.
    Directory(PathBuf),
    /// To memory; gone after the unmount.
    Tmpfs {
        /// Most bytes; half of the machine's memory if missing.
        #[serde(default)]
        size: Option<u64>,
    },
}

/// How to reach registries. What is missing is as the daemon's configuration has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryOptions {
    /// Plain HTTP, for hosts that are not loopback, too.
    pub plain_http: bool,
    /// Any certificate of the registry that the image names, and plain HTTP where it has no TLS.
    pub insecure: bool,
    /// CA certificates (PEM files) to trust besides the daemon's.
    pub ca: Vec<PathBuf>,
    /// Registry credentials, in the format of docker's `config.json`.
    pub authfile: Option<PathBuf>,
    /// A file with a bearer token.
    pub token_file: Option<PathBuf>,
    /// containerd's `hosts.toml` directories; `none` to read none.
    pub hosts_dir: Option<PathBuf>,
}

/// `POST /v1/mounts`. All paths are absolute, those in references and sources too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountRequest {
    /// The image, as `lazo mount` takes it.
    pub image: String,
    /// Other names that the same image has, in other repositories: its blobs come from there as well. 15 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    /// An existing directory, without links in its path.
    pub mount_point: PathBuf,
    /// A directory with the files `bootstrap` and `index` of the image's bootstrap layer, unpacked by somebody who verified the layer's
    /// digest. The image is what they say, and [`Self::image`] tells only where its blobs come from.
    #[serde(default)]
    pub files: Option<PathBuf>,
    /// Which of the image's platforms, `OS/ARCH[/VARIANT]`; this machine's if missing.
    #[serde(default)]
    pub platform: Option<String>,
    /// How to serve it.
    #[serde(default)]
    pub mode: Mode,
    /// What to fetch before it is read; as configured if missing.
    #[serde(default)]
    pub prefetch: Option<Prefetch>,
    /// Makes the mount writable.
    #[serde(default)]
    pub writable: Option<Writable>,
    /// Shifts owners: `UIDS[,GIDS]`, each `INSIDE:OUTSIDE:COUNT`; the groups as the users if missing.
    #[serde(default)]
    pub map: Option<String>,
    /// Set-user-ID and set-group-ID bits and file capabilities mean nothing; so if missing.
    #[serde(default = "yes")]
    pub nosuid: bool,
    /// Device files cannot be opened; so if missing.
    #[serde(default = "yes")]
    pub nodev: bool,
    /// Nothing can be executed.
    #[serde(default)]
    pub noexec: bool,
    /// Places that are asked for data before the daemon's own and the image's registry, as `--source` takes them.
    #[serde(default)]
    pub sources: Vec<String>,
    /// How long reads wait when no source answers, seconds; as configured if missing.
    #[serde(default)]
    pub outage_limit: Option<u64>,
    /// How to reach registries.
    #[serde(default)]
    pub registry: RegistryOptions,
    /// Who asks, a user's number: the daemon's to say.
    #[serde(skip)]
    pub user: u32,
}

impl MountRequest {
    /// A read-only mount of an image, with the daemon's configuration for all else.
    #[must_use]
    pub fn new(image: String, mount_point: PathBuf) -> Self {
        Self {
            image,
            also: Vec::new(),
            mount_point,
            files: None,
            platform: None,
            mode: Mode::Auto,
            prefetch: None,
            writable: None,
            map: None,
            nosuid: true,
            nodev: true,
            noexec: false,
            sources: Vec::new(),
            outage_limit: None,
            registry: RegistryOptions::default(),
            user: 0,
        }
    }
}

/// What is safe if nobody says otherwise.
fn yes() -> bool {
    true
}

/// `POST /v1/references`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferencesRequest {
    /// Where an image is mounted.
    pub mount_point: PathBuf,
    /// All the names that it has for who uses this mount, from now on: one to [`MAX_REFERENCES`]. Each is a source of its blobs; those that
    /// refused a login before are tried again at once.
    pub images: Vec<String>,
}

/// `DELETE /v1/mounts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UmountRequest {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Takes it from the tree at once even if it is in use; its users keep it until they let go of it.
    #[serde(default)]
    pub lazy: bool,
}

/// `POST /v1/cache/prune`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PruneRequest {
    /// Only until so many bytes are left.
    pub to: u64,
}

/// `POST /v1/warm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmRequest {
    /// The image, as in a [`MountRequest`].
    pub image: String,
}

/// `POST /v1/cache/release`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    /// Digests of blobs that are of no more use.
    pub blobs: Vec<String>,
}

/// Answer to `POST /v1/cache/release`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// Those of the blobs that stay, as mounts hold them.
    pub in_use: Vec<String>,
    /// Disk space that was freed, bytes.
    pub bytes: u64,
}

/// `POST /v1/upgrade`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpgradeRequest {
    /// The program to go on with; if missing, what is now at the path of the one that runs.
    pub binary: Option<PathBuf>,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountInfo {
    /// Names it as long as it is there.
    pub id: String,
    /// Where it is.
    pub mount_point: PathBuf,
    /// The image, as the request named it.
    pub image: String,
    /// Digest of its manifest.
    pub manifest: String,
    /// How it is served.
    pub mode: Served,
    /// Number of the image, as [`ImageInfo::slot`] has it.
    pub slot: u64,
    /// Where what is written goes; missing if it is read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writable: Option<Writable>,
    /// How owners are shifted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
    /// When it was made, seconds since 1970.
    pub since: u64,
}

/// An image that is mounted, or was and cannot be served any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Its number in this daemon; may be another image's later.
    pub slot: u64,
    /// The image, as the first request named it that still has it mounted.
    pub image: String,
    /// All names by which it was asked for, the one above first: where its blobs come from.
    #[serde(default)]
    pub references: Vec<String>,
    /// Digest of its manifest.
    pub manifest: String,
    /// How it is served.
    pub mode: Served,
    /// Mounts that show it.
    pub mounts: u64,
    /// Its blobs.
    pub blobs: u64,
    /// Those that the kernel reads without the daemon, from their cache files.
    pub plain_blobs: u64,
    /// Why it cannot be served; missing if it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// `GET /v1/version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Of the program that serves now.
    pub version: String,
    /// [`API_VERSION`].
    pub api: u32,
    /// Where fetched images and chunks are kept.
    pub state_dir: PathBuf,
}

/// `POST /v1/stop`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StopRequest {
    /// Ends it even if images are in use: whoever reads them gets I/O errors.
    pub force: bool,
}

/// Answer to `POST /v1/stop`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopInfo {
    /// Images that are in use.
    pub held: Vec<Held>,
    /// Whether they were cut off. Otherwise they are served on, and the daemon ends after the last of them.
    pub cut: bool,
}

/// An image that is in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The image, as the first request named it.
    pub image: String,
    /// Where it is mounted and busy.
    pub mount_points: Vec<PathBuf>,
    /// Where overlays lie above it, such as a container's root; eight at most. What uses it in another mount namespace is not seen.
    pub users: Vec<PathBuf>,
}

/// Answer to `POST /v1/upgrade`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeInfo {
    /// Version that serves now.
    pub version: String,
    /// The process.
    pub worker_pid: u32,
    /// How long it took until the new one served, milliseconds.
    pub pause_ms: u64,
}

/// What was done wrong, or went wrong, for programs. Its HTTP status is beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// 400. The request makes no sense: it does not parse, or a path is not absolute or is no directory.
    Invalid,
    /// 403. Who asks may not.
    Denied,
    /// 404. There is no such path in the API, no such mount, or no such image.
    NotFound,
    /// 405. The path is there, the method is not.
    Method,
    /// 409. Something is mounted there already.
    Exists,
    /// 409. Something is mounted there already, and cannot be served any more.
    Broken,
    /// 409. Somebody uses the mount.
    Busy,
    /// 413. The body is too long.
    TooLong,
    /// 422. This machine cannot do what is asked for, such as the mode.
    Unsupported,
    /// 502. The image cannot be had or is not right.
    Image,
    /// 503. Not now: the daemon is starting, ending or being upgraded, or has too much of this kind to do.
    Unavailable,
    /// 500. Anything else.
    #[serde(other)]
    Internal,
}

impl ErrorKind {
    /// The HTTP status that answers have.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Denied => 403,
            Self::NotFound => 404,
            Self::Method => 405,
            Self::Exists | Self::Broken | Self::Busy => 409,
            Self::TooLong => 413,
            Self::Unsupported => 422,
            Self::Image => 502,
            Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }
}

/// An answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
pub struct ApiError {
    /// For people: what failed, on what, and what can be done. With its causes, outermost first.
    pub error: String,
    /// For programs.
    pub kind: ErrorKind,
}

impl ApiError {
    /// An error of a kind.
    pub fn new(kind: ErrorKind, error: impl Into<String>) -> Self {
        Self { kind, error: error.into() }
    }

    /// An error and its causes.
    pub fn of(kind: ErrorKind, error: &dyn std::error::Error) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Self::new(kind, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_as_documented() {
        let request: MountRequest =
            serde_json::from_str(r#"{"image": "oci:/i:t", "mount_point": "/mnt", "writable": {"tmpfs": {"size": 5}}}"#)
                .unwrap();
        let expected = MountRequest {
            writable: Some(Writable::Tmpfs { size: Some(5) }),
            ..MountRequest::new("oci:/i:t".into(), "/mnt".into())
        };
        assert_eq!(request, expected);
        assert!(request.nosuid && request.nodev && !request.noexec, "what could give a user rights needs a word");
        let text = serde_json::to_string(&expected).unwrap();
        assert_eq!(serde_json::from_str::<MountRequest>(&text).unwrap(), expected);
        let directory: Writable = serde_json::from_str(r#"{"directory": "/rw"}"#).unwrap();
        assert_eq!(directory, Writable::Directory("/rw".into()));
        for wrong in [
            r#"{"image": "x", "mount_point": "/m", "imagee": 1}"#,
            r#"{"image": "x", "mount_point": "/m", "user": 1000}"#,
            r#"{"image": "x"}"#,
            r#"{"image": "x", "mount_point": "/m", "mode": "best"}"#,
            r#"{"image": "x", "mount_point": "/m", "registry": {"unsafe": true}}"#,
            r#"{"image": "x", "mount_point": "/m", "writable": {"tmpfs": {"sise": 5}}}"#,
        ] {
            assert!(serde_json::from_str::<MountRequest>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn kinds_of_errors_from_a_newer_daemon_are_understood() {
        let error: ApiError = serde_json::from_str(r#"{"error": "e", "kind": "brand_new", "more": 1}"#).unwrap();
        assert_eq!(error, ApiError::new(ErrorKind::Internal, "e"));
        assert_eq!(serde_json::to_string(&ErrorKind::NotFound).unwrap(), r#""not_found""#);
    }
}
