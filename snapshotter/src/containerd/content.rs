//! Writing to containerd's content store.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{ContainerdError, Labels, Service, named, refused};
use crate::proto::containerd::services::content::v1::content_client::ContentClient;
use crate::proto::containerd::services::content::v1::{
    AbortRequest, Info, InfoRequest, StatusRequest, UpdateRequest, WriteAction, WriteContentRequest,
    WriteContentResponse,
};

/// Most bytes sent in one message. containerd takes 16 MiB, its own clients send 1.
const MESSAGE: usize = 1 << 20;

/// Messages that wait for containerd to take them.
const QUEUE: usize = 2;

/// Between two looks at what another client is writing.
const PAUSE: Duration = Duration::from_millis(50);

/// How long another client that writes the same may go without a further byte. Downloads are given up after as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// containerd's content store.
#[derive(Debug, Clone)]
pub struct Content {
    client: ContentClient<Service>,
}

/// What became of an order to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It was written, labels and all.
    Now,
    /// It has the labels; another namespace had the bytes.
    Shared,
    /// It was there, and has the labels that it had.
    Before,
}

/// What is to be written.
#[derive(Debug, Clone)]
pub(crate) struct Item<'a> {
    /// Digest.
    pub(crate) digest: &'a str,
    /// Size in bytes.
    pub(crate) size: u64,
    /// Name of the write while it lasts; nobody else may write under the same name meanwhile.
    pub(crate) reference: &'a str,
    /// Labels that it gets.
    pub(crate) labels: Labels,
}

/// A write cannot be done: because of containerd, or of where the bytes come from.
#[derive(Debug)]
pub(crate) enum WriteError<E> {
    Containerd(ContainerdError),
    Source(E),
}

impl<E> From<ContainerdError> for WriteError<E> {
    fn from(error: ContainerdError) -> Self {
        Self::Containerd(error)
    }
}

impl Content {
    pub(super) fn new(client: ContentClient<Service>) -> Self {
        Self { client }
    }

    /// The labels of something that is there.
    ///
    /// # Errors
    /// When it is not.
    pub async fn labels(&self, digest: &str) -> Result<Labels, ContainerdError> {
        let answer = self.client.clone().info(InfoRequest { digest: digest.to_owned() }).await;
        let info = answer.map_err(named(format!("cannot look up {digest} in the content store")))?.into_inner().info;
        Ok(info.map(|info| info.labels).unwrap_or_default())
    }

    /// Sets these labels and leaves others alone.
    ///
    /// # Errors
    /// When containerd refuses.
    pub async fn set_labels(&self, digest: &str, labels: Labels) -> Result<(), ContainerdError> {
        let paths = labels.keys().map(|name| format!("labels.{name}")).collect();
        let info = Info { digest: digest.to_owned(), labels, ..Info::default() };
        let request = UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
        let answer = self.client.clone().update(request).await;
        answer.map_err(named(format!("cannot label {digest} in the content store")))?;
        Ok(())
    }

