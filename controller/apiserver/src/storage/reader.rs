//! Reading: one object, pages of a list, history, and the few look-ups that the collector needs.

use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row};

use super::history::{Batch, EventKind, HistoryEvent};
use super::{Key, Store, StoreError, Stored};

/// Which rows of one resource, in order of namespace and name.
#[derive(Clone, Debug)]
pub struct ListRequest {
    /// `group/plural`.
    pub resource: Arc<str>,
    /// Only this namespace.
    pub namespace: Option<String>,
    /// Only rows after this (namespace, name).
    pub after: Option<(String, String)>,
    /// At most so many rows; 0 is all.
    pub limit: usize,
}

/// Rows of a list.
#[derive(Debug)]
pub struct Page {
    /// The rows.
    pub items: Vec<Stored>,
    /// Version of the snapshot that they are from.
    pub version: u64,
    /// Rows after these, not counting any selector.
    pub remaining: u64,
}

pub(super) fn meta(db: &Connection, key: &str) -> Result<i64, StoreError> {
    Ok(db.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))?)
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let version: i64 = row.get(2)?;
    let body: Vec<u8> = row.get(3)?;
    Ok(Stored {
        namespace: row.get(0)?,
        name: row.get(1)?,
        version: version as u64,
        body: Bytes::from(body),
    })
}

fn key(row: &Row<'_>) -> rusqlite::Result<Key> {
    let resource: String = row.get(0)?;
    Ok(Key {
        resource: resource.into(),
        namespace: row.get(1)?,
        name: row.get(2)?,
    })
}

const HISTORY_PAGE: usize = 128;

pub(super) fn changes(
    db: &Connection,
    after: u64,
    resource: Option<&str>,
    namespace: Option<&str>,
) -> Result<Batch, StoreError> {
    if after < meta(db, "floor")? as u64 {
        return Ok(Batch::TooOld);
    }
    let end = meta(db, "version")? as u64;
    let mut select = db.prepare_cached(
        "SELECT version, resource, namespace, name, kind, body, previous FROM history
         WHERE version > ?1 AND (?2 IS NULL OR resource = ?2) AND (?3 IS NULL OR namespace = ?3) ORDER BY version LIMIT ?4",
    )?;
    let rows = select.query_map((after as i64, resource, namespace, HISTORY_PAGE as i64), |row| {
        let version: i64 = row.get(0)?;
        let resource: String = row.get(1)?;
        let body: Vec<u8> = row.get(5)?;
        let previous: Option<Vec<u8>> = row.get(6)?;
        Ok(Arc::new(HistoryEvent {
            version: version as u64,
            resource: resource.into(),
            namespace: row.get(2)?,
            name: row.get(3)?,
            kind: EventKind::from_code(row.get(4)?),
            body: body.into(),
            previous: previous.map(Bytes::from),
        }))
    })?;
    let events = rows.collect::<Result<Vec<_>, _>>()?;
    let upto = match events.last() {
        Some(last) if events.len() == HISTORY_PAGE => last.version,
        _ => end.max(after),
    };
    Ok(Batch::Changes { events, upto })
}

impl Store {
    /// One object.
    pub async fn get(&self, key: &Key) -> Result<Option<Stored>, StoreError> {
        let key = key.clone();
        self.read(move |db| {
            let mut select = db.prepare_cached(
                "SELECT namespace, name, version, body FROM objects WHERE resource = ?1 AND namespace = ?2 AND name = ?3",
            )?;
            Ok(select.query_row((&*key.resource, &key.namespace, &key.name), stored).optional()?)
        })
        .await
    }

