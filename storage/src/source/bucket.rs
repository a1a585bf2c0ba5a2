//! A bucket of an S3-compatible object store.

use std::error::Error as StdError;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Limited};
use lazo_format::BlobRecord;
use lazo_registry::{Options, RangeAnswer, Web};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService,
};
use object_store::path::Path;
use object_store::signer::Signer as _;
use object_store::{ClientConfigKey, RetryConfig};
use reqwest::{Method, Url};

use super::{Answer, BlobSource, ByteStream, ErrorKind, SourceError, blob_path};

/// How long a signature is good for. It is used at once; the rest is for clocks that differ, by 15 minutes at most as far
/// as AWS takes it.
const SIGNED_FOR: Duration = Duration::from_secs(15 * 60);
/// Longest wait for credentials from the instance, the container or a token service, all of which are near.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer of a service that gives credentials, bytes. Real ones have some kilobytes, of which a session token is the most.
const MAX_ANSWER: usize = 256 << 10;
/// Where the instance's metadata service answers with a token, and with the name of a role: these go into a header and a URL.
const WORDS: [&str; 2] = ["/latest/api/token", "/latest/meta-data/iam/security-credentials/"];
/// Prefix of the environment variables that are settings.
const SETTINGS: &str = "AWS_";

/// Blobs as objects `PREFIX/blobs/sha256/HEX`.
///
/// `object_store` knows settings, credentials, addresses and signatures; the signed URL is then read as any other, so that
/// ranges, failures and cancellation are the same for all that speak HTTP.
pub struct BucketSource {
    name: String,
    prefix: String,
    builder: AmazonS3Builder,
    /// Replaced when its credentials are refused.
    store: Mutex<Arc<AmazonS3>>,
    unsigned: bool,
    /// Whether there have been credentials: if so, a service that does not give them now has an outage.
    had_credentials: AtomicBool,
    web: Web,
}

impl BucketSource {
    /// The objects of `bucket` below `prefix`, which is empty or has no slash at either end. `settings` are those of the
    /// environment: what does not begin with `AWS_`, or is unknown, is left out.
    ///
    /// # Errors
    /// When a setting has no meaning, one is missing, or they ask for plain HTTP but do not allow it.
    pub fn new(
        bucket: &str,
        prefix: &str,
        settings: impl IntoIterator<Item = (String, String)>,
        options: &Options,
    ) -> Result<Self, SourceError> {
        let name = if prefix.is_empty() { format!("s3://{bucket}") } else { format!("s3://{bucket}/{prefix}") };
        let web = Web::new(options);
        let mut builder = AmazonS3Builder::new();
        for (key, value) in settings {
            if let Some(key) = key.starts_with(SETTINGS).then(|| key.to_ascii_lowercase().parse().ok()).flatten() {
                builder = builder.with_config(key, value);
            }
        }
        check_scheme(&name, &builder)?;
        let unsigned = is_set(&builder, AmazonS3ConfigKey::SkipSignature);
        if unsigned {
            // Every URL is signed, and stripped of it: with these nothing goes looking for credentials.
            builder = builder.with_access_key_id("none").with_secret_access_key("none");
        }
        // Retries are the caller's.
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let builder = builder.with_bucket_name(bucket).with_retry(retry).with_http_connector(Connector(web.clone()));
        let store = build(&name, &builder)?;
        let (prefix, store, had_credentials) = (prefix.to_owned(), Mutex::new(store), AtomicBool::new(false));
        Ok(Self { name, prefix, builder, store, unsigned, had_credentials, web })
    }

    /// `exact`: just the range, from a store that ignores ranges too.
    async fn ask(&self, blob: &BlobRecord, range: Range<u64>, exact: bool) -> Result<Answer, SourceError> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match self.ask_with(&store, blob, range.clone(), exact).await {
            Err(error) if error.kind == ErrorKind::Denied && !self.unsigned => {
                let fresh = build(&self.name, &self.builder)?;
                if !self.has_new_credentials(&store, &fresh).await {
                    return Err(error);
                }
                *self.store.lock().unwrap_or_else(PoisonError::into_inner) = fresh.clone();
                self.ask_with(&fresh, blob, range, exact).await
            }
            opened => opened,
        }
    }

    async fn ask_with(
        &self,
        store: &AmazonS3,
        blob: &BlobRecord,
        range: Range<u64>,
        exact: bool,
    ) -> Result<Answer, SourceError> {
        let what = format!("blob {} of {}", blob.digest, self.name);
        let url = self.url(store, blob).await?;
        if !exact {
            return Ok(self.web.open_answer(&what, &url, blob.compressed_size, range).await?.into());
        }
        let stream = self.web.open_range(&what, &url, blob.compressed_size, range).await?;
        Ok(RangeAnswer { stream, whole: false }.into())
    }

    /// Where the blob can be read for a while.
    async fn url(&self, store: &AmazonS3, blob: &BlobRecord) -> Result<Url, SourceError> {
        let path = blob_path(&blob.digest);
        let path = if self.prefix.is_empty() { path } else { format!("{}/{path}", self.prefix) };
        let path = Path::parse(path).map_err(|e| self.failed(ErrorKind::Local, e))?;
        let signed = tokio::time::timeout(CREDENTIALS_TIMEOUT, store.signed_url(Method::GET, &path, SIGNED_FOR)).await;
        let kind = |kind| if self.had_credentials.load(Ordering::Relaxed) { kind } else { ErrorKind::Denied };
        let mut url = signed
            .map_err(|e| self.failed(kind(ErrorKind::Timeout), e))?
            .map_err(|e| self.failed(kind(ErrorKind::Unreachable), e))?;
        self.had_credentials.store(true, Ordering::Relaxed);
        if self.unsigned {
            url.set_query(None);
        }
        Ok(url)
    }

    /// Whether asking again gives other credentials.
    async fn has_new_credentials(&self, old: &AmazonS3, new: &AmazonS3) -> bool {
        let both = async { (old.credentials().get_credential().await, new.credentials().get_credential().await) };
        match tokio::time::timeout(CREDENTIALS_TIMEOUT, both).await {
            Ok((Ok(old), Ok(new))) => old != new,
            _ => false,
        }
    }

    fn failed(&self, kind: ErrorKind, source: impl Into<Box<dyn StdError + Send + Sync>>) -> SourceError {
        failed(&self.name, kind, source)
    }
}