    /// Writes something, unless it is there. `open` is called only if bytes are needed, once.
    pub(crate) async fn write<S, E, F>(
        &self,
        item: &Item<'_>,
        open: impl FnOnce() -> F,
    ) -> Result<Written, WriteError<E>>
    where
        F: Future<Output = Result<S, E>>,
        S: Stream<Item = Result<Bytes, E>>,
    {
        let Some(mut writer) = self.writer(item).await? else { return Ok(Written::Before) };
        let written = if writer.needs_bytes() { Written::Now } else { Written::Shared };
        let fed = match written == Written::Now {
            true => match open().await {
                Ok(stream) => writer.feed(stream).await,
                Err(error) => Err(WriteError::Source(error)),
            },
            false => Ok(()),
        };
        let done = match fed {
            Ok(()) => writer.commit().await.map_err(WriteError::from),
            Err(error) => Err(error),
        };
        match done {
            Err(WriteError::Containerd(error)) if error.code() == Some(Code::AlreadyExists) => Ok(Written::Before),
            Err(error) => {
                drop(writer);
                // What is there of it is of no use to anybody; failing that, it goes with the lease.
                let _ = self.client.clone().abort(AbortRequest { r#ref: item.reference.to_owned() }).await;
                Err(error)
            }
            Ok(()) => Ok(written),
        }
    }

    /// Begins to write; `None` if it is there. Waits while others write under the same name.
    async fn writer<'a>(&self, item: &'a Item<'a>) -> Result<Option<Writer<'a>>, ContainerdError> {
        let mut others = Others { offset: -1, since: Instant::now() };
        loop {
            match Writer::begin(self.client.clone(), item).await {
                Ok(writer) => return Ok(Some(writer)),
                Err(status) if status.code() == Code::AlreadyExists => return Ok(None),
                Err(status) if status.code() == Code::Unavailable => {
                    others.wait(self, item, status).await?;
                }
                Err(status) => return Err(failed(item)(status)),
            }
        }
    }
}

/// Another client that writes the same.
struct Others {
    offset: i64,
    since: Instant,
}

impl Others {
    async fn wait(&mut self, content: &Content, item: &Item<'_>, locked: Status) -> Result<(), ContainerdError> {
        let asked = content.client.clone().status(StatusRequest { r#ref: item.reference.to_owned() }).await;
        let offset = asked.ok().and_then(|answer| answer.into_inner().status).map_or(-1, |status| status.offset);
        if offset != self.offset {
            *self = Self { offset, since: Instant::now() };
        } else if self.since.elapsed() > PATIENCE {
            return Err(failed(item)(locked));
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

fn failed(item: &Item<'_>) -> impl FnOnce(Status) -> ContainerdError {
    named(format!("cannot write {} to the content store", item.digest))
}

/// One write under way.
struct Writer<'a> {
    item: &'a Item<'a>,
    requests: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    /// Bytes that containerd has already.
    have: u64,
}

impl<'a> Writer<'a> {
    async fn begin(mut client: ContentClient<Service>, item: &'a Item<'a>) -> Result<Self, Status> {
        let (requests, queue) = mpsc::channel(QUEUE);
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: item.reference.to_owned(),
            total: signed(item.size),
            expected: item.digest.to_owned(),
            ..WriteContentRequest::default()
        };
        // There is room for it; and there must be something to answer before there are answers.
        let _ = requests.send(first).await;
        let mut answers = client.write(ReceiverStream::new(queue)).await?.into_inner();
        let answer = answers.message().await?.ok_or_else(ended)?;
        Ok(Self { item, requests, answers, have: u64::try_from(answer.offset).unwrap_or(0) })
    }

    /// Not so if another namespace has it. What is there of an earlier, broken write is written anew.
    fn needs_bytes(&self) -> bool {
        self.have != self.item.size
    }

    async fn feed<E>(&mut self, stream: impl Stream<Item = Result<Bytes, E>>) -> Result<(), WriteError<E>> {
        let (item, requests, answers) = (self.item, &self.requests, &mut self.answers);
        let send = async {
            let mut offset = 0;
            let mut stream = pin!(stream);
            while let Some(bytes) = stream.next().await {
                let mut bytes: Bytes = bytes.map_err(WriteError::Source)?;
                while !bytes.is_empty() {
                    let data = bytes.split_to(bytes.len().min(MESSAGE));
                    let length = data.len() as u64;
                    let request = WriteContentRequest {
                        action: WriteAction::Write.into(),
                        offset: signed(offset),
                        data: data.into(),
                        ..WriteContentRequest::default()
                    };
                    if requests.send(request).await.is_err() {
                        // The answers say why.
                        return Ok(());
                    }
                    offset += length;
                }
            }
            Ok::<(), WriteError<E>>(())
        };
        let receive = async {
            let mut offset = 0;
            while offset < item.size {
                let answer = answers.message().await.and_then(|answer| answer.ok_or_else(ended));
                offset = u64::try_from(answer.map_err(failed(item))?.offset).unwrap_or(0);
            }
            Ok::<(), WriteError<E>>(())
        };
        let ((), ()) = futures_util::future::try_join(send, receive).await?;
        self.have = item.size;
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), ContainerdError> {
        let request = WriteContentRequest {
            action: WriteAction::Commit.into(),
            offset: signed(self.have),
            total: signed(self.item.size),
            expected: self.item.digest.to_owned(),
            labels: self.item.labels.clone(),
            ..WriteContentRequest::default()
        };
        // If nobody takes it, the answers say why.
        let _ = self.requests.send(request).await;
        match self.answers.message().await {
            Ok(Some(answer)) if answer.digest == self.item.digest => Ok(()),
            Ok(Some(answer)) => Err(refused(
                format!("cannot write {} to the content store", self.item.digest),
                format!("containerd has got {}", answer.digest),
            )),
            Ok(None) => Err(failed(self.item)(ended())),
            Err(status) => Err(failed(self.item)(status)),
        }
    }
}

fn ended() -> Status {
    Status::unknown("containerd ended the call")
}

/// As the API has it; nothing is as large.
fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
