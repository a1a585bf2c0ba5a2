//! Runs credential helpers for the worker, in a process of its own.
//!
//! Helpers of clouds keep caches below the home directory, and those of password stores talk to agents there and in
//! `/tmp`. The worker may write to neither, and nor may what it starts. So it starts this process before it gives up
//! its rights. All that can be had from it is the answer of `docker-credential-NAME get`, the program being looked for
//! in the daemon's own PATH.
//!
//! The worker sends a [`Question`] with one end of a socket, on which the answer comes. All that ask the same at a time
//! share a run, which ends when the last of them has closed its socket. The process ends with the worker, and by no
//! signal that asks for an end before.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use lazo_registry::{HELPER_TIMEOUT, HelperOutcome, RunHelper, run_helper};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, watch};

use super::{harden, link};
use crate::error::{Error, Result};

/// Helpers that run at a time; others wait for their turn. Each is a program with a share of the daemon's memory and
/// processes.
const MAX_RUNNING: usize = 16;

/// Questions that wait for answers, each with a socket: some for each image of a large node, and half of the files that
/// a process may usually have open.
const MAX_ASKING: usize = 512;

/// Longest answer in bytes: JSON of what the registry crate reads of a helper, each byte in up to four characters.
const MAX_ANSWER: usize = 512 << 10;

/// How much longer than a helper itself its answer may take: helpers that are before it have their time, too.
const MAX_QUEUED: Duration = Duration::from_secs(30);

/// A login that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Question {
    /// Of the helper, without `docker-credential-`.
    name: String,
    server: String,
}

/// What came of it, or why nothing did.
type Answer = std::result::Result<HelperOutcome, String>;

/// The process, without threads on this side yet.
pub(super) struct Starting {
    link: OwnedFd,
    child: Child,
}

impl Starting {
    /// Starts this program as the process for helpers. It has the rights that this process has now.
    pub(super) fn spawn() -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("lazo").args(["daemon", "--process", "helpers"]);
        Self::spawn_program(command)
    }

    fn spawn_program(mut command: Command) -> io::Result<Self> {
        let (link, theirs) = link::pair()?;
        let child = command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).spawn()?;
        Ok(Self { link, child })
    }

    /// Starts the thread that notices its end: to be called when this process has given up its rights, as threads that
    /// are there before keep theirs.
    pub(super) fn connect(self) -> io::Result<Helpers> {
        let Self { link, mut child } = self;
        let (tell_ended, ended) = watch::channel(false);
        let watched = link.try_clone()?;
        thread::Builder::new().name("helpers-end".into()).spawn(move || {
            // It never says anything here.
            let _ = link::receive::<()>(&watched);
            let _ = tell_ended.send(true);
            let _ = child.wait();
        })?;
        Ok(Helpers { link: Arc::new(Mutex::new(link)), ended })
    }
}

/// Asks the process that runs helpers.
#[derive(Clone)]
pub(super) struct Helpers {
    link: Arc<Mutex<OwnedFd>>,
    ended: watch::Receiver<bool>,
}

impl Helpers {
    /// Waits until the process has ended: this one, which could not start another with its rights, has to be replaced
    /// then.
    pub(super) async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error: the thread that tells is gone, and so is the process.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    async fn ask(&self, question: Question) -> io::Result<HelperOutcome> {
        if *self.ended.borrow() {
            // A worker without a supervisor goes on without that process. Helpers that write nothing work here, too.
            return run_helper(&question.name, &question.server).await;
        }
        let (ours, theirs) = link::pair()?;
        {
            let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
            link::send(&*link, &question, &[theirs.as_fd()])?;
        }
        drop(theirs);
        let answer = tokio::time::timeout(HELPER_TIMEOUT + MAX_QUEUED, receive(ours)).await;
        let answer = answer.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "too many others run"))??;
        answer.map_err(io::Error::other)
    }
}

impl RunHelper for Helpers {
    fn run(&self, name: String, server: String) -> BoxFuture<'static, io::Result<HelperOutcome>> {
        let helpers = self.clone();
        async move { helpers.ask(Question { name, server }).await }.boxed()
    }
}

/// The answer, as [`reply`] sends it: its length and its bytes.
async fn receive(socket: OwnedFd) -> io::Result<Answer> {
    let ended = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::other("the process that runs credential helpers has ended"),
        _ => error,
    };
    let mut socket = stream(socket)?;
    let length = usize::try_from(socket.read_u32_le().await.map_err(ended)?).unwrap_or(usize::MAX);
    if length > MAX_ANSWER {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer of a credential helper is too long"));
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body).await.map_err(ended)?;
    Ok(serde_json::from_slice(&body)?)
}

