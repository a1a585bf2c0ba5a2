//! One repository at all hosts that it may be read from: mirrors in their order, then the registry itself.
//!
//! A host that fails, lacks what is asked for or gives wrong bytes is passed over, and asked last for a while. The last host
//! in the file's order has the last word: only its failure decides whether trying again may help.

use std::{
    io,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture, stream::BoxStream};
use lazo_base::lines::Lines;
use lazo_format::Digest;
use oci_spec::image::Descriptor;

use crate::{
    document::{Document, MAX_DOCUMENT},
    endpoint::Endpoint,
    error::{Error, Result},
    hosts::{self, HostConfig},
    http::{
        Backoff, Http,
        pace::{self, Pace},
    },
    options::Options,
    reference::DockerRef,
    registry::{Registry, Senders, download},
    source::on_thread,
};

/// A repository to read from. Clones share it.
#[derive(Clone)]
pub(crate) struct Repository(Arc<Inner>);

struct Inner {
    reference: DockerRef,
    /// Never empty.
    hosts: Vec<Registry>,
    attempts: u32,
    document_timeout: Duration,
    /// Lines of hosts that failed.
    lines: Lines,
}

/// What is asked of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ability {
    /// Something by its digest.
    Pull,
    /// What a tag stands for.
    Resolve,
}

impl Repository {
    /// Reads the directory of hosts, if there is one; asks nobody.
    pub(crate) async fn open(reference: &DockerRef, options: &Options) -> Result<Self> {
        let hosts = load_hosts(reference, options).await?;
        let hosts: Result<Vec<Registry>> = hosts.iter().map(|h| Registry::new(reference, h, options)).collect();
        Ok(Self(Arc::new(Inner {
            reference: reference.clone(),
            hosts: hosts?,
            attempts: options.attempts,
            document_timeout: options.document_timeout,
            lines: Lines::new(),
        })))
    }

    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        self.0.hosts.iter().filter(|h| h.may().pull).cloned().map(Endpoint::registry).collect()
    }

    /// How the last host, the registry itself most often, is talked to.
    pub(crate) fn http(&self) -> &Arc<Http> {
        self.0.hosts.last().expect("never empty").http()
    }

    pub(crate) fn blob_name(&self, digest: &Digest) -> String {
        format!("blob {digest} of {}/{}", self.0.reference.host, self.0.reference.repository)
    }

    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::new(self.0.attempts)
    }

    /// The manifest or index that the reference names.
    pub(crate) async fn root(&self) -> Result<Document> {
        let reference = self.0.reference.manifest_reference();
        if self.0.reference.digest.is_some() {
            return self.persist(Ability::Pull, 0, |host| host.manifest(&reference, None).boxed()).await;
        }
        let reference = &reference;
        self.persist(Ability::Resolve, 0, |host| {
            async move {
                if host.may().pull {
                    return host.manifest(reference, None).await;
                }
                let digest = host.manifest_digest(reference).await?.to_string();
                self.round(Ability::Pull, self.0.document_timeout, |host| host.manifest(&digest, None).boxed()).await
            }
            .boxed()
        })
        .await
    }

    /// The digest that the reference stands for.
    pub(crate) async fn root_digest(&self) -> Result<Digest> {
        match self.0.reference.digest {
            Some(digest) => Ok(digest),
            None => {
                let tag = self.0.reference.manifest_reference();
                self.persist(Ability::Resolve, 0, |host| host.manifest_digest(&tag).boxed()).await
            }
        }
    }

    /// A manifest, index or config.
    pub(crate) async fn document(&self, expected: &Descriptor) -> Result<Document> {
        self.persist(Ability::Pull, expected.size().min(MAX_DOCUMENT), |host| host.document(expected).boxed()).await
    }

    /// Exactly `range` of a blob, unverified.
    pub(crate) async fn blob_range(&self, digest: &Digest, size: u64, range: Range<u64>) -> Result<Bytes> {
        let size_of_range = range.end.saturating_sub(range.start);
        let read = |host: &Registry| {
            let (host, digest, range) = (host.clone(), *digest, range.clone());
            async move { host.open_range(&digest, size, range).await?.bytes().await }.boxed()
        };
        self.persist(Ability::Pull, size_of_range, read).await
    }

    /// The open answer to a request for `range` of a blob, and whose it is; one attempt at each host, all within `limit`.
    pub(crate) async fn open_blob(
        &self,
        digest: &Digest,
        size: u64,
        range: Range<u64>,
        limit: Duration,
    ) -> Result<(Registry, reqwest::Response, u64)> {
        let open = |host: &Registry| {
            let (host, digest, range) = (host.clone(), *digest, range.clone());
            async move {
                let (response, skip) = host.open_response(&digest, size, range).await?;
                Ok((host, response, skip))
            }
            .boxed()
        };
        self.round(Ability::Pull, limit, open).await
    }

    /// A blob's bytes, unverified; fails here if no host has it.
    pub(crate) async fn blob(&self, descriptor: &Descriptor) -> Result<(BoxStream<'static, Result<Bytes>>, Senders)> {
        download(self.clone(), descriptor).await
    }

    /// [`Self::round`], again after transient errors. All rounds together may take the time for documents, and what `size` bytes take
    /// at the least rate.
    async fn persist<'a, T>(
        &'a self,
        ability: Ability,
        size: u64,
        ask: impl Fn(&'a Registry) -> BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        let (mut backoff, mut left) = (self.backoff(), self.0.document_timeout + pace::time_for(size));
        loop {
            let since = Instant::now();
            let answer = self.round(ability, left, &ask).await;
            left = left.saturating_sub(since.elapsed());
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) if left.is_zero() => return Err(error),
                Err(error) => backoff.wait(error).await?,
            }
        }
    }

    /// Hosts to pull from that did not fail lately.
    pub(crate) fn fresh_hosts(&self) -> usize {
        self.0.hosts.iter().filter(|host| host.may().pull && !host.is_resting()).count()
    }

    /// The pace that a layer must keep. One that another host may have as well is not waited for as long.
    pub(crate) fn layer_pace(&self) -> Pace {
        let all = self.0.document_timeout;
        Pace::new(if self.fresh_hosts() > 1 { all.min(pace::SMALL) } else { all })
    }

    /// A host did not give something in time.
    fn late(&self, host: &Registry, after: Duration) -> Error {
        let reason = io::Error::new(io::ErrorKind::TimedOut, format!("it did not come within {after:.1?}"));
        Error::transport(&self.0.reference, host.name(), reason)
    }

    /// Asks each host once, until one answers well. Of the time that is left, each may take an equal part, so that one that gives
    /// nothing leaves some to the next.
    async fn round<'a, T>(
        &'a self,
        ability: Ability,
        limit: Duration,
        ask: impl Fn(&'a Registry) -> BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        let able = |host: &&Registry| match ability {
            Ability::Pull => host.may().pull,
            Ability::Resolve => host.may().resolve,
        };
        let mut hosts: Vec<(usize, &Registry)> = self.0.hosts.iter().filter(able).enumerate().collect();
        hosts.sort_by_key(|(_, host)| host.is_resting());
        let last = hosts.len();
        let (mut verdict, until) = (None, Instant::now() + limit);
        for (turn, (number, host)) in hosts.into_iter().enumerate() {
            let waiting = u32::try_from(last - turn).unwrap_or(u32::MAX);
            let share = until.saturating_duration_since(Instant::now()) / waiting;
            match tokio::time::timeout(share, ask(host)).await.unwrap_or_else(|_| Err(self.late(host, share))) {
                Ok(answer) => return Ok(answer),
                Err(error) if last == 1 => return Err(error),
                Err(error) => {
                    self.0.lines.write(|left_out| {
                        let error = crate::http::chain(&error);
                        tracing::warn!(host = host.name(), error, left_out, "asking the next host");
                    });
                    host.rest_after(&error);
                    if number + 1 == last {
                        verdict = Some(error);
                    }
                }
            }
        }
        Err(verdict.unwrap_or_else(|| self.nobody(ability)))
    }

    fn nobody(&self, ability: Ability) -> Error {
        let ability = match ability {
            Ability::Pull => "pull",
            Ability::Resolve => "resolve",
        };
        Error::invalid(
            format_args!("registry {}", self.0.reference.host),
            format_args!("no host in its hosts.toml has the capability {ability:?}"),
        )
    }
}

