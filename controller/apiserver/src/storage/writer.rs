//! The one thread that writes. It takes every write that waits, runs them in one transaction, and answers after the commit:
//! sixteen writers cost one fsync.

use std::sync::Arc;
use std::sync::mpsc;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Transaction};
use serde_json::Value;
use tokio::sync::oneshot;

use super::history::{EventKind, HistoryEvent, Tail};
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
    /// The file.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<rusqlite::Error> for WriteError {
    fn from(error: rusqlite::Error) -> Self {
        WriteError::Store(error.into())
    }
}

struct Command {
    changes: Vec<Change>,
    reply: oneshot::Sender<Result<Vec<Value>, WriteError>>,
}

#[derive(Clone)]
pub(super) struct Writer {
    // Bounded: callers beyond it wait their turn, asynchronously (see `write`).
    commands: mpsc::Sender<Command>,
    slots: Arc<tokio::sync::Semaphore>,
}

/// Writes that may wait at once; more callers queue in front of it.
const QUEUE: usize = 256;
/// Writes that share one commit at most.
const GROUP: usize = 64;
/// Changes kept for watches. Trimmed a batch at a time, so at most `HISTORY_KEEP + HISTORY_SLACK`.
const HISTORY_KEEP: u64 = 4096;
const HISTORY_SLACK: u64 = 512;

impl Writer {
    pub(super) fn start(db: Connection, version: u64, tail: Arc<Tail>) -> Result<Writer, StoreError> {
        let (commands, queue) = mpsc::channel();
        std::thread::Builder::new()
            .name("api-writer".into())
            .stack_size(512 << 10)
            .spawn(move || {
                let mut state = State { db, version, tail };
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
}

struct State {
    db: Connection,
    version: u64,
    tail: Arc<Tail>,
}

impl State {
    fn commit(&mut self, group: Vec<Command>) {
        let before = self.version;
        let mut replies = Vec::with_capacity(group.len());
        let mut events = Vec::new();
        let result = self.run(group, &mut replies, &mut events);
        if result.is_ok() && self.version != before {
            self.tail.push(events, self.version);
        }
        for (reply, answer) in replies {
            // A commit that failed stored nothing of anyone's, whatever their own changes did.
            let answer = match (&result, answer) {
                (Err(error), Ok(_)) => Err(WriteError::Store(StoreError::Io(std::io::Error::other(
                    error.to_string(),
                )))),
                (_, answer) => answer,
            };
            // The caller may be gone; the write stands.
            let _ = reply.send(answer);
        }
    }

    #[allow(clippy::type_complexity, reason = "one private use")]
    fn run(
        &mut self,
        group: Vec<Command>,
        replies: &mut Vec<(
            oneshot::Sender<Result<Vec<Value>, WriteError>>,
            Result<Vec<Value>, WriteError>,
        )>,
        events: &mut Vec<HistoryEvent>,
    ) -> Result<(), rusqlite::Error> {
        let mut version = self.version;
        let transaction = self
            .db
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate);
        let mut transaction = match transaction {
            Ok(transaction) => transaction,
            Err(error) => {
                replies.extend(
                    group
                        .into_iter()
                        .map(|c| (c.reply, Err(WriteError::Store(StoreError::Closed)))),
                );
                return Err(error);
            }
        };
        for command in group {
            let kept = (version, events.len());
            let answer = (|| {
                let savepoint = transaction.savepoint()?;
                let objects = command
                    .changes
                    .into_iter()
                    .filter_map(|change| apply(&savepoint, change, &mut version, events).transpose())
                    .collect::<Result<Vec<_>, WriteError>>()?;
                savepoint.commit()?;
                Ok(objects)
            })();
            if answer.is_err() {
                version = kept.0;
                events.truncate(kept.1);
            }
            replies.push((command.reply, answer));
        }
        if version != self.version {
            transaction
                .prepare_cached("UPDATE meta SET value = ?1 WHERE key = 'version'")?
                .execute([version as i64])?;
            trim(&transaction, version)?;
        }
        transaction.commit()?;
        self.version = version;
        Ok(())
    }
}

fn trim(db: &Transaction<'_>, version: u64) -> Result<(), rusqlite::Error> {
    let floor: i64 = db
        .prepare_cached("SELECT value FROM meta WHERE key = 'floor'")?
        .query_row([], |row| row.get(0))?;
    if version.saturating_sub(floor as u64) > HISTORY_KEEP + HISTORY_SLACK {
        let floor = (version - HISTORY_KEEP) as i64;
        db.execute("DELETE FROM history WHERE version <= ?1", [floor])?;
        db.execute("UPDATE meta SET value = ?1 WHERE key = 'floor'", [floor])?;
    }
    Ok(())
}

fn apply(
    db: &Connection,
    change: Change,
    version: &mut u64,
    events: &mut Vec<HistoryEvent>,
) -> Result<Option<Value>, WriteError> {
    let (key, mut object, kind, base, expires) = match change {
        Change::Create { key, object, expires } => (key, object, EventKind::Added, None, expires),
        Change::Update {
            key,
            base,
            object,
            expires,
        } => (key, object, EventKind::Modified, Some(base), expires),
        Change::Remove { key, base, object } => (key, object, EventKind::Deleted, Some(base), None),
        Change::RequireNamespace(name) => return require_namespace(db, name).map(|()| None),
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
    let body = serde_json::to_vec(&object).map_err(|e| StoreError::Damaged {
        what: key.to_string(),
        cause: e.to_string(),
    })?;
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
    record_owners(db, &key, (kind != EventKind::Deleted).then_some(&object))?;
    db.prepare_cached(
        "INSERT INTO history (version, resource, namespace, name, kind, body, previous) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute((*version as i64, place.0, place.1, place.2, kind.code(), &body, previous.as_deref()))?;
    events.push(HistoryEvent {
        version: *version,
        resource: key.resource,
        namespace: key.namespace,
        name: key.name,
        kind,
        body: body.into(),
        previous,
    });
    Ok(Some(object))
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

fn require_namespace(db: &Connection, name: String) -> Result<(), WriteError> {
    let deleting: Option<bool> = db
        .prepare_cached(
            "SELECT body ->> '$.metadata.deletionTimestamp' IS NOT NULL FROM objects
             WHERE resource = '/namespaces' AND namespace = '' AND name = ?1",
        )?
        .query_row([&name], |row| row.get(0))
        .optional()?;
    match deleting {
        None => Err(WriteError::NamespaceMissing(name)),
        Some(true) => Err(WriteError::NamespaceTerminating(name)),
        Some(false) => Ok(()),
    }
}
