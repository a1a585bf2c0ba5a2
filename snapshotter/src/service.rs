//! containerd's snapshots service, over gRPC: translates for the core.

use std::error::Error as _;
use std::sync::Arc;

use prost_types::FieldMask;
use tokio::net::UnixListener;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status};

use crate::authority::Connection;
use crate::caller::Caller;
use crate::images::ImageError;
use crate::proto::containerd::services::snapshots::v1 as api;
use crate::proto::containerd::services::snapshots::v1::snapshots_server::{Snapshots as Service, SnapshotsServer};
use crate::proto::containerd::types;
use crate::snapshots::{self, Error, Info, Mount, Snapshots};
use crate::store::Kind;

/// Snapshots in one message of a list, as containerd itself sends them.
const BLOCK: usize = 100;

/// Serves until `shutdown` ends and calls under way are answered.
///
/// # Errors
/// When the socket fails.
pub async fn serve(
    listener: UnixListener,
    snapshots: Arc<Snapshots>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    snapshots.begin();
    let served = tonic::transport::Server::builder()
        .add_service(SnapshotsServer::new(Adapter(Arc::clone(&snapshots))))
        .serve_with_incoming_shutdown(
            UnixListenerStream::new(listener).map(|stream| stream.map(Connection::new)),
            shutdown,
        )
        .await;
    snapshots.settle().await;
    served
}

