//! Image references: where an image is, in skopeo's words for transports.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use lazo_format::Digest;

use crate::error::{Error, Result};

/// Longest repository name, from the distribution specification's advice that host and name fit 255 characters.
const MAX_REPOSITORY: usize = 255;
/// Longest tag, from the distribution specification.
const MAX_TAG: usize = 128;
/// What a reference may look like, for error messages.
const FORMS: &str = "expected docker://HOST[:PORT]/REPO[:TAG][@DIGEST], oci:DIR[:TAG], oci-archive:FILE[:TAG], \
                     docker-archive:FILE[:REF] or HOST/REPO:TAG";
/// The host that names without one belong to, and the hosts that serve it.
pub(crate) const DOCKER_HUB: &str = "docker.io";
pub(crate) const DOCKER_HUB_API: &str = "registry-1.docker.io";
/// Transports of other tools, so that they are refused by name rather than taken for a host.
const FOREIGN_TRANSPORTS: [&str; 9] = [
    "docker-daemon:",
    "containers-storage:",
    "dir:",
    "ostree:",
    "sif:",
    "tarball:",
    "oci-layout:",
    "http://",
    "https://",
];

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ImageRef {
    /// `docker://HOST[:PORT]/REPO[:TAG][@DIGEST]`: a repository of a registry.
    Docker(DockerRef),
    /// `oci:DIR[:TAG]`: an OCI image layout directory.
    OciLayout {
        /// The directory.
        path: PathBuf,
        /// `org.opencontainers.image.ref.name` or `io.containerd.image.name` in its index; to read, also `@N` for the N-th
        /// entry, counted from 0, or `@DIGEST`.
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:TAG]`: an OCI image layout in a tar, which may be compressed with gzip or zstd.
    OciArchive {
        /// The tar file.
        path: PathBuf,
        /// As in a layout directory.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:REF]`: what `docker save` writes. A source only.
    DockerArchive {
        /// The tar file.
        path: PathBuf,
        /// `NAME:TAG` as in the archive's `RepoTags`, or `@N` for the N-th image, counted from 0.
        reference: Option<String>,
    },
}

/// An image in a registry. With a digest, the digest counts and the tag is only a comment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DockerRef {
    /// Host and optional port, as the user wrote it; `docker.io` where none was given.
    pub host: String,
    /// Repository name, without the host.
    pub repository: String,
    /// Tag, if given.
    pub tag: Option<String>,
    /// Digest, if given.
    pub digest: Option<Digest>,
}

impl DockerRef {
    /// What to ask `/v2/REPO/manifests/` for: the digest, else the tag, else `latest`.
    #[must_use]
    pub fn manifest_reference(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// Whether the host is this machine (a loopback address or `localhost`): plain HTTP is then the default.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        is_loopback_host(host_name(&self.host))
    }

    /// The host without its port and brackets: `[::1]:5000` is `::1`.
    #[must_use]
    pub fn host_name(&self) -> &str {
        host_name(&self.host)
    }

    /// Host and port to connect to; differs from `host` for Docker Hub only.
    pub(crate) fn api_host(&self) -> &str {
        if self.host == DOCKER_HUB { DOCKER_HUB_API } else { &self.host }
    }
}

/// The host without its port: `[::1]:5000` is `::1`.
fn host_name(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    host.split(':').next().unwrap_or(host)
}

/// Whether a host name (no port, no brackets) means this machine.
pub(crate) fn is_loopback_host(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl FromStr for ImageRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = |reason: String| Error::Reference { reference: text.to_owned(), reason };
        if let Some(reference) = without_login(text) {
            let reason = "a login does not belong in a reference; use docker login, or --authfile".to_owned();
            return Err(Error::Reference { reference, reason });
        }
        if let Some(rest) = text.strip_prefix("docker://") {
            return parse_docker(rest, HostRule::Optional).map(Self::Docker).map_err(fail);
        }
        let with_path = |rest: &str| split_path(rest).map_err(fail);
        if let Some(rest) = text.strip_prefix("oci:") {
            let (path, tag) = with_path(rest)?;
            check_ref_name(tag.as_deref()).map_err(fail)?;
            return Ok(Self::OciLayout { path, tag });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (path, tag) = with_path(rest)?;
            check_ref_name(tag.as_deref()).map_err(fail)?;
            return Ok(Self::OciArchive { path, tag });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (path, reference) = with_path(rest)?;
            check_archive_reference(reference.as_deref()).map_err(fail)?;
            return Ok(Self::DockerArchive { path, reference });
        }
        if let Some(transport) = FOREIGN_TRANSPORTS.iter().find(|t| text.starts_with(*t)) {
            return Err(fail(format!("transport {transport} is not supported; {FORMS}")));
        }
        parse_docker(text, HostRule::Required).map(Self::Docker).map_err(fail)
    }
}

