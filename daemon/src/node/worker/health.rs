//! How the daemon is, for whoever looks after it.
//!
//! A registry that is away is no reason to end the daemon, which serves all else: so the health is degraded then, and says which image's
//! readers wait since when and why.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lazo_storage::{Tried, Trouble};

use super::Worker;
use super::image::Image;
use crate::node::files;
use crate::node::protocol::{Health, Mode, Served, SourceTrouble, Status, WaitingImage};

/// Most problems, and most images that wait, in one answer: a registry that is away concerns hundreds at once.
const MAX_PROBLEMS: usize = 32;

/// Most sources of one image in an answer.
const MAX_SOURCES: usize = 8;

/// How often the service manager is told, if there is something new to tell.
const TELL: Duration = Duration::from_secs(5);

impl Worker {
    pub(super) fn health(&self) -> Health {
        let (failed, mut waiting) = self.what_is_wrong();
        waiting.sort_by_key(|image| image.since);
        let (wrong, waits) = (failed.len() + waiting.len(), waiting.len());
        waiting.truncate(MAX_PROBLEMS);
        let mut problems: Vec<String> = failed.into_iter().take(MAX_PROBLEMS).collect();
        let room = MAX_PROBLEMS - problems.len();
        problems.extend(waiting.iter().take(room).map(problem));
        if wrong > problems.len() {
            problems.pop();
            problems.push(format!("and {} more, {waits} in all whose readers wait", wrong - problems.len()));
        }
        let ok = problems.is_empty();
        Health {
            ok,
            status: if ok { Status::Ok } else { Status::Degraded },
            problems,
            waiting,
            mode: self.choose(Mode::Auto).unwrap_or(Served::Erofs),
            no_erofs: self.no_erofs(),
            worker_pid: std::process::id(),
            supervisor_pid: rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get().cast_unsigned()),
            since: self.since,
            worker_since: self.worker_since,
            restarts: self.restarts,
            upgrades: self.upgrades,
        }
    }

    /// Images that cannot be served, and those whose readers wait.
    fn what_is_wrong(&self) -> (Vec<String>, Vec<WaitingImage>) {
        let (mut failed, mut waiting) = (Vec::new(), Vec::new());
        let tables = self.tables();
        for image in tables.images.values().chain(tables.lingering.values()) {
            match &image.fs {
                Err(reason) => failed.push(format!("image {}: {reason}", image.record.image)),
                Ok(fs) => waiting.extend(fs.reader().trouble().map(|trouble| waits(image, trouble))),
            }
        }
        if *self.ready.borrow() && !tables.restoring.is_empty() {
            failed.push(format!("{} images are still being opened, and reads of them wait", tables.restoring.len()));
        }
        drop(tables);
        failed.extend(files::check_room().err().map(|refusal| refusal.error));
        (failed, waiting)
    }

    /// Whether new mounts are made, and all that is mounted can be read.
    pub(super) fn is_ready(&self) -> bool {
        self.stopping.get().is_none() && !self.leaving.load(Ordering::Relaxed) && files::check_room().is_ok()
    }

    /// Tells the service manager how it is, as long as this process lives.
    pub(super) fn keep_telling(self: &Arc<Self>) {
        let worker = Arc::clone(self);
        self.runtime.spawn(async move {
            let mut told = String::new();
            loop {
                let text = status(&worker.health(), worker.tables().mounts.len());
                if text != told {
                    worker.keeper.status(text.clone());
                    told = text;
                }
                tokio::time::sleep(TELL).await;
            }
        });
    }
}

fn waits(image: &Image, trouble: Trouble) -> WaitingImage {
    let source = |tried: Tried| SourceTrouble {
        source: tried.source.to_string(),
        error: tried.cause.map(|cause| cause.text.to_string()),
    };
    WaitingImage {
        image: image.record.image.clone(),
        slot: u64::from(image.record.slot),
        blobs: trouble.blobs as u64,
        requests: trouble.waiting,
        since: crate::node::now().saturating_sub(trouble.since.as_secs()),
        failing: trouble.failing,
        sources: trouble.tried.into_iter().take(MAX_SOURCES).map(source).collect(),
    }
}

/// In words. They stay the same as long as the problem does.
fn problem(waiting: &WaitingImage) -> String {
    let WaitingImage { image, failing, sources, .. } = waiting;
    let what = if *failing { "reads fail" } else { "readers wait" };
    let why: Vec<String> = sources
        .iter()
        .map(|SourceTrouble { source, error }| format!("{source}: {}", error.as_deref().unwrap_or("not asked")))
        .collect();
    format!("image {image}: {what}, as no source serves its data: {}", why.join("; "))
}

/// A line for the service manager.
fn status(health: &Health, mounts: usize) -> String {
    match &*health.problems {
        [] => format!("{mounts} mounts, all is well"),
        [first, rest @ ..] => {
            // What would end the line would end the message, too.
            let first = first.replace(|c: char| c.is_control(), " ");
            let more = if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) };
            format!("{mounts} mounts, degraded: {first}{more}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_say_who_waits_and_why() {
        let source = |source: &str, error: Option<&str>| SourceTrouble {
            source: source.to_owned(),
            error: error.map(str::to_owned),
        };
        let mut waiting = WaitingImage {
            image: "docker://h/r:1".to_owned(),
            slot: 1,
            blobs: 2,
            requests: 3,
            since: 0,
            failing: false,
            sources: vec![source("docker://h/r", Some("connection refused")), source("oci:/b", None)],
        };
        let text = "image docker://h/r:1: readers wait, as no source serves its data: docker://h/r: connection refused; \
                    oci:/b: not asked";
        assert_eq!(problem(&waiting), text);
        waiting.failing = true;
        assert!(problem(&waiting).contains("reads fail"));
    }
}
