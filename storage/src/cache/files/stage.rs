//! What a data file may still go through, and the note that one was verified.
//!
//! A sealed file is read by the kernel as it is, without this program in between, and that goes on when every process of this
//! program has been killed. So two things are kept, each where nobody can separate it from what it is about:
//!
//! - The *stage*, in the mode bits of the data file itself, says what nobody may do to this inode any more. It does not depend on
//!   the note: if that is lost, the prohibition stays.
//! - The *note* `sealed` beside it vouches for the content: all of it was verified, in this boot, as this very file of this blob. It is
//!   believed only if each of these is still so.
//!
//! Both change only under an exclusive lock of a byte of the data file; who writes to the file holds it shared.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{DATA, FILE_MODE, Files, is_same};
use crate::cache::lock::{self, Kind};
use crate::image::stamp::Identity;

/// Name of the note.
pub(in crate::cache) const NOTE: &str = "sealed";

/// Changes when the note's meaning does; an older note is as good as none.
const VERSION: u32 = 1;

/// The byte of the data file that is locked by who writes to it, shared, and by who changes its stage, exclusively. In the data file
/// and not in the lock file: that may be removed and made again, and then two who lock it do not see each other.
const STAGE: lock::Byte = 1;

/// Mode bits of the stages, without meaning for a file that only its owner may touch.
const SEALED_MODE: u32 = FILE_MODE | 0o100;
const GIVEN_MODE: u32 = SEALED_MODE | 0o1000;

/// What may be done to a data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum Stage {
    /// Chunks are written and punched.
    Open,
    /// All chunks are there: nobody writes. Who has the blob's lock exclusively may make it open again.
    Sealed,
    /// The kernel has been given it, and may read it whether or not anybody still has a lock: nobody writes or punches, for as long as
    /// this boot lasts. It can only be removed.
    Given,
}

impl Stage {
    fn of(metadata: &std::fs::Metadata) -> Self {
        match metadata.mode() {
            mode if mode & GIVEN_MODE == GIVEN_MODE => Self::Given,
            mode if mode & SEALED_MODE == SEALED_MODE => Self::Sealed,
            _ => Self::Open,
        }
    }

    /// Removes the note in a directory whose data file is being replaced.
    pub(super) fn forget(dir: &Path) -> io::Result<()> {
        Note::remove(dir)
    }

    fn mode(self) -> u32 {
        match self {
            Self::Open => FILE_MODE,
            Self::Sealed => SEALED_MODE,
            Self::Given => GIVEN_MODE,
        }
    }
}

/// The note in `sealed`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    version: u32,
    /// Name of the blob's directory, which has the digests of the blob and of its chunk table.
    blob: String,
    data: Identity,
}

impl Note {
    fn read(dir: &Path) -> Option<Self> {
        Self::parse(&std::fs::read(dir.join(NOTE)).ok()?)
    }

    /// The note in a file's content; `None` for one of another version or none at all.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let note: Self = serde_json::from_slice(bytes).ok()?;
        (note.version == VERSION).then_some(note)
    }

    pub(crate) fn to_json(&self) -> io::Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(io::Error::other)
    }

    fn write(dir: &Path, data: &Identity) -> io::Result<()> {
        let blob = name(dir).ok_or(io::ErrorKind::InvalidFilename)?;
        let note = Self { version: VERSION, blob, data: data.clone() };
        // Another boot does not believe it, so that it need not be synced.
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(&note.to_json()?)?;
        file.persist(dir.join(NOTE))?;
        Ok(())
    }

    fn remove(dir: &Path) -> io::Result<()> {
        match std::fs::remove_file(dir.join(NOTE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn vouches_for(&self, dir: &Path, data: &File) -> io::Result<bool> {
        let same_blob = name(dir).is_some_and(|name| name == self.blob);
        Ok(same_blob && self.data.is_of_this_boot() && self.data == Identity::of(data)?)
    }
}

fn name(dir: &Path) -> Option<String> {
    Some(dir.file_name()?.to_str()?.to_owned())
}

/// How many threads write, so that the first takes the lock and the last gives it up: it belongs to the opened file and is not counted.
#[derive(Debug, Default)]
pub(super) struct Writers(Mutex<u32>);

impl Writers {
    fn lock(&self) -> MutexGuard<'_, u32> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to write to the data file. Nobody changes its stage meanwhile.
#[derive(Debug)]
pub(in crate::cache) struct Writing<'a>(&'a Files);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut writers = self.0.writers.lock();
        *writers -= 1;
        if *writers == 0 {
            // Should the kernel fail, nobody seals the file until this process ends.
            let _ = lock::try_lock(&self.0.data, STAGE, Kind::Unlocked);
        }
    }
}

/// The right to change a data file's stage and note. Nobody writes to the file meanwhile.
#[derive(Debug)]
pub(in crate::cache) struct StageLock {
    /// The same data file, opened anew, so that threads of a process exclude each other as processes do.
    data: File,
}

impl Files {
    pub(in crate::cache) fn stage(&self) -> io::Result<Stage> {
        Ok(Stage::of(&self.data.metadata()?))
    }