/// The reference with what looks like a login before its host starred out, if there is any: that must not be shown.
fn without_login(text: &str) -> Option<String> {
    let rest = text.strip_prefix("docker://").or_else(|| (!text.contains(":/")).then_some(text))?;
    let (login, after) = rest.split_once('/')?.0.rsplit_once('@')?;
    let start = text.len() - rest.len();
    login.contains(':').then(|| format!("{}***@{after}{}", &text[..start], &rest[login.len() + 1 + after.len()..]))
}

/// Splits `PATH[:REST]` at the first colon, as skopeo does.
fn split_path(rest: &str) -> Result<(PathBuf, Option<String>), String> {
    let (path, tail) = match rest.split_once(':') {
        Some((path, tail)) => (path, Some(tail)),
        None => (rest, None),
    };
    if path.is_empty() {
        return Err(format!("the path is empty; {FORMS}"));
    }
    match tail {
        Some("") => Err("nothing follows the last colon; leave the colon out or name a tag".to_owned()),
        tail => Ok((PathBuf::from(path), tail.map(str::to_owned))),
    }
}

/// `org.opencontainers.image.ref.name` grammar of the image layout specification, loosely: its characters.
fn check_ref_name(tag: Option<&str>) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._:@/+".contains(c);
    match tag {
        Some(tag) if tag.strip_prefix('@').is_some_and(|rest| !is_number_or_digest(rest)) => {
            Err(format!("{tag:?} is neither an image number (@0, @1, ...) nor a digest"))
        }
        Some(tag) if !tag.chars().all(allowed) => {
            Err(format!("tag {tag:?} may only hold letters, digits and any of -._:@/+"))
        }
        _ => Ok(()),
    }
}

fn is_number_or_digest(text: &str) -> bool {
    text.parse::<u32>().is_ok() || text.parse::<Digest>().is_ok()
}

fn check_archive_reference(reference: Option<&str>) -> Result<(), String> {
    match reference {
        None => Ok(()),
        Some(r) => match r.strip_prefix('@') {
            Some(number) => {
                number.parse::<u32>().map(drop).map_err(|_| format!("{r:?} is no image number; expected @0, @1, ..."))
            }
            None => parse_docker(r, HostRule::Optional).map(drop),
        },
    }
}

/// Whether a name without a host means Docker Hub.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HostRule {
    Optional,
    Required,
}

/// `NAME:TAG` spelled out in full, so that short and long forms of one name compare equal.
pub(crate) fn normalized_name(text: &str) -> Option<String> {
    let parsed = parse_docker(text, HostRule::Optional).ok()?;
    Some(format!("{}/{}:{}", parsed.host, parsed.repository, parsed.manifest_reference()))
}

fn parse_docker(text: &str, rule: HostRule) -> Result<DockerRef, String> {
    if text.is_empty() {
        return Err(format!("it is empty; {FORMS}"));
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => {
            (name, Some(digest.parse::<Digest>().map_err(|e| format!("bad digest {digest:?}: {e}"))?))
        }
        None => (text, None),
    };
    let (host, rest) = split_host(name, rule)?;
    let (repository, tag) = match rest.rsplit_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let repository = if host == DOCKER_HUB && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    check_repository(&repository)?;
    Ok(DockerRef { host, repository, tag: tag.map(str::to_owned), digest })
}

