//! Metadata of snapshots: one redb database, one transaction a change.
//!
//! A snapshot is known by its name, which is its key until it is committed. It also has a number, which it keeps for life, which names
//! its directory and its image's mount, and which no other snapshot ever gets.
//!
//! A change is on the disk when [`Store::change`] returns, and after a crash there wholly or not at all.
//!
//! After one I/O error, such as that of a full disk, redb refuses everything for as long as the database is open. So it is opened
//! again then, which finds what was committed. Beside it lies a reserve of disk space, which removals may use up: they
//! are what makes room again.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use prost::Message;
use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    TableError,
};
use rustix::fs::{FallocateFlags, fallocate};

pub use self::record::{Image, Kind, Owners, Record, Role};

mod record;
#[cfg(test)]
mod tests;

/// Records by name.
const SNAPSHOTS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("snapshots");
/// Numbers of a parent and of a child.
const CHILDREN: TableDefinition<'static, (u64, u64), ()> = TableDefinition::new("children");
/// Digest of a blob and number of a snapshot of it.
const BLOBS: TableDefinition<'static, (&str, u64), ()> = TableDefinition::new("blobs");
/// [`VERSION`] and [`NEXT`].
const NUMBERS: TableDefinition<'static, &str, u64> = TableDefinition::new("numbers");

/// Name of the format's version in [`NUMBERS`].
const VERSION: &str = "version";
/// Name of the next snapshot's number in [`NUMBERS`].
const NEXT: &str = "next";

/// Format of tables and records.
const THIS_VERSION: u64 = 1;

/// What redb may keep in memory, in bytes; a record takes about one KiB. Its own default is 1 GiB.
const CACHE: usize = 8 << 20;

/// Disk space that is kept for removals, in bytes. A change writes some pages of 4 KiB anew, and the file grows by at most as much as
/// it has, which is a megabyte for some hundred snapshots.
const RESERVE: u64 = 4 << 20;

/// Longest chain of parents. Images have at most 127 layers elsewhere, and overlayfs takes at most 500; a damaged database must not be
/// followed in circles.
const MAX_CHAIN: usize = 4096;

/// The database fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It cannot be opened.
    #[error("cannot open the snapshots' metadata{}", if matches!(source, DatabaseError::DatabaseAlreadyOpen) { "; is another `lazo snapshotter` running?" } else { "" })]
    Open {
        /// Cause.
        source: DatabaseError,
    },
    /// It was written by another version.
    #[error("the snapshots' metadata has format {0}, which this version of lazo does not know")]
    Version(u64),
    /// Reading or writing fails.
    #[error("the snapshots' metadata cannot be read or written")]
    Database(#[from] Box<redb::Error>),
    /// A record makes no sense.
    #[error("the metadata of snapshot {name} is damaged")]
    Record {
        /// Whose.
        name: String,
        /// Cause, if it is the encoding.
        source: Option<prost::DecodeError>,
    },
}

/// Lets `?` take any of redb's errors.
macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        }
    )*};
}
from_redb!(StorageError, TableError, redb::TransactionError, redb::CommitError);

impl StoreError {
    /// Whether redb has met an I/O error before, and so will not even try.
    fn is_latched(&self) -> bool {
        matches!(self, Self::Database(error) if matches!(**error, redb::Error::PreviousIo))
    }
}

/// The database.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    reserve: PathBuf,
    open: RwLock<Open>,
}

#[derive(Debug)]
struct Open {
    /// `None` when it could not be opened again.
    database: Option<Database>,
    /// How often it was opened.
    times: u64,
}