struct Adapter(Arc<Snapshots>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Service for Adapter {
    async fn prepare(&self, request: Request<api::PrepareSnapshotRequest>) -> Answer<api::PrepareSnapshotResponse> {
        let caller = caller(&request);
        let api::PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let labels = labels.into_iter().collect();
        let request = snapshots::Request { key: key.clone(), parent, labels, caller };
        let mounts = answer("prepare", &key, self.0.prepare(request).await)?;
        Ok(Response::new(api::PrepareSnapshotResponse { mounts: mounts.into_iter().map(mount).collect() }))
    }

    async fn view(&self, request: Request<api::ViewSnapshotRequest>) -> Answer<api::ViewSnapshotResponse> {
        let caller = caller(&request);
        let api::ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let labels = labels.into_iter().collect();
        let request = snapshots::Request { key: key.clone(), parent, labels, caller };
        let mounts = answer("view", &key, self.0.view(request).await)?;
        Ok(Response::new(api::ViewSnapshotResponse { mounts: mounts.into_iter().map(mount).collect() }))
    }

    async fn mounts(&self, request: Request<api::MountsRequest>) -> Answer<api::MountsResponse> {
        let caller = caller(&request);
        let key = request.into_inner().key;
        let mounts = answer("mounts", &key, self.0.mounts(key.clone(), &caller).await)?;
        Ok(Response::new(api::MountsResponse { mounts: mounts.into_iter().map(mount).collect() }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Answer<()> {
        let api::CommitSnapshotRequest { name, key, labels, .. } = request.into_inner();
        let labels = labels.into_iter().collect();
        answer("commit", &key, self.0.commit(name, key.clone(), labels).await).map(Response::new)
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Answer<()> {
        let key = request.into_inner().key;
        answer("remove", &key, self.0.remove(key.clone()).await).map(Response::new)
    }

    async fn stat(&self, request: Request<api::StatSnapshotRequest>) -> Answer<api::StatSnapshotResponse> {
        let key = request.into_inner().key;
        let found = answer("stat", &key, self.0.stat(key.clone()).await)?;
        Ok(Response::new(api::StatSnapshotResponse { info: Some(info(found)) }))
    }

    async fn update(&self, request: Request<api::UpdateSnapshotRequest>) -> Answer<api::UpdateSnapshotResponse> {
        let api::UpdateSnapshotRequest { info: wanted, update_mask, .. } = request.into_inner();
        let wanted = wanted.ok_or_else(|| Status::invalid_argument("no snapshot is named"))?;
        let paths = update_mask.map_or_else(Vec::new, |FieldMask { paths }| paths);
        let updated = self.0.update(wanted.name.clone(), wanted.labels.into_iter().collect(), paths).await;
        let updated = answer("update", &wanted.name, updated)?;
        Ok(Response::new(api::UpdateSnapshotResponse { info: Some(info(updated)) }))
    }

    type ListStream = tokio_stream::Iter<std::vec::IntoIter<Result<api::ListSnapshotsResponse, Status>>>;

    async fn list(&self, request: Request<api::ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let list = answer("list", "", self.0.list(request.into_inner().filters).await)?;
        let blocks: Vec<_> = list
            .chunks(BLOCK)
            .map(|block| Ok(api::ListSnapshotsResponse { info: block.iter().cloned().map(info).collect() }))
            .collect();
        Ok(Response::new(tokio_stream::iter(blocks)))
    }

    async fn usage(&self, request: Request<api::UsageRequest>) -> Answer<api::UsageResponse> {
        let key = request.into_inner().key;
        let usage = answer("usage", &key, self.0.usage(key.clone()).await)?;
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(Response::new(api::UsageResponse { size: number(usage.size), inodes: number(usage.inodes) }))
    }

    async fn cleanup(&self, _: Request<api::CleanupRequest>) -> Answer<()> {
        answer("cleanup", "", self.0.cleanup().await).map(Response::new)
    }
}

/// Who has made the connection that a request came by.
fn caller<T>(request: &Request<T>) -> Caller {
    request.extensions().get().cloned().unwrap_or_default()
}

fn mount(mount: Mount) -> types::Mount {
    let Mount { kind, source, options } = mount;
    types::Mount { r#type: kind.to_owned(), source, options, ..types::Mount::default() }
}

fn info(info: Info) -> api::Info {
    let kind = match info.kind {
        Kind::Unknown => api::Kind::Unknown,
        Kind::View => api::Kind::View,
        Kind::Active => api::Kind::Active,
        Kind::Committed => api::Kind::Committed,
    };
    api::Info {
        name: info.name,
        parent: info.parent,
        kind: kind.into(),
        created_at: info.created,
        updated_at: info.updated,
        labels: info.labels.into_iter().collect(),
    }
}

/// Logs how a call ended, and makes a status of an error.
fn answer<T>(call: &'static str, key: &str, result: Result<T, Error>) -> Result<T, Status> {
    result.map_err(|error| {
        let code = code(&error);
        let cause: &dyn std::error::Error = &error;
        match code {
            // The caller's affair.
            Code::NotFound | Code::AlreadyExists | Code::InvalidArgument => {
                tracing::debug!(call, key, error = cause, "refused");
            }
            _ => tracing::warn!(call, key, error = cause, "failed"),
        }
        Status::new(code, chain(&error))
    })
}

/// By these codes, containerd decides what to do.
fn code(error: &Error) -> Code {
    match error {
        Error::NotFound(_) | Error::NoParent(_) => Code::NotFound,
        Error::Exists(_) => Code::AlreadyExists,
        Error::ParentNotCommitted(_)
        | Error::NoName
        | Error::Immutable(_)
        | Error::Filter(_)
        | Error::BlobPlace(_)
        | Error::BootstrapPlace(_)
        | Error::BlobTarget(_)
        | Error::Map(_) => Code::InvalidArgument,
        Error::HasChildren(_)
        | Error::NotActive(_)
        | Error::Committed(_)
        | Error::OtherBlob(_)
        | Error::NoImage(_)
        | Error::BareBlobs(_)
        | Error::NoBootstrap { .. }
        | Error::Index { .. }
        | Error::OtherBlobs(_)
        | Error::RemappedCopy(_)
        | Error::Image(ImageError::Refused { lasting: true, .. } | ImageError::Unseen { .. }) => {
            Code::FailedPrecondition
        }
        Error::Image(ImageError::NoDaemon { .. }) => Code::Unavailable,
        Error::Image(_) | Error::Store(_) | Error::File { .. } => Code::Internal,
    }
}

/// What went wrong and why, down to the first cause: the message is all that the caller gets to see.
fn chain(error: &Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message.push_str(": ");
        message.push_str(&error.to_string());
        cause = error.source();
    }
    message
}