/// The first component is a host when it has a dot or a colon, or is `localhost`: docker's rule.
fn split_host(name: &str, rule: HostRule) -> Result<(String, &str), String> {
    let host = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => Some((first, rest)),
        _ => None,
    };
    match (host, rule) {
        (Some((host, rest)), _) => {
            check_host(host)?;
            let host = match host {
                "index.docker.io" | DOCKER_HUB_API => DOCKER_HUB,
                host => host,
            };
            Ok((host.to_owned(), rest))
        }
        (None, HostRule::Optional) => Ok((DOCKER_HUB.to_owned(), name)),
        (None, HostRule::Required) => Err(format!("it names neither a registry host nor a transport; {FORMS}")),
    }
}

fn check_host(host: &str) -> Result<(), String> {
    let name = host_name(host);
    let bracketed = host.starts_with('[');
    let port = match (bracketed, host.rsplit_once(':')) {
        (true, _) if host.ends_with(']') => None,
        (true, Some((before, port))) if before.ends_with(']') => Some(port),
        (true, _) => return Err(format!("bad host {host:?}")),
        (false, split) => split.map(|(_, port)| port),
    };
    let name_ok = if bracketed {
        name.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        !name.is_empty()
            && host.matches(':').count() <= 1
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.')
            && name.split('.').all(|label| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-'))
    };
    if !name_ok {
        return Err(format!("bad host {host:?}"));
    }
    match port {
        Some(port) if port.parse::<u16>().is_err() || !port.bytes().all(|b| b.is_ascii_digit()) => {
            Err(format!("bad port in host {host:?}"))
        }
        _ => Ok(()),
    }
}

fn check_repository(repository: &str) -> Result<(), String> {
    let component_ok = |component: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(component.chars().next())
            && edge(component.chars().next_back())
            && component.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
            && !component.contains("..")
            && !component.contains("___")
            && !component.contains("._")
            && !component.contains("_.")
    };
    if repository.len() > MAX_REPOSITORY {
        return Err(format!("the repository name is longer than {MAX_REPOSITORY} characters"));
    }
    if repository.split('/').all(component_ok) {
        return Ok(());
    }
    let hint = if repository.chars().any(|c| c.is_ascii_uppercase()) { " (names are lower-case)" } else { "" };
    Err(format!("bad repository name {repository:?}{hint}"))
}

fn check_tag(tag: &str) -> Result<(), String> {
    let first_ok = tag.chars().next().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    let rest_ok = tag.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if first_ok && rest_ok && tag.len() <= MAX_TAG { Ok(()) } else { Err(format!("bad tag {tag:?}")) }
}