impl Store {
    /// Opens the database in a file, which is made if it is not there.
    ///
    /// # Errors
    /// When it cannot be, above all while another process has it open.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let open = RwLock::new(Open { database: Some(open_database(path)?), times: 1 });
        let store = Self { path: path.to_owned(), reserve: path.with_extension("reserve"), open };
        store.keep_reserve();
        store.change(|change| {
            let version = change.numbers.get(VERSION)?.map_or(THIS_VERSION, |version| version.value());
            if version != THIS_VERSION {
                return Err(StoreError::Version(version));
            }
            change.numbers.insert(VERSION, THIS_VERSION)?;
            Ok(())
        })?;
        Ok(store)
    }

    /// A snapshot's record.
    ///
    /// # Errors
    /// When the database fails.
    pub fn get(&self, name: &str) -> Result<Option<Record>, StoreError> {
        self.read(|transaction| get(&transaction.open_table(SNAPSHOTS)?, name))
    }

    /// A snapshot and its parents, up to the one that has none.
    ///
    /// # Errors
    /// When the database fails.
    pub fn chain(&self, name: &str) -> Result<Vec<Record>, StoreError> {
        self.read(|transaction| chain(&transaction.open_table(SNAPSHOTS)?, name))
    }

    /// Shows all snapshots, in the order of their names.
    ///
    /// # Errors
    /// When the database fails.
    pub fn each(&self, mut show: impl FnMut(&str, Record)) -> Result<(), StoreError> {
        let all = self.read(|transaction| {
            let mut all = Vec::new();
            for entry in transaction.open_table(SNAPSHOTS)?.iter()? {
                let (name, value) = entry?;
                all.push((name.value().to_owned(), decode(name.value(), value.value())?));
            }
            Ok(all)
        })?;
        all.into_iter().for_each(|(name, record)| show(&name, record));
        Ok(())
    }

    /// The numbers of all snapshots.
    ///
    /// # Errors
    /// When the database fails.
    pub fn ids(&self) -> Result<BTreeSet<u64>, StoreError> {
        let mut ids = BTreeSet::new();
        self.each(|_, record| {
            ids.insert(record.id);
        })?;
        Ok(ids)
    }

    /// The number from which on none was given to a snapshot yet.
    ///
    /// # Errors
    /// When the database fails.
    pub fn next(&self) -> Result<u64, StoreError> {
        self.read(|transaction| Ok(transaction.open_table(NUMBERS)?.get(NEXT)?.map_or(1, |next| next.value())))
    }

    fn read<T>(&self, look: impl Fn(&ReadTransaction) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.with(|database| look(&database.begin_read()?))
    }

    /// Uses the database; opens it again and tries once more if redb has met an I/O error before.
    fn with<T>(&self, work: impl Fn(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let times = {
            let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
            match open.database.as_ref().map(&work) {
                Some(Err(error)) if error.is_latched() => open.times,
                Some(done) => return done,
                None => open.times,
            }
        };
        self.open_again(times)?;
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.database.as_ref().map_or_else(|| Err(redb::StorageError::DatabaseClosed.into()), work)
    }

    /// Opens the database again, unless somebody has since it was opened for so many times.
    fn open_again(&self, times: u64) -> Result<(), StoreError> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.database.is_none() || open.times == times {
            // The old one's lock on the file goes first.
            open.database = None;
            open.database = Some(open_database(&self.path)?);
            open.times += 1;
            tracing::warn!(path = %self.path.display(), "the snapshots' metadata was opened again after an I/O error");
        }
        Ok(())
    }

    /// Takes disk space for [`Store::change_at_last`], if there is plenty and none has been taken.
    pub fn keep_reserve(&self) {
        if fs::metadata(&self.reserve).is_ok_and(|file| file.len() == RESERVE) || self.free_space() < 2 * RESERVE {
            return;
        }
        let taken = File::create(&self.reserve)
            .map_err(|error| error.to_string())
            .and_then(|file| fallocate(file, FallocateFlags::empty(), 0, RESERVE).map_err(|error| error.to_string()));
        if let Err(error) = taken {
            tracing::debug!(error, "no disk space can be kept for removals");
            let _ = fs::remove_file(&self.reserve);
        }
    }

    /// Bytes that can be written below the database's directory; none if that cannot be told.
    fn free_space(&self) -> u64 {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        rustix::fs::statvfs(directory).map_or(0, |space| space.f_bavail.saturating_mul(space.f_frsize))
    }

    /// [`Store::change`], for a change that makes room: on a full disk it may use the reserve.
    ///
    /// # Errors
    /// As of [`Store::change`].
    pub fn change_at_last<T, E: From<StoreError>>(
        &self,
        work: impl Fn(&mut Change<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        match self.change(&work) {
            Err(_) if self.free_space() < RESERVE && fs::remove_file(&self.reserve).is_ok() => self.change(work),
            done => done,
        }
    }

    /// Changes the metadata: all that `work` does, or nothing if it fails. One change is made at a time.
    ///
    /// # Errors
    /// Those of `work`, and when the database fails.
    pub fn change<T, E: From<StoreError>>(&self, work: impl FnOnce(&mut Change<'_>) -> Result<T, E>) -> Result<T, E> {
        let transaction = self.with(|database| Ok(database.begin_write()?))?;
        let done = {
            let mut change = Change::of(&transaction)?;
            work(&mut change)?
        };
        transaction.commit().map_err(StoreError::from)?;
        Ok(done)
    }
}

fn open_database(path: &Path) -> Result<Database, StoreError> {
    Database::builder().set_cache_size(CACHE).create(path).map_err(|source| StoreError::Open { source })
}

/// A change under way.
#[derive(Debug)]
pub struct Change<'a> {
    snapshots: redb::Table<'a, &'static str, &'static [u8]>,
    children: redb::Table<'a, (u64, u64), ()>,
    blobs: redb::Table<'a, (&'static str, u64), ()>,
    numbers: redb::Table<'a, &'static str, u64>,
}

