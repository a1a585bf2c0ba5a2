//! Holds what must outlive the worker, and keeps a worker running.
//!
//! The files that make mounts live (FUSE files, the control socket) are kept here by name, and in the service manager's store where
//! there is one. Each new worker is given all of them before it begins. This process does nothing else, so that it has no
//! reason to fail.
//!
//! ```text
//! Begin, File × n ──▶ worker ──▶ Keep, Release (files come and go with mounts), Ready, Upgrade
//! worker has ended:  unready ones are started again after 0, 25, 50 … 5000 ms; one that was ready, at once
//! upgrade:           the worker is told to stop; the next one is of the new program, and of the old one again if that does not get ready
//! signal:            the worker is told to end. While something is in use it serves on, as it does when this process is killed:
//!                    with a service manager this process ends before it, otherwise after it
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use super::config::Config;
use super::{handover, harden, link, needs, worker};
use crate::error::{Error, Result};

/// Waits between workers that end before they are ready: none, then this, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(25);

/// Longest of these waits. What keeps a worker from starting (a full disk, a missing file) takes a person longer to repair.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Workers of a new program that may end before they are ready, before the old program is used again.
const TRIALS: u32 = 3;

/// How long a worker that is told to stop may finish the requests it has begun, before it is killed.
const STOP: Duration = Duration::from_secs(10);

/// How long a program may take to say its version.
const VERSION: Duration = Duration::from_secs(5);

/// What a worker is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToWorker {
    /// First of all.
    Begin(Box<Begin>),
    /// A file that is kept comes with this.
    File {
        /// Its name.
        name: String,
    },
    /// What came of the wish for an upgrade: the new program's version, or why not.
    Upgrade(std::result::Result<String, String>),
    /// To end when the requests under way are done. Mounts stay for the next worker.
    Stop,
    /// To end all mounts that nobody uses, and itself when the kernel has done with all images.
    End,
    /// To serve on alone for as long as something is mounted or in use, and to end then.
    Leave,
}

/// What a worker must know.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Begin {
    pub(super) config: Config,
    /// How many [`ToWorker::File`] follow.
    pub(super) files: usize,
    /// When the supervisor began, seconds since 1970.
    pub(super) since: u64,
    /// Whether a service manager has started it, and would start it again.
    #[serde(default)]
    pub(super) managed: bool,
    /// Workers that ended without being told to.
    pub(super) restarts: u64,
    /// Workers that were replaced on request.
    pub(super) upgrades: u64,
}

/// What a worker tells.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToSupervisor {
    /// Keep the file that comes with this.
    Keep {
        /// By this name.
        name: String,
    },
    /// Close a file.
    Release {
        /// Its name.
        name: String,
    },
    /// All that was there before is served again.
    Ready,
    /// Go on with this program.
    Upgrade {
        /// The same one again if there is none.
        program: Option<PathBuf>,
    },
    /// It cannot end yet, as something is mounted or in use. It serves on, and hands over to the next supervisor.
    Busy {
        /// How many mounts and images.
        mounts: usize,
    },
}

enum Event {
    Said(u64, ToSupervisor, Vec<OwnedFd>),
    Ended(u64, io::Result<ExitStatus>),
    Signal,
}

/// Runs the node daemon until it is told to end (SIGTERM, SIGINT, SIGHUP) and nobody uses what it serves any more. With a service
/// manager it returns when it is told to end, and leaves the worker to serve what is in use.
///
/// # Errors
/// When no worker can be started at all.
pub(super) fn run(config: Config) -> Result<()> {
    let failed = || Error::io::<io::Error>("start the daemon");
    let (events, received) = mpsc::channel();
    needs::check().map_err(failed())?;
    harden::supervisor().map_err(failed())?;
    watch_signals(events.clone()).map_err(failed())?;
    let program = Arc::new(Program::open(Path::new("/proc/self/exe")).map_err(failed())?);
    worker::make_run_dir(&config.run_dir)
        .map_err(Error::io::<io::Error>(format!("make {}", config.run_dir.display())))?;
    let (_alone, given) = handover::begin(&config.run_dir).map_err(failed())?;
    let mut files = inherited().map_err(failed())?;
    // A service manager may have kept files longer than their mounts have lived.
    for name in files.iter().filter(|(_, file)| is_dead(file)).map(|(name, _)| name.clone()).collect::<Vec<_>>() {
        files.remove(&name);
        unstore(&name);
    }
    if !given.is_empty() {
        tracing::warn!(files = given.len(), "the worker of another daemon hands over its mounts");
    }
    for (name, file) in &given {
        store(name, file.as_fd());
    }
    files.extend(given);
    let mut supervisor = Supervisor {
        config,
        files,
        program,
        before: None,
        events,
        worker: None,
        generation: 0,
        since: super::now(),
        failures: 0,
        restarts: 0,
        upgrades: 0,
        signals: 0,
        leaving: false,
    };
    supervisor.start_at_last()?;
    supervisor.run(&received)
}

