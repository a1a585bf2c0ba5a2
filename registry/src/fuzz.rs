//! The readers of this crate's foreign bytes, with what must hold of whatever they accept: for the fuzz targets in `fuzz/`, and
//! for the test that keeps these and their seeds working.
//!
//! The first byte of an input picks the reader, in the order of the tables here, `a` being the first. The rest is for the reader.

use std::{os::unix::process::ExitStatusExt as _, path::Path, process::ExitStatus, time::Duration};

use reqwest::{
    Url,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
};

use crate::{
    Error, ImageRef, Options, Platform,
    auth::{
        TokenAnswer, bearer,
        challenge::{Bearer, known},
        credentials::{self, Credentials},
        helper::{self, HelperOutcome},
        token_server, usable,
    },
    choice::LeftOut,
    docker_archive,
    document::parse_index,
    hosts,
    http::{Backoff, error_text, redirect::step, retry_after, same_origin},
    layout,
    reference::{DockerRef, normalized_name},
    registry::{self, Registry, range::answers_range, targets, upload::stored_bytes},
};

/// Lines of an input that become headers: more than any answer has, fewer than a header map holds.
const MAX_LINES: usize = 64;

/// What registries, token servers and web servers answer, but for documents and blobs.
pub fn answer(data: &[u8]) {
    const READERS: [fn(&[u8]); 9] =
        [challenge, content_range, token, wait, redirect, redirect_lifetime, refusal, upload_range, manifest_headers];
    if let Some((choice, rest)) = data.split_first() {
        READERS[usize::from(choice.wrapping_sub(b'a')) % READERS.len()](rest);
    }
}

/// Files that say how to reach registries, and what local images begin with.
pub fn file(data: &[u8]) {
    const READERS: [fn(&[u8]); 6] =
        [hosts_toml, docker_config, helper_answer, layout_documents, archive_manifest, references];
    if let Some((choice, rest)) = data.split_first() {
        READERS[usize::from(choice.wrapping_sub(b'a')) % READERS.len()](rest);
    }
}

/// The lines that can be values of a header.
fn headers(name: &HeaderName, lines: &[u8]) -> HeaderMap {
    let lines = lines.split(|b| *b == b'\n').take(MAX_LINES);
    lines.filter_map(|line| Some((name.clone(), HeaderValue::from_bytes(line).ok()?))).collect()
}

/// The first line of a text, and what follows it.
fn first_line(data: &[u8]) -> Option<(&str, &str)> {
    std::str::from_utf8(data).ok()?.split_once('\n')
}

fn challenge(lines: &[u8]) {
    let Some(challenges) = known(&headers(&WWW_AUTHENTICATE, lines)) else { return };
    assert!(challenges.basic || challenges.bearer.is_some());
    let Some(Bearer { realm, service, scope }) = challenges.bearer else { return };
    let length = [Some(&realm), service.as_ref(), scope.as_ref()].iter().flatten().map(|s| s.len()).sum::<usize>();
    assert!(length <= lines.len(), "a challenge grows: {realm:?} {service:?} {scope:?}");
    let (plain, secure) = (token_server(&realm, false, false), token_server(&realm, true, true));
    for url in plain.iter().chain(&secure) {
        assert!(matches!(url.scheme(), "http" | "https") && url.has_host(), "{url}");
    }
    assert!(plain.is_ok() || secure.is_err(), "{realm}: the stricter rule allows more");
}

fn content_range(value: &[u8]) {
    let Ok(value) = std::str::from_utf8(value) else { return };
    for (size, range) in [(10, 0..10), (100, 10..20), (u64::MAX, 0..1), (u64::MAX, u64::MAX - 1..u64::MAX)] {
        let length = range.end - range.start;
        if answers_range(value, None, size, &range).is_err() {
            continue;
        }
        let numbers = value.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
        let numbers: Vec<u64> = numbers.filter_map(|digits| digits.parse().ok()).collect();
        let all = [range.start, range.end - 1, size];
        assert!(numbers == all || (numbers == all[..2] && value.contains('*')), "{value:?} is taken for {range:?}");
        assert!(answers_range(value, Some(length), size, &range).is_ok());
        assert!(answers_range(value, Some(length + 1), size, &range).is_err(), "another length is taken");
    }
}

