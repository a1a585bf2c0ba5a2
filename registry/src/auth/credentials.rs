//! Credentials as docker and its relatives keep them: `config.json`, and helper programs named there.
//!
//! Nothing is cached: files and helpers are asked again whenever a token is renewed, so that a new login counts
//! without a restart.

use std::{collections::HashMap, fmt, path::PathBuf};

use base64::{Engine, engine::general_purpose};
use serde::Deserialize;
use tokio::io::AsyncReadExt;

use super::helper::{self, Helpers, home};
use crate::{
    error::{Error, Result},
    options::Options,
    reference::DOCKER_HUB,
};

/// Most bytes read from a credentials file.
pub(super) const MAX_FILE: u64 = 4 << 20;
/// Under which docker keeps the login for Docker Hub.
pub(super) const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for a request that goes to its owner.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A user name and a password. It never shows the latter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Login {
    pub(crate) user: String,
    pub(crate) password: Secret,
}

impl Login {
    /// A login by these.
    #[must_use]
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { user: user.into(), password: Secret::new(password.into()) }
    }

    /// The user's name.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }
}

/// How to log in to a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// User name and password.
    Password { user: String, password: Secret },
    /// An OAuth2 refresh token, to be traded for access tokens.
    Identity(Secret),
    /// An access token, used as it is.
    Access(Secret),
}

/// The files to look into, in order; the first that knows the host wins.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Store {
    /// A login that was given, which comes first.
    login: Option<Login>,
    /// A file with nothing but a token, which comes next.
    token_file: Option<PathBuf>,
    /// A file of other people's logins, which may be missing; before the others, as it names single repositories.
    kept: Option<PathBuf>,
    files: Vec<PathBuf>,
    /// A file that was asked for must exist.
    required: bool,
}

/// A docker config file, as far as it is of use here.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct File {
    auths: HashMap<String, Entry>,
    creds_store: Option<String>,
    cred_helpers: HashMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
    registrytoken: Option<Secret>,
}

impl Store {
    /// From the options, else from the environment.
    pub(crate) fn new(options: &Options) -> Self {
        let (kept, usual) = (options.kept_auth_file.clone(), Self { files: login_files(), ..Self::default() });
        match named_file(options) {
            Some(file) => Self { kept, files: vec![file], required: true, ..usual },
            None => Self { kept, ..usual },
        }
    }

    /// The same with what is for one registry only: a login, or a file that holds a token. They come first.
    pub(crate) fn with_own(self, login: Option<Login>, token_file: Option<PathBuf>) -> Self {
        Self { login, token_file, ..self }
    }