/// The files that the service manager has kept or opened for this process, by name. To be called once, at the start.
///
/// # Errors
/// When what the environment says of them is not true.
#[expect(unsafe_code, reason = "file numbers come by the environment")]
pub fn inherited() -> io::Result<BTreeMap<String, OwnedFd>> {
    use std::os::fd::FromRawFd as _;
    let listed = sd_notify::listen_fds_with_names()?;
    // SAFETY: systemd gives these numbers to this process alone, as LISTEN_PID says; they are taken over once, at the start.
    let own = |number| unsafe { OwnedFd::from_raw_fd(number) };
    let mut files = BTreeMap::new();
    for (number, name) in listed {
        let file = own(number);
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::CLOEXEC)?;
        files.insert(name, file);
    }
    Ok(files)
}

/// A program file that stays the same when another one takes its name.
struct Program(File);

impl Program {
    fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.0.as_raw_fd()));
        command.arg0("lazo");
        for name in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET"] {
            command.env_remove(name);
        }
        command
    }

    /// Whether it is a lazo, and which.
    fn version(&self) -> std::result::Result<String, String> {
        let mut command = self.command();
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|error| format!("it cannot be run: {error}"))?;
        let begin = Instant::now();
        while child.try_wait().map_err(|error| error.to_string())?.is_none() {
            if begin.elapsed() > VERSION {
                let _ = child.kill();
            }
            thread::sleep(Duration::from_millis(2));
        }
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        match text.trim().strip_prefix("lazo ") {
            Some(version) if output.status.success() => Ok(version.to_owned()),
            _ => Err(format!("it does not say that it is lazo, but ends with {}", output.status)),
        }
    }
}

struct Worker {
    link: Arc<OwnedFd>,
    process: OwnedFd,
    pid: u32,
    ready: bool,
    /// When it was told to stop.
    stopping: Option<Instant>,
}

struct Supervisor {
    config: Config,
    files: BTreeMap<String, OwnedFd>,
    program: Arc<Program>,
    /// The program before an upgrade, until the new one is ready.
    before: Option<Arc<Program>>,
    events: Sender<Event>,
    worker: Option<Worker>,
    generation: u64,
    /// Seconds since 1970.
    since: u64,
    /// Workers in a row that were never ready.
    failures: u32,
    restarts: u64,
    upgrades: u64,
    signals: u32,
    /// Whether the worker serves on what is in use, and hands over to another supervisor.
    leaving: bool,
}

