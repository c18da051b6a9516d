//! Opening a store: whatever the last process left, the result is a legal state.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use super::record::{self, AccessRecord, IntentRecord, PinRecord, RECORD, Record, RecordError};
use super::{Entry, Id, Index, Inner, Store, allocated, file_name, files, kind_dir, pins, set_aside};
use crate::types::ArtefactKind;

/// Directories of the store and their modes. What VMMs open lies below directories that any
/// user may pass through but not list; the rest is private.
const DIRECTORIES: [(&str, u32); 8] = [
    ("images", 0o711),
    ("kernels", 0o711),
    ("tmp", 0o700),
    ("blobs", 0o700),
    ("intents", 0o700),
    ("access", 0o700),
    ("pins", 0o700),
    ("quarantine", 0o700),
];

/// Why a store cannot be opened. Damage inside it is never a reason: that is set aside.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk does not let us.
    #[error("artefact store {path}: {error}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A part of it is on another file system, so nothing could be published by rename.
    #[error("artefact store {path} is on another file system than {dir}; mount the data directory as a whole")]
    Split {
        /// The part.
        path: PathBuf,
        /// The whole.
        dir: PathBuf,
    },
    /// The pipeline cannot start.
    #[error("{0}")]
    Pipeline(String),
}

/// What was found at open beside the published artefacts, for logs and events.
#[derive(Debug, Default)]
pub struct Found {
    /// Pulls that were cut off before they published; their callers ask again.
    pub interrupted: Vec<IntentRecord>,
    /// What was damaged or foreign and is in the quarantine now: where it was, and why.
    pub set_aside: Vec<(PathBuf, String)>,
    /// A record of a pin was among them.
    pub pins_lost: bool,
}

impl Store {
    /// Opens the store in `dir`, making what is missing. Sweeps temporaries, turns intents into
    /// records or drops them, and sets aside what is damaged. The caller holds the lock that keeps
    /// other processes out.
    ///
    /// # Errors
    /// When the directory itself cannot be used.
    pub fn open(dir: &Path) -> Result<(Store, Found), OpenError> {
        let at = |path: &Path| {
            let path = path.to_path_buf();
            move |error| OpenError::Io { path, error }
        };
        files::make_dir(dir, 0o711).map_err(at(dir))?;
        let device = fs::metadata(dir).map_err(at(dir))?.dev();
        for (name, mode) in DIRECTORIES {
            let path = dir.join(name);
            files::make_dir(&path, mode).map_err(at(&path))?;
            if fs::metadata(&path).map_err(at(&path))?.dev() != device {
                return Err(OpenError::Split {
                    path,
                    dir: dir.to_path_buf(),
                });
            }
        }
        let mut opening = Opening {
            dir,
            found: Found::default(),
            counter: 0,
        };
        opening.sweep_temps().map_err(at(&dir.join("tmp")))?;
        let key = opening.key().map_err(at(&dir.join("access.key")))?;
        let mut index = Index::default();
        for kind in [ArtefactKind::Image, ArtefactKind::Kernel] {
            let path = kind_dir(dir, kind);
            index.artefacts.append(&mut opening.artefacts(kind).map_err(at(&path))?);
        }
        opening.access(&mut index).map_err(at(&dir.join("access")))?;
        opening.pins(&mut index).map_err(at(&dir.join("pins")))?;
        opening.intents(&index).map_err(at(&dir.join("intents")))?;
        files::sync_dir(dir).map_err(at(dir))?;
        let found = opening.found;
        for (path, why) in &found.set_aside {
            tracing::warn!(path = %path.display(), why, "set aside to the quarantine");
        }
        let inner = Inner {
            dir: dir.to_path_buf(),
            key,
            index: Mutex::new(index),
            counter: AtomicU64::new(opening.counter),
            pins_lost: found.pins_lost,
        };
        Ok((Store(Arc::new(inner)), found))
    }
}

struct Opening<'a> {
    dir: &'a Path,
    found: Found,
    counter: u64,
}

