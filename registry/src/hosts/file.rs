//! The contents of a `hosts.toml`.

use std::{path::Path, time::Duration};

use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use toml::{Table, Value};

use super::{Abilities, HostConfig, Server};
use crate::{
    http::redirect::INSECURE_REDIRECTS,
    reference::{DOCKER_HUB, DOCKER_HUB_API},
    shared::Identity,
};

/// Most mirrors of one registry: each may be asked for everything.
const MAX_HOSTS: usize = 64;
/// Most header lines for one host.
const MAX_HEADERS: usize = 64;

/// What is wrong, beginning with the key; never a value of a header.
type Result<T, E = String> = std::result::Result<T, E>;

/// The hosts of a file in order, the registry itself last, and remarks on what has no effect. Relative paths are relative
/// to `directory`.
pub(crate) fn parse(directory: &Path, text: &str) -> Result<(Vec<HostConfig>, Vec<String>)> {
    let table: Table = text.parse().map_err(|e: toml::de::Error| syntax(text, &e))?;
    let mut reader = Reader { directory, notes: Vec::new() };
    let mut hosts = Vec::new();
    for (name, value) in table.get("host").map(|v| entries("host", v)).transpose()?.into_iter().flatten() {
        let key = format!("host.\"{}\"", without_login(name));
        let mut host = reader.host(&key, entries(&key, value)?, &["host", "server"])?;
        host.server = Some(reader.server(&key, name, entries(&key, value)?)?);
        hosts.push(host);
    }
    if hosts.len() > MAX_HOSTS {
        return Err(format!("host: over {MAX_HOSTS} entries"));
    }
    let mut last = reader.host("", &table, &[])?;
    if let Some(server) = table.get("server") {
        let server = string("server", server)?;
        // An empty one is none, as for containerd.
        last.server = if server.is_empty() { None } else { Some(reader.server("server", server, &table)?) };
    }
    if last.server.is_none() {
        last.may = Abilities::default();
    }
    hosts.push(last);
    Ok((hosts, reader.notes))
}

/// A URL as it may be shown.
fn without_login(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

/// The parser's words without the line that it would quote.
fn syntax(text: &str, error: &toml::de::Error) -> String {
    let start = error.span().map_or(0, |span| span.start);
    let line = text.bytes().take(start).filter(|b| *b == b'\n').count() + 1;
    format!("line {line}: not valid TOML")
}

struct Reader<'a> {
    directory: &'a Path,
    notes: Vec<String>,
}

impl Reader<'_> {
    /// The fields that all hosts have. `nested` are names that only the top level has.
    fn host(&mut self, prefix: &str, table: &Table, nested: &[&str]) -> Result<HostConfig> {
        let mut host = HostConfig::default();
        for (name, value) in table {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            match name.as_str() {
                "capabilities" => host.may = abilities(&key, value)?,
                "ca" => host.ca = self.paths(&key, value)?,
                "client" => host.identity = self.identity(&key, value)?,
                "skip_verify" => host.skip_verify = Some(boolean(&key, value)?),
                INSECURE_REDIRECTS => host.insecure_redirects = Some(boolean(&key, value)?),
                "header" => host.headers = headers(&key, entries(&key, value)?)?,
                "override_path" => drop(boolean(&key, value)?),
                "dial_timeout" => host.dial_timeout = Some(duration(&key, string(&key, value)?)?),
                "proxy" => host.proxy = Some(proxy(&key, string(&key, value)?)?),
                "server" | "host" if !nested.contains(&name.as_str()) => {}
                _ => self.notes.push(format!("{key} is not known, and has no effect")),
            }
        }
        Ok(host)
    }

    fn server(&mut self, key: &str, text: &str, table: &Table) -> Result<Server> {
        let override_path = table.get("override_path").and_then(Value::as_bool).unwrap_or_default();
        let with_scheme = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let url = Url::parse(&with_scheme).map_err(|e| format!("{key}: bad URL: {e}"))?;
        let tls = match url.scheme() {
            "https" => true,
            "http" => false,
            other => return Err(format!("{key}: scheme {other} is not supported, only http and https")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            self.notes.push(format!("the login in {key} has no effect; keep it in docker's config.json"));
        }
        if !tls && ["ca", "client", "skip_verify"].iter().any(|name| table.contains_key(*name)) {
            self.notes.push(format!("{key} is asked without TLS: its certificate settings have no effect"));
        }
        let host = url.host_str().ok_or_else(|| format!("{key}: the URL names no host"))?;
        let host = if host == DOCKER_HUB { DOCKER_HUB_API } else { host };
        let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let path = url.path().trim_end_matches('/');
        let path = if override_path || path.ends_with("/v2") { path.to_owned() } else { format!("{path}/v2") };
        Ok(Server { tls, authority, path })
    }

    fn paths(&self, key: &str, value: &Value) -> Result<Vec<std::path::PathBuf>> {
        Ok(strings(key, value)?.into_iter().map(|path| self.directory.join(path)).collect())
    }

    /// A file, files, or pairs of files, of which the first is used.
    fn identity(&mut self, key: &str, value: &Value) -> Result<Option<Identity>> {
        let single = |path: &str| Identity { certificate: self.directory.join(path), key: None };
        let entry = |value: &Value| match value {
            Value::String(path) => Ok(single(path)),
            Value::Array(_) => match strings(key, value)?.as_slice() {
                [certificate, ""] => Ok(single(certificate)),
                [certificate, own] => {
                    Ok(Identity { certificate: self.directory.join(certificate), key: Some(self.directory.join(own)) })
                }
                other => Err(format!("{key}: a pair has two files, this one {}", other.len())),
            },
            _ => Err(format!("{key}: must be a path, a list of paths, or a list of pairs of paths")),
        };
        let all = match value {
            Value::Array(values) => values.iter().map(entry).collect::<Result<Vec<_>>>()?,
            other => vec![entry(other)?],
        };
        if all.len() > 1 {
            self.notes.push(format!("{key} has several certificates: the first is used"));
        }
        Ok(all.into_iter().next())
    }
}

