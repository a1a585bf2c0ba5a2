//! Keeping logins where docker and podman find them: `config.json`, or the helper that it names.
//!
//! A file is replaced as a whole, readable by its owner alone, with all that others have written into it.

use std::{
    fs::{self, DirBuilder},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose};
use serde_json::{Map, Value};

use super::{
    credentials::{DOCKER_HUB_KEY, Login, MAX_FILE, docker_file, hostname, named_file},
    helper,
};
use crate::{
    error::{Error, Result},
    options::Options,
    reference::{DOCKER_HUB, DockerRef, ImageRef},
    repository::open_for_login,
    shared::Shared,
    source::on_thread,
};

/// The part of the file that holds logins.
const AUTHS: &str = "auths";
/// How long to wait for others that change the file. They hold it while they write some kilobytes.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// It is neither a link nor a pipe, which whoever may write to the directory could put there.
const LOCK_FLAGS: i32 = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
/// Between two looks at whether they have done.
const LOCK_LOOK: Duration = Duration::from_millis(10);
/// The fields of an entry by which somebody is let in.
const SECRETS: [&str; 5] = ["auth", "username", "password", "identitytoken", "registrytoken"];

/// What a login is for: a registry, a namespace in it, or a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    host: String,
    /// After the host, without a slash at its ends; empty for the whole registry.
    path: String,
}

impl FromStr for Place {
    type Err = Error;

    /// `HOST[:PORT][/NAMESPACE...]`; a scheme before it, and `/v1/` or `/v2/` behind it, as docker takes them, mean nothing.
    fn from_str(text: &str) -> Result<Self> {
        let bad = |reason: String| Error::Reference { reference: text.to_owned(), reason };
        let bare = text.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
        let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
        let path = if matches!(path, "v1" | "v2") { "" } else { path };
        let whole = if path.is_empty() { format!("docker://{host}/any") } else { format!("docker://{host}/{path}") };
        let is_host = host.contains(['.', ':']) || host == "localhost";
        match whole.parse() {
            Ok(ImageRef::Docker(DockerRef { host, tag: None, digest: None, .. })) if is_host => {
                Ok(Self { host, path: path.to_owned() })
            }
            Ok(_) => Err(bad("expected a registry: HOST[:PORT], or HOST[:PORT]/REPOSITORY without a tag".to_owned())),
            Err(Error::Reference { reason, .. }) => Err(bad(reason)),
            Err(other) => Err(other),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let separator = if self.path.is_empty() { "" } else { "/" };
        write!(f, "{}{separator}{}", self.host, self.path)
    }
}

impl Place {
    /// What an entry for it is called.
    fn key(&self) -> String {
        if self.path.is_empty() && self.host == DOCKER_HUB { DOCKER_HUB_KEY.to_owned() } else { self.to_string() }
    }

    /// Whether an entry of the file is for just this.
    fn has(&self, key: &str) -> bool {
        if self.path.is_empty() { hostname(key) == self.host } else { key == self.to_string() }
    }

