//! Durable objects and their history, in one SQLite file.
//!
//! One thread writes, and writes of many callers share one transaction and so one fsync (`writer`). Reads go through a few
//! connections of their own and never wait for the writer. Every change is also a row of `history`, which is what watches
//! read: a bounded tail of it is kept in memory (`history`), the rest comes from the file.

mod history;
mod reader;
mod reserve;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use tokio::sync::watch;

use self::reserve::Reserve;
pub use history::{Batch, EventKind, HistoryEvent};
pub use reader::ListRequest;
pub use writer::{Change, WriteError};

/// Where an object lives: the storage name of its resource (`group/plural`), its namespace (empty for cluster scope), its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// `group/plural` of the resource that stores it.
    pub resource: Arc<str>,
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/registry/{}/", self.resource)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// An object as it stands in the file: JSON in its storage version, with `metadata.resourceVersion` inside.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Namespace, empty for cluster scope.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The version of its last change.
    pub version: u64,
    /// JSON text.
    pub body: Bytes,
}

impl Stored {
    /// The parsed object.
    pub fn value(&self) -> Result<Value, StoreError> {
        serde_json::from_slice(&self.body).map_err(|e| StoreError::Damaged {
            what: self.name.clone(),
            cause: e.to_string(),
        })
    }
}

/// What can go wrong with the file itself.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite said no.
    #[error("the API's database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A row that does not hold JSON.
    #[error("the API's database holds a damaged object {what}: {cause}")]
    Damaged {
        /// Its name.
        what: String,
        /// The parser's words.
        cause: String,
    },
    /// Written by a newer vmlet.
    #[error(
        "the API's database has format {found}, this vmlet knows {known}; start the newer vmlet, or give another data directory"
    )]
    Format {
        /// In the file.
        found: i64,
        /// Of this program.
        known: i64,
    },
    /// The writer or a reader is gone (shutting down, or its thread could not be started).
    #[error("the API's database is closed")]
    Closed,
    /// A directory or thread could not be made.
    #[error("the API's database: {0}")]
    Io(#[from] std::io::Error),
}