fn entries<'a>(key: &str, value: &'a Value) -> Result<&'a Table> {
    value.as_table().ok_or_else(|| format!("{key}: must be a table"))
}

fn string<'a>(key: &str, value: &'a Value) -> Result<&'a str> {
    value.as_str().ok_or_else(|| format!("{key}: must be a string"))
}

fn boolean(key: &str, value: &Value) -> Result<bool> {
    value.as_bool().ok_or_else(|| format!("{key}: must be true or false"))
}

/// A string or a list of strings.
fn strings<'a>(key: &str, value: &'a Value) -> Result<Vec<&'a str>> {
    match value {
        Value::String(text) => Ok(vec![text]),
        Value::Array(values) => values.iter().map(|value| string(key, value)).collect(),
        _ => Err(format!("{key}: must be a string or a list of strings")),
    }
}

/// All of them where none is named.
fn abilities(key: &str, value: &Value) -> Result<Abilities> {
    let values = value.as_array().ok_or_else(|| format!("{key}: must be a list"))?;
    if values.is_empty() {
        return Ok(Abilities::default());
    }
    let mut may = Abilities { pull: false, resolve: false, push: false };
    for value in values {
        match string(key, value)?.to_ascii_lowercase().as_str() {
            "pull" => may.pull = true,
            "resolve" => may.resolve = true,
            "push" => may.push = true,
            other => return Err(format!("{key}: {other:?} is none of pull, resolve, push")),
        }
    }
    Ok(may)
}

fn headers(key: &str, table: &Table) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in table {
        let key = format!("{key}.{name}");
        let name = HeaderName::try_from(name).map_err(|_| format!("{key}: no header name"))?;
        for text in strings(&key, value)? {
            let mut value = HeaderValue::try_from(text).map_err(|_| format!("{key}: cannot be sent in a header"))?;
            value.set_sensitive(true);
            headers.append(&name, value);
        }
    }
    if headers.len() > MAX_HEADERS {
        return Err(format!("{key}: over {MAX_HEADERS} lines"));
    }
    Ok(headers)
}

/// An absolute URL with nothing behind the host.
fn proxy(key: &str, text: &str) -> Result<String> {
    let url = Url::parse(text).map_err(|e| format!("{key}: bad URL: {e}"))?;
    let bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() || !bare {
        return Err(format!("{key}: must be http:// or https:// and a host, without a path (SOCKS is not supported)"));
    }
    Ok(url.to_string())
}

