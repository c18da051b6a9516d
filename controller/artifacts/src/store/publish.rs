//! From an intent to a published artefact.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::record::{self, AccessRecord, Content, FileRecord, IntentRecord, RECORD, Record, VERSION};
use super::{Entry, Id, Store, file_name, files, open};
use crate::pulls::identity::ANYBODY;

/// Logins that are remembered with one artefact.
const MOST_PROOFS: usize = 1000;

/// A pull under way: its intent is on disk, its directory is private.
#[derive(Debug)]
pub struct Pull {
    /// What it will be.
    pub id: Id,
    /// The directory to fill.
    pub dir: PathBuf,
    digest: String,
    source: String,
}

/// Whether a pull works where others read: only in a build that has this bug on purpose (see e2e).
fn in_place(id: &Id) -> bool {
    cfg!(feature = "bug-kernel-manifest-in-place") && id.0 == crate::types::ArtefactKind::Kernel
}

impl Store {
    /// Begins a pull: the intent record, then a private directory.
    ///
    /// # Errors
    /// Of the disk; nothing is left behind then, or the next open sweeps it.
    pub fn begin(&self, id: Id, digest: &str, source: &str) -> io::Result<Pull> {
        let intent = IntentRecord {
            version: VERSION,
            kind: id.0,
            id: id.1.clone(),
            digest: digest.to_string(),
            source: source.to_string(),
        };
        let intents = self.0.dir.join("intents");
        files::replace(
            &intents,
            &file_name(&id),
            &record::encode(&intent)?,
            &self.temp("intent"),
        )?;
        let dir = if in_place(&id) {
            self.published(&id)
        } else {
            self.temp("pull")
        };
        let made = files::make_dir(&dir, 0o700);
        let pull = Pull {
            id,
            dir,
            digest: digest.to_string(),
            source: source.to_string(),
        };
        if let Err(error) = made {
            self.abandon(&pull);
            return Err(error);
        }
        Ok(pull)
    }

    /// Publishes what a pull has put into its directory: durable, whole, under its identity, and
    /// open to askers with one of `proofs`. When it returns Ok, a power cut cannot take it back.
    /// There is one pull per identity at a time; the keyed pulls see to that.
    ///
    /// # Errors
    /// Of the disk, or when the content names files that are not there. Nothing is published then
    /// as far as this store knows; the caller abandons the pull.
    pub fn publish(&self, pull: &Pull, content: Content, proofs: BTreeSet<String>) -> io::Result<()> {
        if self.index().artefacts.contains_key(&pull.id) {
            if cfg!(feature = "bug-no-coalescing") {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            return self.grant(&pull.id, proofs);
        }
        let mut listed = Vec::new();
        for name in content.files() {
            if !open::is_plain_name(name) || name == RECORD {
                return Err(io::Error::other(format!(
                    "the work names its file {name:?}, which is not a plain name"
                )));
            }
            let size = fs::symlink_metadata(pull.dir.join(name))?.len();
            listed.push(FileRecord {
                name: name.to_string(),
                size,
            });
        }
        let record = Record {
            version: VERSION,
            kind: pull.id.0,
            id: pull.id.1.clone(),
            digest: pull.digest.clone(),
            source: pull.source.clone(),
            files: listed,
            content,
        };
        files::write_new(&pull.dir.join(RECORD), &record::encode(&record)?, 0o600)?;
        files::seal_files(&pull.dir)?;
        let allocated = open::check_files(&record, &pull.dir).map_err(io::Error::other)?;
        fs::set_permissions(&pull.dir, Permissions::from_mode(0o755))?;
        files::sync_dir(&pull.dir)?;

        let target = self.published(&pull.id);
        // Before the artefact, so that none is ever there without knowing who may have it.
        self.write_access(&pull.id, proofs.clone())?;
        // Left by a publication whose last fsync failed: not known to be durable, so not used.
        if !in_place(&pull.id) && fs::symlink_metadata(&target).is_ok() {
            let trash = self.temp("trash");
            files::rename(&target, &trash)?;
            self.sweep(files::remove_all(&trash), &trash);
        }
        if !in_place(&pull.id) {
            files::rename(&pull.dir, &target)?;
        }
        files::sync_dir(&self.kind_dir(pull.id.0))?;
        let entry = Entry {
            artefact: record::artefact(&record, &target, allocated),
            record,
            allocated,
            proofs,
            last_used: SystemTime::now(),
        };
        self.index().artefacts.insert(pull.id.clone(), entry);
        Ok(())
    }

    /// Ends a pull, published or not: what is left of its directory and its intent go. Errors are
    /// logged only; the next open sweeps.
    pub fn abandon(&self, pull: &Pull) {
        if !(in_place(&pull.id) && self.index().artefacts.contains_key(&pull.id)) {
            self.sweep(files::remove_all(&pull.dir), &pull.dir);
        }
        let intent = self.0.dir.join("intents").join(file_name(&pull.id));
        self.sweep(files::remove_file(&intent), &intent);
    }

    /// Records durably that askers with one of these proofs may have the artefact.
    ///
    /// # Errors
    /// Of the disk.
    pub fn grant(&self, id: &Id, new: BTreeSet<String>) -> io::Result<()> {
        let Some(mut proofs) = self.index().artefacts.get(id).map(|e| e.proofs.clone()) else {
            return Ok(());
        };
        if proofs.is_superset(&new) {
            return Ok(());
        }
        // Logins that are renewed every day add up. One that is forgotten is asked about once more.
        while proofs.len() + new.len() > MOST_PROOFS
            && let Some(one) = proofs.iter().find(|p| *p != ANYBODY).cloned()
        {
            proofs.remove(&one);
        }
        proofs.extend(new);
        self.write_access(id, proofs.clone())?;
        if let Some(entry) = self.index().artefacts.get_mut(id) {
            entry.proofs = proofs;
        }
        Ok(())
    }

    fn write_access(&self, id: &Id, proofs: BTreeSet<String>) -> io::Result<()> {
        let access = AccessRecord {
            version: VERSION,
            proofs,
        };
        let dir = self.0.dir.join("access");
        files::replace(&dir, &file_name(id), &record::encode(&access)?, &self.temp("access"))
    }

    fn sweep(&self, result: io::Result<()>, path: &Path) {
        if let Err(error) = result {
            tracing::warn!(path = %path.display(), %error, "could not be removed; the next start removes it");
        }
    }
}
