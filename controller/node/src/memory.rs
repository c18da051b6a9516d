//! What the agent remembers of a VM between reconciles and across its own restarts:
//! `DIR/node/vms/<uid>.json`, replaced atomically and durably before each start.
//!
//! Nothing here is needed to tear a machine down; a lost file costs a counter, never a VM.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};
use vmlet_artifacts::types::Source;
use vmlet_crds::VirtualMachineStatus;

/// Extension of a record that could not be read.
const DAMAGED: &str = "damaged";

/// The durable part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Record {
    /// Namespace and name of the VM, so that an orphan can be looked up.
    pub namespace: String,
    /// See `namespace`.
    pub name: String,
    /// Image that the root disk was made from.
    pub image: Option<Pin>,
    /// Kernel of the last start.
    pub kernel: Option<Pin>,
    /// Hash of everything that takes effect at a start only, as of the last start.
    pub fingerprint: String,
    /// spec.restartedAt that has been acted on.
    pub restarted_at: Option<Time>,
    /// Starts after an end that was not asked for.
    pub restart_count: i32,
    /// Failures in a row.
    pub failures: u32,
    /// The run whose end has been counted in `failures`.
    pub counted_run: u64,
    /// Seed of the guest's ssh host key, base64. It belongs to the VM, not to its disk.
    pub host_key_seed: String,
    /// Public half of it, as the last start gave it to the guest.
    pub ssh_host_key: Option<String>,
    /// Since when the VM is known to be gone from the API (unix seconds).
    pub orphan_since: Option<u64>,
}

/// An artefact that a VM is tied to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pin {
    /// Name of the Image or Kernel object.
    pub name: String,
    /// Registry reference, URL or path.
    pub source: Source,
    /// Digest of the manifest.
    pub digest: String,
    /// Kernel version; empty for images.
    #[serde(default)]
    pub version: String,
}

/// What is known of a VM: the record and what only this process needs.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// The durable part.
    pub record: Record,
    /// Status as last written: its conditions carry the lastTransitionTime.
    pub status: VirtualMachineStatus,
    /// When the pull of the image (then of the kernel) was first seen under way.
    pub image_wait: Option<SystemTime>,
    /// See `image_wait`.
    pub kernel_wait: Option<SystemTime>,
    /// The last event of each kind, so that each is told once.
    pub told: std::collections::BTreeMap<&'static str, String>,
}

/// The directory of records.
#[derive(Clone, Debug)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    /// Opens the directory, making it when missing, and removes torn temporaries.
    ///
    /// # Errors
    /// When it cannot be made or read.
    pub fn open(dir: PathBuf) -> std::io::Result<Self> {
        fs::create_dir_all(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "tmp") {
                fs::remove_file(path)?;
            }
        }
        Ok(Self { dir })
    }

    /// The record of a VM; beside it lies what was set aside, with the extension [`DAMAGED`].
    fn path(&self, uid: &str) -> PathBuf {
        // A uid is checked by the API server, but nothing from outside becomes a path unchecked.
        let safe: String = uid
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
            .collect();
        self.dir.join(format!("{safe}.json"))
    }

    /// Reads a record. A torn one is set aside and counts as none.
    pub fn load(&self, uid: &str) -> Option<Record> {
        let path = self.path(uid);
        let bytes = fs::read(&path).ok()?;
        match serde_json::from_slice(&bytes) {
            Ok(record) => Some(record),
            Err(error) => {
                let aside = path.with_extension(DAMAGED);
                tracing::warn!(path = %path.display(), %error, aside = %aside.display(), "record is damaged; set aside and started anew");
                if let Err(error) = fs::rename(&path, &aside) {
                    tracing::warn!(path = %path.display(), %error, "damaged record could not be set aside");
                }
                None
            }
        }
    }

    /// Replaces a record, atomically and durably.
    ///
    /// # Errors
    /// When the disk refuses; the old record then still stands.
    pub fn store(&self, uid: &str, record: &Record) -> std::io::Result<()> {
        let path = self.path(uid);
        let temp = path.with_extension("tmp");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temp)?;
        file.write_all(&serde_json::to_vec_pretty(record)?)?;
        file.sync_all()?;
        fs::rename(&temp, &path)?;
        sync_dir(&self.dir)
    }

    /// The uids of all records.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn uids(&self) -> std::io::Result<Vec<String>> {
        self.with("json")
    }

    /// The uids of all records that were set aside. They are for people to look at while the VM is there; a part of its
    /// secrets is in them.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn set_aside(&self) -> std::io::Result<Vec<String>> {
        self.with(DAMAGED)
    }

    fn with(&self, extension: &str) -> std::io::Result<Vec<String>> {
        let mut uids = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == extension)
                && let Some(uid) = path.file_stem().and_then(|s| s.to_str())
            {
                uids.push(uid.to_owned());
            }
        }
        Ok(uids)
    }

    /// Removes a record and what was set aside of it; that they are not there is fine.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove(&self, uid: &str) -> std::io::Result<()> {
        let path = self.path(uid);
        // The record last: by it the VM is found again.
        for file in [path.with_extension(DAMAGED), path] {
            match fs::remove_file(file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> (tempfile::TempDir, Records) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let records = Records::open(dir.path().join("vms")).expect("opens");
        (dir, records)
    }

    #[test]
    fn a_record_comes_back_as_it_was_stored() {
        let (_dir, records) = records();
        let record = Record {
            name: "a".into(),
            image: Some(Pin {
                name: "i".into(),
                source: Source::Path { path: "x".into() },
                digest: "sha256:1".into(),
                version: String::new(),
            }),
            ..Record::default()
        };
        records.store("u-1", &record).expect("stores");
        assert_eq!(records.load("u-1"), Some(record));
        assert_eq!(records.uids().expect("lists"), ["u-1"]);
        records.remove("u-1").expect("removes");
        records.remove("u-1").expect("is gone already, which is fine");
        assert_eq!(records.load("u-1"), None);
    }

    #[test]
    fn a_torn_record_is_set_aside_and_counts_as_none() {
        let (dir, records) = records();
        fs::write(dir.path().join("vms/u.json"), b"{\"name\": \"a").expect("writes");
        assert_eq!(records.load("u"), None);
        assert!(dir.path().join("vms/u.damaged").exists());
        assert_eq!(records.set_aside().expect("lists"), ["u"]);
        records.store("u", &Record::default()).expect("stores");
        records.remove("u").expect("removes");
        assert_eq!(fs::read_dir(dir.path().join("vms")).expect("reads").count(), 0);
    }

    #[test]
    fn a_uid_cannot_leave_the_directory() {
        let (dir, records) = records();
        records.store("../../escape", &Record::default()).expect("stores");
        assert!(!dir.path().join("escape.json").exists());
        assert!(records.load("../../escape").is_some());
    }
}
