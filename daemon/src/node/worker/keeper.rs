//! The worker's end of the link to its supervisor.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::node::handover::{self, Holder};
use crate::node::link;
use crate::node::protocol::{ApiError, ErrorKind};
use crate::node::supervisor::{Begin, HANDOVER, ToSupervisor, ToWorker};

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
    /// Where to say that what another daemon has handed over is served.
    handover: Mutex<Option<OwnedFd>>,
    /// What the supervisor understands.
    version: u32,
}

impl Keeper {
    /// Receives what a worker begins with.
    pub(super) fn begin(link: OwnedFd) -> io::Result<(Self, Begin, BTreeMap<String, OwnedFd>)> {
        let ended = || io::Error::new(io::ErrorKind::UnexpectedEof, "the supervisor has gone");
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "the supervisor said something out of turn");
        let Some((ToWorker::Begin(begin), _)) = link::receive(&link)? else { return Err(wrong()) };
        let (mut files, mut kept, mut handover) = (BTreeMap::new(), BTreeMap::new(), None);
        for _ in 0..begin.files {
            let (message, received) = link::receive(&link)?.ok_or_else(ended)?;
            let ToWorker::File { name } = message else { return Err(wrong()) };
            let no_room =
                || io::Error::other("too many files may have to be open at a time: raise LimitNOFILE= of the service");
            let file = received.into_iter().next().ok_or_else(no_room)?;
            if name == HANDOVER {
                handover = Some(file);
                continue;
            }
            kept.insert(name.clone(), file.try_clone()?);
            files.insert(name, file);
        }
        let keeper = Self {
            link: Arc::new(link),
            sending: Mutex::default(),
            upgrade: Arc::default(),
            kept: Mutex::new(kept),
            handover: Mutex::new(handover),
            version: begin.link,
        };
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
    pub(super) fn hand_over(&self, run_dir: &Path) {
        let kept = || {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.iter().map(|(name, file)| Ok((name.clone(), file.try_clone()?))).collect()
        };
        handover::give(run_dir, kept, |stream, files| Holder::start(run_dir, stream, files));
    }

    /// A file need not be kept any more.
    pub(super) fn release(&self, name: &str) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.tell(&ToSupervisor::Release { name: name.to_owned() });
    }

    /// Everything that was there before is served again.
    pub(super) fn ready(&self) {
        // The supervisor says so as well, unless it has been killed meanwhile.
        if let Some(handover) = self.handover.lock().unwrap_or_else(PoisonError::into_inner).take() {
            handover::say_served(&handover);
        }
        self.tell(&ToSupervisor::Ready);
    }

    /// What the service manager is to show of the daemon.
    pub(super) fn status(&self, text: String) {
        if self.version >= 1 {
            self.tell(&ToSupervisor::Status { text });
        }
    }

    /// What tells the supervisor why this process ends before it is ready.
    pub(super) fn failing(&self) -> impl FnOnce(&dyn std::error::Error) + use<> {
        let (link, version) = (Arc::clone(&self.link), self.version);
        move |error| {
            let error = ApiError::of(ErrorKind::Internal, error).error;
            if version >= 1 {
                // An error: nobody is there to hear it.
                let _ = link::send(&*link, &ToSupervisor::Failed { error }, &[]);
            }
        }
    }

    /// Whether the supervisor answers who asks for an upgrade.
    pub(super) fn answers_upgrades(&self) -> bool {
        self.version >= 1
    }

    /// Mounts and images that are in use keep this process from ending.
    pub(super) fn busy(&self, mounts: usize) {
        self.tell(&ToSupervisor::Busy { mounts });
    }

    /// Asks for another worker in place of this one, of a program. Its version, or why that cannot be. The supervisor is given the
    /// connection of whoever wants it.
    pub(super) async fn upgrade(
        &self,
        program: Option<PathBuf>,
        connection: Option<Arc<UnixStream>>,
    ) -> Result<String, String> {
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = self.upgrade.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.is_some() {
                return Err("another upgrade is under way".to_owned());
            }
            *waiting = Some(answer);
        }
        let connection: Vec<_> = connection.iter().map(|connection| connection.as_fd()).collect();
        self.say(&ToSupervisor::Upgrade { program }, &connection).map_err(|error| error.to_string())?;
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