async fn reply(socket: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let body = serde_json::to_vec(answer)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    socket.write_u32_le(length).await?;
    socket.write_all(&body).await
}

fn stream(socket: OwnedFd) -> io::Result<UnixStream> {
    let socket = StdStream::from(socket);
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

/// A helper that runs, or waits for its turn. It ends when nobody holds it any more.
type Run = Shared<BoxFuture<'static, Arc<Answer>>>;

/// What runs, by the questions that it answers.
struct Desk {
    running: Arc<Semaphore>,
    asking: Arc<Semaphore>,
    runs: HashMap<Question, WeakShared<BoxFuture<'static, Arc<Answer>>>>,
}

impl Desk {
    fn new() -> Self {
        let room = |places| Arc::new(Semaphore::new(places));
        Self { running: room(MAX_RUNNING), asking: room(MAX_ASKING), runs: HashMap::new() }
    }

    /// Sees to it that a question is answered, if there is somebody to answer.
    fn take(&mut self, question: Question, files: Vec<OwnedFd>) {
        let Some(socket) = files.into_iter().next() else { return };
        match Arc::clone(&self.asking).try_acquire_owned() {
            Ok(place) => {
                let run = self.run(question);
                tokio::spawn(async move {
                    answer(run, socket).await;
                    drop(place);
                });
            }
            Err(_) => {
                let reason = format!("{MAX_ASKING} others wait for credential helpers; try again later");
                tokio::spawn(async move { reply(&mut stream(socket)?, &Err(reason)).await });
            }
        }
    }

    fn run(&mut self, question: Question) -> Run {
        // One that has ended answers no new question: a login that was refused is asked for again.
        let lives = |run: &WeakShared<_>| run.upgrade().is_some_and(|run: Run| run.peek().is_none());
        self.runs.retain(|_, run| lives(run));
        if let Some(run) = self.runs.get(&question).and_then(WeakShared::upgrade) {
            return run;
        }
        let (running, Question { name, server }) = (Arc::clone(&self.running), question.clone());
        let run = async move {
            let _turn = running.acquire().await;
            Arc::new(run_helper(&name, &server).await.map_err(|error| error.to_string()))
        };
        let run = run.boxed().shared();
        if let Some(weak) = run.downgrade() {
            self.runs.insert(question, weak);
        }
        run
    }
}

/// Passes an answer on, unless the asker closes its socket first.
async fn answer(run: Run, socket: OwnedFd) {
    let told = async {
        let mut socket = stream(socket)?;
        tokio::select! {
            // Askers say nothing more.
            _ = socket.read_u8() => Err(io::ErrorKind::BrokenPipe.into()),
            answer = run => reply(&mut socket, &answer).await,
        }
    };
    if let Err(error) = told.await {
        tracing::debug!(%error, "nobody waits for a credential helper's answer any more");
    }
}

/// Answers questions that come on stdin until the worker ends.
///
/// # Errors
/// When it cannot begin, or the worker cannot be understood.
pub(super) fn run_helpers() -> Result<()> {
    harden::helpers().map_err(Error::io::<io::Error>("give up rights"))?;
    serve()
}

fn serve() -> Result<()> {
    let failed = || Error::io::<io::Error>("start threads");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed())?;
    let (tell, mut questions) = mpsc::channel(MAX_RUNNING);
    // A thread that waits in a read cannot be ended: the process ends under it.
    let listen = move || loop {
        let question = link::receive::<Question>(rustix::stdio::stdin());
        let last = !matches!(question, Ok(Some(_)));
        if tell.blocking_send(question).is_err() || last {
            return;
        }
    };
    thread::Builder::new().name("questions".into()).spawn(listen).map_err(failed())?;
    runtime.block_on(async {
        // They are the worker's business. To ignore them would be passed on to the helpers.
        let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
        let heard: io::Result<Vec<_>> = kinds.into_iter().map(signal).collect();
        let _heard = heard.map_err(Error::io::<io::Error>("hear signals"))?;
        let mut desk = Desk::new();
        while let Some(question) = questions.recv().await {
            match question {
                Ok(Some((question, files))) => desk.take(question, files),
                Ok(None) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(Error::io("understand the worker")(error)),
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests;
