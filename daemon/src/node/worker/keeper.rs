//! The worker's end of the link to its supervisor.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::node::supervisor::{Begin, ToSupervisor, ToWorker};
use crate::node::{handover, link};

/// What the supervisor wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Finish what has begun, and end; mounts stay.
    Stop,
    /// End all mounts that nobody uses, and then, when the kernel has done with all images, end.
    End,
    /// End when nothing is mounted or in use.
    Leave,
    /// End now, whoever reads.
    Cut,
    /// The supervisor has gone.
    Orphaned,
}

/// Who waits to hear what becomes of an upgrade: the new version, or why there is none.
type Asker = oneshot::Sender<Result<String, String>>;

/// Has files kept, and hears wishes.
pub(super) struct Keeper {
    link: Arc<OwnedFd>,
    /// One message at a time.
    sending: Mutex<()>,
    upgrade: Arc<Mutex<Option<Asker>>>,
    /// Copies of all that is kept, for the next supervisor if this one is lost.
    kept: Mutex<BTreeMap<String, OwnedFd>>,
}

impl Keeper {
    /// Receives what a worker begins with.
    pub(super) fn begin(link: OwnedFd) -> io::Result<(Self, Begin, BTreeMap<String, OwnedFd>)> {
        let ended = || io::Error::new(io::ErrorKind::UnexpectedEof, "the supervisor has gone");
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "the supervisor said something out of turn");
        let Some((ToWorker::Begin(begin), _)) = link::receive(&link)? else { return Err(wrong()) };
        let (mut files, mut kept) = (BTreeMap::new(), BTreeMap::new());
        for _ in 0..begin.files {
            let (message, received) = link::receive(&link)?.ok_or_else(ended)?;
            let (ToWorker::File { name }, Some(file)) = (message, received.into_iter().next()) else {
                return Err(wrong());
            };
            kept.insert(name.clone(), file.try_clone()?);
            files.insert(name, file);
        }
        let keeper =
            Self { link: Arc::new(link), sending: Mutex::default(), upgrade: Arc::default(), kept: Mutex::new(kept) };
        Ok((keeper, *begin, files))
    }

    /// Hears wishes from now on.
    pub(super) fn listen(&self, wishes: mpsc::UnboundedSender<Wish>) -> io::Result<()> {
        let (link, upgrade) = (Arc::clone(&self.link), Arc::clone(&self.upgrade));
        let listen = move || {
            while let Ok(Some((message, _))) = link::receive(&*link) {
                let wish = match message {
                    ToWorker::Stop => Wish::Stop,
                    ToWorker::End => Wish::End,
                    ToWorker::Leave => Wish::Leave,
                    ToWorker::Upgrade(answer) => {
                        let asker = upgrade.lock().unwrap_or_else(PoisonError::into_inner).take();
                        if let Some(asker) = asker {
                            let _ = asker.send(answer);
                        }
                        continue;
                    }
                    ToWorker::Begin(_) | ToWorker::File { .. } => continue,
                };
                let _ = wishes.send(wish);
            }
            let _ = wishes.send(Wish::Orphaned);
        };
        std::thread::Builder::new().name("lazo-wishes".into()).spawn(listen).map(drop)
    }

    /// Has a file kept for the next worker.
    pub(super) fn keep(&self, name: &str, file: BorrowedFd<'_>) -> io::Result<()> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), file.try_clone_to_owned()?);
        self.say(&ToSupervisor::Keep { name: name.to_owned() }, &[file])
    }

    /// Waits for the next supervisor to ask for what is kept, and gives it.
    pub(super) fn hand_over(&self, run_dir: &Path) -> io::Result<()> {
        handover::give(run_dir, || {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.iter().map(|(name, file)| Ok((name.clone(), file.try_clone()?))).collect()
        })
    }

    /// A file need not be kept any more.
    pub(super) fn release(&self, name: &str) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.tell(&ToSupervisor::Release { name: name.to_owned() });
    }

    /// Everything that was there before is served again.
    pub(super) fn ready(&self) {
        self.tell(&ToSupervisor::Ready);
    }

    /// Mounts and images that are in use keep this process from ending.
    pub(super) fn busy(&self, mounts: usize) {
        self.tell(&ToSupervisor::Busy { mounts });
    }

    /// Asks for another worker in place of this one, of a program. Its version, or why that cannot be.
    pub(super) async fn upgrade(&self, program: Option<PathBuf>) -> Result<String, String> {
        let (answer, answered) = oneshot::channel();
        let before = self.upgrade.lock().unwrap_or_else(PoisonError::into_inner).replace(answer);
        if before.is_some() {
            return Err("another upgrade is under way".to_owned());
        }
        self.say(&ToSupervisor::Upgrade { program }, &[]).map_err(|error| error.to_string())?;
        answered.await.unwrap_or_else(|_| Err("the supervisor has gone".to_owned()))
    }

    fn tell(&self, message: &ToSupervisor) {
        if let Err(error) = self.say(message, &[]) {
            tracing::warn!(%error, ?message, "cannot tell the supervisor");
        }
    }

    fn say(&self, message: &ToSupervisor, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        link::send(self.link.as_fd(), message, files)
    }
}
