//! Where a registry's redirects led, kept for further ranges of the same blob: a signed URL serves until it expires.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use lazo_format::Digest;
use lru::LruCache;
use reqwest::{
    Response, StatusCode, Url,
    header::{CACHE_CONTROL, HeaderMap},
};

/// Targets kept: one a blob, and images have at most some hundred.
const MAX_TARGETS: NonZeroUsize = NonZeroUsize::new(512).expect("not zero");
/// How long a target is used that does not say when it ends. Signed URLs live for 15 minutes and more.
const USUAL_LIFETIME: Duration = Duration::from_secs(300);
/// How long a target is used at most, so that a registry's changes of mind are noticed.
const LONGEST_LIFETIME: Duration = Duration::from_secs(3600);
/// A target is not used in the last part of its life, for requests take time and clocks differ.
const SAFETY_MARGIN: Duration = Duration::from_secs(10);

/// The targets of one repository's blobs.
pub(super) struct Targets(Mutex<LruCache<Digest, Target>>);

struct Target {
    url: Url,
    use_until: Instant,
}

/// A target in use. Unless it is said to have answered, it is forgotten: whoever gave the request up may have had to wait
/// too long for it.
pub(super) struct Lease<'a> {
    targets: &'a Targets,
    digest: Digest,
    pub(super) url: Url,
    answered: bool,
}

impl Targets {
    pub(super) fn new() -> Self {
        Self(Mutex::new(LruCache::new(MAX_TARGETS)))
    }

    /// The target of a blob, if one is kept that is still good.
    pub(super) fn lease(&self, digest: &Digest) -> Option<Lease<'_>> {
        let url = self.lock().get(digest).filter(|t| Instant::now() < t.use_until)?.url.clone();
        Some(Lease { targets: self, digest: *digest, url, answered: false })
    }

    /// Keeps where a blob is for `lifetime`.
    pub(super) fn keep(&self, digest: &Digest, url: Url, lifetime: Duration) {
        let lifetime = lifetime.min(LONGEST_LIFETIME);
        let use_until = Instant::now() + (lifetime - SAFETY_MARGIN.min(lifetime / 4));
        if !lifetime.is_zero() {
            self.lock().put(*digest, Target { url, use_until });
        }
    }

    /// Forgets where a blob is.
    pub(super) fn forget(&self, digest: &Digest) {
        self.lock().pop(digest);
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<Digest, Target>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease<'_> {
    /// Whether the answer is one to go on with, rather than one of a target that has ended.
    pub(super) fn accepts(mut self, answer: &Response) -> bool {
        let ended = [
            StatusCode::BAD_REQUEST,
            StatusCode::UNAUTHORIZED,
            StatusCode::FORBIDDEN,
            StatusCode::NOT_FOUND,
            StatusCode::GONE,
        ];
        self.answered = !ended.contains(&answer.status());
        self.answered
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut targets = self.targets.lock();
        if !self.answered && targets.peek(&self.digest).is_some_and(|t| t.url == self.url) {
            targets.pop(&self.digest);
        }
    }
}

/// How long a redirect to `url` may be kept, by what its answer and the URL itself say.
pub(crate) fn lifetime(headers: &HeaderMap, url: &Url) -> Duration {
    let said = [cache_lifetime(headers), signature_lifetime(url, SystemTime::now())];
    said.into_iter().flatten().min().unwrap_or(USUAL_LIFETIME)
}

fn cache_lifetime(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|v| v.to_str().ok());
    let directives = values.flat_map(|v| v.split(',')).map(|d| d.trim().to_ascii_lowercase());
    directives
        .filter_map(|directive| match directive.as_str() {
            "no-store" => Some(Duration::ZERO),
            other => other.strip_prefix("max-age=")?.trim_matches('"').parse().ok().map(Duration::from_secs),
        })
        .min()
}

/// What the signatures of S3, Google, OSS and CloudFront, and of nginx's secure_link, say.
fn signature_lifetime(url: &Url, now: SystemTime) -> Option<Duration> {
    url.query_pairs()
        .filter_map(|(name, value)| {
            let seconds = Duration::from_secs(value.parse().ok()?);
            match name.to_ascii_lowercase().as_str() {
                "x-amz-expires" | "x-goog-expires" | "x-oss-expires" => Some(seconds),
                "expires" => {
                    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                    Some(seconds.saturating_sub(now))
                }
                _ => None,
            }
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_what_answers_and_signatures_say() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let cdn = |query: &str| format!("https://cdn.example/b?{query}");
        for (cache, url, expected) in [
            ("", cdn("sig=1"), 300),
            ("private, max-age=20", cdn("sig=1"), 20),
            ("no-store", cdn("X-Amz-Expires=1200"), 0),
            ("max-age=60", cdn("X-Amz-Expires=1200&X-Amz-Date=20260101T000000Z"), 60),
            ("max-age=nonsense", cdn("X-Goog-Expires=900"), 900),
            ("", cdn(&format!("Expires={}&Signature=x", now + 100)), 100),
            ("", cdn(&format!("md5=x&expires={}", now - 100)), 0),
            ("", cdn("expires=never"), 300),
            ("", cdn("expires=99999999999999999999999"), 300),
        ] {
            let headers = HeaderMap::from_iter([(CACHE_CONTROL, cache.parse().unwrap())]);
            let found = lifetime(&headers, &Url::parse(&url).unwrap()).as_secs();
            assert!(found == expected || found + 1 == expected, "{cache} {url}: {found}");
        }
    }

    #[test]
    fn targets_end_and_are_bounded() {
        let targets = Targets::new();
        let url = Url::parse("https://cdn.example/b").unwrap();
        let digest = |n: usize| Digest::sha256_of(n.to_string().as_bytes());
        targets.keep(&digest(0), url.clone(), Duration::ZERO);
        assert!(targets.lease(&digest(0)).is_none());
        for n in 0..1000 {
            targets.keep(&digest(n), url.clone(), Duration::MAX);
        }
        assert_eq!(targets.lock().len(), MAX_TARGETS.get());
        // Given up before an answer: forgotten, unless replaced meanwhile.
        let lease = targets.lease(&digest(999)).unwrap();
        targets.keep(&digest(999), Url::parse("https://cdn.example/new").unwrap(), USUAL_LIFETIME);
        drop(lease);
        drop(targets.lease(&digest(999)).unwrap());
        assert!(targets.lease(&digest(999)).is_none() && targets.lease(&digest(998)).is_some());
    }
}
