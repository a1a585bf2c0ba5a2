//! Credentials as docker and its relatives keep them: `config.json`, and helper programs named there.
//!
//! Nothing is cached: files and helpers are asked again whenever a token is renewed, so that a new login counts
//! without a restart.

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use base64::{Engine, engine::general_purpose};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    error::{Error, Result},
    options::Options,
    reference::DOCKER_HUB,
};

/// Longest wait for a credential helper. Those of clouds ask a server, and take some seconds.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes read from a helper, or from a credentials file.
const MAX_HELPER_OUTPUT: u64 = 64 * 1024;
const MAX_FILE: u64 = 4 << 20;
/// Under which docker keeps the login for Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user name by which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    /// A file with nothing but a token, which comes first.
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

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: Secret,
}

impl Store {
    /// From the options, else from the environment.
    pub(crate) fn new(options: &Options) -> Self {
        let env = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let kept = options.kept_auth_file.clone();
        if let Some(file) = options.auth_file.clone().or_else(|| env("REGISTRY_AUTH_FILE")) {
            return Self { token_file: None, kept, files: vec![file], required: true };
        }
        let docker = env("DOCKER_CONFIG").or_else(|| env("HOME").map(|home| home.join(".docker")));
        let containers = env("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
        let files = docker.map(|dir| dir.join("config.json")).into_iter().chain(containers).collect();
        Self { token_file: None, kept, files, required: false }
    }

    /// The same with a file that holds a token.
    pub(crate) fn with_token_file(self, token_file: Option<PathBuf>) -> Self {
        Self { token_file, ..self }
    }

    /// The credentials for a repository, if any are kept.
    pub(crate) async fn find(&self, host: &str, repository: &str) -> Result<Option<Credentials>> {
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
            if let Some(found) = file.find(host, repository).await.map_err(fail)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
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
    async fn find(&self, host: &str, repository: &str) -> Result<Option<Credentials>, String> {
        let server = if host == DOCKER_HUB { DOCKER_HUB_KEY } else { host };
        for helper in self.helpers(host) {
            if let Some(found) = ask_helper(helper, server).await? {
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
        self.helpers(host).map(helper_program).collect()
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
fn hostname(key: &str) -> &str {
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

/// `docker-credential-NAME`, which is looked for in PATH.
fn helper_program(name: &str) -> Result<String, String> {
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        return Err(format!("bad credential helper name {name:?}"));
    }
    Ok(format!("docker-credential-{name}"))
}

/// Runs `docker-credential-NAME get`. Neither what it prints nor its complaints are passed on.
async fn ask_helper(name: &str, server: &str) -> Result<Option<Credentials>, String> {
    let program = helper_program(name)?;
    let (status, output) = match tokio::time::timeout(HELPER_TIMEOUT, run_helper(&program, server)).await {
        Ok(Ok(done)) => done,
        Ok(Err(e)) => return Err(format!("cannot run {program}: {e}")),
        Err(_) => return Err(format!("{program} did not answer within {HELPER_TIMEOUT:?}")),
    };
    understand(&program, status, &output)
}

/// What a helper answers: it ends well with a login, or fails and says that it has none.
pub(crate) fn understand(program: &str, status: ExitStatus, output: &[u8]) -> Result<Option<Credentials>, String> {
    if !status.success() {
        // The protocol's way of saying "no such login".
        if String::from_utf8_lossy(output).contains("credentials not found") {
            return Ok(None);
        }
        return Err(format!("{program} failed ({status}); run `{program} get` by hand to see why"));
    }
    let answer: HelperAnswer = serde_json::from_slice(output).map_err(|_| format!("{program} gave no valid answer"))?;
    Ok(match (answer.username.as_str(), answer.secret) {
        (_, secret) if secret.0.is_empty() => None,
        (TOKEN_USER, secret) => Some(Credentials::Identity(secret)),
        (user, password) => Some(Credentials::Password { user: user.to_owned(), password }),
    })
}

async fn run_helper(program: &str, server: &str) -> std::io::Result<(ExitStatus, Vec<u8>)> {
    let mut child = tokio::process::Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(server.as_bytes()).await {
            // A helper may answer without having read the name.
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => return Err(e),
            _ => {}
        }
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_HELPER_OUTPUT).read_to_end(&mut output).await?;
    }
    Ok((child.wait().await?, output))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { user: user.into(), password: Secret::new(password.into()) })
    }

    async fn find(json: &str, host: &str, repository: &str) -> Result<Option<Credentials>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json).unwrap();
        Store { token_file: None, kept: None, files: vec![file.path().to_owned()], required: true }
            .find(host, repository)
            .await
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
        let missing =
            |required| Store { token_file: None, kept: None, files: vec!["/nonexistent/config.json".into()], required };
        assert_eq!(missing(false).find("h", "a").await.unwrap(), None);
        assert!(missing(true).find("h", "a").await.is_err());
    }

    /// Puts a helper on PATH under a name that only this test uses.
    fn helper(name: &str, script: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("docker-credential-{name}"));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        dir
    }

    async fn ask(script: &str, server: &str) -> Result<Option<Credentials>, String> {
        let dir = helper("t", script);
        let program = dir.path().join("docker-credential-t");
        let (status, output) = run_helper(program.to_str().unwrap(), server).await.unwrap();
        understand("docker-credential-t", status, &output)
    }

    #[tokio::test]
    async fn asks_helpers() {
        let echo = r#"read s; printf '{"Username":"u","Secret":"for-%s"}' "$s""#;
        assert_eq!(ask(echo, "h.example").await.unwrap(), password("u", "for-h.example"));
        let token = r#"printf '{"Username":"<token>","Secret":"r"}'"#;
        assert_eq!(ask(token, "h").await.unwrap(), Some(Credentials::Identity(Secret::new("r".into()))));
        let none = "echo credentials not found in native keychain; exit 1";
        assert_eq!(ask(none, "h").await.unwrap(), None);
        let fails = ask("echo secret-text; exit 3", "h").await.unwrap_err();
        assert!(fails.contains("docker-credential-t failed") && !fails.contains("secret-text"), "{fails}");
        let garbage = ask("echo secret-text", "h").await.unwrap_err();
        assert!(garbage.contains("no valid answer") && !garbage.contains("secret-text"), "{garbage}");
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
