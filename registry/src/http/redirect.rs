//! Where servers may send us on to, and what of ours goes along: nothing, once another server was on the way.

use reqwest::{Response, StatusCode, Url, header::LOCATION};

use super::{same_origin, shown_url};
use crate::{
    error::{Error, Result},
    reference::is_loopback_host,
};

/// Redirects followed for one request; registries make one, to their storage.
const MAX_REDIRECTS: usize = 5;

/// The key in `hosts.toml` and `lazo.toml` that allows what is refused otherwise.
pub(crate) const INSECURE_REDIRECTS: &str = "insecure_redirects";

/// One request's way from server to server.
pub(crate) struct Way<'a> {
    what: &'a str,
    insecure: bool,
    url: Url,
    redirects: usize,
    away: bool,
}

impl<'a> Way<'a> {
    /// A way that begins at `url`. What is meant for the server `home` alone may go along as long as the way does not leave it.
    /// `insecure` allows redirects that others could forge.
    pub(crate) fn new(what: &'a str, url: Url, home: &Url, insecure: bool) -> Self {
        let away = !same_origin(&url, home);
        Self { what, insecure, url, redirects: 0, away }
    }

    /// A way on which nothing goes along.
    pub(crate) fn foreign(what: &'a str, url: Url, insecure: bool) -> Self {
        Self { what, insecure, url, redirects: 0, away: true }
    }

    /// Where it has come to.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// Whether a server other than `home` was on it. It has chosen where the way goes, even if that is back.
    pub(crate) fn is_away(&self) -> bool {
        self.away
    }

    /// Goes where an answer sends us.
    pub(crate) fn follow(&mut self, response: &Response) -> Result<()> {
        self.redirects += 1;
        if self.redirects > MAX_REDIRECTS {
            return Err(Error::invalid(self.what, format_args!("more than {MAX_REDIRECTS} redirects")));
        }
        let next = location(response, self.what, self.insecure)?;
        self.away |= !same_origin(&next, &self.url);
        self.url = next;
        Ok(())
    }
}

/// Where an answer sends us, if that may be.
pub(crate) fn location(response: &Response, what: &str, insecure: bool) -> Result<Url> {
    let location = response.headers().get(LOCATION).and_then(|v| v.to_str().ok());
    let location = location.ok_or_else(|| Error::invalid(what, "the server sends us on, but not where"))?;
    let to = response.url().join(location).map_err(|e| Error::invalid(what, format_args!("bad Location: {e}")))?;
    step(response.url(), to, insecure).map_err(|refused| Error::invalid(what, refused))
}

pub(crate) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Checks one step of a way.
///
/// From https there is no way back to http. And whoever is between us and a plain-HTTP server could answer in its place, and send us
/// to a server that only we can reach; so that may not name another host, unless it is this machine's own.
pub(crate) fn step(from: &Url, mut to: Url, insecure: bool) -> Result<Url, String> {
    if !matches!(to.scheme(), "http" | "https") {
        return Err(format!("refused to be sent on to {}: neither http nor https", shown_url(&to)));
    }
    let same_host = from.host() == to.host();
    let back = from.scheme() == "https" && to.scheme() == "http";
    // A registry behind a proxy that does TLS may not know its own scheme.
    if back && same_host && to.set_scheme("https").is_ok() {
        return Ok(to);
    }
    let forgeable = from.scheme() == "http" && !same_host && !is_loopback(from);
    if insecure || !(back || forgeable) {
        return Ok(to);
    }
    let (to, why) = (shown_url(&to), if back { "https led to plain http" } else { "plain HTTP led to another host" });
    Err(format!("refused to be sent on to {to}: {why}; {INSECURE_REDIRECTS} in hosts.toml or lazo.toml allows it"))
}

pub(crate) fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| is_loopback_host(host.trim_matches(['[', ']'])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_others_could_forge_are_refused() {
        for (from, to, expected) in [
            ("https://r.example/v2/", "https://r.example/x", Some("https://r.example/x")),
            ("https://r.example/v2/", "https://cdn.example/x", Some("https://cdn.example/x")),
            ("https://r.example/v2/", "http://r.example/x", Some("https://r.example/x")),
            ("https://r.example:5000/v2/", "http://r.example:5000/x", Some("https://r.example:5000/x")),
            ("https://r.example/v2/", "http://cdn.example/x", None),
            ("https://r.example/v2/", "ftp://r.example/x", None),
            ("https://r.example/v2/", "file:///etc/passwd", None),
            ("http://r.example/v2/", "http://r.example/x", Some("http://r.example/x")),
            ("http://r.example/v2/", "http://r.example:9000/x", Some("http://r.example:9000/x")),
            ("http://r.example/v2/", "https://r.example/x", Some("https://r.example/x")),
            ("http://r.example/v2/", "https://cdn.example/x", None),
            ("http://r.example/v2/", "http://169.254.169.254/latest", None),
            ("http://r.example/v2/", "http://127.0.0.1:2375/", None),
            ("http://127.0.0.1:5000/v2/", "http://cdn.example/x", Some("http://cdn.example/x")),
            ("http://[::1]:5000/v2/", "http://cdn.example/x", Some("http://cdn.example/x")),
            ("http://localhost:5000/v2/", "https://cdn.example/x", Some("https://cdn.example/x")),
        ] {
            let (from, to) = (Url::parse(from).unwrap(), Url::parse(to).unwrap());
            let strict = step(&from, to.clone(), false);
            assert_eq!(strict.as_ref().ok().map(Url::as_str), expected, "{from} to {to}");
            let insecure = step(&from, to.clone(), true);
            assert_eq!(insecure.is_ok(), matches!(to.scheme(), "http" | "https"), "{from} to {to}");
            if let Err(reason) = strict {
                assert!(reason.contains(to.as_str()), "{reason}");
            }
        }
    }
}