fn build(name: &str, builder: &AmazonS3Builder) -> Result<Arc<AmazonS3>, SourceError> {
    builder.clone().build().map(Arc::new).map_err(|e| failed(name, ErrorKind::Local, e))
}

/// Refuses an address with plain HTTP unless it is allowed, as AWS_ALLOW_HTTP asks.
fn check_scheme(name: &str, builder: &AmazonS3Builder) -> Result<(), SourceError> {
    let address = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint]
        .iter()
        .find_map(|key| builder.get_config_value(key));
    let allowed = is_set(builder, AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp));
    if address.is_some_and(|address| address.starts_with("http://")) && !allowed {
        let reason = format!("{name}: its address begins with http://; set AWS_ALLOW_HTTP=true if that is meant");
        return Err(SourceError::new(ErrorKind::Local, reason));
    }
    Ok(())
}

/// Whether a setting says yes, in any way that `object_store` takes for it.
fn is_set(builder: &AmazonS3Builder, key: AmazonS3ConfigKey) -> bool {
    let value = builder.get_config_value(&key).unwrap_or_default().to_ascii_lowercase();
    matches!(value.as_str(), "1" | "true" | "on" | "yes" | "y")
}

fn failed(name: &str, kind: ErrorKind, source: impl Into<Box<dyn StdError + Send + Sync>>) -> SourceError {
    let hint = match kind {
        ErrorKind::Denied => {
            "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true if everyone may \
             read it"
        }
        ErrorKind::Local => "its settings cannot be used; look at the AWS_ variables",
        _ => "its credentials cannot be renewed",
    };
    SourceError::new(kind, Unusable { text: format!("{name}: {hint}"), source: source.into() })
}

#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Unusable {
    text: String,
    source: Box<dyn StdError + Send + Sync>,
}

impl BlobSource for BucketSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn open_range<'a>(
        &'a self,
        blob: &'a BlobRecord,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        Box::pin(async move { Ok(self.ask(blob, range, true).await?.stream) })
    }

    fn open<'a>(&'a self, blob: &'a BlobRecord, range: Range<u64>) -> BoxFuture<'a, Result<Answer, SourceError>> {
        Box::pin(self.ask(blob, range, false))
    }
}

/// How `object_store` reaches the services that give credentials.
#[derive(Clone)]
struct Connector(Web);

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

impl HttpService for Connector {
    fn call<'a, 'b>(&'a self, request: HttpRequest) -> BoxFuture<'b, Result<HttpResponse, HttpError>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            // Plain HTTP is for what runs on the machine or its host, and never meant for a proxy.
            let url =
                if request.uri().scheme_str() == Some("http") { NEAR.to_owned() } else { request.uri().to_string() };
            let url =
                url.parse().map_err(|e: <Url as std::str::FromStr>::Err| HttpError::new(HttpErrorKind::Unknown, e))?;
            let client = self.0.client(&url).map_err(|e| HttpError::new(HttpErrorKind::Connect, e))?;
            let path = request.uri().path().to_owned();
            checked(&path, client.call(request).await?).await
        })
    }
}

/// The same answer to a request for `path`, read whole, if it is one that can be used. `object_store` would read one of any length into
/// memory, and panics where it cannot make its next request of a word.
pub(crate) async fn checked(path: &str, answer: HttpResponse) -> Result<HttpResponse, HttpError> {
    let (head, body) = answer.into_parts();
    let failed = |error: Box<dyn StdError + Send + Sync>| HttpError::new(HttpErrorKind::Decode, Boxed(error));
    let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(failed)?.to_bytes();
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"_+=,.@-/".contains(byte);
    if head.status.is_success() && WORDS.contains(&path) && !body.iter().all(is_word) {
        return Err(failed(format!("the answer to {path} is not a name or a token").into()));
    }
    Ok(HttpResponse::from_parts(head, HttpResponseBody::from(body)))
}

/// A boxed cause, as the error wants a type.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Boxed(Box<dyn StdError + Send + Sync>);

/// Stands for all that is reached without a proxy.
const NEAR: &str = "http://localhost/";

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_about_credentials_are_bounded_and_words_are_words() {
        let [token, role] = WORDS;
        for (path, answer, fits) in [
            ("/credentials", " ".repeat(MAX_ANSWER), true),
            ("/credentials", " ".repeat(MAX_ANSWER + 1), false),
            (token, "AQAEAL-x_1+/=".to_owned(), true),
            (token, "a\nb".to_owned(), false),
            (role, "team@app,x.y".to_owned(), true),
            (role, "<html>".to_owned(), false),
            (role, "a b".to_owned(), false),
        ] {
            let checked = checked(path, HttpResponse::new(HttpResponseBody::from(answer.clone()))).await;
            assert_eq!(checked.is_ok(), fits, "{path}: {} bytes", answer.len());
        }
    }
}
