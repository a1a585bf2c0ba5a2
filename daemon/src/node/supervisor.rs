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

mod manager;
mod messages;
mod program;
mod signals;
mod upgrade;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sd_notify::NotifyState;

use super::config::Config;
use super::{handover, harden, link, needs, worker};
use crate::error::{Error, Result};
pub use manager::inherited;
pub(super) use manager::is_dead;
use manager::{is_managed, notify, store, unstore};
pub(super) use messages::{Begin, LINK, ToSupervisor, ToWorker};
use program::Program;
use signals::watch_signals;
use upgrade::Trial;

/// Waits between workers that end before they are ready: none, then this, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(25);

/// Longest of these waits. What keeps a worker from starting (a full disk, a missing file) takes a person longer to repair.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Workers of a new program that may end before they are ready, before the old program is used again.
const TRIALS: u32 = 3;

/// How long a worker of a new program may take to get ready, before the old program is used again. A worker waits 5 s for images that take
/// long to open, and all else takes milliseconds.
const TRIAL: Duration = Duration::from_secs(20);

/// Name, among the kept files, of the connection on which is said that what another daemon has handed over is served.
pub(super) const HANDOVER: &str = "handover";

/// How long a worker that is told to stop may finish the requests it has begun, before it is killed.
const STOP: Duration = Duration::from_secs(10);

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
    let (_alone, handover::Given { files: mut given, from }) = handover::begin(&config.run_dir).map_err(failed())?;
    let mut files = inherited().map_err(failed())?;
    // A service manager may have kept files longer than their mounts have lived.
    for name in files.iter().filter(|(_, file)| is_dead(file)).map(|(name, _)| name.clone()).collect::<Vec<_>>() {
        files.remove(&name);
        unstore(&name);
    }
    if !given.is_empty() {
        tracing::warn!(files = given.len(), "the worker of another daemon hands over its mounts");
    }
    // The daemon before may have ended mounts until the last moment.
    given.retain(|_, file| !is_dead(file));
    for (name, file) in &given {
        store(name, file.as_fd());
    }
    files.extend(given);
    files.remove(HANDOVER);
    files.extend(from.map(|from| (HANDOVER.to_owned(), from)));
    let mut supervisor = Supervisor {
        config,
        files,
        program,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        trial: None,
        reason: None,
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

struct Worker {
    link: Arc<OwnedFd>,
    process: OwnedFd,
    pid: u32,
    ready: bool,
    begun: Instant,
    /// Killed as it did not get ready.
    late: bool,
    /// When it was told to stop.
    stopping: Option<Instant>,
}

struct Supervisor {
    config: Config,
    files: BTreeMap<String, OwnedFd>,
    program: Arc<Program>,
    version: String,
    /// An upgrade, until a worker is ready.
    trial: Option<Trial>,
    /// Why the last worker that was not ready ended, as it said itself.
    reason: Option<String>,
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
        self.late().map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(Instant::now()))
    }

    /// When the worker is to be killed.
    fn late(&self) -> Option<Instant> {
        let worker = self.worker.as_ref()?;
        let tried = || self.trial.as_ref().is_some_and(|trial| !trial.has_failed()) && !worker.ready;
        worker.stopping.map(|since| since + STOP).or_else(|| tried().then(|| worker.begun + TRIAL))
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
        self.worker = Some(Worker {
            link: Arc::clone(&link),
            process,
            pid: child.id(),
            ready: false,
            begun: Instant::now(),
            late: false,
            stopping: None,
        });
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
            link: LINK,
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
            ToSupervisor::Keep { name } => match files.into_iter().next() {
                Some(file) => {
                    store(&name, file.as_fd());
                    self.files.insert(name, file);
                }
                None => tracing::error!(
                    name,
                    "too many files are open to keep one more: a mount would not outlive the worker; raise LimitNOFILE="
                ),
            },
            ToSupervisor::Release { name } => {
                self.files.remove(&name);
                unstore(&name);
            }
            ToSupervisor::Ready => self.ready(),
            ToSupervisor::Upgrade { program } => self.upgrade(program.as_deref(), files.into_iter().next()),
            ToSupervisor::Status { text } => notify(&[NotifyState::Status(&text)]),
            ToSupervisor::Failed { error } => self.reason = Some(error),
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
        (self.failures, self.reason) = (0, None);
        if let Some(from) = self.files.remove(HANDOVER) {
            handover::say_served(&from);
        }
        if let Some(worker) = &mut self.worker {
            worker.ready = true;
            if let Some(trial) = self.trial.take() {
                trial.end(&self.version, worker.pid);
            }
            tracing::info!(pid = worker.pid, restarts = self.restarts, upgrades = self.upgrades, "a worker is ready");
        }
        if self.signals == 0 {
            notify(&[NotifyState::Ready]);
        }
        if self.signals > 0 || self.leaving {
            self.tell_end();
        }
    }

    fn upgrade(&mut self, path: Option<&Path>, asker: Option<OwnedFd>) {
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
            let before = std::mem::replace(&mut self.program, program);
            let before = (before, std::mem::replace(&mut self.version, version.clone()));
            self.trial = Some(Trial::begin(before, asker));
            version
        });
        let goes_on = answer.is_ok();
        self.tell(&ToWorker::Upgrade(answer));
        if goes_on {
            self.tell(&ToWorker::Stop);
            self.stopping();
        }
    }

    /// The program before is used again if the new one does not get ready.
    fn give_up_trial(&mut self, late: bool, status: &io::Result<ExitStatus>) {
        let Some(trial) = self.trial.as_mut().filter(|trial| !trial.has_failed()) else { return };
        if self.failures < TRIALS && !late {
            return;
        }
        let reason = self.reason.take().unwrap_or_else(|| match status {
            _ if late => format!("its worker was not ready within {} s", TRIAL.as_secs()),
            Ok(status) => format!("its worker ended before it was ready, with {status}"),
            Err(error) => format!("its worker ended before it was ready: {error}"),
        });
        tracing::error!(reason, "the new program does not get ready; back to the one before");
        (self.program, self.version) = trial.fail(&self.version, &reason);
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
        // A program that is no worker may end with any code.
        if worker.ready && status.as_ref().is_ok_and(|status| status.code() == Some(worker::ENDED)) {
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
            self.give_up_trial(worker.late, status);
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
        self.files.keys().all(|name| name == worker::CONTROL || name == HANDOVER)
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
        if self.late().is_none_or(|late| Instant::now() < late) {
            return;
        }
        self.kill();
        let Some(worker) = &mut self.worker else { return };
        // A thread of it may be in the kernel's hands for long.
        if worker.stopping.is_some() {
            tracing::warn!("the worker does not stop; it is killed");
            worker.stopping = Some(Instant::now());
        } else {
            tracing::warn!("the worker does not get ready; it is killed");
            (worker.late, worker.begun) = (true, Instant::now());
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
