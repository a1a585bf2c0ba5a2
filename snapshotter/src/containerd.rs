//! containerd's API as a client: leases, content, snapshots, diffs, images and events about them, the same from 1.6 to 2.x.

mod content;
mod error;
mod names;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use prost_types::FieldMask;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

use crate::proto::containerd::services::content::v1::content_client::ContentClient;
use crate::proto::containerd::services::diff::v1::ApplyRequest;
use crate::proto::containerd::services::diff::v1::diff_client::DiffClient;
use crate::proto::containerd::services::images::v1::images_client::ImagesClient;
use crate::proto::containerd::services::images::v1::{CreateImageRequest, Image, UpdateImageRequest};
use crate::proto::containerd::services::leases::v1 as leases;
use crate::proto::containerd::services::leases::v1::leases_client::LeasesClient;
use crate::proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use crate::proto::containerd::services::snapshots::v1::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use crate::proto::containerd::types::{Descriptor, Mount};

pub use content::{Content, Written};
pub(crate) use content::{Item, WriteError};
pub use error::ContainerdError;
use error::{named, refused};
pub(crate) use names::Change;

/// Labels, by name.
pub type Labels = HashMap<String, String>;

/// How long to wait for the socket to be answered.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a lease lives if nobody ends it, as when its holder is killed. containerd's own clients take as much.
const LEASE: Duration = Duration::from_secs(24 * 60 * 60);

/// How often an image is tried to be created or updated while somebody else removes and creates it.
const IMAGE_ATTEMPTS: usize = 5;

/// What is said with each call.
#[derive(Debug, Clone)]
struct Headers {
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert("containerd-lease", lease.clone());
        }
        Ok(request)
    }
}

type Service = InterceptedService<Channel, Headers>;

/// A connection to containerd, for one of its namespaces.
#[derive(Debug, Clone)]
pub struct Containerd {
    channel: Channel,
    headers: Headers,
    address: PathBuf,
}

/// A lease: what is made by its [`Lease::containerd`] is kept from garbage collection until it ends.
#[derive(Debug)]
pub struct Lease {
    containerd: Containerd,
    id: String,
}

impl Containerd {
    /// Connects to the socket of a containerd.
    ///
    /// # Errors
    /// When nobody answers there or the user may not connect, and when the namespace is no name for one.
    pub async fn connect(address: &Path, namespace: &str) -> Result<Self, ContainerdError> {
        let name = namespace.parse().ok().filter(|_| !namespace.is_empty());
        let namespace = name.ok_or_else(|| ContainerdError::Namespace { namespace: namespace.to_owned() })?;
        let path = address.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The socket is what counts; the name is never looked up.
        let endpoint = Endpoint::from_static("http://containerd").connect_timeout(CONNECT);
        let channel = endpoint.connect_with_connector(connector).await;
        let channel = channel.map_err(|source| ContainerdError::connect(address, source))?;
        Ok(Self { channel, headers: Headers { namespace, lease: None }, address: address.to_owned() })
    }

