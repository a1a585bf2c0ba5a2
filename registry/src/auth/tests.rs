//! What may be kept and sent where, and odd answers.

use super::{token::LONGEST_LIFETIME, *};
use crate::options::Options;

fn auth(tls: bool) -> Auth {
    at("h.example", tls)
}

fn at(host: &str, tls: bool) -> Auth {
    let options = Options::default();
    let base = Url::parse(&format!("https://{host}/v2/app/")).unwrap();
    let (host, repository) = (host.to_owned(), "app".to_owned());
    let site = Site { host, repository, tls, mirror: false, headers: HeaderMap::new(), base };
    Auth::new(Store::new(&options), site)
}

#[test]
fn passwords_stay_encrypted() {
    let table = [
        ("https://auth.example/token", true, true),
        ("http://auth.example/token", true, false),
        ("http://localhost:5001/token", true, false),
        ("http://localhost:5001/token", false, true),
        ("http://auth.example/token", false, true),
        ("file:///etc/passwd", false, false),
    ];
    for (realm, tls, allowed) in table {
        assert_eq!(auth(tls).0.check_realm(realm).is_ok(), allowed, "{realm} {tls}");
    }
    assert!(at("127.0.0.1:5000", true).0.check_realm("http://localhost:5001/token").is_ok());
    let header = basic("me", &Secret::new("secret-pw".into())).unwrap();
    let shown = format!("{header:?} {:?}", auth(true));
    assert!(!shown.contains("secret") && !shown.contains("bWU6"), "{shown}");
}

#[test]
fn odd_answers_of_token_servers_are_understood() {
    let hour = Duration::from_secs(3600);
    for (answer, token, lifetime) in [
        (r#"{"token":"t","expires_in":3600}"#, Some("t"), hour),
        (r#"{"access_token":"a","expires_in":"3600"}"#, Some("a"), hour),
        (r#"{"token":"","access_token":"a","expires_in":3600.0}"#, Some("a"), hour),
        (r#"{"token":"t","access_token":"","expires_in":1.5}"#, Some("t"), Duration::from_millis(1500)),
        (r#"{"token":null,"access_token":"a","expires_in":null}"#, Some("a"), DEFAULT_LIFETIME),
        (r#"{"token":"t","expires_in":0}"#, Some("t"), Duration::ZERO),
        (r#"{"token":"t","expires_in":-5}"#, Some("t"), DEFAULT_LIFETIME),
        (r#"{"token":"t","expires_in":"soon"}"#, Some("t"), DEFAULT_LIFETIME),
        (r#"{"token":"t","expires_in":"NaN"}"#, Some("t"), DEFAULT_LIFETIME),
        (r#"{"token":"t","expires_in":1e300}"#, Some("t"), LONGEST_LIFETIME),
        (r#"{"token":"t","expires_in":{}}"#, Some("t"), DEFAULT_LIFETIME),
        (r#"{"token":"","access_token":""}"#, None, DEFAULT_LIFETIME),
        ("{}", None, DEFAULT_LIFETIME),
    ] {
        let parsed: TokenAnswer = serde_json::from_str(answer).unwrap();
        assert_eq!((parsed.token().map(Secret::reveal), parsed.lifetime()), (token, lifetime), "{answer}");
    }
}

#[test]
fn tokens_are_bounded() {
    let auth = &*auth(true).0;
    let issuer = Issuer { realm: Url::parse("https://a/").unwrap(), service: None, scope: None };
    auth.state().scheme = Scheme::Bearer(issuer);
    let keep = |scopes: &Scopes, token: &str, lifetime| {
        auth.keep(scopes, &Secret::new(token.into()), None, Duration::from_secs(lifetime))
    };
    for n in 0..1000 {
        keep(&Scopes::pull(&format!("app{n}")), "t", u64::MAX).unwrap();
    }
    assert_eq!(auth.state().tokens.len(), MAX_TOKENS.get());
    assert!(matches!(auth.known(&Scopes::pull("app999")), Known::Header(_)));
    assert!(matches!(auth.known(&Scopes::pull("app0")), Known::Missing));
    let app = Scopes::pull("app");
    assert!(keep(&app, "a\nb", 60).is_err());
    keep(&app, "t", 0).unwrap();
    assert!(matches!(auth.known(&app), Known::Missing));
    keep(&app, "t", 60).unwrap();
    auth.state().tokens.get_mut(&app).unwrap().renew_from = Instant::now();
    assert!(matches!(auth.known(&app), Known::Ageing(_)));
}
