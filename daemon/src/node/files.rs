//! Open files: how many there may be, and whether there is room for more.
//!
//! Where no more can be opened, nothing works that a person would do about it. So mounts are refused before it comes to that, and some
//! files are left for what is mounted: the sources' connections, the blobs' caches, the API, and a worker that takes over.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::protocol::{ApiError, ErrorKind};

/// What the hard limit is raised to if that may be done: blobs of thousands of images.
const WANTED: u64 = 1 << 20;

/// With fewer than these, hundreds of images have no room, each of which takes four, and three a blob.
const ENOUGH: u64 = 8192;

/// Of the limit, this part is left when mounts are made, at most so many.
const LEFT_PART: u64 = 4;
const MOST_LEFT: u64 = 256;

/// Raises the limit, the hard one too if that may be done.
pub(super) fn raise_limit() {
    let now = getrlimit(Resource::Nofile);
    let wanted = now.maximum.map(|maximum| maximum.max(WANTED));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: wanted, maximum: wanted })
        .or_else(|_| setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum }));
    if let Err(error) = raised {
        tracing::warn!(%error, limit = now.current, "cannot raise the limit of open files");
    }
}

/// Says so when the limit is low.
pub(super) fn warn_if_few() {
    let limit = limit();
    if limit < ENOUGH {
        tracing::warn!(
            limit,
            "few files may be open at a time, so that mounts will be refused when there are many: raise LimitNOFILE= of the service, or \
             the hard limit (ulimit -Hn)"
        );
    }
}

/// How many may be open.
pub(super) fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// # Errors
/// When a mount would take files that are needed for what is mounted.
pub(super) fn check_room() -> Result<(), ApiError> {
    let limit = limit();
    let left = (limit / LEFT_PART).min(MOST_LEFT);
    let open = open_now().unwrap_or(limit);
    if open.saturating_add(left) <= limit { Ok(()) } else { Err(none_left()) }
}

/// Why something cannot be done.
pub(super) fn none_left() -> ApiError {
    let limit = limit();
    let text = format!(
        "the node daemon has too many open files: {limit} may be open. Unmount what is not needed, or raise LimitNOFILE= of the service, \
         or the hard limit (ulimit -Hn) of whoever starts it, and start it again"
    );
    ApiError::new(ErrorKind::Unavailable, text)
}

/// How many are open. From Linux 6.2 on the directory's size says so; to list 10,000 of them takes 20 ms.
fn open_now() -> io::Result<u64> {
    match std::fs::metadata("/proc/self/fd")?.len() {
        0 => Ok((std::fs::read_dir("/proc/self/fd")?.count() as u64).saturating_sub(1)),
        count => Ok(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_counted() {
        // Other tests open and close files meanwhile.
        let held: Vec<_> = (0..500).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        assert!(open_now().unwrap() >= held.len() as u64);
        assert!(none_left().error.contains("LimitNOFILE"));
    }
}