    /// The credentials for a repository, if any are kept.
    pub(crate) async fn find(&self, host: &str, repository: &str, helpers: &Helpers) -> Result<Option<Credentials>> {
        if let Some(Login { user, password }) = self.login.clone() {
            return Ok(Some(Credentials::Password { user, password }));
        }
        let failed = |path: &PathBuf, reason: String| Error::Credentials {
            host: host.to_owned(),
            reason: format!("{}: {reason}", path.display()),
        };
        if let Some(path) = &self.token_file {
            let bytes = read_bounded(path).await.map_err(|e| failed(path, e.to_string()))?;
            let token = std::str::from_utf8(&bytes).map(str::trim_ascii).unwrap_or_default();
            if token.is_empty() {
                return Err(failed(path, "it holds no token".to_owned()));
            }
            return Ok(Some(Credentials::Access(Secret::new(token.to_owned()))));
        }
        for path in self.kept.iter().chain(&self.files) {
            let fail = |reason: String| failed(path, reason);
            let file = match read_bounded(path).await {
                Ok(bytes) => parse(&bytes).map_err(fail)?,
                Err(e)
                    if e.kind() == std::io::ErrorKind::NotFound
                        && (!self.required || Some(path) == self.kept.as_ref()) =>
                {
                    continue;
                }
                Err(e) => return Err(fail(e.to_string())),
            };
            if let Some(found) = file.find(host, repository, helpers).await.map_err(fail)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// An environment variable that is set to something.
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The file that is named in place of docker's and podman's own.
pub(super) fn named_file(options: &Options) -> Option<PathBuf> {
    options.auth_file.clone().or_else(|| variable("REGISTRY_AUTH_FILE"))
}

/// Where docker keeps its logins, if anywhere: `$DOCKER_CONFIG/config.json` or that below the home directory.
pub(super) fn docker_file() -> Option<PathBuf> {
    let directory = variable("DOCKER_CONFIG").or_else(|| home().map(|home| home.join(".docker")));
    directory.map(|directory| directory.join("config.json"))
}

/// Where docker and podman keep their logins, by the environment and the password database, in the order in which they are looked
/// into. None of these files need be there.
#[must_use]
pub fn login_files() -> Vec<PathBuf> {
    let runtime = variable("XDG_RUNTIME_DIR").map(|directory| directory.join("containers"));
    let runtime = runtime.unwrap_or_else(|| format!("/run/containers/{}", nix::unistd::getuid()).into());
    let configuration = variable("XDG_CONFIG_HOME").or_else(|| home().map(|home| home.join(".config")));
    let podman = [Some(runtime), configuration.map(|directory| directory.join("containers"))];
    let podman = podman.into_iter().flatten().map(|directory| directory.join("auth.json"));
    docker_file().into_iter().chain(podman).collect()
}

async fn read_bounded(path: &PathBuf) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    tokio::fs::File::open(path).await?.take(MAX_FILE).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// serde's message may quote the file, so only the place is passed on.
pub(crate) fn parse(bytes: &[u8]) -> Result<File, String> {
    if bytes.trim_ascii().is_empty() {
        return Ok(File::default());
    }
    serde_json::from_slice(bytes)
        .map_err(|e| format!("not a docker config file (line {}, column {})", e.line(), e.column()))
}

impl File {
    async fn find(&self, host: &str, repository: &str, helpers: &Helpers) -> Result<Option<Credentials>, String> {
        let server = if host == DOCKER_HUB { DOCKER_HUB_KEY } else { host };
        for helper in self.helpers(host) {
            if let Some(found) = helper::get(helpers, helper, server).await? {
                return Ok(Some(found));
            }
        }
        self.kept(host, repository)
    }

    /// The names of the helpers to ask for a host, in order.
    fn helpers(&self, host: &str) -> impl Iterator<Item = &str> {
        let own = self.cred_helpers.iter().find(|(key, _)| hostname(key) == host).map(|(_, helper)| helper);
        own.into_iter().chain(&self.creds_store).map(String::as_str).filter(|h| !h.is_empty())
    }

    /// The programs to ask for a host, in order; `Err` for one that cannot be asked.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn programs(&self, host: &str) -> Vec<Result<String, String>> {
        self.helpers(host).map(helper::program).collect()
    }

    /// The credentials in the file itself.
    pub(crate) fn kept(&self, host: &str, repository: &str) -> Result<Option<Credentials>, String> {
        match self.entry(host, repository) {
            Some(entry) => entry.credentials().map_err(|reason| format!("entry for {host}: {reason}")),
            None => Ok(None),
        }
    }

    /// The entry for the repository, one of its parents, or the host: the longest key that fits.
    fn entry(&self, host: &str, repository: &str) -> Option<&Entry> {
        let full = format!("{host}/{repository}");
        let mut name = full.as_str();
        while let Some((parent, _)) = name.rsplit_once('/') {
            if let Some(entry) = self.auths.get(name) {
                return Some(entry);
            }
            name = parent;
        }
        self.auths.get(host).or_else(|| self.auths.iter().find(|(key, _)| hostname(key) == host).map(|(_, e)| e))
    }
}

/// The host of a key, which may be a URL: `https://index.docker.io/v1/` is `docker.io`.
pub(super) fn hostname(key: &str) -> &str {
    let is_url = key.contains("://");
    let bare = key.trim_start_matches("https://").trim_start_matches("http://");
    let host = match bare.split_once('/') {
        None => bare,
        Some((host, path)) if is_url || matches!(path, "" | "v1" | "v1/" | "v2" | "v2/") => host,
        // A repository's own entry says nothing of its host.
        Some(_) => return "",
    };
    if host == "index.docker.io" || host == "registry-1.docker.io" { DOCKER_HUB } else { host }
}

impl Entry {
    fn credentials(&self) -> Result<Option<Credentials>, String> {
        let full = |secret: &Option<Secret>| secret.clone().filter(|s| !s.0.is_empty());
        if let Some(token) = full(&self.registrytoken) {
            return Ok(Some(Credentials::Access(token)));
        }
        if let Some(token) = full(&self.identitytoken) {
            return Ok(Some(Credentials::Identity(token)));
        }
        if let Some(auth) = full(&self.auth) {
            return decode(&auth).map(Some);
        }
        Ok(match (&self.username, full(&self.password)) {
            (Some(user), Some(password)) => Some(Credentials::Password { user: user.clone(), password }),
            _ => None,
        })
    }
}

/// base64 of `USER:PASSWORD`, with padding or without.
fn decode(auth: &Secret) -> Result<Credentials, String> {
    let bytes = general_purpose::STANDARD
        .decode(auth.0.trim())
        .or_else(|_| general_purpose::STANDARD_NO_PAD.decode(auth.0.trim()))
        .map_err(|_| "\"auth\" is not base64")?;
    let text = String::from_utf8(bytes).map_err(|_| "\"auth\" is not UTF-8")?;
    let (user, password) = text.split_once(':').ok_or("\"auth\" holds no colon")?;
    // Docker once padded the password with zeros.
    let password = Secret::new(password.trim_end_matches('\0').to_owned());
    Ok(Credentials::Password { user: user.to_owned(), password })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { user: user.into(), password: Secret::new(password.into()) })
    }