    /// The same containerd, for another of its namespaces.
    ///
    /// # Errors
    /// When the namespace is no name for one.
    pub fn within(&self, namespace: &str) -> Result<Self, ContainerdError> {
        let name = namespace.parse().ok().filter(|_| !namespace.is_empty());
        let namespace = name.ok_or_else(|| ContainerdError::Namespace { namespace: namespace.to_owned() })?;
        Ok(Self { headers: Headers { namespace, lease: None }, ..self.clone() })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &Path {
        &self.address
    }

    fn service(&self) -> Service {
        InterceptedService::new(self.channel.clone(), self.headers.clone())
    }

    /// A new lease.
    ///
    /// # Errors
    /// When containerd makes none.
    pub async fn lease(&self) -> Result<Lease, ContainerdError> {
        let expires = prost_types::Timestamp::from(SystemTime::now() + LEASE).to_string();
        let labels = Labels::from([("containerd.io/gc.expire".to_owned(), expires)]);
        // Without an ID, containerd chooses one.
        let request = leases::CreateRequest { id: String::new(), labels };
        let answer = LeasesClient::new(self.service()).create(request).await;
        let lease = answer.map_err(named("cannot create a lease"))?.into_inner().lease;
        let id = lease.map(|lease| lease.id).unwrap_or_default();
        let header = id.parse().map_err(|_| refused("cannot create a lease", "its ID cannot be a header"))?;
        let mut containerd = self.clone();
        containerd.headers.lease = Some(header);
        Ok(Lease { containerd, id })
    }

    /// The content store.
    #[must_use]
    pub fn content(&self) -> Content {
        Content::new(ContentClient::new(self.service()))
    }

    /// A snapshotter's snapshots.
    #[must_use]
    pub fn snapshots(&self, snapshotter: &str) -> Snapshots {
        Snapshots { client: SnapshotsClient::new(self.service()), snapshotter: snapshotter.to_owned() }
    }

    /// Unpacks a layer that is in the content store into mounts; the digest of what was unpacked.
    ///
    /// # Errors
    /// When containerd cannot.
    pub async fn apply(&self, layer: Descriptor, mounts: Vec<Mount>) -> Result<String, ContainerdError> {
        let digest = layer.digest.clone();
        let request = ApplyRequest { diff: Some(layer), mounts, ..ApplyRequest::default() };
        let answer = DiffClient::new(self.service()).apply(request).await;
        let applied = answer.map_err(named(format!("cannot unpack layer {digest}")))?.into_inner().applied;
        Ok(applied.map(|applied| applied.digest).unwrap_or_default())
    }

    /// Gives an image its name. One that is there keeps its labels.
    ///
    /// # Errors
    /// When containerd refuses.
    pub async fn name_image(&self, name: &str, target: Descriptor) -> Result<(), ContainerdError> {
        let mut client = ImagesClient::new(self.service());
        let image = Image { name: name.to_owned(), target: Some(target), ..Image::default() };
        let mut last = Status::unknown("never tried");
        for _ in 0..IMAGE_ATTEMPTS {
            let create = CreateImageRequest { image: Some(image.clone()), ..CreateImageRequest::default() };
            last = match client.create(create).await {
                Ok(_) => return Ok(()),
                Err(status) if status.code() != Code::AlreadyExists => status,
                Err(_) => {
                    let update = UpdateImageRequest {
                        image: Some(image.clone()),
                        update_mask: Some(FieldMask { paths: vec!["target".to_owned()] }),
                        ..UpdateImageRequest::default()
                    };
                    match client.update(update).await {
                        Ok(_) => return Ok(()),
                        Err(status) => status,
                    }
                }
            };
            if last.code() != Code::NotFound {
                break;
            }
        }
        Err(named(format!("cannot create the image {name}"))(last))
    }
}

impl Lease {
    /// The same containerd, everything made by which is under this lease.
    #[must_use]
    pub fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// Its name, unlike any other's.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Puts a snapshot that somebody else has made under the lease.
    ///
    /// # Errors
    /// When containerd refuses.
    pub async fn add_snapshot(&self, snapshotter: &str, name: &str) -> Result<(), ContainerdError> {
        let resource = leases::Resource { id: name.to_owned(), r#type: format!("snapshots/{snapshotter}") };
        let request = leases::AddResourceRequest { id: self.id.clone(), resource: Some(resource) };
        let added = LeasesClient::new(self.containerd.service()).add_resource(request).await;
        added.map_err(named(format!("cannot keep the snapshot {name}")))?;
        Ok(())
    }

    /// Ends it. `clean`: what nothing refers to now is gone when this returns, and not just some time later.
    ///
    /// # Errors
    /// When containerd refuses; the lease ends by itself after a day then.
    pub async fn end(self, clean: bool) -> Result<(), ContainerdError> {
        let request = leases::DeleteRequest { id: self.id.clone(), sync: clean };
        let ended = LeasesClient::new(self.containerd.service()).delete(request).await;
        ended.map_err(named(format!("cannot end the lease {}", self.id)))?;
        Ok(())
    }
}

/// Snapshots of one of containerd's snapshotters.
#[derive(Debug, Clone)]
pub struct Snapshots {
    client: SnapshotsClient<Service>,
    snapshotter: String,
}

/// What became of an order to prepare a snapshot for a layer.
#[derive(Debug)]
pub enum Prepared {
    /// It is to be unpacked into these mounts.
    Mounts(Vec<Mount>),
    /// There is such a snapshot, of this name or as its target.
    Exists,
}

impl Snapshots {
    /// Prepares a snapshot to unpack a layer into.
    ///
    /// # Errors
    /// When the snapshotter, or containerd before it, refuses.
    pub async fn prepare(&self, key: &str, parent: &str, labels: &Labels) -> Result<Prepared, ContainerdError> {
        let request = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: labels.clone(),
        };
        match self.client.clone().prepare(request).await {
            Ok(answer) => Ok(Prepared::Mounts(answer.into_inner().mounts)),
            Err(status) if status.code() == Code::AlreadyExists => Ok(Prepared::Exists),
            Err(status) => Err(self.failed("cannot prepare a snapshot", status)),
        }
    }

    /// Keeps a snapshot under a name. If there is one of that name by now, it is removed instead.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub async fn commit(&self, name: &str, key: &str, labels: &Labels) -> Result<(), ContainerdError> {
        let request = CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: labels.clone(),
        };
        match self.client.clone().commit(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => self.remove(key).await,
            Err(status) => Err(self.failed(&format!("cannot commit the snapshot {name}"), status)),
        }
    }

    async fn remove(&self, key: &str) -> Result<(), ContainerdError> {
        let request = RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key: key.to_owned() };
        match self.client.clone().remove(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(self.failed(&format!("cannot remove the snapshot {key}"), status)),
        }
    }

    /// Whether there is a snapshot.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub async fn exists(&self, key: &str) -> Result<bool, ContainerdError> {
        let request = StatSnapshotRequest { snapshotter: self.snapshotter.clone(), key: key.to_owned() };
        match self.client.clone().stat(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(self.failed(&format!("cannot look for the snapshot {key}"), status)),
        }
    }

    fn failed(&self, what: &str, status: Status) -> ContainerdError {
        ContainerdError::snapshotter(&self.snapshotter, what, status)
    }
}
