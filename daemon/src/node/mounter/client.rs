//! The worker's side.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use rustix::net::Shutdown;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::{Answer, Hello, Order, Refusal, Reply, Request};
use crate::node::link;

/// Orders under way at a time. Each has a thread in the mounter; one takes well under a millisecond unless it waits for
/// something, and 32 that wait are too many already.
pub(super) const MAX_ORDERS: usize = 32;

/// How long an order may wait for others that hang.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// The mounter's process, without threads on this side yet.
pub(in crate::node) struct Starting {
    link: OwnedFd,
    child: Child,
}

impl Starting {
    /// Starts this program as a mounter. It has the rights that this process has now.
    pub(in crate::node) fn spawn(run_dir: &Path) -> io::Result<Self> {
        let own = ["/proc/self/exe", "daemon", "--process", "mounter"];
        Self::spawn_program(&own.map(OsString::from), run_dir)
    }

    /// Starts a program that runs [`super::run_mounter`], given by its path and arguments.
    pub(super) fn spawn_program(program: &[OsString], run_dir: &Path) -> io::Result<Self> {
        let (link, theirs) = link::pair()?;
        let (path, arguments) = program.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(path);
        command.arg0("lazo").args(arguments).stdin(Stdio::from(theirs)).stdout(Stdio::null());
        let child = command.spawn()?;
        // Or else this process would hold the other end too.
        drop(command);
        link::send(&link, &Hello { run_dir: run_dir.to_owned() }, &[])?;
        Ok(Self { link, child })
    }

    /// Starts the threads that send orders and receive replies: to be called when this process has given up its rights, as
    /// threads that are there before keep theirs.
    pub(in crate::node) fn connect(self) -> io::Result<Mounter> {
        let Self { link, child } = self;
        #[cfg(test)]
        let process = rustix::process::Pid::from_child(&child);
        let (requests, orders) = mpsc::channel::<Request>();
        let (tell_ended, ended) = watch::channel(false);
        let shared = Arc::new(Shared { waiting: Mutex::new(Some(HashMap::new())) });
        let sending = link.try_clone()?;
        thread::Builder::new().name("mounter-out".into()).spawn(move || send_all(&sending, &orders))?;
        let receiving = Arc::clone(&shared);
        thread::Builder::new().name("mounter-in".into()).spawn(move || {
            receive_all(&link, &receiving);
            receiving.end();
            // Before the child is waited for: it may itself wait for this process.
            let _ = tell_ended.send(true);
            reap(child);
        })?;
        let room = Arc::new(Semaphore::new(MAX_ORDERS));
        Ok(Mounter {
            shared,
            requests,
            next: AtomicU64::new(0),
            room,
            ended,
            #[cfg(test)]
            process,
        })
    }
}

/// Gives orders to the process that mounts.
pub(in crate::node) struct Mounter {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    next: AtomicU64,
    room: Arc<Semaphore>,
    ended: watch::Receiver<bool>,
    #[cfg(test)]
    process: rustix::process::Pid,
}

impl Mounter {
    /// Has an order carried out; gives the answer and the file that came with it. An order whose future is dropped is carried
    /// out all the same.
    ///
    /// # Errors
    /// When it was refused or failed, then nothing of it is left; when the mounter has ended, then nobody knows.
    pub(in crate::node) async fn order(&self, order: Order) -> Result<(Answer, Option<OwnedFd>), Refusal> {
        let room = tokio::time::timeout(MAX_WAIT, Arc::clone(&self.room).acquire_owned()).await;
        let hang = || Refusal::new("too many mounts are being made or ended, and none has come to an end for 30 s");
        let room = room.map_err(|_| hang())?.map_err(|_| Refusal::ended())?;
        let (tell, told) = oneshot::channel();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        match self.shared.lock().as_mut() {
            Some(waiting) => waiting.insert(number, Waiting { tell, _room: room }),
            None => return Err(Refusal::ended()),
        };
        self.requests.send(Request { number, order }).map_err(|_| Refusal::ended())?;
        told.await.unwrap_or_else(|_| Err(Refusal::ended()))
    }

    /// Its process.
    #[cfg(test)]
    pub(super) fn process(&self) -> rustix::process::Pid {
        self.process
    }

    /// Waits until the mounter has ended: then no order is carried out any more, and this process, which has no right to
    /// start another one, has to be replaced.
    pub(in crate::node) async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error: the thread that tells is gone, and the mounter with it.
        let _ = ended.wait_for(|ended| *ended).await;
    }
}

type Told = Result<(Answer, Option<OwnedFd>), Refusal>;

/// Somebody who waits for a reply.
struct Waiting {
    tell: oneshot::Sender<Told>,
    /// Held until the mounter has replied, whether or not somebody still waits.
    _room: OwnedSemaphorePermit,
}

struct Shared {
    /// By number; `None` when the mounter has ended.
    waiting: Mutex<Option<HashMap<u64, Waiting>>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, Waiting>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever waits is told by losing the other end of his channel.
    fn end(&self) {
        *self.lock() = None;
    }
}

/// Sends until the [`Mounter`] is dropped or the link is closed; then closes this end.
fn send_all(link: &OwnedFd, orders: &mpsc::Receiver<Request>) {
    while let Ok(request) = orders.recv() {
        if let Err(error) = link::send(link, &request, &[]) {
            tracing::error!(%error, "cannot send an order to the process that mounts");
            break;
        }
    }
    // An error: it is closed already.
    let _ = rustix::net::shutdown(link.as_fd(), Shutdown::Both);
}

fn receive_all(link: &OwnedFd, shared: &Shared) {
    loop {
        match link::receive::<Reply>(link) {
            Ok(Some((Reply { number, result }, files))) => {
                let waiting = shared.lock().as_mut().and_then(|all| all.remove(&number));
                if let Some(waiting) = waiting {
                    // An error: nobody waits any more. A file is closed then.
                    let _ = waiting.tell.send(result.map(|answer| (answer, files.into_iter().next())));
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "the process that mounts cannot be understood");
                let _ = rustix::net::shutdown(link, Shutdown::Both);
                return;
            }
        }
    }
}

fn reap(mut child: Child) {
    match child.wait() {
        Ok(status) => tracing::debug!(%status, "the process that mounts has ended"),
        Err(error) => tracing::warn!(%error, "cannot wait for the process that mounts"),
    }
}