fn token(answer: &[u8]) {
    let Some(answer) = TokenAnswer::parse(answer) else { return };
    let (token, lifetime) = (answer.token(), answer.lifetime());
    let (renew, end) = usable(lifetime);
    assert!(
        renew <= end && end <= lifetime && end <= Duration::from_secs(24 * 3600),
        "{lifetime:?}: {renew:?} {end:?}"
    );
    let Some(token) = token else { return };
    assert!(!token.reveal().is_empty());
    if let Some(header) = bearer(token) {
        assert!(header.is_sensitive() && header.len() == token.reveal().len() + "Bearer ".len());
    }
}

fn wait(value: &[u8]) {
    let retry_after = retry_after(&headers(&RETRY_AFTER, value));
    let (what, request, detail) = ("x".to_owned(), "GET x".to_owned(), String::new());
    let error = Error::Status { what, request, status: 429, detail, retry_after };
    if let Some(pause) = Backoff::new(2).pause(&error) {
        assert!(pause <= Duration::from_secs(60), "{retry_after:?} makes a pause of {pause:?}");
    }
}

fn redirect(data: &[u8]) {
    let Some((from, location)) = first_line(data) else { return };
    let Ok(from) = Url::parse(from) else { return };
    if !matches!(from.scheme(), "http" | "https") {
        return;
    }
    let Ok(to) = from.join(location).map_err(|_| ()).and_then(|to| step(&from, to, false).map_err(|_| ())) else {
        return;
    };
    assert!(matches!(to.scheme(), "http" | "https") && to.has_host(), "{to}");
    assert!(from.scheme() != "https" || to.scheme() == "https", "{from} leads to {to}");
    assert!(!same_origin(&from, &to) || from.host() == to.host());
}

fn redirect_lifetime(data: &[u8]) {
    let Some((url, values)) = first_line(data) else { return };
    let Ok(url) = Url::parse(url) else { return };
    let headers = headers(&CACHE_CONTROL, values.as_bytes());
    let lifetime = targets::lifetime(&headers, &url);
    let mut directives = headers.values().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    assert!(lifetime.is_zero() || !directives.any(|directive| directive.trim() == "no-store"), "{values:?}");
}

fn refusal(body: &[u8]) {
    let text = error_text(body);
    // 300 characters of a registry's own words.
    assert!(text.chars().count() <= 302 && !text.chars().any(char::is_control), "{text:?}");
}

fn upload_range(value: &[u8]) {
    let Ok(value) = std::str::from_utf8(value) else { return };
    if let Some(bytes) = stored_bytes(value) {
        let last = value.rsplit_once('-').and_then(|(_, last)| last.trim_start_matches('+').parse::<u64>().ok());
        assert!(last == Some(bytes.saturating_sub(1)), "{value:?} is taken for {bytes} bytes");
    }
}

fn manifest_headers(data: &[u8]) {
    let Some((content_type, rest)) = first_line(data) else { return };
    let (digest, body) = rest.split_once('\n').unwrap_or((rest, ""));
    let mut all = headers(&CONTENT_TYPE, content_type.as_bytes());
    all.extend(headers(&HeaderName::from_static("docker-content-digest"), digest.as_bytes()));
    if let Some(found) = registry::content_digest(&all) {
        assert_eq!(found.to_string(), digest);
    }
    let _ = registry::media_type(&all, body.as_bytes(), "manifest");
}

fn hosts_toml(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let Ok((hosts, _)) = hosts::file::parse(Path::new("/certs.d/h"), text) else { return };
    let (host, repository) = ("h.example".to_owned(), "app".to_owned());
    let reference = DockerRef { host, repository, tag: None, digest: None };
    for host in &hosts {
        let paths = host.ca.iter().chain(host.identity.iter().map(|identity| &identity.certificate));
        assert!(paths.into_iter().all(|path| path.is_absolute()), "{host:?}");
        assert!(host.dial_timeout.is_none_or(|timeout| !timeout.is_zero()));
        // What was accepted can be asked.
        let registry = Registry::new(&reference, host, &Options::default());
        registry.unwrap_or_else(|error| panic!("{host:?}: {error}"));
    }
}

