//! The store: what is published, who uses it, and what was under way.
//!
//! ```text
//! tmp/                    private directories of living pulls; emptied at open
//! blobs/                  partial and complete blobs, the pipeline's
//! images/<id>/            a published disk: its file, record.json; 0755, files 0444
//! kernels/<id>/           a published kernel likewise
//! intents/<kind>-<id>.json    a pull is under way
//! access/<kind>-<id>.json     who has shown that the content may be had
//! pins/<hash>-<kind>.json     who uses what
//! quarantine/             what was found damaged or foreign, kept for people to look at
//! access.key              secret of this store, for the hashes in access/
//! ```
//!
//! All methods are synchronous and touch the disk unless they say otherwise: call them from
//! blocking threads. The lock is held over in-memory work and single renames, never over an fsync.

mod failpoint;
#[cfg(test)]
mod faults;
pub mod files;
mod open;
mod pins;
pub mod policy;
mod publish;
pub mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::types::{ArtefactKind, Cached, Interest};
pub use open::{Found, OpenError};
pub use policy::{Policy, Space};
pub use publish::Pull;
use record::{Artefact, PinRecord, Record};

/// Blobs are kept for other images that share them, and for resumes: at least and at most for this long
/// after their last use, as far as a collection comes by.
const BLOB_AGES: (Duration, Duration) = (Duration::from_secs(120), Duration::from_secs(3600));

/// The kind and identity of an artefact.
pub type Id = (ArtefactKind, String);

/// Handle to an open store; clones share it. One process at a time may have a directory open.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    key: Vec<u8>,
    index: Mutex<Index>,
    /// Makes the names of temporaries unique.
    counter: AtomicU64,
    /// A pin was lost, so nobody knows what is unused: nothing is collected.
    pins_lost: bool,
}

/// What is in memory: the durable state as far as it has been made durable, and pins from the
/// moment they are decided (so that a collection cannot come between).
#[derive(Debug, Default)]
struct Index {
    artefacts: BTreeMap<Id, Entry>,
    pins: BTreeMap<(Interest, ArtefactKind), PinRecord>,
}

#[derive(Debug)]
struct Entry {
    record: Record,
    artefact: Artefact,
    allocated: u64,
    proofs: BTreeSet<String>,
    last_used: SystemTime,
}

impl Store {
    /// The store's secret, for [`Proof::of`](crate::pulls::identity::Proof::of).
    pub fn key(&self) -> &[u8] {
        &self.0.key
    }

    /// Where the pipeline keeps blobs.
    pub fn blobs(&self) -> PathBuf {
        self.0.dir.join("blobs")
    }

    /// A published artefact, if its files are still what its record says. A damaged one is set
    /// aside (what runs on it keeps its open files) and counts as absent.
    ///
    /// # Errors
    /// When the disk cannot tell.
    pub fn get(&self, id: &Id) -> io::Result<Option<Artefact>> {
        let Some((record, artefact)) = self
            .index()
            .artefacts
            .get(id)
            .map(|e| (e.record.clone(), e.artefact.clone()))
        else {
            return Ok(None);
        };
        let dir = self.published(id);
        match open::check_files(&record, &dir) {
            Ok(_) => Ok(Some(artefact)),
            Err(record::RecordError::Io(error)) => Err(error),
            Err(damage) => {
                tracing::error!(path = %dir.display(), %damage, "a published artefact is damaged; it is set aside and made anew");
                let mut index = self.index();
                index.artefacts.remove(id);
                match self.set_aside(&dir) {
                    // Not even its directory is left (somebody cleaned up by hand): there is nothing to keep.
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    Ok(()) | Err(_) => Ok(None),
                }
            }
        }
    }

    /// Whether an asker with this proof may have the artefact without asking its registry. In memory.
    pub fn is_granted(&self, id: &Id, proof: &str) -> bool {
        let index = self.index();
        index
            .artefacts
            .get(id)
            .is_some_and(|e| e.proofs.contains(proof) || e.proofs.contains(crate::pulls::identity::ANYBODY))
    }

    /// Whether this stands beside the artefact, word for word. In memory.
    pub fn has_proof(&self, id: &Id, proof: &str) -> bool {
        let index = self.index();
        index.artefacts.get(id).is_some_and(|e| e.proofs.contains(proof))
    }

    /// What is published. In memory.
    pub fn inventory(&self) -> Vec<Cached> {
        let index = self.index();
        let all = index.artefacts.iter();
        all.map(|(id, entry)| cached(id, entry, index.users(id).cloned().collect()))
            .collect()
    }

    /// Removes what nobody has pinned and nobody used for `older_than`, and says what. Blobs that
    /// nobody used for that long (but for at least two minutes, at most an hour) go as well.
    ///
    /// # Errors
    /// Of the disk; what was removed until then stays removed.
    pub fn collect(&self, older_than: Duration) -> io::Result<Vec<Cached>> {
        self.remove_blobs(older_than.clamp(BLOB_AGES.0, BLOB_AGES.1))?;
        let unused = self.inventory();
        let unused = unused.into_iter().filter(|cached| cached.users.is_empty());
        self.remove(unused.map(|cached| (cached.kind, cached.id)).collect(), older_than)
    }