const FORMAT: i64 = 1;
/// The first resourceVersion. Above 1, so that "a version from before this server" can be told (410) from the first day on.
const FIRST_VERSION: u64 = 1000;

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS objects (
    resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    uid TEXT NOT NULL, version INTEGER NOT NULL, expires INTEGER, body BLOB NOT NULL,
    PRIMARY KEY (resource, namespace, name)
);
CREATE INDEX IF NOT EXISTS objects_by_uid ON objects (uid);
CREATE INDEX IF NOT EXISTS objects_by_namespace ON objects (namespace, resource);
CREATE INDEX IF NOT EXISTS objects_by_expiry ON objects (expires) WHERE expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS owners (
    owner TEXT NOT NULL, resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    PRIMARY KEY (owner, resource, namespace, name)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS owners_by_object ON owners (resource, namespace, name);
CREATE TABLE IF NOT EXISTS history (
    version INTEGER PRIMARY KEY, resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    kind INTEGER NOT NULL, body BLOB NOT NULL, previous BLOB
);
";

/// Handle on the database; cheap to clone. The file closes when the last handle is dropped.
#[derive(Clone)]
pub struct Store {
    writer: writer::Writer,
    readers: Arc<Readers>,
    tail: Arc<history::Tail>,
}

/// A few read connections, opened when wanted and handed round.
struct Readers {
    path: std::path::PathBuf,
    idle: Mutex<Vec<Connection>>,
}

const IDLE_READERS: usize = 2;

impl Store {
    /// Opens or makes `DIR/objects.db`. Whatever a crash left is repaired by SQLite's own recovery.
    pub fn open(dir: &Path) -> Result<Store, StoreError> {
        let path = dir.join("objects.db");
        let mut reserve = Reserve::open(dir);
        // Even to open it wants some room: the log and its index are new files.
        let (db, version) = loop {
            match prepare(&path) {
                Err(StoreError::Sqlite(error)) if writer::no_room(&error) && reserve.release() => {}
                opened => break opened?,
            }
        };
        let tail = Arc::new(history::Tail::new(version));
        let state = writer::State::new(db, version, tail.clone(), reserve, dir);
        let writer = writer::Writer::start(state)?;
        let readers = Arc::new(Readers {
            path,
            idle: Mutex::new(Vec::new()),
        });
        Ok(Store { writer, readers, tail })
    }

    /// Why not every write is taken at present: a full disk, or a last write that failed. It costs nothing while all is well.
    pub async fn trouble(&self) -> Option<String> {
        self.writer.trouble()?;
        // The writer looks for room before every write, so for this one, too.
        let _ = self.write(Vec::new()).await;
        self.writer.trouble()
    }

    /// Applies changes in order, all or none, and returns the objects with their new resourceVersion. Returns only when they
    /// are on stable storage.
    pub async fn write(&self, changes: Vec<Change>) -> Result<Vec<Value>, WriteError> {
        self.writer.write(changes).await
    }

    /// The newest committed version, as a channel that ticks with every commit.
    pub fn committed(&self) -> watch::Receiver<u64> {
        self.tail.committed()
    }

    /// The newest committed version.
    pub fn version(&self) -> u64 {
        *self.tail.committed().borrow()
    }

    /// The changes of one resource after `after`; the file is asked when the tail in memory no longer reaches back so far.
    pub async fn changes(
        &self,
        after: u64,
        resource: Option<Arc<str>>,
        namespace: Option<String>,
    ) -> Result<Batch, StoreError> {
        if let Some(batch) = self.tail.changes(after, resource.as_deref(), namespace.as_deref()) {
            return Ok(batch);
        }
        self.read(move |db| reader::changes(db, after, resource.as_deref(), namespace.as_deref()))
            .await
    }

    /// Runs `body` on a read connection, off the async threads, in one snapshot of the file.
    async fn read<T: Send + 'static>(
        &self,
        body: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let readers = self.readers.clone();
        tokio::task::spawn_blocking(move || readers.with(body))
            .await
            .map_err(|_| StoreError::Closed)?
    }
}

impl Readers {
    fn with<T>(&self, body: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let pooled = self.idle.lock().unwrap_or_else(|e| e.into_inner()).pop();
        let mut db = match pooled {
            Some(db) => db,
            None => connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?,
        };
        let snapshot = db.transaction()?;
        let result = body(&snapshot);
        snapshot.finish()?;
        let mut idle = self.idle.lock().unwrap_or_else(|e| e.into_inner());
        if idle.len() < IDLE_READERS {
            idle.push(db);
        }
        result
    }
}

/// The writer's connection, and the newest version.
fn prepare(path: &Path) -> Result<(Connection, u64), StoreError> {
    let db = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "wal_autocheckpoint", 1000)?;
    db.pragma_update(None, "journal_size_limit", 16 << 20)?;
    // What a savepoint may have to undo is little, and a file for it might be on a full disk.
    db.pragma_update(None, "temp_store", "MEMORY")?;
    db.execute_batch(TABLES)?;
    for (key, value) in [
        ("format", FORMAT),
        ("version", FIRST_VERSION as i64),
        ("floor", FIRST_VERSION as i64),
    ] {
        db.execute("INSERT OR IGNORE INTO meta (key, value) VALUES (?1, ?2)", (key, value))?;
    }
    let found = reader::meta(&db, "format")?;
    if found != FORMAT {
        return Err(StoreError::Format { found, known: FORMAT });
    }
    let version = reader::meta(&db, "version")? as u64;
    Ok((db, version))
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let db = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    // Small caches: a single machine has few objects, and the whole process has 20 MB.
    db.pragma_update(None, "cache_size", -256)?;
    db.busy_timeout(std::time::Duration::from_secs(10))?;
    db.set_prepared_statement_cache_capacity(16);
    Ok(db)
}

#[cfg(test)]
mod tests;
