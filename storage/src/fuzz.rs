//! The readers of this crate's foreign bytes, with what must hold of whatever they accept: for the fuzz targets in `fuzz/`, and
//! for the test that keeps these and their seeds working.
//!
//! Where one function has several readers, the first byte of an input picks one, in the order of the table there, `a` being the first.
//! The rest is for the reader.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use lazo_format::media::ANNOTATION_BLOB;
use lazo_registry::oci_spec::image::MediaType;
use lazo_registry::{Config, Content, Document, LazoLayers};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};
use object_store::path::Path;
use object_store::signer::Signer as _;
use object_store::{ClientConfigKey, RetryConfig};
use reqwest::Method;

use crate::SourceSpec;
use crate::cache::files::stage::Note;
use crate::cache::{Limit, MIN_LIMIT, parse_size};
use crate::image::stamp::Stamp;
use crate::source::bucket::checked;

/// Notes of the state directory, and what operators write to name places and sizes.
pub fn record(data: &[u8]) {
    const READERS: [fn(&[u8]); 4] = [stamp, seal, source, limit];
    if let Some((choice, rest)) = data.split_first() {
        READERS[usize::from(choice.wrapping_sub(b'a')) % READERS.len()](rest);
    }
}

fn stamp(bytes: &[u8]) {
    let Some(stamp) = Stamp::parse(bytes) else { return };
    let again = stamp.to_json().expect("numbers and strings");
    assert_eq!(Stamp::parse(&again), Some(stamp));
}

fn seal(bytes: &[u8]) {
    let Some(note) = Note::parse(bytes) else { return };
    let again = note.to_json().expect("numbers and strings");
    assert_eq!(Note::parse(&again), Some(note));
}

fn source(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    match text.parse::<SourceSpec>() {
        Ok(spec) => {
            let shown = spec.to_string();
            // A login is not shown, and so is lost.
            let again: SourceSpec =
                shown.parse().unwrap_or_else(|error| panic!("{text:?} is shown as {shown:?}: {error}"));
            assert_eq!(again.to_string(), shown, "{text:?}");
        }
        Err(error) => {
            let authority = text.split_once("://").and_then(|(_, rest)| rest.split(['/', '?', '#']).next());
            let login = authority.and_then(|authority| authority.rsplit_once('@')).map_or("", |(login, _)| login);
            // A word that no refusal has of itself; the seeds have it in logins.
            let is_secret = login.contains("hunter2") && !text.starts_with("oci:");
            assert!(!is_secret || !error.to_string().contains("hunter2"), "{error}");
        }
    }
}

fn limit(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let _ = parse_size(text);
    let Ok(limit) = text.parse::<Limit>() else { return };
    assert_eq!(limit.to_string().parse(), Ok(limit), "{text:?}");
    match limit {
        Limit::Bytes(bytes) => assert!(bytes >= MIN_LIMIT),
        Limit::Percent(percent) => assert!((1..=100).contains(&percent)),
        Limit::None => {}
    }
}

/// An image's config, in the readers that mount and check images.
pub fn config(bytes: &[u8]) {
    let Ok(config) = Config::parse("config", bytes) else { return };
    let _ = (config.platform(), config.labels());
    assert!(config.diff_ids().len() <= bytes.len() / 64, "a digest has 64 digits");
}

/// A manifest, as that of a lazo image.
///
/// # Panics
/// When something does not hold.
pub fn manifest(bytes: &[u8]) {
    let document = Document::new(MediaType::ImageManifest, bytes.to_vec());
    let Ok(Content::Manifest(manifest)) = document.content() else { return };
    let Ok((layers, faults)) = LazoLayers::read(&manifest) else { return };
    // What mounts is what check finds no fault with.
    assert_eq!(LazoLayers::sound(&manifest).is_ok(), faults.is_empty());
    let _ = layers.wants_direct_io();
    if faults.is_empty() {
        for blob in manifest.layers().split_last().map_or(&[][..], |(_, blobs)| blobs) {
            let named = blob.annotations().as_ref().and_then(|all| all.get(ANNOTATION_BLOB));
            assert_eq!(named.map(String::as_str), Some(blob.digest().as_ref()));
        }
    }
}

/// What services answer that give credentials for buckets. The first byte picks the service, zero bytes divide its answers.
///
/// # Panics
/// When something does not hold.
pub fn credentials(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let settings: &[(AmazonS3ConfigKey, &str)] = match choice.wrapping_sub(b'a') % 3 {
        0 => &[],
        1 => &[(AmazonS3ConfigKey::ContainerCredentialsRelativeUri, "/credentials")],
        _ => &[
            (AmazonS3ConfigKey::WebIdentityTokenFile, "/dev/null"),
            (AmazonS3ConfigKey::RoleArn, "arn:aws:iam::1:role/r"),
        ],
    };
    let answers = rest.split(|byte| *byte == 0).take(MAX_ANSWERS).map(<[u8]>::to_vec).collect();
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::new().with_bucket_name("bucket").with_region("eu-central-1").with_retry(retry);
    builder = builder.with_config(AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp), "true");
    for (key, value) in settings {
        builder = builder.with_config(*key, *value);
    }
    let service = Answers(Arc::new(Mutex::new(answers)));
    let store = builder.with_http_connector(service).build().expect("settings that fit");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let path = Path::from("blobs/x");
    let signed = store.signed_url(Method::GET, &path, Duration::from_secs(60));
    if let Ok(url) = runtime.block_on(signed) {
        assert!(url.host_str().is_some_and(|host| host.ends_with(".amazonaws.com")), "{url}");
    }
}

/// More than any of the services is asked for.
const MAX_ANSWERS: usize = 8;

/// Gives one after the other.
#[derive(Debug, Clone)]
struct Answers(Arc<Mutex<VecDeque<Vec<u8>>>>);

impl HttpConnector for Answers {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

impl HttpService for Answers {
    fn call<'a, 'b>(&'a self, request: HttpRequest) -> BoxFuture<'b, Result<HttpResponse, HttpError>>
    where
        'a: 'b,
        Self: 'b,
    {
        let next = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front().unwrap_or_default();
        Box::pin(async move { checked(request.uri().path(), HttpResponse::new(HttpResponseBody::from(next))).await })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    /// Every seed, and every beginning of one.
    #[test]
    fn readers_hold_on_their_seeds() {
        for (target, read) in [
            ("state_records", super::record as fn(&[u8])),
            ("config", super::config),
            ("config", super::manifest),
            ("s3", super::credentials),
        ] {
            let seeds = fs::read_dir(format!("{}/../fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"))).unwrap();
            let seeds: Vec<Vec<u8>> = seeds.map(|seed| fs::read(seed.unwrap().path()).unwrap()).collect();
            assert!(!seeds.is_empty());
            for seed in seeds {
                (0..=seed.len()).for_each(|length| read(&seed[..length]));
            }
        }
    }
}