    /// A page of a list, with the version of the snapshot it was read from.
    pub async fn list(&self, request: ListRequest) -> Result<Page, StoreError> {
        self.read(move |db| {
            let version = meta(db, "version")? as u64;
            let (after_namespace, after_name) = request.after.unwrap_or_default();
            let limit = if request.limit == 0 { -1 } else { request.limit as i64 };
            let filter = "resource = ?1 AND (?2 IS NULL OR namespace = ?2) AND (namespace, name) > (?3, ?4)";
            let parameters = (&*request.resource, &request.namespace, &after_namespace, &after_name);
            let mut select = db.prepare_cached(&format!(
                "SELECT namespace, name, version, body FROM objects WHERE {filter} ORDER BY namespace, name LIMIT {limit}"
            ))?;
            let items = select.query_map(parameters, stored)?.collect::<Result<Vec<_>, _>>()?;
            let mut remaining = 0;
            if request.limit != 0 && items.len() == request.limit {
                let count: i64 =
                    db.query_row(&format!("SELECT count(*) FROM objects WHERE {filter}"), parameters, |row| row.get(0))?;
                remaining = count as u64 - items.len() as u64;
            }
            Ok(Page { items, version, remaining })
        })
        .await
    }

    /// The oldest version that a watch can still start from.
    pub async fn floor(&self) -> Result<u64, StoreError> {
        self.read(|db| Ok(meta(db, "floor")? as u64)).await
    }

    /// Keys of all objects whose `ownerReferences` name `uid`.
    pub async fn dependents(&self, uid: &str) -> Result<Vec<Key>, StoreError> {
        let uid = uid.to_owned();
        self.read(move |db| {
            let mut select = db.prepare_cached("SELECT resource, namespace, name FROM owners WHERE owner = ?1")?;
            Ok(select.query_map([uid], key)?.collect::<Result<Vec<_>, _>>()?)
        })
        .await
    }

    /// Whether an object with this uid exists.
    pub async fn has_uid(&self, uid: &str) -> Result<bool, StoreError> {
        let uid = uid.to_owned();
        self.read(move |db| {
            let mut select = db.prepare_cached("SELECT 1 FROM objects WHERE uid = ?1 LIMIT 1")?;
            Ok(select.exists([uid])?)
        })
        .await
    }

    /// Keys of what lives in a namespace.
    pub async fn in_namespace(&self, namespace: &str) -> Result<Vec<Key>, StoreError> {
        let namespace = namespace.to_owned();
        self.read(move |db| {
            let mut select = db.prepare_cached("SELECT resource, namespace, name FROM objects WHERE namespace = ?1")?;
            Ok(select.query_map([namespace], key)?.collect::<Result<Vec<_>, _>>()?)
        })
        .await
    }

    /// Every object that the collector has to look at after a start: those that have owners.
    pub async fn with_owners(&self) -> Result<Vec<Key>, StoreError> {
        self.read(move |db| {
            let mut select = db.prepare_cached("SELECT DISTINCT resource, namespace, name FROM owners")?;
            Ok(select.query_map([], key)?.collect::<Result<Vec<_>, _>>()?)
        })
        .await
    }

    /// Keys of all objects being deleted.
    pub async fn deleting(&self) -> Result<Vec<Key>, StoreError> {
        self.read(move |db| {
            let mut select = db.prepare_cached(
                "SELECT resource, namespace, name FROM objects WHERE body ->> '$.metadata.deletionTimestamp' IS NOT NULL",
            )?;
            Ok(select.query_map([], key)?.collect::<Result<Vec<_>, _>>()?)
        })
        .await
    }

    /// Objects whose time is up at `now` (seconds since the epoch), and when the next one's will be.
    pub async fn expired(&self, now: i64) -> Result<(Vec<Key>, Option<i64>), StoreError> {
        self.read(move |db| {
            let mut select = db.prepare_cached(
                "SELECT resource, namespace, name FROM objects WHERE expires <= ?1 ORDER BY expires LIMIT 500",
            )?;
            let keys = select.query_map([now], key)?.collect::<Result<Vec<_>, _>>()?;
            let next = db.query_row(
                "SELECT min(expires) FROM objects WHERE expires IS NOT NULL",
                [],
                |row| row.get(0),
            )?;
            Ok((keys, next))
        })
        .await
    }
}
