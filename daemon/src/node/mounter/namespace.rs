//! User namespaces, which tell the kernel how to map the ids of a mount.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::num::NonZero;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

use super::{IdMap, Refusal, sys};
use crate::error::{Error, Result};

/// Namespaces that are kept for the next mount: making one takes a process and some milliseconds.
const MAX_KEPT: NonZero<usize> = NonZero::new(16).expect("not zero");

/// Makes user namespaces by starting a process for each.
pub(super) struct Namespaces {
    program: Vec<OsString>,
    kept: Mutex<LruCache<IdMap, Arc<File>>>,
}

impl Namespaces {
    /// The program, its path and arguments, goes into a new user namespace, writes a byte and waits for the end of its input.
    pub(super) fn new(program: Vec<OsString>) -> Self {
        Self { program, kept: Mutex::new(LruCache::new(MAX_KEPT)) }
    }

    /// A namespace with these ids.
    pub(super) fn get(&self, map: &IdMap) -> Result<Arc<File>, Refusal> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(namespace) = kept().get(map) {
            return Ok(Arc::clone(namespace));
        }
        let namespace = Arc::new(self.make(map)?);
        kept().put(map.clone(), Arc::clone(&namespace));
        Ok(namespace)
    }

    fn make(&self, map: &IdMap) -> Result<File, Refusal> {
        let mut inside = Inside(self.start().map_err(Refusal::io("start a process in a new user namespace"))?);
        let Child { stdout: Some(ready), .. } = &mut inside.0 else { return Err(Refusal::new("no pipe")) };
        ready.read_exact(&mut [0]).map_err(Refusal::io(
            "make a user namespace; are there any (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone)?",
        ))?;
        let process = format!("/proc/{}", inside.0.id());
        for (file, ids) in [("uid_map", map.uids()), ("gid_map", map.gids())] {
            fs::write(format!("{process}/{file}"), ids).map_err(Refusal::io(format!("map ids by {map}")))?;
        }
        File::open(format!("{process}/ns/user")).map_err(Refusal::io("open a user namespace"))
    }

    fn start(&self) -> io::Result<Child> {
        let (path, arguments) = self.program.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        Command::new(path).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
    }
}

/// A process that only waits; ended when this is dropped.
struct Inside(Child);

impl Drop for Inside {
    fn drop(&mut self) {
        // Errors: it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Goes into a new user namespace and waits for the end of stdin.
///
/// # Errors
/// When there can be none.
pub(in crate::node) fn run_user_namespace() -> Result<()> {
    let failed = || Error::io::<io::Error>("make a user namespace");
    sys::new_user_namespace().map_err(io::Error::from).map_err(failed())?;
    let mut stdout = io::stdout();
    stdout.write_all(b"\n").and_then(|()| stdout.flush()).map_err(failed())?;
    io::copy(&mut io::stdin(), &mut io::sink()).map_err(failed())?;
    Ok(())
}