    /// The right to write. `None` if the file is sealed, or somebody is about to change its stage.
    pub(in crate::cache) fn begin_write(&self) -> io::Result<Option<Writing<'_>>> {
        let mut writers = self.writers.lock();
        if *writers == 0 && !lock::try_lock(&self.data, STAGE, Kind::Shared)? {
            return Ok(None);
        }
        *writers += 1;
        drop(writers);
        let writing = Writing(self);
        // Looked at under the lock: who changes it holds that alone.
        Ok((self.stage()? == Stage::Open).then_some(writing))
    }

    /// The right to change the stage. `None` if others write, or have it, for longer than `patience`; or if the data file is no longer the
    /// one in `dir`.
    pub(in crate::cache) fn lock_stage(&self, dir: &Path, patience: Duration) -> io::Result<Option<StageLock>> {
        let data = OpenOptions::new().read(true).write(true).open(dir.join(DATA))?;
        let same = is_same(&data.metadata()?, &self.data.metadata()?);
        Ok((same && lock::lock(&data, STAGE, Kind::Exclusive, patience)?).then_some(StageLock { data }))
    }

    /// Whether the data file is sealed, and the note says so of this very file.
    pub(in crate::cache) fn is_vouched_for(&self, dir: &Path) -> bool {
        is_vouched_for(dir, &self.data)
    }

    /// Makes a sealed file one that can be written and punched, if nobody can have been given it. For who has seized the files.
    pub(in crate::cache) fn thaw(&self, dir: &Path) -> io::Result<bool> {
        if self.stage()? == Stage::Open {
            return Ok(true);
        }
        let Some(lock) = self.lock_stage(dir, Duration::ZERO)? else { return Ok(false) };
        if lock.stage()? == Stage::Given && !was_given_in_another_boot(dir) {
            return Ok(false);
        }
        // In this order: the note of an open file is worth nothing.
        lock.set_stage(Stage::Open)?;
        Note::remove(dir)?;
        Ok(true)
    }

    /// Whether the kernel may be reading the file by itself.
    pub(in crate::cache) fn is_given(&self, dir: &Path) -> bool {
        // What cannot be found out is taken for the worse.
        !matches!(self.stage(), Ok(Stage::Open | Stage::Sealed)) && !was_given_in_another_boot(dir)
    }

    /// Withdraws what the note says: the file was found damaged.
    pub(in crate::cache) fn withdraw(&self, dir: &Path) {
        if self.stage().is_ok_and(|stage| stage != Stage::Open) {
            let _ = Note::remove(dir);
        }
    }

    /// Removes a sealed data file that is damaged, so that a new one is made; who has been given it keeps it.
    pub(in crate::cache) fn discard(&self, dir: &Path) -> io::Result<()> {
        let lock = self.lock_stage(dir, Duration::ZERO)?;
        let _lock = lock.ok_or_else(|| io::Error::other("the blob's file is just being sealed"))?;
        Note::remove(dir)?;
        std::fs::remove_file(dir.join(DATA))
    }
}

/// Whether a file, opened by whatever way, is a sealed one for which the note in `dir` vouches.
fn is_vouched_for(dir: &Path, data: &File) -> bool {
    let sealed = data.metadata().is_ok_and(|metadata| Stage::of(&metadata) != Stage::Open);
    sealed && Note::read(dir).is_some_and(|note| note.vouches_for(dir, data).unwrap_or(false))
}

/// Without a note nobody knows when it was.
fn was_given_in_another_boot(dir: &Path) -> bool {
    Note::read(dir).is_some_and(|note| note.data.is_of_another_boot())
}

impl StageLock {
    pub(in crate::cache) fn data(&self) -> &File {
        &self.data
    }

    fn stage(&self) -> io::Result<Stage> {
        Ok(Stage::of(&self.data.metadata()?))
    }

    fn set_stage(&self, stage: Stage) -> io::Result<()> {
        self.data.set_permissions(Permissions::from_mode(stage.mode()))?;
        if self.stage()? != stage {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the file system keeps no mode bits"));
        }
        Ok(())
    }

    /// From here on nobody writes. Identity of the file that is to be verified now.
    pub(in crate::cache) fn freeze(&self, dir: &Path) -> io::Result<Identity> {
        let given = self.stage()? == Stage::Given && !was_given_in_another_boot(dir);
        // First, so that an old note is never beside a file that is sealed anew.
        Note::remove(dir)?;
        self.set_stage(if given { Stage::Given } else { Stage::Sealed })?;
        Identity::of(&self.data)
    }

    /// All of the file that was frozen as `verified` has been verified. False if something happened to it meanwhile.
    pub(in crate::cache) fn vouch(&self, dir: &Path, verified: &Identity) -> io::Result<bool> {
        if self.stage()? == Stage::Open || Identity::of(&self.data)? != *verified {
            return Ok(false);
        }
        Note::write(dir, verified)?;
        Ok(is_vouched_for(dir, &self.data))
    }

    /// The file was found damaged while it was verified: it may be repaired, unless somebody has been given it.
    pub(in crate::cache) fn give_up(&self) -> io::Result<()> {
        if self.stage()? == Stage::Sealed { self.set_stage(Stage::Open) } else { Ok(()) }
    }

    /// Marks a file for which the note vouches as given to the kernel. False if it does not.
    pub(in crate::cache) fn give(&self, dir: &Path) -> io::Result<bool> {
        if !is_vouched_for(dir, &self.data) {
            return Ok(false);
        }
        if self.stage()? != Stage::Given {
            // That changes what the note tells the file by: its time of change, and nothing else.
            let before = Identity::of(&self.data)?;
            self.set_stage(Stage::Given)?;
            let after = Identity::of(&self.data)?;
            if !before.is_same_content(&after) {
                return Ok(false);
            }
            Note::write(dir, &after)?;
        }
        Ok(is_vouched_for(dir, &self.data))
    }
}
