//! What a registry asks for in `WWW-Authenticate` (RFC 9110, section 11.6.1).

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// Most characters looked at; real challenges have some hundred.
const MAX_CHALLENGE: usize = 8192;

/// The ways to authenticate that an answer offers and that are known here; at least one. A token comes before a password.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Challenges {
    /// A token from a token server.
    pub(crate) bearer: Option<Bearer>,
    /// User name and password with each request.
    pub(crate) basic: bool,
}

/// Where tokens come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bearer {
    pub(crate) realm: String,
    pub(crate) service: Option<String>,
    pub(crate) scope: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer(Bearer),
}

/// The known challenges of an answer; of several token servers the first.
pub(crate) fn known(headers: &HeaderMap) -> Option<Challenges> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
    let mut found = Challenges::default();
    for challenge in values.flat_map(parse) {
        match challenge {
            Challenge::Basic => found.basic = true,
            Challenge::Bearer(bearer) => found.bearer = found.bearer.or(Some(bearer)),
        }
    }
    (found != Challenges::default()).then_some(found)
}

/// The known challenges of one header value.
fn parse(value: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = value.get(..MAX_CHALLENGE.min(value.len())).unwrap_or_default();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',']).unwrap_or(rest.len());
        let (scheme, after) = rest.split_at(end);
        if scheme.is_empty() {
            return found;
        }
        let (parameters, after) = parameters(after);
        rest = after;
        let get = |name: &str| parameters.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone());
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = get("realm")
        {
            found.push(Challenge::Bearer(Bearer { realm, service: get("service"), scope: get("scope") }));
        }
    }
}

/// `name=value` pairs up to the next scheme, and what follows them.
fn parameters(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    loop {
        let start = rest.trim_start_matches([' ', '\t', ',']);
        let name_end = start.find(|c: char| !(c.is_ascii_alphanumeric() || "-_.*".contains(c))).unwrap_or(start.len());
        let (name, after) = start.split_at(name_end);
        let Some(value) = after.trim_start_matches([' ', '\t']).strip_prefix('=').filter(|_| !name.is_empty()) else {
            return (found, start);
        };
        let (value, after) = parameter_value(value.trim_start_matches([' ', '\t']));
        found.push((name.to_owned(), value));
        rest = after;
    }
}

/// A token or a quoted string, and what follows it.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let own = |s: Option<&str>| s.map(str::to_owned);
        Challenge::Bearer(Bearer { realm: realm.to_owned(), service: own(service), scope: own(scope) })
    }

    #[test]
    fn reads_challenges() {
        let table = [
            ("Basic realm=\"x\"", vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                "Bearer realm=\"https://a/token\",service=\"a\",scope=\"repository:x:pull,push\"",
                vec![bearer("https://a/token", Some("a"), Some("repository:x:pull,push"))],
            ),
            ("Bearer realm=https://a/t , service = a", vec![bearer("https://a/t", Some("a"), None)]),
            ("Bearer realm=\"a\\\"b\"", vec![bearer("a\"b", None, None)]),
            ("Negotiate abc==, Basic realm=\"x\", Bearer realm=\"r\"", vec![Challenge::Basic, bearer("r", None, None)]),
            ("Bearer service=\"no realm\"", vec![]),
            ("Bearer realm=\"never closed", vec![bearer("never closed", None, None)]),
            ("", vec![]),
            (",,, ,", vec![]),
            ("=\"", vec![]),
            ("Digest \"\\", vec![]),
        ];
        for (value, expected) in table {
            assert_eq!(parse(value), expected, "{value}");
        }
    }

    #[test]
    fn keeps_what_is_offered_beside_a_token() {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "Basic realm=\"x\"".parse().unwrap());
        headers.append(WWW_AUTHENTICATE, "Bearer realm=\"r\"".parse().unwrap());
        let bearer = Some(Bearer { realm: "r".to_owned(), service: None, scope: None });
        assert_eq!(known(&headers), Some(Challenges { bearer, basic: true }));
        headers.remove(WWW_AUTHENTICATE);
        assert_eq!(known(&headers), None);
        headers.append(WWW_AUTHENTICATE, "Basic realm=\"x\"".parse().unwrap());
        assert_eq!(known(&headers), Some(Challenges { bearer: None, basic: true }));
    }
}
