//! The one thread that writes. It takes every write that waits, runs them in one transaction, and answers after the commit:
//! sixteen writers cost one fsync. A write that finds the disk full takes from the `reserve` and is done again.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Transaction};
use serde_json::Value;
use tokio::sync::oneshot;

use super::history::{EventKind, HistoryEvent, Tail};
use super::reserve::Reserve;
use super::{Key, StoreError};

/// One change of one object. `base` is the version that the caller decided on.
#[derive(Debug)]
pub enum Change {
    /// Must not exist yet.
    Create {
        /// Where.
        key: Key,
        /// What.
        object: Value,
        /// When it goes by itself, in seconds since the epoch.
        expires: Option<i64>,
    },
    /// Must still be at version `base`.
    Update {
        /// Where.
        key: Key,
        /// Version that the new object was made from.
        base: u64,
        /// What.
        object: Value,
        /// When it goes by itself, in seconds since the epoch.
        expires: Option<i64>,
    },
    /// Must still be at version `base`; `object` is its last state.
    Remove {
        /// Where.
        key: Key,
        /// Version that was decided on.
        base: u64,
        /// Its last state, told to the watches.
        object: Value,
    },
    /// Changes nothing: the whole write fails unless the namespace exists and is not being deleted.
    RequireNamespace(String),
}

impl Change {
    fn object(self) -> Option<Value> {
        match self {
            Change::Create { object, .. } | Change::Update { object, .. } | Change::Remove { object, .. } => {
                Some(object)
            }
            Change::RequireNamespace(_) => None,
        }
    }
}

/// Why a write did not happen. Nothing of it was stored.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Create of what exists.
    #[error("already exists")]
    Exists,
    /// Update of what does not.
    #[error("not found")]
    Missing,
    /// Someone else was faster.
    #[error("the object has been modified")]
    Changed,
    /// No such namespace.
    #[error("namespace {0} not found")]
    NamespaceMissing(String),
    /// The namespace is being deleted.
    #[error("namespace {0} is being terminated")]
    NamespaceTerminating(String),
    /// The disk is full, and what was kept for that is for what frees space.
    #[error(
        "the disk that holds {0} is full: nothing new is stored until it has room for some 20 MiB; deletions, status and small changes go on as long as the reserve of the API lasts: delete virtual machines or images, or free space on that disk"
    )]
    Full(String),
    /// The file.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<rusqlite::Error> for WriteError {
    fn from(error: rusqlite::Error) -> Self {
        WriteError::Store(error.into())
    }
}

pub(super) struct Command {
    pub(super) changes: Vec<Change>,
    pub(super) reply: oneshot::Sender<Result<Vec<Value>, WriteError>>,
}

#[derive(Clone)]
pub(super) struct Writer {
    // Bounded: callers beyond it wait their turn, asynchronously (see `write`).
    commands: mpsc::Sender<Command>,
    slots: Arc<tokio::sync::Semaphore>,
    trouble: Arc<Mutex<Option<String>>>,
}

/// Writes that may wait at once; more callers queue in front of it.
const QUEUE: usize = 256;
/// Writes that share one commit at most.
const GROUP: usize = 64;
/// Changes kept for watches. Trimmed a batch at a time, so at most `HISTORY_KEEP + HISTORY_SLACK`.
const HISTORY_KEEP: u64 = 4096;
const HISTORY_SLACK: u64 = 512;
/// On a full disk only what memory holds, too (see `history`): the pages of the rest take what is written next.
const FULL_KEEP: u64 = 256;
const FULL_SLACK: u64 = 64;
/// Bytes by which an object may grow on a full disk: a condition and its message.
const FULL_GROWTH: usize = 16 << 10;

impl Writer {
    pub(super) fn start(mut state: State) -> Result<Writer, StoreError> {
        let (commands, queue) = mpsc::channel();
        let trouble = state.trouble.clone();
        std::thread::Builder::new()
            .name("api-writer".into())
            .stack_size(512 << 10)
            .spawn(move || {
                while let Ok(first) = queue.recv() {
                    let mut group = vec![first];
                    while group.len() < GROUP
                        && let Ok(next) = queue.try_recv()
                    {
                        group.push(next);
                    }
                    state.commit(group);
                }
            })?;
        Ok(Writer {
            commands,
            slots: Arc::new(tokio::sync::Semaphore::new(QUEUE)),
            trouble,
        })
    }