    fn failed(&self, reason: impl Into<String>) -> Error {
        Error::Credentials { host: self.to_string(), reason: reason.into() }
    }
}

/// Asks a registry whether it takes a login. `false` if it lets everyone in, so that nobody knows.
///
/// # Errors
/// When it refuses the login, or cannot be asked.
pub async fn check_login(place: &Place, login: &Login, options: &Options) -> Result<bool> {
    let options = Options { login: Some(login.clone()), shared: Shared::default(), ..options.clone() };
    let repository = if place.path.is_empty() { "any".to_owned() } else { place.path.clone() };
    let reference = DockerRef { host: place.host.clone(), repository, tag: None, digest: None };
    open_for_login(&reference, &options).await?.enter().await
}

/// Keeps a login in the file that the options name, or else in docker's, or with the helper that this file names. Says
/// where.
///
/// # Errors
/// When the file cannot be understood or written, or the helper fails.
pub async fn keep_login(place: &Place, login: &Login, options: &Options) -> Result<String> {
    let (path, file) = open(place, options).await?;
    let helper = file.helper(&place.host);
    let pair = match &helper {
        Some(name) if !place.path.is_empty() => {
            let reason = format!(
                "docker-credential-{name}, which {} names, keeps logins of whole registries only; name another file by --authfile",
                path.display()
            );
            return Err(place.failed(reason));
        }
        Some(name) => {
            let kept = helper::store(name, &server(&place.host), &login.user, &login.password).await;
            kept.map_err(|reason| place.failed(reason))?;
            None
        }
        None => Some(general_purpose::STANDARD.encode(format!("{}:{}", login.user, login.password.reveal()))),
    };
    let changed = place.clone();
    change(place, &path, move |file| {
        let mut entry = file.take(&changed);
        SECRETS.iter().for_each(|name| drop(entry.shift_remove(*name)));
        if let Some(pair) = pair {
            entry.insert("auth".to_owned(), pair.into());
        }
        file.put(&changed, entry);
        true
    })
    .await?;
    Ok(helper.map_or_else(|| path.display().to_string(), |name| format!("docker-credential-{name}")))
}

/// Forgets a login that [`keep_login`] has kept. Says where it was; `None` if there was none.
///
/// # Errors
/// As [`keep_login`].
pub async fn forget_login(place: &Place, options: &Options) -> Result<Option<String>> {
    let (path, file) = open(place, options).await?;
    let helper = file.helper(&place.host).filter(|_| place.path.is_empty());
    if let Some(name) = &helper {
        helper::erase(name, &server(&place.host)).await.map_err(|reason| place.failed(reason))?;
    }
    let changed = place.clone();
    let forget = move |file: &mut File| {
        let had = file.has(&changed);
        file.take(&changed);
        had
    };
    let had = file.has(place) && change(place, &path, forget).await?;
    Ok(helper.map(|name| format!("docker-credential-{name}")).or_else(|| had.then(|| path.display().to_string())))
}

/// What a helper calls a registry.
fn server(host: &str) -> String {
    if host == DOCKER_HUB { DOCKER_HUB_KEY.to_owned() } else { host.to_owned() }
}

async fn open(place: &Place, options: &Options) -> Result<(PathBuf, File)> {
    let path = named_file(options).or_else(docker_file);
    let path = path.ok_or_else(|| place.failed("there is no home directory for it; name a file by --authfile"))?;
    let (failing, reading) = (place.clone(), path.clone());
    let file = on_thread(move || read(&failing, &reading));
    Ok((path, file.await?))
}

fn read(place: &Place, path: &Path) -> Result<File> {
    File::read(path).map_err(|reason| place.failed(format!("{}: {reason}", path.display())))
}

/// Changes the file at `path`, or what that links to, as it is now, while nobody else does; if `by` says that there was something
/// to change, which it says in turn.
async fn change(place: &Place, path: &Path, by: impl FnOnce(&mut File) -> bool + Send + 'static) -> Result<bool> {
    let (place, path) = (place.clone(), path.to_owned());
    on_thread(move || {
        let failed = |e| Error::io(format_args!("cannot write {}", path.display()), e);
        let real = match fs::canonicalize(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => path.clone(),
            found => found.map_err(failed)?,
        };
        let _lock = lock(&real).map_err(failed)?;
        let mut file = read(&place, &path)?;
        let changed = by(&mut file);
        if changed {
            file.write(&real).map_err(failed)?;
        }
        Ok(changed)
    })
    .await
}

/// Keeps others that run this program from changing a file, by a lock on another one beside it, as the file itself is replaced. The
/// directory is made if need be.
fn lock(path: &Path) -> io::Result<fs::File> {
    let directory = directory(path);
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".lock");
    let place = directory.join(name);
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(LOCK_FLAGS);
    let lock = options.open(&place)?;
    let begin = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(fs::TryLockError::WouldBlock) if begin.elapsed() < LOCK_WAIT => thread::sleep(LOCK_LOOK),
            Err(fs::TryLockError::WouldBlock) => {
                let reason = format!("another program holds {} for more than {LOCK_WAIT:?}", place.display());
                return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
            }
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file of logins with all its fields, in their order.
struct File(Map<String, Value>);

impl File {
    /// A file that is not there is an empty one.
    fn read(path: &Path) -> Result<Self, String> {
        let mut bytes = Vec::new();
        match fs::File::open(path) {
            Ok(file) => file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            Err(e) => return Err(e.to_string()),
        };
        if bytes.len() as u64 > MAX_FILE {
            return Err(format!("it is larger than {MAX_FILE} bytes"));
        }
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.trim_ascii().is_empty() {
            return Ok(Self(Map::new()));
        }
        // serde's message may quote the file.
        let file: Map<String, Value> = serde_json::from_slice(bytes)
            .map_err(|e| format!("not a docker config file (line {}, column {})", e.line(), e.column()))?;
        match file.get(AUTHS) {
            None | Some(Value::Null | Value::Object(_)) => Ok(Self(file)),
            Some(_) => Err(format!("not a docker config file: {AUTHS:?} is no object")),
        }
    }