/// Go's way to write durations: `1s`, `500ms`, `1m30s`, `1.5h`.
fn duration(key: &str, text: &str) -> Result<Duration> {
    let bad = || format!("{key}: must be a duration such as 1s, 500ms or 1m30s");
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, after) = rest.split_at(end);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(bad()),
        };
        total += number.parse::<f64>().map_err(|_| bad())? * seconds;
        rest = after;
    }
    Duration::try_from_secs_f64(total).ok().filter(|d| !d.is_zero()).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<HostConfig>, Vec<String>) {
        parse(Path::new("/certs.d/h"), text).unwrap()
    }

    fn server(text: &str) -> Option<Server> {
        let (scheme, rest) = text.split_once("://").unwrap();
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = if path.is_empty() { String::new() } else { format!("/{path}") };
        Some(Server { tls: scheme == "https", authority: authority.to_owned(), path })
    }

    #[test]
    fn reads_what_containerd_documents() {
        let (hosts, notes) = read(
            r#"
            server = "https://registry-1.docker.io"
            [host."https://zzz.registry"]
              capabilities = ["pull"]
              ca = "mirror.pem"
              skip_verify = false
              dial_timeout = "1m1.5s"
              [host."https://zzz.registry".header]
                x-custom-2 = ["value1", "value2"]
                Authorization = "Basic secret"
            [host."https://mirror-bak.registry/us"]
              capabilities = ["PULL", "resolve"]
              skip_verify = true
            [host."http://mirror.registry:8080"]
            [host."https://test-1.registry"]
              capabilities = ["pull", "resolve", "push"]
              ca = ["/etc/certs/test-1-ca.pem", "special.pem"]
              client = [["/etc/certs/client.cert", "client.key"],["/etc/certs/client.pem", ""]]
            [host."https://test-2.registry"]
              client = "/etc/certs/client.pem"
              proxy = "http://p:1080"
            [host."https://aaa.registry/v2/upstream"]
              capabilities = []
              client = ["/etc/certs/client-1.pem", "/etc/certs/client-2.pem"]
              override_path = true
            "#,
        );
        let servers: Vec<_> = hosts.iter().map(|h| h.server.clone()).collect();
        let expected = [
            "https://zzz.registry/v2",
            "https://mirror-bak.registry/us/v2",
            "http://mirror.registry:8080/v2",
            "https://test-1.registry/v2",
            "https://test-2.registry/v2",
            "https://aaa.registry/v2/upstream",
            "https://registry-1.docker.io/v2",
        ];
        assert_eq!(servers, expected.map(server));
        let may = |pull, resolve, push| Abilities { pull, resolve, push };
        let all = may(true, true, true);
        let found: Vec<_> = hosts.iter().map(|h| h.may).collect();
        assert_eq!(found, [may(true, false, false), may(true, true, false), all, all, all, all, all]);
        assert_eq!(hosts[0].ca, [Path::new("/certs.d/h/mirror.pem")]);
        assert_eq!(hosts[3].ca, [Path::new("/etc/certs/test-1-ca.pem"), Path::new("/certs.d/h/special.pem")]);
        assert_eq!(hosts.iter().map(|h| h.skip_verify).collect::<Vec<_>>()[..3], [Some(false), Some(true), None]);
        assert_eq!(hosts[0].dial_timeout, Some(Duration::from_millis(61_500)));
        let values: Vec<_> = hosts[0].headers.get_all("X-Custom-2").iter().collect();
        assert_eq!(values, ["value1", "value2"]);
        assert!(!format!("{hosts:?}").contains("secret") && hosts[0].headers["authorization"] == "Basic secret");
        let identity = |certificate: &str, key: Option<&str>| {
            Some(Identity { certificate: certificate.into(), key: key.map(Into::into) })
        };
        assert_eq!(hosts[3].identity, identity("/etc/certs/client.cert", Some("/certs.d/h/client.key")));
        assert_eq!(hosts[4].identity, identity("/etc/certs/client.pem", None));
        assert_eq!(hosts[5].identity, identity("/etc/certs/client-1.pem", None));
        assert_eq!(hosts[4].proxy.as_deref(), Some("http://p:1080/"));
        assert_eq!(notes.len(), 2, "{notes:?}");
    }

    #[test]
    fn names_the_server_as_containerd_does() {
        for (text, expected) in [
            ("server = 'registry.example'", server("https://registry.example/v2")),
            ("server = 'registry.example:5000/'", server("https://registry.example:5000/v2")),
            ("server = 'http://user:pw@r.example/v2/'", server("http://r.example/v2")),
            ("server = 'https://docker.io'", server("https://registry-1.docker.io/v2")),
            ("server = 'https://r.example'\noverride_path = true", server("https://r.example")),
            ("server = ''", None),
            ("skip_verify = true", None),
            ("# nothing", None),
        ] {
            let (hosts, _) = read(text);
            assert_eq!((hosts.len(), &hosts[0].server), (1, &expected), "{text}");
        }
        // What stands for the registry itself may do all, whatever is said; its other settings count.
        let (hosts, _) = read("capabilities = ['pull']\nca = 'x'");
        assert_eq!((hosts[0].may, hosts[0].ca.len()), (Abilities::default(), 1));
    }

    #[test]
    fn notes_what_is_unknown() {
        let (hosts, notes) = read("mystery = 1\n[host.'http://m'.'http://deep']\ncapabilities = ['pull']\n");
        assert_eq!(hosts.len(), 2);
        let (_, logins) = read("server = 'http://me:secret-pw@h'\n[host.'http://me:secret-pw@m/x']\nca = 'x'\n");
        assert_eq!(
            logins,
            [
                "the login in host.\"http://m/x\" has no effect; keep it in docker's config.json",
                "host.\"http://m/x\" is asked without TLS: its certificate settings have no effect",
                "the login in server has no effect; keep it in docker's config.json",
            ]
        );
        assert_eq!(
            notes,
            [
                "host.\"http://m\".http://deep is not known, and has no effect",
                "mystery is not known, and has no effect"
            ]
        );
    }

    #[test]
    fn reads_durations() {
        for (text, millis) in [("1s", 1000), ("500ms", 500), ("1m30s", 90_000), ("1.5h", 5_400_000), ("2µs", 0)] {
            assert_eq!(duration("k", text).unwrap().as_millis(), millis, "{text}");
        }
        for bad in ["", "0s", "5", "s", "1x", "1s2", "-1s", "1..5s", "99999999999999999999999h"] {
            assert!(duration("k", bad).is_err(), "{bad}");
        }
    }
}