fn docker_config(bytes: &[u8]) {
    let file = match credentials::parse(bytes) {
        Ok(file) => file,
        Err(reason) => return assert!(reason.len() < 100, "it may quote the file: {reason}"),
    };
    for (host, repository) in [("docker.io", "library/app"), ("h.example:5000", "team/app"), ("[::1]", "a/b/c/d")] {
        for program in file.programs(host).into_iter().flatten() {
            assert!(!program.contains('/'), "{program} is no name");
        }
        if let Ok(Some(found)) = file.kept(host, repository) {
            check_login(&found, bytes.len());
        }
    }
}

fn helper_answer(output: &[u8]) {
    let outcome = |status| HelperOutcome::new(ExitStatus::from_raw(status), output.to_vec(), output.to_vec());
    let found = helper::understand("helper", &outcome(0));
    if let Ok(Some(found)) = found {
        check_login(&found, output.len());
    }
    // Ended with 1.
    match helper::understand("helper", &outcome(1 << 8)) {
        Ok(found) => assert!(found.is_none(), "a helper that fails gives a login"),
        // 300 characters of its own words.
        Err(reason) => assert!(reason.chars().count() < 400 && !reason.chars().any(char::is_control), "{reason:?}"),
    }
}

/// Bounded by what it was read from, never shown, never empty.
fn check_login(found: &Credentials, length: usize) {
    let shown = format!("{found:?}");
    let secret = match found {
        Credentials::Password { user, password } => {
            assert!(user.len() + password.reveal().len() <= length);
            assert!(shown.len() <= 64 + 10 * user.len() && shown.contains("***"));
            return;
        }
        Credentials::Identity(secret) | Credentials::Access(secret) => secret.reveal(),
    };
    assert!(!secret.is_empty() && secret.len() <= length && shown.len() < 32, "{shown}");
}

fn layout_documents(bytes: &[u8]) {
    let _ = layout::is_known_version(bytes);
    let Ok(index) = parse_index("index.json", bytes) else { return };
    for entry in index.manifests() {
        let _ = (crate::digest_of(entry), crate::is_attestation(entry), LeftOut::entry(entry));
    }
}

fn archive_manifest(data: &[u8]) {
    let Some((reference, json)) = first_line(data) else { return };
    let Ok(entries) = docker_archive::entries("manifest.json", json.as_bytes()) else { return };
    let (only, named) = (docker_archive::choose(&entries, None), docker_archive::choose(&entries, Some(reference)));
    assert_eq!(only.is_ok(), entries.len() == 1);
    assert!(named.is_err() || !entries.is_empty());
    assert!(docker_archive::choose(&entries, Some("@0")).is_ok() != entries.is_empty());
}

fn references(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse::<Platform>().ok(), Some(platform), "{text:?}");
    }
    let _ = normalized_name(text);
    let Ok(reference) = text.parse::<ImageRef>() else { return };
    assert_eq!(reference.to_string().parse::<ImageRef>().ok().as_ref(), Some(&reference), "{text:?}");
    let ImageRef::Docker(docker) = reference else { return };
    // Nothing in the names leads to another host, to a login or out of the repository.
    let Ok(url) = Url::parse(&format!("https://{}/v2/{}/", docker.host, docker.repository)) else { return };
    assert_eq!(url.path(), format!("/v2/{}/", docker.repository), "{text:?}");
    assert!(url.username().is_empty() && url.password().is_none() && url.query().is_none(), "{text:?}");
}

#[cfg(test)]
mod tests {
    use std::fs;

    /// Every seed, and every beginning of one.
    #[test]
    fn readers_hold_on_their_seeds() {
        for (target, read) in [("registry_answers", super::answer as fn(&[u8])), ("registry_files", super::file)] {
            let seeds = fs::read_dir(format!("{}/../fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"))).unwrap();
            let seeds: Vec<Vec<u8>> = seeds.map(|seed| fs::read(seed.unwrap().path()).unwrap()).collect();
            assert!(!seeds.is_empty());
            for seed in seeds {
                (0..=seed.len()).for_each(|length| read(&seed[..length]));
            }
        }
    }
}
