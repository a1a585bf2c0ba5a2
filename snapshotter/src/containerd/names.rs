//! Images by their names, and what changes about them.

use std::time::Duration;

use prost::Message as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Status;

use super::{Containerd, ContainerdError, Service, named, refused};
use crate::proto::containerd::services::content::v1::ReadContentRequest;
use crate::proto::containerd::services::content::v1::content_client::ContentClient;
use crate::proto::containerd::services::events::v1::events_client::EventsClient;
use crate::proto::containerd::services::events::v1::{Envelope, SubscribeRequest};
use crate::proto::containerd::services::images::v1::images_client::ImagesClient;
use crate::proto::containerd::services::images::v1::{Image, ListImagesRequest};

/// What is said when an image gets a name, when it gets it once more, and when it loses it.
const TOPICS: [&str; 3] = ["/images/create", "/images/update", "/images/delete"];

/// Events that wait to be looked at; then containerd waits.
const WAITING: usize = 256;

/// Longest manifest, index or config that is read. Registries take 4 MiB.
const MAX_DOCUMENT: usize = 4 << 20;

/// How long containerd may take for its list of images.
const LIST: Duration = Duration::from_secs(30);

/// A name of an image has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// All events about images have this first.
#[derive(Clone, PartialEq, prost::Message)]
struct ImageEvent {
    #[prost(string, tag = "1")]
    name: String,
}

/// What changes from now on. Dropped, it hears no more.
pub(crate) struct Changes {
    heard: mpsc::Receiver<Result<Change, ContainerdError>>,
    hearing: JoinHandle<()>,
}

impl Changes {
    /// The next one; none when containerd ends.
    pub(crate) async fn next(&mut self) -> Result<Option<Change>, ContainerdError> {
        self.heard.recv().await.transpose()
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.hearing.abort();
    }
}

/// Hears events until containerd ends, or nobody listens.
async fn hear(
    mut client: EventsClient<Service>,
    changes: &mpsc::Sender<Result<Change, ContainerdError>>,
) -> Result<(), Status> {
    let filters = TOPICS.iter().map(|topic| format!("topic==\"{topic}\"")).collect();
    // containerd answers with its first event, however long that takes.
    let mut events = client.subscribe(SubscribeRequest { filters }).await?.into_inner();
    while let Some(Envelope { namespace, event, .. }) = events.message().await? {
        let Some(ImageEvent { name }) = event.and_then(|event| ImageEvent::decode(&*event.value).ok()) else {
            continue;
        };
        if changes.send(Ok(Change { namespace, name })).await.is_err() {
            break;
        }
    }
    Ok(())
}

impl Containerd {
    /// Begins to hear of changed names in all namespaces. What changes within a moment after may be missed, as containerd does not say when
    /// it has begun.
    pub(crate) fn changes(&self) -> Changes {
        let client = EventsClient::new(self.service());
        let (sender, heard) = mpsc::channel(WAITING);
        let hearing = tokio::spawn(async move {
            if let Err(status) = hear(client, &sender).await {
                let _ = sender.send(Err(named("cannot hear of images")(status))).await;
            }
        });
        Changes { heard, hearing }
    }

    /// All images of the namespace.
    pub(crate) async fn list_images(&self) -> Result<Vec<Image>, ContainerdError> {
        let mut request = tonic::Request::new(ListImagesRequest::default());
        request.set_timeout(LIST);
        let listed = ImagesClient::new(self.service()).list(request).await;
        Ok(listed.map_err(named("cannot list the images"))?.into_inner().images)
    }

    /// A document in the content store.
    pub(crate) async fn document(&self, digest: &str) -> Result<Vec<u8>, ContainerdError> {
        let what = || format!("cannot read {digest} in the content store");
        let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let answer = ContentClient::new(self.service()).read(request).await.map_err(named(what()))?;
        let (mut pieces, mut bytes) = (answer.into_inner(), Vec::new());
        while let Some(piece) = pieces.message().await.map_err(named(what()))? {
            if bytes.len() + piece.data.len() > MAX_DOCUMENT {
                return Err(refused(what(), format!("it has more than {MAX_DOCUMENT} bytes")));
            }
            bytes.extend_from_slice(&piece.data);
        }
        Ok(bytes)
    }
}