    pub(super) async fn write(&self, changes: Vec<Change>) -> Result<Vec<Value>, WriteError> {
        let _slot = self.slots.acquire().await.map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(Command { changes, reply })
            .map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Why not all writes are taken, as of the last one.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the thread has.
pub(super) struct State {
    db: Connection,
    version: u64,
    tail: Arc<Tail>,
    reserve: Reserve,
    dir: PathBuf,
    /// The error of the last write, if it failed.
    failed: Option<String>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl State {
    pub(super) fn new(db: Connection, version: u64, tail: Arc<Tail>, reserve: Reserve, dir: &Path) -> State {
        let state = State {
            db,
            version,
            tail,
            reserve,
            dir: dir.to_owned(),
            failed: None,
            trouble: Arc::default(),
        };
        state.tell();
        state
    }

    pub(super) fn commit(&mut self, mut group: Vec<Command>) {
        if self.reserve.short() && !self.reserve.look() {
            self.failed = None;
        }
        let before = self.version;
        let result = loop {
            match self.run(&mut group) {
                Err(error) if no_room(&error) && self.reserve.release() => {
                    // A log that is copied begins anew in the space that it has. If that fails, the next step is for it.
                    let _ = self.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
                }
                result => break result,
            }
        };
        match result {
            Ok((answers, events)) => {
                if self.version != before {
                    self.failed = None;
                    self.tail.push(events, self.version);
                }
                self.tell();
                for (command, answer) in group.into_iter().zip(answers) {
                    let objects = command.changes.into_iter().filter_map(Change::object);
                    // The caller may be gone; the write stands.
                    let _ = command.reply.send(answer.map(|()| objects.collect()));
                }
            }
            // One that does not fit takes nothing from the others.
            Err(_) if group.len() > 1 => group.into_iter().for_each(|command| self.commit(vec![command])),
            Err(error) => {
                self.failed = Some(error.to_string());
                self.tell();
                let error = match no_room(&error) {
                    true => self.full(),
                    false => error.into(),
                };
                if let Some(command) = group.pop() {
                    let _ = command.reply.send(Err(error));
                }
            }
        }
    }

    fn full(&self) -> WriteError {
        WriteError::Full(self.dir.display().to_string())
    }

    /// Says what `/readyz` says. Everybody may ask for that, so it names no directory.
    fn tell(&self) {
        let trouble = match (self.reserve.short(), &self.failed) {
            (true, _) => Some(format!(
                "the disk of the API's data directory is full, {} of {} MiB of its reserve are left, nothing new is stored",
                self.reserve.left_mib(),
                super::reserve::SIZE >> 20
            )),
            (false, Some(error)) => Some(format!("the last write failed: {error}")),
            (false, None) => None,
        };
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// One transaction: an answer for each command, and what changed. An error of the database itself leaves open what became of
    /// the transaction (SQLite ends it by itself on a full disk), so it stores nothing of anyone's.
    fn run(&mut self, group: &mut [Command]) -> Result<Outcome, rusqlite::Error> {
        let mut version = self.version;
        let mut events = Vec::new();
        let mut answers = Vec::with_capacity(group.len());
        let full = self.reserve.short().then(|| self.dir.display().to_string());
        let mut transaction = self
            .db
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for command in group {
            let kept = (version, events.len());
            let answer = (|| {
                let savepoint = transaction.savepoint()?;
                for change in &mut command.changes {
                    apply(&savepoint, change, &mut version, &mut events, full.as_deref())?;
                }
                Ok(savepoint.commit()?)
            })();
            match answer {
                Err(WriteError::Store(StoreError::Sqlite(error))) => return Err(error),
                Err(_) => {
                    version = kept.0;
                    events.truncate(kept.1);
                }
                Ok(()) => {}
            }
            answers.push(answer);
        }
        if version != self.version {
            transaction
                .prepare_cached("UPDATE meta SET value = ?1 WHERE key = 'version'")?
                .execute([version as i64])?;
            trim(&transaction, version, full.is_some())?;
        }
        transaction.commit()?;
        self.version = version;
        Ok((answers, events))
    }
}

type Outcome = (Vec<Result<(), WriteError>>, Vec<HistoryEvent>);

/// Whether a file could not grow. Some systems have other words for it: a quota, a delayed allocation, a mapped file.
pub(super) fn no_room(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{ErrorCode, SQLITE_IOERR_FSYNC, SQLITE_IOERR_SHMSIZE, SQLITE_IOERR_WRITE};
    error.sqlite_error().is_some_and(|e| {
        e.code == ErrorCode::DiskFull
            || [SQLITE_IOERR_FSYNC, SQLITE_IOERR_SHMSIZE, SQLITE_IOERR_WRITE].contains(&e.extended_code)
    })
}

fn trim(db: &Transaction<'_>, version: u64, full: bool) -> Result<(), rusqlite::Error> {
    let (keep, slack) = match full {
        true => (FULL_KEEP, FULL_SLACK),
        false => (HISTORY_KEEP, HISTORY_SLACK),
    };
    let floor: i64 = db
        .prepare_cached("SELECT value FROM meta WHERE key = 'floor'")?
        .query_row([], |row| row.get(0))?;
    let floor = floor as u64;
    if version.saturating_sub(floor) > keep + slack {
        // In pieces: one deletion of all would itself want space.
        let floor = (version - keep).min(floor + 2 * HISTORY_SLACK) as i64;
        db.execute("DELETE FROM history WHERE version <= ?1", [floor])?;
        db.execute("UPDATE meta SET value = ?1 WHERE key = 'floor'", [floor])?;
    }
    Ok(())
}

fn apply(
    db: &Connection,
    change: &mut Change,
    version: &mut u64,
    events: &mut Vec<HistoryEvent>,
    full: Option<&str>,
) -> Result<(), WriteError> {
    let (key, object, kind, base, expires) = match change {
        Change::Create { key, object, expires } => (key, object, EventKind::Added, None, *expires),
        Change::Update {
            key,
            base,
            object,
            expires,
        } => (key, object, EventKind::Modified, Some(*base), *expires),
        Change::Remove { key, base, object } => (key, object, EventKind::Deleted, Some(*base), None),
        Change::RequireNamespace(name) => return require_namespace(db, name),
    };
    let current: Option<(i64, Vec<u8>)> = db
        .prepare_cached("SELECT version, body FROM objects WHERE resource = ?1 AND namespace = ?2 AND name = ?3")?
        .query_row((&*key.resource, &key.namespace, &key.name), |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let previous = match (base, current) {
        (None, None) => None,
        (None, Some(_)) => return Err(WriteError::Exists),
        (Some(_), None) => return Err(WriteError::Missing),
        (Some(base), Some((current, _))) if base as i64 != current => return Err(WriteError::Changed),
        (Some(_), Some((_, body))) => Some(Bytes::from(body)),
    };
    *version += 1;
    object["metadata"]["resourceVersion"] = Value::String(version.to_string());
    let body = serde_json::to_vec(object).map_err(|e| StoreError::Damaged {
        what: key.to_string(),
        cause: e.to_string(),
    })?;
    if let Some(dir) = full
        && kind != EventKind::Deleted
        && previous.as_ref().is_none_or(|p| body.len() > p.len() + FULL_GROWTH)
    {
        return Err(WriteError::Full(dir.to_owned()));
    }
    let place = (&*key.resource, &key.namespace, &key.name);
    if kind == EventKind::Deleted {
        db.prepare_cached("DELETE FROM objects WHERE resource = ?1 AND namespace = ?2 AND name = ?3")?
            .execute(place)?;
    } else {
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        db.prepare_cached(
            "INSERT INTO objects (resource, namespace, name, uid, version, expires, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT DO UPDATE SET uid = excluded.uid, version = excluded.version, expires = excluded.expires, body = excluded.body",
        )?
        .execute((place.0, place.1, place.2, uid, *version as i64, expires, &body))?;
    }
    record_owners(db, key, (kind != EventKind::Deleted).then_some(&*object))?;
    db.prepare_cached(
        "INSERT INTO history (version, resource, namespace, name, kind, body, previous) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute((*version as i64, place.0, place.1, place.2, kind.code(), &body, previous.as_deref()))?;
    events.push(HistoryEvent {
        version: *version,
        resource: key.resource.clone(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        kind,
        body: body.into(),
        previous,
    });
    Ok(())
}

fn record_owners(db: &Connection, key: &Key, object: Option<&Value>) -> Result<(), rusqlite::Error> {
    let place = (&*key.resource, &key.namespace, &key.name);
    db.prepare_cached("DELETE FROM owners WHERE resource = ?1 AND namespace = ?2 AND name = ?3")?
        .execute(place)?;
    let owners = object.and_then(|o| o["metadata"]["ownerReferences"].as_array());
    for uid in owners.into_iter().flatten().filter_map(|o| o["uid"].as_str()) {
        db.prepare_cached("INSERT OR IGNORE INTO owners (owner, resource, namespace, name) VALUES (?1, ?2, ?3, ?4)")?
            .execute((uid, place.0, place.1, place.2))?;
    }
    Ok(())
}

fn require_namespace(db: &Connection, name: &str) -> Result<(), WriteError> {
    let deleting: Option<bool> = db
        .prepare_cached(
            "SELECT body ->> '$.metadata.deletionTimestamp' IS NOT NULL FROM objects
             WHERE resource = '/namespaces' AND namespace = '' AND name = ?1",
        )?
        .query_row([name], |row| row.get(0))
        .optional()?;
    match deleting {
        None => Err(WriteError::NamespaceMissing(name.to_owned())),
        Some(true) => Err(WriteError::NamespaceTerminating(name.to_owned())),
        Some(false) => Ok(()),
    }
}
