//! Metadata of snapshots: one redb database, one transaction a change.
//!
//! A snapshot is known by its name, which is its key until it is committed. It also has a number, which it keeps for life, which names
//! its directory and its image's mount, and which no other snapshot ever gets.
//!
//! A change is on the disk when [`Store::change`] returns, and after a crash there wholly or not at all.

use std::collections::BTreeSet;
use std::path::Path;

use prost::Message;
use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    TableError,
};

pub use self::record::{Image, Kind, Owners, Record, Role};

mod record;

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

/// The database.
#[derive(Debug)]
pub struct Store {
    database: Database,
}

impl Store {
    /// Opens the database in a file, which is made if it is not there.
    ///
    /// # Errors
    /// When it cannot be, above all while another process has it open.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::builder().set_cache_size(CACHE).create(path);
        let store = Self { database: database.map_err(|source| StoreError::Open { source })? };
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
        get(&self.database.begin_read()?.open_table(SNAPSHOTS)?, name)
    }

    /// A snapshot and its parents, up to the one that has none.
    ///
    /// # Errors
    /// When the database fails.
    pub fn chain(&self, name: &str) -> Result<Vec<Record>, StoreError> {
        chain(&self.database.begin_read()?.open_table(SNAPSHOTS)?, name)
    }

    /// Shows all snapshots, in the order of their names.
    ///
    /// # Errors
    /// When the database fails.
    pub fn each(&self, mut show: impl FnMut(&str, Record)) -> Result<(), StoreError> {
        let table = self.database.begin_read()?.open_table(SNAPSHOTS)?;
        for entry in table.iter()? {
            let (name, value) = entry?;
            show(name.value(), decode(name.value(), value.value())?);
        }
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
        let transaction: ReadTransaction = self.database.begin_read()?;
        Ok(transaction.open_table(NUMBERS)?.get(NEXT)?.map_or(1, |next| next.value()))
    }

    /// Changes the metadata: all that `work` does, or nothing if it fails. One change is made at a time.
    ///
    /// # Errors
    /// Those of `work`, and when the database fails.
    pub fn change<T, E: From<StoreError>>(&self, work: impl FnOnce(&mut Change<'_>) -> Result<T, E>) -> Result<T, E> {
        let transaction = self.database.begin_write().map_err(StoreError::from)?;
        let done = {
            let mut change = Change::of(&transaction)?;
            work(&mut change)?
        };
        transaction.commit().map_err(StoreError::from)?;
        Ok(done)
    }
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
