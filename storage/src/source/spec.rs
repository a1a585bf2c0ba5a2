//! What a user writes to name a source.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use lazo_registry::Options;
use reqwest::Url;

use super::bucket::BucketSource;
use super::layout::LayoutSource;
use super::web::WebSource;
use super::{BlobSource, SourceError};

/// A place that has blobs as `blobs/sha256/HEX`, as written: `oci:DIR`, `http://HOST/PATH/`, `https://HOST/PATH/` or
/// `s3://BUCKET/PREFIX`.
///
/// A relative DIR is one of the working directory at the time of parsing. Shown without the login that a URL may hold.
#[derive(Clone, PartialEq, Eq)]
pub struct SourceSpec(Kind);

#[derive(Clone, PartialEq, Eq)]
enum Kind {
    /// Absolute.
    Layout(PathBuf),
    /// Its path ends with a slash.
    Web(Url),
    Bucket {
        bucket: String,
        /// Empty, or without a slash at either end.
        prefix: String,
    },
}

/// The text names no source.
#[derive(Debug, thiserror::Error)]
#[error("{shown:?} is no source of blobs: {reason}")]
pub struct SpecError {
    /// What was given, unless it may hold a password.
    shown: String,
    reason: String,
}

/// What is accepted.
const FORMS: &str = "give oci:DIR, https://HOST/PATH/, http://HOST/PATH/ or s3://BUCKET[/PREFIX]";

impl SourceSpec {
    /// The source that this names. Nothing is read and no connection is made before the first blob is asked for; a bucket's
    /// settings are those of the environment now (`AWS_*`).
    ///
    /// # Errors
    /// When the settings of a bucket contradict each other.
    pub fn open(&self, options: &Options) -> Result<Arc<dyn BlobSource>, SourceError> {
        Ok(match &self.0 {
            Kind::Layout(path) => Arc::new(LayoutSource::new(path)?),
            Kind::Web(url) => Arc::new(WebSource::new(url.clone(), options)),
            Kind::Bucket { bucket, prefix } => {
                let settings =
                    std::env::vars_os().filter_map(|(key, value)| key.into_string().ok().zip(value.into_string().ok()));
                Arc::new(BucketSource::new(bucket, prefix, settings, options)?)
            }
        })
    }
}

impl FromStr for SourceSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let parsed = if let Some(path) = text.strip_prefix("oci:") {
            layout(path)
        } else if let Some(rest) = text.strip_prefix("s3://") {
            bucket(rest)
        } else if text.starts_with("http://") || text.starts_with("https://") {
            web(text)
        } else if text.starts_with("docker://") {
            Err("a mirror of a registry is configured in a hosts.toml".to_owned())
        } else {
            Err(FORMS.to_owned())
        };
        parsed.map(Self).map_err(|reason| SpecError { shown: shown(text), reason })
    }
}

fn layout(path: &str) -> Result<Kind, String> {
    if path.is_empty() {
        return Err(FORMS.to_owned());
    }
    let last = Path::new(path).file_name().unwrap_or_default();
    match last.to_string_lossy().split_once(':') {
        Some((_, tag)) if !path.ends_with('/') => Err(format!("a source holds blobs, not tags: leave out :{tag}")),
        // Now, as who serves a mount may leave the working directory.
        _ => std::path::absolute(path).map(Kind::Layout).map_err(|e| e.to_string()),
    }
}

fn web(text: &str) -> Result<Kind, String> {
    let mut url = Url::parse(text).map_err(|e| e.to_string())?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err("a directory of a web server has neither query nor fragment".to_owned());
    }
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(Kind::Web(url))
}

fn bucket(rest: &str) -> Result<Kind, String> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.trim_matches('/');
    // What some stores still allow, and no more: it becomes a part of a host name or of a path.
    if bucket.is_empty() || !bucket.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')) {
        return Err(
            "a bucket's name consists of letters, digits, '-', '.' and '_'; keys come from the environment".to_owned()
        );
    }
    object_store::path::Path::parse(prefix).map_err(|e| e.to_string())?;
    Ok(Kind::Bucket { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

/// The text, unless there may be a login or a signature in it, wherever a typing error has put that.
fn shown(text: &str) -> String {
    if text.starts_with("oci:") || !text.contains(['@', '?']) {
        return text.to_owned();
    }
    let scheme = text.split_once("://").map(|(scheme, _)| scheme);
    match scheme.filter(|scheme| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())) {
        Some(scheme) => format!("{scheme}://..."),
        None => "...".to_owned(),
    }
}

impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Layout(path) => write!(f, "oci:{}", path.display()),
            Kind::Web(url) => f.write_str(&super::web::shown(url)),
            Kind::Bucket { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Kind::Bucket { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

impl fmt::Debug for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SourceSpec({self})")
    }
}