    /// The name of the helper that keeps the logins of a host, if one does.
    fn helper(&self, host: &str) -> Option<String> {
        let helpers = self.0.get("credHelpers").and_then(Value::as_object);
        let own = helpers.and_then(|helpers| helpers.iter().find(|(key, _)| hostname(key) == host));
        let name = own.map(|(_, name)| name).or_else(|| self.0.get("credsStore"));
        name.and_then(Value::as_str).filter(|name| !name.is_empty()).map(str::to_owned)
    }

    fn has(&self, place: &Place) -> bool {
        self.0.get(AUTHS).and_then(Value::as_object).is_some_and(|auths| auths.keys().any(|key| place.has(key)))
    }

    /// Takes out whatever is there for a place; the fields of the last entry.
    fn take(&mut self, place: &Place) -> Map<String, Value> {
        let Some(auths) = self.0.get_mut(AUTHS).and_then(Value::as_object_mut) else { return Map::new() };
        let keys: Vec<String> = auths.keys().filter(|key| place.has(key)).cloned().collect();
        let entries = keys.iter().filter_map(|key| auths.shift_remove(key));
        entries.fold(Map::new(), |_, entry| if let Value::Object(entry) = entry { entry } else { Map::new() })
    }

    fn put(&mut self, place: &Place, entry: Map<String, Value>) {
        let auths = self.0.entry(AUTHS).or_insert_with(|| Map::new().into());
        if auths.is_null() {
            *auths = Map::new().into();
        }
        if let Some(auths) = auths.as_object_mut() {
            auths.insert(place.key(), entry.into());
        }
    }

