//! The process that mounts.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, Timespec, flock};
use rustix::io::Errno;

use super::carry_out::Site;
use super::client::MAX_ORDERS;
use super::namespace::Namespaces;
use super::{Answer, Hello, Refusal, Reply, Request, sys};
use crate::error::{Error, Result};
use crate::node::{harden, link};

/// Stack of a thread that carries out an order, in bytes.
const STACK: usize = 256 << 10;

/// How often a mounter that waits for the one before it looks whether that has ended, in nanoseconds.
const LOCK_PERIOD: i64 = 5_000_000;

/// Carries out orders that come on stdin until the worker ends.
///
/// # Errors
/// When nothing can be carried out at all, or the worker cannot be understood.
pub(in crate::node) fn run_mounter() -> Result<()> {
    harden::mounter().map_err(Error::io::<io::Error>("give up rights"))?;
    run(["/proc/self/exe", "daemon", "--process", "userns"].map(OsString::from).to_vec())
}

/// The same, with a program that runs [`super::run_user_namespace`].
pub(super) fn run(user_namespace: Vec<OsString>) -> Result<()> {
    sys::ignore_signals();
    let link = rustix::stdio::stdin();
    let hello = link::receive::<Hello>(link).map_err(Error::io::<io::Error>("understand the worker"))?;
    let Some((Hello { run_dir }, _)) = hello else { return Ok(()) };
    let failed = || Error::io::<io::Error>(format!("make mounts in {}", run_dir.display()));
    let lock = lock_file(&run_dir).map_err(failed())?;
    if !take(&lock, link).map_err(failed())? {
        return Ok(());
    }
    let site = Site::open(&run_dir, Namespaces::new(user_namespace)).map_err(failed())?;
    site.clean();
    serve(link, site)
}

/// Orders until the worker ends.
fn serve(link: BorrowedFd<'static>, site: Site) -> Result<()> {
    let (site, under_way, replies) = (Arc::new(site), Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(())));
    while let Some(request) = receive(link)? {
        let number = request.number;
        let answer = {
            let replies = Arc::clone(&replies);
            move |result| reply(link, &replies, number, result)
        };
        if under_way.fetch_add(1, Ordering::AcqRel) >= MAX_ORDERS {
            under_way.fetch_sub(1, Ordering::AcqRel);
            answer(Err(Refusal::new("too many orders at a time")));
            continue;
        }
        let (site, counted) = (Arc::clone(&site), Arc::clone(&under_way));
        let carry_out = {
            let answer = answer.clone();
            move || {
                let result = catch_unwind(AssertUnwindSafe(|| site.carry_out(request.order)));
                let result = result.unwrap_or_else(|_| Err(Refusal::new("a defect: the mounter's log says more")));
                // Before the reply, which lets the worker send another order.
                counted.fetch_sub(1, Ordering::AcqRel);
                answer(result);
            }
        };
        if let Err(error) = thread::Builder::new().name("order".into()).stack_size(STACK).spawn(carry_out) {
            under_way.fetch_sub(1, Ordering::AcqRel);
            answer(Err(Refusal::io("start a thread")(error)));
        }
    }
    Ok(())
}

/// The next order; none when the worker has ended, in the middle of one, too.
fn receive(link: BorrowedFd<'_>) -> Result<Option<Request>> {
    match link::receive(link) {
        Ok(received) => Ok(received.map(|(request, _)| request)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(Error::io("understand the worker")(error)),
    }
}

/// Sends a reply; its file is closed here then.
fn reply(
    link: BorrowedFd<'_>,
    one_at_a_time: &Mutex<()>,
    number: u64,
    result: Result<(Answer, Option<OwnedFd>), Refusal>,
) {
    let (result, file) = match result {
        Ok((answer, file)) => (Ok(answer), file),
        Err(refusal) => (Err(refusal), None),
    };
    let _guard = one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
    let files: Vec<_> = file.iter().map(AsFd::as_fd).collect();
    let mut sent = link::send(link, &Reply { number, result }, &files);
    if sent.is_err() && !files.is_empty() {
        // As when too many files are on their way. Whoever waits must hear something.
        let without = Reply { number, result: Err(Refusal::new("the file of a mount cannot be sent to the worker")) };
        sent = link::send(link, &without, &[]);
    }
    if let Err(error) = sent {
        // The worker has ended: the link's reader sees that too.
        tracing::debug!(%error, "nobody to reply to");
    }
}

/// Held by each thread of the process until it ends, one that waits in the kernel as well.
fn lock_file(run_dir: &Path) -> io::Result<fs::File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(run_dir.join("mounter.lock"))
}

/// Waits until no other mounter works here. `false` when the worker has ended meanwhile.
fn take(lock: &fs::File, link: BorrowedFd<'_>) -> io::Result<bool> {
    loop {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
        let period = Timespec { tv_sec: 0, tv_nsec: LOCK_PERIOD };
        let mut waits = [PollFd::new(&link, PollFlags::RDHUP)];
        match poll(&mut waits, Some(&period)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if waits[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP) {
            return Ok(false);
        }
    }
}