    async fn find(json: &str, host: &str, repository: &str) -> Result<Option<Credentials>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json).unwrap();
        let store = Store { files: vec![file.path().to_owned()], required: true, ..Store::default() };
        store.find(host, repository, &Helpers::default()).await
    }

    const AUTHS: &str = r#"{"auths":{
        "https://index.docker.io/v1/":{"auth":"aHViOnB3"},
        "h.example:5000":{"auth":"dXNlcjpwYTpzcw=="},
        "quay.io/team/app":{"username":"app","password":"1"},
        "quay.io/team":{"username":"team","password":"2"},
        "quay.io":{"username":"quay","password":"3"},
        "https://url.example/v2/":{"identitytoken":"refresh"},
        "tok.example":{"registrytoken":"access"},
        "empty.example":{}}}"#;

    #[tokio::test]
    async fn finds_entries() {
        for (host, repository, expected) in [
            ("docker.io", "library/alpine", password("hub", "pw")),
            ("h.example:5000", "a", password("user", "pa:ss")),
            ("h.example", "a", None),
            ("quay.io", "team/app", password("app", "1")),
            ("quay.io", "team/app/sub", password("app", "1")),
            ("quay.io", "team/other", password("team", "2")),
            ("quay.io", "else", password("quay", "3")),
            ("url.example", "a", Some(Credentials::Identity(Secret::new("refresh".into())))),
            ("tok.example", "a", Some(Credentials::Access(Secret::new("access".into())))),
            ("empty.example", "a", None),
        ] {
            assert_eq!(find(AUTHS, host, repository).await.unwrap(), expected, "{host}/{repository}");
        }
    }

    #[tokio::test]
    async fn names_the_file_and_no_secret() {
        for json in [
            r#"{"auths":{"h":{"auth":"c2VjcmV0LXRleHQ="}}}"#,
            r#"{"auths":{"h":{"auth":"%secret-text%"}}}"#,
            r#"{"auths":{"h":{"auth":"secret-text}}"#,
            r#"{"auths":{"h":"secret-text"}}"#,
        ] {
            let error = find(json, "h", "a").await.unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains("/tmp") && text.contains("for h"), "{text}");
            assert!(!text.contains("secret-text") && !text.contains("c2VjcmV0"), "{text}");
        }
        let shown = format!("{:?}", password("user", "secret-text"));
        assert!(!shown.contains("secret-text"), "{shown}");
        assert_eq!(find("", "h", "a").await.unwrap(), None);
        let missing = |required| Store { files: vec!["/nonexistent/config.json".into()], required, ..Store::default() };
        assert_eq!(missing(false).find("h", "a", &Helpers::default()).await.unwrap(), None);
        assert!(missing(true).find("h", "a", &Helpers::default()).await.is_err());
    }

    #[tokio::test]
    async fn refuses_paths_as_helpers_and_names_missing_ones() {
        let error = find(r#"{"credsStore":"../evil"}"#, "h", "a").await.unwrap_err().to_string();
        assert!(error.contains("bad credential helper name"), "{error}");
        let error = find(r#"{"credHelpers":{"h":"surely-missing"}}"#, "h", "a").await.unwrap_err().to_string();
        assert!(error.contains("cannot run docker-credential-surely-missing"), "{error}");
        assert_eq!(find(r#"{"credHelpers":{"other":"surely-missing"}}"#, "h", "a").await.unwrap(), None);
    }
}
