//! Who uses what, durably.

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};

use super::record::{self, PinRecord, VERSION};
use super::{Id, Store, files};
use crate::pulls::identity::hash;
use crate::types::{ArtefactKind, Interest};

impl Store {
    /// Pins an artefact for an interest, in place of what it had pinned of that kind. When it
    /// returns true, the artefact stays until [`Store::unpin`], across restarts and power cuts.
    /// False: the artefact is not there (any more).
    ///
    /// The caller makes sure that one interest does not pin and unpin at the same time.
    ///
    /// # Errors
    /// Of the disk; the old pin stands then.
    pub fn pin(&self, interest: &Interest, id: &Id, source: &str) -> io::Result<bool> {
        let slot = (interest.clone(), id.0);
        let (pin, old) = {
            let mut index = self.index();
            let Some(entry) = index.artefacts.get_mut(id) else {
                return Ok(false);
            };
            entry.last_used = SystemTime::now();
            let pin = PinRecord {
                version: VERSION,
                interest: interest.clone(),
                kind: id.0,
                id: id.1.clone(),
                digest: entry.record.digest.clone(),
                source: source.to_string(),
            };
            if index.pins.get(&slot) == Some(&pin) {
                return Ok(true);
            }
            // In memory first: from here on no collection takes it.
            let old = index.pins.insert(slot.clone(), pin.clone());
            (pin, old)
        };
        let dir = self.0.dir.join("pins");
        let encoded = record::encode(&pin)?;
        if let Err(error) = files::replace(&dir, &pin_name(interest, id.0), &encoded, &self.temp("pin")) {
            let mut index = self.index();
            match old {
                Some(old) => index.pins.insert(slot, old),
                None => index.pins.remove(&slot),
            };
            return Err(error);
        }
        self.touch(id);
        Ok(true)
    }

    /// What an interest has pinned. In memory.
    pub fn pin_of(&self, interest: &Interest, kind: ArtefactKind) -> Option<PinRecord> {
        self.index().pins.get(&(interest.clone(), kind)).cloned()
    }

    /// All interests that have pinned something. In memory.
    pub fn pinners(&self) -> Vec<Interest> {
        let mut all: Vec<Interest> = self.index().pins.keys().map(|(interest, _)| interest.clone()).collect();
        all.dedup();
        all
    }

    /// The interest uses nothing any more. Nothing pinned is fine.
    ///
    /// # Errors
    /// Of the disk; the pins stand then.
    pub fn unpin(&self, interest: &Interest) -> io::Result<()> {
        let kinds = [ArtefactKind::Image, ArtefactKind::Kernel];
        let held: Vec<PinRecord> = kinds.iter().filter_map(|kind| self.pin_of(interest, *kind)).collect();
        if held.is_empty() {
            return Ok(());
        }
        let dir = self.0.dir.join("pins");
        for pin in &held {
            files::remove_file(&dir.join(pin_name(interest, pin.kind)))?;
        }
        files::sync_dir(&dir)?;
        for pin in held {
            let id = (pin.kind, pin.id);
            {
                let mut index = self.index();
                index.pins.remove(&(interest.clone(), pin.kind));
                if let Some(entry) = index.artefacts.get_mut(&id) {
                    entry.last_used = SystemTime::now();
                }
            }
            self.touch(&id);
        }
        Ok(())
    }

    /// Remembers the last use across restarts as the directory's time; roughly is good enough.
    fn touch(&self, id: &Id) {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        let path: PathBuf = self.published(id);
        if let Err(error) = utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW) {
            tracing::debug!(path = %path.display(), %error, "the time of last use was not recorded");
        }
    }
}

/// The file name of a pin: interests are opaque and never become file names.
pub(super) fn pin_name(interest: &Interest, kind: ArtefactKind) -> String {
    let kind = match kind {
        ArtefactKind::Image => "image",
        ArtefactKind::Kernel => "kernel",
    };
    format!("{}-{kind}.json", hash(&[&interest.0]))
}