/// The host to push to: the first that may be pushed to.
pub(crate) async fn open_for_push(reference: &DockerRef, options: &Options) -> Result<Registry> {
    let hosts = load_hosts(reference, options).await?;
    let host = hosts.iter().find(|h| h.may.push).ok_or_else(|| {
        let what = format!("registry {}", reference.host);
        Error::invalid(what, "no host in its hosts.toml has the capability \"push\"")
    })?;
    Registry::new(reference, host, options)
}

/// The registry itself.
///
/// # Errors
/// When another host stands for it, which its login is never sent to.
pub(crate) async fn open_for_login(reference: &DockerRef, options: &Options) -> Result<Registry> {
    let hosts = load_hosts(reference, options).await?;
    let registry = Registry::new(reference, hosts.last().unwrap_or(&HostConfig::default()), options)?;
    match registry.stands_in() {
        None => Ok(registry),
        Some(authority) => {
            let reason = format!(
                "its hosts.toml names {authority} as the server, which gets that host's own login and no other: give \
                 {authority} to `lazo login`, or another directory to --hosts-dir"
            );
            Err(Error::Credentials { host: reference.host.clone(), reason })
        }
    }
}

async fn load_hosts(reference: &DockerRef, options: &Options) -> Result<Vec<HostConfig>> {
    let Some(directory) = options.hosts_dir.clone() else {
        return Ok(vec![HostConfig::default()]);
    };
    let registry = reference.host.clone();
    let found = on_thread(move || hosts::load(&directory, &registry)).await?;
    Ok(found.unwrap_or_else(|| vec![HostConfig::default()]))
}