impl fmt::Display for DockerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with_path = |f: &mut fmt::Formatter<'_>, transport: &str, path: &Path, rest: &Option<String>| {
            write!(f, "{transport}:{}", path.display())?;
            match rest {
                Some(rest) => write!(f, ":{rest}"),
                None => Ok(()),
            }
        };
        match self {
            Self::Docker(docker) => write!(f, "docker://{docker}"),
            Self::OciLayout { path, tag } => with_path(f, "oci", path, tag),
            Self::OciArchive { path, tag } => with_path(f, "oci-archive", path, tag),
            Self::DockerArchive { path, reference } => with_path(f, "docker-archive", path, reference),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b";

    fn docker(text: &str) -> DockerRef {
        match text.parse::<ImageRef>() {
            Ok(ImageRef::Docker(docker)) => docker,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn accepts_and_prints() {
        let digest = format!("sha256:{HEX}");
        let sha512 = format!("sha512:{HEX}{HEX}");
        let table = [
            ("docker://localhost:5000/a/b:1", "docker://localhost:5000/a/b:1"),
            ("localhost/a:1", "docker://localhost/a:1"),
            ("quay.io/a/b", "docker://quay.io/a/b"),
            ("[::1]:5000/a", "docker://[::1]:5000/a"),
            ("docker://alpine", "docker://docker.io/library/alpine"),
            ("docker://me/tool:v1", "docker://docker.io/me/tool:v1"),
            ("docker.io/alpine:3", "docker://docker.io/library/alpine:3"),
            (&format!("h.example/x-y__z.w:T@{digest}"), &format!("docker://h.example/x-y__z.w:T@{digest}")),
            (&format!("h.example/x@{sha512}"), &format!("docker://h.example/x@{sha512}")),
            ("oci:/tmp/dir", "oci:/tmp/dir"),
            ("oci:rel:tag/with:colon", "oci:rel:tag/with:colon"),
            ("oci-archive:a.tar:v1", "oci-archive:a.tar:v1"),
            ("oci-archive:a.tar:docker.io/library/a:1", "oci-archive:a.tar:docker.io/library/a:1"),
            ("oci:dir:@1", "oci:dir:@1"),
            (&format!("oci:dir:@{digest}"), &format!("oci:dir:@{digest}")),
            ("docker-archive:a.tar", "docker-archive:a.tar"),
            ("docker-archive:a.tar:alpine:3", "docker-archive:a.tar:alpine:3"),
            ("docker-archive:a.tar:@1", "docker-archive:a.tar:@1"),
        ];
        for (text, shown) in table {
            let parsed: ImageRef = text.parse().unwrap();
            assert_eq!(parsed.to_string(), shown, "{text}");
            assert_eq!(parsed.to_string().parse::<ImageRef>().unwrap(), parsed, "{text}");
        }
    }

    #[test]
    fn refuses_with_a_reason() {
        let table = [
            ("", "empty"),
            ("alpine", "neither a registry host"),
            ("me/tool:1", "neither a registry host"),
            ("docker://", "empty"),
            ("docker://h.example/", "bad repository"),
            ("docker://h.example/UPPER", "lower-case"),
            ("docker://h.example/a..b", "bad repository"),
            ("docker://h.example/a/../b", "bad repository"),
            ("docker://h.example/a//b", "bad repository"),
            ("docker://h.example/a:", "bad tag"),
            ("docker://h.example/a:-x", "bad tag"),
            ("docker://h.example/a@sha256:12", "bad digest"),
            ("docker://h.example/a@md5:12", "bad digest"),
            ("docker://h.example:99999/a", "bad port"),
            ("docker://h.example:+1/a", "bad port"),
            ("docker://h.ex ample/a", "bad host"),
            ("docker://user@h.example/a", "bad digest"),
            ("docker://[::1/a", "bad host"),
            ("docker://a:1:2/b", "bad host"),
            ("oci:", "path is empty"),
            ("oci::tag", "path is empty"),
            ("oci:dir:", "nothing follows"),
            ("oci:dir:a b", "may only hold"),
            ("oci:dir:@x", "neither an image number"),
            ("oci-archive:f:@sha256:12", "neither an image number"),
            ("docker-archive:f:@x", "image number"),
            ("dir:/tmp", "transport dir: is not supported"),
            ("https://h.example/a", "transport https:// is not supported"),
        ];
        for (text, reason) in table {
            let error = text.parse::<ImageRef>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn knows_loopback() {
        for (host, loopback) in [
            ("localhost:1/a", true),
            ("127.0.0.1:1/a", true),
            ("127.9.9.9/a", true),
            ("[::1]:1/a", true),
            ("10.0.0.1/a", false),
            ("localhost.example/a", false),
        ] {
            assert_eq!(docker(host).is_loopback(), loopback, "{host}");
        }
    }

    #[test]
    fn names_what_to_ask_for() {
        assert_eq!(docker("h.example/a").manifest_reference(), "latest");
        assert_eq!(docker("h.example/a:b").manifest_reference(), "b");
        assert_eq!(docker(&format!("h.example/a:b@sha256:{HEX}")).manifest_reference(), format!("sha256:{HEX}"));
        assert_eq!(docker("docker://alpine").api_host(), "registry-1.docker.io");
        assert_eq!(normalized_name("alpine:3"), normalized_name("docker.io/library/alpine:3"));
    }

    #[test]
    fn logins_are_not_shown() {
        for text in ["docker://me:secret@host/repo:1", "me:secret@host:5000/repo", "docker://se/cret@host/repo"] {
            let error = text.parse::<ImageRef>().unwrap_err().to_string();
            assert!(!error.contains(":secret"), "{error}");
        }
        let error = "docker://me:secret@host:5000/a/b".parse::<ImageRef>().unwrap_err().to_string();
        assert!(error.contains("docker://***@host:5000/a/b") && error.contains("docker login"), "{error}");
    }
}