impl Opening<'_> {
    fn sweep_temps(&self) -> io::Result<()> {
        for (path, _) in entries(&self.dir.join("tmp"))? {
            // A leftover that cannot be removed costs space, not correctness.
            if let Err(error) = files::remove_all(&path) {
                tracing::warn!(path = %path.display(), %error, "a leftover could not be removed");
            }
        }
        Ok(())
    }

    /// The store's secret. A new one only makes askers with credentials prove themselves again.
    fn key(&mut self) -> io::Result<Vec<u8>> {
        let path = self.dir.join("access.key");
        match files::read_small(&path) {
            Ok(key) if key.len() == 32 => return Ok(key),
            Ok(_) => self.damaged(&path, "not 32 bytes long"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.damaged(&path, error),
        }
        let key: [u8; 32] = rand::random();
        files::replace(self.dir, "access.key", &key, &self.dir.join("tmp/access.key"))?;
        Ok(key.to_vec())
    }

    fn artefacts(&mut self, kind: ArtefactKind) -> io::Result<BTreeMap<Id, Entry>> {
        let mut artefacts = BTreeMap::new();
        for (path, name) in entries(&kind_dir(self.dir, kind))? {
            match read_artefact(kind, &path, &name) {
                Ok(entry) => {
                    artefacts.insert((kind, name), entry);
                }
                Err(error) => self.damaged(&path, error),
            }
        }
        Ok(artefacts)
    }

    fn access(&mut self, index: &mut Index) -> io::Result<()> {
        let by_name: BTreeMap<String, Id> = index.artefacts.keys().map(|id| (file_name(id), id.clone())).collect();
        for (path, name) in entries(&self.dir.join("access"))? {
            let Some(entry) = by_name.get(&name).and_then(|id| index.artefacts.get_mut(id)) else {
                // Of an artefact that is gone, or was never published.
                files::remove_all(&path)?;
                continue;
            };
            match record::read::<AccessRecord>(&path) {
                Ok(access) => entry.proofs = access.proofs,
                Err(error) => self.damaged(&path, error),
            }
        }
        Ok(())
    }

    fn pins(&mut self, index: &mut Index) -> io::Result<()> {
        for (path, name) in entries(&self.dir.join("pins"))? {
            let pin = record::read::<PinRecord>(&path).and_then(|pin| {
                if name == pins::pin_name(&pin.interest, pin.kind) {
                    Ok(pin)
                } else {
                    Err(RecordError::Contradiction(
                        "its name belongs to another interest".into(),
                    ))
                }
            });
            match pin {
                Ok(pin) => {
                    index.pins.insert((pin.interest.clone(), pin.kind), pin);
                }
                Err(error) => {
                    self.found.pins_lost = true;
                    self.damaged(&path, error);
                }
            }
        }
        Ok(())
    }

    fn intents(&mut self, index: &Index) -> io::Result<()> {
        for (path, _) in entries(&self.dir.join("intents"))? {
            match record::read::<IntentRecord>(&path) {
                Ok(intent) => {
                    if !index.artefacts.contains_key(&(intent.kind, intent.id.clone())) {
                        self.found.interrupted.push(intent);
                    }
                    files::remove_all(&path)?;
                }
                Err(error) => self.damaged(&path, error),
            }
        }
        Ok(())
    }

    fn damaged(&mut self, path: &Path, why: impl std::fmt::Display) {
        self.counter += 1;
        match set_aside(self.dir, path, self.counter) {
            Ok(()) => self.found.set_aside.push((path.to_path_buf(), why.to_string())),
            Err(error) => {
                tracing::error!(path = %path.display(), %why, %error, "damaged, ignored, and cannot be set aside");
            }
        }
    }
}

/// The entries of a directory in the order of their names.
fn entries(dir: &Path) -> io::Result<Vec<(PathBuf, String)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        all.push((entry.path(), entry.file_name().to_string_lossy().into_owned()));
    }
    all.sort();
    Ok(all)
}

fn read_artefact(kind: ArtefactKind, path: &Path, name: &str) -> Result<Entry, RecordError> {
    let wrong = |what: &str| RecordError::Contradiction(what.to_string());
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_dir() || name.len() != 64 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(wrong("not a published artefact"));
    }
    let record: Record = record::read(&path.join(RECORD))?;
    if record.kind != kind || record.id != name {
        return Err(wrong("its record belongs to something else"));
    }
    let allocated = check_files(&record, path)?;
    Ok(Entry {
        artefact: record::artefact(&record, path, allocated),
        record,
        allocated,
        proofs: BTreeSet::new(),
        last_used: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
    })
}

/// Checks that the files of a record are there with their sizes; says how many bytes they occupy.
pub(super) fn check_files(record: &Record, dir: &Path) -> Result<u64, RecordError> {
    let mut bytes = 0;
    for name in record.content.files() {
        if !record.files.iter().any(|f| f.name == name) {
            return Err(RecordError::Contradiction(format!("its record does not list {name:?}")));
        }
    }
    for file in &record.files {
        if !is_plain_name(&file.name) {
            return Err(RecordError::Contradiction(format!(
                "{:?} is not a plain file name",
                file.name
            )));
        }
        let meta = match fs::symlink_metadata(dir.join(&file.name)) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RecordError::Contradiction(format!("{} is missing", file.name)));
            }
            Err(error) => return Err(error.into()),
        };
        if !meta.is_file() || meta.len() != file.size {
            let (name, size, is) = (&file.name, file.size, meta.len());
            return Err(RecordError::Contradiction(format!(
                "{name} should be a file of {size} bytes and has {is}"
            )));
        }
        bytes += allocated(&meta);
    }
    Ok(bytes)
}

/// One path component, and not a special one.
pub(super) fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && name != "." && name != ".." && !name.contains(['/', '\0'])
}