impl Supervisor {
    fn run(&mut self, received: &Receiver<Event>) -> Result<()> {
        loop {
            match received.recv_timeout(self.patience()) {
                Ok(Event::Said(generation, message, files)) if generation == self.generation => {
                    if self.said(message, files) {
                        return Ok(());
                    }
                }
                Ok(Event::Said(..)) => {}
                Ok(Event::Ended(generation, status)) if generation == self.generation => {
                    if self.ended(&status)? {
                        return Ok(());
                    }
                }
                Ok(Event::Ended(..)) => {}
                Ok(Event::Signal) => self.signalled(),
                Err(RecvTimeoutError::Timeout) => self.kill_if_late(),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    fn patience(&self) -> Duration {
        let stopping = self.worker.as_ref().and_then(|worker| worker.stopping);
        stopping.map_or(Duration::from_secs(3600), |since| STOP.saturating_sub(since.elapsed()))
    }

    fn start(&mut self) -> io::Result<()> {
        let (ours, theirs) = link::pair()?;
        let mut command = self.program.command();
        // Signals from a terminal are for this process alone.
        command.env("LAZO_LOG", &self.config.log_level);
        command.args(["daemon", "--process", "worker"]).stdin(Stdio::from(theirs)).process_group(0);
        let child = command.spawn()?;
        drop(command);
        self.generation += 1;
        let pid = Pid::from_child(&child);
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let link = Arc::new(ours);
        self.worker = Some(Worker { link: Arc::clone(&link), process, pid: child.id(), ready: false, stopping: None });
        tracing::debug!(pid = child.id(), "a worker begins");
        self.listen(child, &link)?;
        if let Err(error) = self.equip(&link) {
            // Its end will be noticed, and another one started.
            tracing::error!(%error, "the worker does not take what it needs");
            self.kill();
        }
        Ok(())
    }

    /// Tells the worker all that it needs.
    fn equip(&self, link: &OwnedFd) -> io::Result<()> {
        let begin = Begin {
            config: self.config.clone(),
            files: self.files.len(),
            since: self.since,
            managed: is_managed(),
            restarts: self.restarts,
            upgrades: self.upgrades,
        };
        // A worker that does not read is not waited for.
        rustix::net::sockopt::set_socket_timeout(link, rustix::net::sockopt::Timeout::Send, Some(STOP))?;
        link::send(link, &ToWorker::Begin(Box::new(begin)), &[])?;
        for (name, file) in &self.files {
            link::send(link, &ToWorker::File { name: name.clone() }, &[file.as_fd()])?;
        }
        Ok(())
    }

    /// Hears all that a worker says, and then of its end: what it gave to be kept comes before that.
    fn listen(&self, mut child: Child, link: &Arc<OwnedFd>) -> io::Result<()> {
        let (events, generation, link) = (self.events.clone(), self.generation, Arc::clone(link));
        let listen = move || {
            while let Ok(Some((message, files))) = link::receive(&*link) {
                if events.send(Event::Said(generation, message, files)).is_err() {
                    return;
                }
            }
            // A worker that cannot be understood, or has closed its link, is of no use.
            let _ = child.kill();
            let _ = events.send(Event::Ended(generation, child.wait()));
        };
        thread::Builder::new().name("lazo-listen".into()).spawn(listen).map(drop)
    }

    /// True when this process is to end, and the worker is not.
    fn said(&mut self, message: ToSupervisor, files: Vec<OwnedFd>) -> bool {
        match message {
            ToSupervisor::Keep { name } => {
                if let Some(file) = files.into_iter().next() {
                    store(&name, file.as_fd());
                    self.files.insert(name, file);
                }
            }
            ToSupervisor::Release { name } => {
                self.files.remove(&name);
                unstore(&name);
            }
            ToSupervisor::Ready => self.ready(),
            ToSupervisor::Upgrade { program } => self.upgrade(program.as_deref()),
            ToSupervisor::Busy { mounts } => {
                self.leaving = true;
                if is_managed() {
                    tracing::warn!(
                        mounts,
                        "the worker stays and serves what is mounted, until the next daemon takes it over"
                    );
                    return true;
                }
                tracing::warn!(
                    mounts,
                    "what is in use is served on, and this daemon ends after it; `lazo daemon stop --force` cuts readers off"
                );
            }
        }
        false
    }

    fn ready(&mut self) {
        self.failures = 0;
        self.before = None;
        if let Some(worker) = &mut self.worker {
            worker.ready = true;
            tracing::info!(pid = worker.pid, restarts = self.restarts, upgrades = self.upgrades, "a worker is ready");
        }
        if self.signals == 0 {
            notify(&[NotifyState::Ready]);
        }
        if self.signals > 0 || self.leaving {
            self.tell_end();
        }
    }

    fn upgrade(&mut self, path: Option<&Path>) {
        if self.signals > 0 || self.leaving {
            return self.tell(&ToWorker::Upgrade(Err("the daemon is ending".to_owned())));
        }
        let program = match path {
            None => Ok(Arc::clone(&self.program)),
            Some(path) => Program::open(path).map(Arc::new).map_err(|error| error.to_string()),
        };
        let answer = program.and_then(|program| Ok((program.version()?, program)));
        let answer = answer.map(|(version, program)| {
            tracing::info!(version, "upgrade: the worker is told to stop");
            self.before = Some(std::mem::replace(&mut self.program, program));
            version
        });
        let goes_on = answer.is_ok();
        self.tell(&ToWorker::Upgrade(answer));
        if goes_on {
            self.tell(&ToWorker::Stop);
            self.stopping();
        }
    }

    fn stopping(&mut self) {
        if let Some(worker) = &mut self.worker {
            worker.stopping = Some(Instant::now());
        }
    }

    fn tell(&self, message: &ToWorker) {
        if let Some(worker) = &self.worker
            && let Err(error) = link::send(&*worker.link, message, &[])
        {
            tracing::warn!(%error, "cannot tell the worker");
        }
    }

    /// True when this process is to end, too.
    fn ended(&mut self, status: &io::Result<ExitStatus>) -> Result<bool> {
        let Some(worker) = self.worker.take() else { return Ok(false) };
        if status.as_ref().is_ok_and(|status| status.code() == Some(worker::ENDED)) {
            for name in self.files.keys() {
                unstore(name);
            }
            return Ok(true);
        }
        let replaced = status.as_ref().is_ok_and(ExitStatus::success);
        let taken_over = self.leaving && replaced && worker.stopping.is_none();
        // Who is told to end before anything is served has nothing to wait for.
        if taken_over || (self.signals > 0 && !worker.ready && self.keeps_nothing()) {
            return Ok(true);
        }
        if worker.stopping.is_some() {
            self.upgrades += 1;
        } else {
            self.restarts += 1;
            let (code, signal) = status.as_ref().map_or((None, None), |s| (s.code(), s.signal()));
            tracing::error!(
                pid = worker.pid,
                code,
                signal,
                restarts = self.restarts,
                "the worker has ended; it is started again"
            );
        }
        let mut pause = Duration::ZERO;
        if !worker.ready {
            self.failures += 1;
            pause = pause_after(self.failures);
            if self.failures >= TRIALS
                && let Some(before) = self.before.take()
            {
                tracing::error!("the new program does not get ready; back to the one before");
                self.program = before;
            }
        }
        thread::sleep(pause);
        self.start_at_last()?;
        Ok(false)
    }

    /// Starts a worker, as often as it takes where mounts depend on it.
    fn start_at_last(&mut self) -> Result<()> {
        loop {
            match self.start() {
                Ok(()) => return Ok(()),
                Err(error) if self.generation == 0 && self.keeps_nothing() => {
                    return Err(Error::io("start a worker")(error));
                }
                Err(error) => {
                    tracing::error!(%error, "cannot start a worker; trying again");
                    thread::sleep(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Whether no mount depends on the files that are kept.
    fn keeps_nothing(&self) -> bool {
        self.files.keys().all(|name| name == worker::CONTROL)
    }

    fn signalled(&mut self) {
        self.signals += 1;
        notify(&[NotifyState::Stopping]);
        self.tell_end();
    }

    /// A service manager that restarts the daemon says no more than one that stops it: so mounts stay for the next one.
    fn tell_end(&self) {
        self.tell(if is_managed() { &ToWorker::Leave } else { &ToWorker::End });
    }

    fn kill_if_late(&mut self) {
        if self.worker.as_ref().and_then(|w| w.stopping).is_some_and(|since| since.elapsed() >= STOP) {
            tracing::warn!("the worker does not stop; it is killed");
            self.kill();
            // A thread of it may be in the kernel's hands for long.
            self.stopping();
        }
    }

    fn kill(&self) {
        if let Some(worker) = &self.worker {
            let _ = pidfd_send_signal(&worker.process, Signal::KILL);
        }
    }
}

fn pause_after(failures: u32) -> Duration {
    match failures.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_PAUSE.saturating_mul(1 << doublings.min(16)).min(LONGEST_PAUSE),
    }
}

/// Whether a service manager has started us.
fn is_managed() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Whether a file is that of a FUSE mount which the kernel has done with. Such a file reports an error to whoever polls it.
fn is_dead(file: &OwnedFd) -> bool {
    let mut state = [PollFd::new(file, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut state, Some(&at_once)).is_ok() && state[0].revents().contains(PollFlags::ERR)
}

fn store(name: &str, file: BorrowedFd<'_>) {
    let state = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
    if let Err(error) = sd_notify::notify_with_fds(&state, &[file]) {
        tracing::warn!(%error, name, "the service manager does not keep a file: mounts would not outlive this process");
    }
}

fn unstore(name: &str) {
    notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// Sends an event for each signal that asks for the end.
fn watch_signals(events: Sender<Event>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let guard = runtime.enter();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    drop(guard);
    let watch = move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    _ = hangup.recv() => {}
                }
                if events.send(Event::Signal).is_err() {
                    return;
                }
            }
        });
    };
    thread::Builder::new().name("lazo-signals".into()).spawn(watch).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound() {
        let pauses: Vec<u128> = (1..=12).map(|n| pause_after(n).as_millis()).collect();
        assert_eq!(pauses, [0, 25, 50, 100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        assert_eq!(pause_after(u32::MAX), LONGEST_PAUSE);
    }
}