    /// Puts it in the place of the file at `path`, which is no link.
    fn write(&self, path: &Path) -> io::Result<()> {
        let directory = directory(path);
        // Readable by nobody else.
        let mut new = tempfile::NamedTempFile::new_in(directory)?;
        let indented = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        let mut serializer = serde_json::Serializer::with_formatter(&mut new, indented);
        serde::Serialize::serialize(&self.0, &mut serializer)?;
        new.write_all(b"\n")?;
        if let Ok(old) = fs::metadata(path) {
            give_to_owner(new.as_file(), &old, directory)?;
        }
        new.as_file().sync_all()?;
        new.persist(path)?;
        Ok(())
    }
}

/// Has a file that root has written for a user belong to that user again. Not where others may put files: whoever has put the old one
/// there would get the login.
fn give_to_owner(new: &fs::File, old: &fs::Metadata, directory: &Path) -> io::Result<()> {
    let own = new.metadata()?;
    let is_own = (old.uid(), old.gid()) == (own.uid(), own.gid());
    if is_own || !nix::unistd::geteuid().is_root() || fs::metadata(directory)?.uid() != old.uid() {
        return Ok(());
    }
    if let Err(error) = std::os::unix::fs::fchown(new, Some(old.uid()), Some(old.gid())) {
        tracing::warn!(%error, "a file of logins belongs to root now");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn place(text: &str) -> Place {
        text.parse().unwrap()
    }

    #[test]
    fn understands_what_docker_login_takes() {
        for (text, shown, key) in [
            ("h.example", "h.example", "h.example"),
            ("https://h.example:5000/v2/", "h.example:5000", "h.example:5000"),
            ("localhost", "localhost", "localhost"),
            ("[::1]:5000", "[::1]:5000", "[::1]:5000"),
            ("docker.io", "docker.io", DOCKER_HUB_KEY),
            ("https://index.docker.io/v1/", "docker.io", DOCKER_HUB_KEY),
            ("registry-1.docker.io", "docker.io", DOCKER_HUB_KEY),
            ("docker.io/team", "docker.io/team", "docker.io/team"),
            ("quay.io/team/app", "quay.io/team/app", "quay.io/team/app"),
        ] {
            assert_eq!((place(text).to_string().as_str(), place(text).key().as_str()), (shown, key), "{text}");
        }
        for text in
            ["", "team", "team/app", "h.example/app:1", "h.example/UP", "bad host.example", "h.example/a b", "oci:x"]
        {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn keeps_all_that_others_wrote() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().join("real.json");
        let link = directory.path().join("deep/config.json");
        let before = r#"{"zeta":{"b":1,"a":[2.5,null]},"auths":{"other.example":{"auth":"b3RoZXI="},"https://h.example/v2/":{
            "auth":"b2xk","email":"e","identitytoken":"t"},"h.example/app":{"auth":"YXBw"}},"HttpHeaders":{"X":"y"}}"#;
        fs::create_dir(directory.path().join("deep")).unwrap();
        fs::write(&real, before).unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::symlink("../real.json", &link).unwrap();
        let options = Options { auth_file: Some(link.clone()), ..Options::default() };
        let kept = keep_login(&place("h.example"), &Login::new("me", "pa:ss"), &options).await.unwrap();
        assert_eq!(kept, link.display().to_string());
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&real).unwrap().mode() & 0o777, 0o600);
        let after = fs::read_to_string(&real).unwrap();
        let json: Value = serde_json::from_str(&after).unwrap();
        let expected = serde_json::json!({
            "zeta": {"b": 1, "a": [2.5, null]},
            "auths": {"other.example": {"auth": "b3RoZXI="}, "h.example/app": {"auth": "YXBw"},
                "h.example": {"email": "e", "auth": general_purpose::STANDARD.encode("me:pa:ss")}},
            "HttpHeaders": {"X": "y"},
        });
        assert_eq!(json, expected);
        assert!(after.find("zeta") < after.find("auths") && after.find("auths") < after.find("HttpHeaders"), "{after}");

        assert_eq!(forget_login(&place("h.example"), &options).await.unwrap(), Some(link.display().to_string()));
        assert_eq!(forget_login(&place("h.example"), &options).await.unwrap(), None);
        let json: Value = serde_json::from_slice(&fs::read(&real).unwrap()).unwrap();
        let keys: Vec<&String> = json[AUTHS].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["other.example", "h.example/app"]);
        let mut left: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".real.json.lock", "deep", "real.json"]);
    }

    #[tokio::test]
    async fn makes_a_file_for_nobody_else_and_spoils_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/config.json");
        let options = Options { auth_file: Some(path.clone()), ..Options::default() };
        keep_login(&place("docker.io"), &Login::new("me", "pw"), &options).await.unwrap();
        keep_login(&place("quay.io/team"), &Login::new("team", "pw"), &options).await.unwrap();
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let keys: Vec<&String> = json[AUTHS].as_object().unwrap().keys().collect();
        assert_eq!(keys, [DOCKER_HUB_KEY, "quay.io/team"]);
        for text in [r#"{"auths":{"h":{"auth":"secret-text}}"#, r#"["secret-text"]"#, r#"{"auths":"secret-text"}"#] {
            fs::write(&path, text).unwrap();
            let error = keep_login(&place("h.example"), &Login::new("me", "pw"), &options).await.unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("new/config.json") && !shown.contains("secret-text"), "{shown}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[tokio::test]
    async fn a_file_stays_its_owners_where_that_is_safe() {
        let uid = |path: &Path| fs::metadata(path).unwrap().uid();
        let chown = |path: &Path, uid| std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
        let root = nix::unistd::geteuid().as_raw();
        // Whose the directory is, whose the file is, and whose it is then, if this is root.
        for (directory_of, file_of, expected) in [(1000, 1000, 1000), (root, 1000, root), (1000, root, root)] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("config.json");
            fs::write(&path, "{}").unwrap();
            if root == 0 {
                chown(directory.path(), directory_of);
                chown(&path, file_of);
            }
            let options = Options { auth_file: Some(path.clone()), ..Options::default() };
            keep_login(&place("h.example"), &Login::new("me", "pw"), &options).await.unwrap();
            assert_eq!(uid(&path), if root == 0 { expected } else { root }, "{directory_of} {file_of}");
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_at_a_time_keep_their_logins() {
        const MANY: usize = 24;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let options = Options { auth_file: Some(path.clone()), ..Options::default() };
        let all = (0..MANY).map(|n| {
            let options = options.clone();
            async move {
                let place = place(&format!("h{n}.example"));
                keep_login(&place, &Login::new("me", "pw"), &options).await.unwrap();
            }
        });
        futures_util::future::join_all(all).await;
        let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(json[AUTHS].as_object().unwrap().len(), MANY);
    }
}