    /// Removes what a policy says, and says what. Blobs go first where room is needed.
    ///
    /// # Errors
    /// Of the disk; what was removed until then stays removed.
    pub fn collect_by(&self, policy: &Policy) -> io::Result<Vec<Cached>> {
        let crowded = policy.wanted(self.space()?) > 0;
        self.remove_blobs(if crowded { BLOB_AGES.0 } else { BLOB_AGES.1 })?;
        let wanted = policy.wanted(self.space()?);
        let chosen = policy.choose(&self.inventory(), wanted, SystemTime::now());
        self.remove(chosen, policy.min_age)
    }

    /// The file system that the store is on.
    ///
    /// # Errors
    /// Of the disk.
    pub fn space(&self) -> io::Result<Space> {
        let found = rustix::fs::statvfs(&self.0.dir)?;
        Ok(Space {
            total: found.f_blocks.saturating_mul(found.f_frsize),
            free: found.f_bavail.saturating_mul(found.f_frsize),
        })
    }

    /// Removes those that are still unused, and have been for `age`.
    fn remove(&self, chosen: Vec<Id>, age: Duration) -> io::Result<Vec<Cached>> {
        if self.0.pins_lost {
            tracing::warn!("nothing is collected until the next start: a record of who uses what was unreadable");
            return Ok(Vec::new());
        }
        let now = SystemTime::now();
        let mut removed = Vec::new();
        for id in chosen {
            let trash = self.temp("trash");
            let cached = {
                // Pinning takes the same lock: a pin made since the inventory is seen here.
                let mut index = self.index();
                let unused = index.users(&id).next().is_none() || cfg!(feature = "bug-global-prune");
                let Some(entry) = index.artefacts.get(&id).filter(|e| unused && e.last_used + age <= now) else {
                    continue;
                };
                let cached = cached(&id, entry, Vec::new());
                files::rename(&self.published(&id), &trash)?;
                index.artefacts.remove(&id);
                cached
            };
            files::sync_dir(&self.kind_dir(id.0))?;
            files::remove_file(&self.access(&id))?;
            files::remove_all(&trash)?;
            removed.push(cached);
        }
        Ok(removed)
    }

    fn remove_blobs(&self, age: Duration) -> io::Result<()> {
        let oldest = SystemTime::now() - age;
        for entry in std::fs::read_dir(self.blobs())?.flatten() {
            let old = entry.metadata().and_then(|m| m.modified()).is_ok_and(|at| at < oldest);
            if old {
                files::remove_all(&entry.path())?;
            }
        }
        Ok(())
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // A panic while it was held cannot have left it half changed: all changes are single calls.
        self.0.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kind_dir(&self, kind: ArtefactKind) -> PathBuf {
        kind_dir(&self.0.dir, kind)
    }

    fn published(&self, id: &Id) -> PathBuf {
        self.kind_dir(id.0).join(&id.1)
    }

    fn access(&self, id: &Id) -> PathBuf {
        self.0.dir.join("access").join(file_name(id))
    }

    /// A fresh private path on the store's file system.
    fn temp(&self, what: &str) -> PathBuf {
        let n = self.0.counter.fetch_add(1, Ordering::Relaxed);
        self.0
            .dir
            .join("tmp")
            .join(format!("{what}-{}-{n}", std::process::id()))
    }

    fn set_aside(&self, path: &Path) -> io::Result<()> {
        set_aside(&self.0.dir, path, self.0.counter.fetch_add(1, Ordering::Relaxed))
    }
}

impl Index {
    fn users<'a>(&'a self, id: &'a Id) -> impl Iterator<Item = &'a Interest> {
        self.pins
            .values()
            .filter(|p| p.kind == id.0 && p.id == id.1)
            .map(|p| &p.interest)
    }
}

fn cached(id: &Id, entry: &Entry, users: Vec<Interest>) -> Cached {
    Cached {
        kind: id.0,
        id: id.1.clone(),
        digest: entry.record.digest.clone(),
        source: entry.record.source.clone(),
        allocated_bytes: entry.allocated,
        users,
        last_used: entry.last_used,
    }
}

fn kind_dir(dir: &Path, kind: ArtefactKind) -> PathBuf {
    dir.join(match kind {
        ArtefactKind::Image => "images",
        ArtefactKind::Kernel => "kernels",
    })
}

/// The file name of an artefact's record in `intents/` and `access/`.
fn file_name((kind, id): &Id) -> String {
    match kind {
        ArtefactKind::Image => format!("image-{id}.json"),
        ArtefactKind::Kernel => format!("kernel-{id}.json"),
    }
}

/// Moves something damaged or foreign to the quarantine, under a name that is surely free.
fn set_aside(dir: &Path, path: &Path, n: u64) -> io::Result<()> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos();
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let safe: String = name
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c))
        .take(80)
        .collect();
    files::rename(path, &dir.join("quarantine").join(format!("{now}-{n}-{safe}")))
}

/// Bytes that a file occupies.
fn allocated(meta: &std::fs::Metadata) -> u64 {
    meta.blocks() * 512
}