impl<'a> Change<'a> {
    fn of(transaction: &'a redb::WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            snapshots: transaction.open_table(SNAPSHOTS)?,
            children: transaction.open_table(CHILDREN)?,
            blobs: transaction.open_table(BLOBS)?,
            numbers: transaction.open_table(NUMBERS)?,
        })
    }
}

impl Change<'_> {
    /// A snapshot's record.
    ///
    /// # Errors
    /// When the database fails.
    pub fn get(&self, name: &str) -> Result<Option<Record>, StoreError> {
        get(&self.snapshots, name)
    }

    /// Adds a snapshot.
    ///
    /// # Errors
    /// When the database fails.
    pub fn insert(&mut self, name: &str, record: &Record) -> Result<(), StoreError> {
        self.put(name, record)?;
        if let Some(parent) = self.parent(record)? {
            self.children.insert((parent, record.id), ())?;
        }
        if let Some(blob) = record.blob() {
            self.blobs.insert((blob, record.id), ())?;
        }
        let next = self.numbers.get(NEXT)?.map_or(1, |next| next.value());
        self.numbers.insert(NEXT, next.max(record.id + 1))?;
        Ok(())
    }

    /// Replaces the record of a snapshot, whose number, parent and role stay as they are.
    ///
    /// # Errors
    /// When the database fails.
    pub fn put(&mut self, name: &str, record: &Record) -> Result<(), StoreError> {
        self.snapshots.insert(name, record.encode_to_vec().as_slice())?;
        Ok(())
    }

    /// The same for a snapshot that gets another name.
    ///
    /// # Errors
    /// When the database fails.
    pub fn rename(&mut self, old: &str, new: &str, record: &Record) -> Result<(), StoreError> {
        self.snapshots.remove(old)?;
        self.put(new, record)
    }

    /// Removes a snapshot that has no children.
    ///
    /// # Errors
    /// When the database fails.
    pub fn remove(&mut self, name: &str, record: &Record) -> Result<(), StoreError> {
        if let Some(parent) = self.parent(record)? {
            self.children.remove((parent, record.id))?;
        }
        if let Some(blob) = record.blob() {
            self.blobs.remove((blob, record.id))?;
        }
        self.snapshots.remove(name)?;
        Ok(())
    }

    /// Whether a snapshot of this number is a parent.
    ///
    /// # Errors
    /// When the database fails.
    pub fn has_children(&self, id: u64) -> Result<bool, StoreError> {
        Ok(self.children.range((id, 0)..=(id, u64::MAX))?.next().transpose()?.is_some())
    }

    /// Whether there is a snapshot of this blob.
    ///
    /// # Errors
    /// When the database fails.
    pub fn has_blob(&self, digest: &str) -> Result<bool, StoreError> {
        Ok(self.blobs.range((digest, 0)..=(digest, u64::MAX))?.next().transpose()?.is_some())
    }

    fn parent(&self, record: &Record) -> Result<Option<u64>, StoreError> {
        if record.parent.is_empty() {
            return Ok(None);
        }
        match self.get(&record.parent)? {
            Some(parent) => Ok(Some(parent.id)),
            None => Err(damaged(&record.parent)),
        }
    }
}

fn get(table: &impl ReadableTable<&'static str, &'static [u8]>, name: &str) -> Result<Option<Record>, StoreError> {
    table.get(name)?.map(|value| decode(name, value.value())).transpose()
}

fn chain(table: &impl ReadableTable<&'static str, &'static [u8]>, name: &str) -> Result<Vec<Record>, StoreError> {
    let mut records: Vec<Record> = Vec::new();
    let mut next = name.to_owned();
    while !next.is_empty() {
        match get(table, &next)? {
            Some(record) if records.len() < MAX_CHAIN => {
                next.clone_from(&record.parent);
                records.push(record);
            }
            None if records.is_empty() => break,
            _ => return Err(damaged(&next)),
        }
    }
    Ok(records)
}

fn decode(name: &str, bytes: &[u8]) -> Result<Record, StoreError> {
    Record::decode(bytes).map_err(|source| StoreError::Record { name: name.to_owned(), source: Some(source) })
}

fn damaged(name: &str) -> StoreError {
    StoreError::Record { name: name.to_owned(), source: None }
}
