//! What this host remembers of one machine: `record.json` in its directory.
//!
//! A record is replaced as a whole (private name, rename), so a reader sees the old one or the new one.
//! What must outlive a power cut is synced; what only has to outlive the agent (a process id) is not.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::durable;
use crate::observation::{DiskInfo, Termination, Timing, VmmInfo};
use crate::process::ProcessId;
use crate::spec::PortForward;

/// Name of the file in a machine's directory.
pub const RECORD: &str = "record.json";
const VERSION: u32 = 1;
/// The longest record that is read, in bytes.
const MAX_RECORD: u64 = 1 << 20;

/// What is remembered of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    version: u32,
    /// Whose record this is.
    pub uid: String,
    /// The last run that was begun.
    pub run: u64,
    /// Whether that run is over, or how far it came.
    pub stage: Stage,
    /// The VMM, once it was executed.
    pub process: Option<ProcessId>,
    /// Which VMM.
    pub vmm: Option<VmmInfo>,
    /// The disk and what it stands on.
    pub disk: Option<DiskInfo>,
    /// File name in the cache of initrds, of the latest run.
    #[serde(default)]
    pub initrd: Option<String>,
    /// The forwards last asked for.
    #[serde(default)]
    pub ports: Vec<PortForward>,
    /// When the VMM was executed.
    pub started_at: Option<SystemTime>,
    /// When the guest was first ready.
    pub ready_at: Option<SystemTime>,
    /// Boot id of the latest boot that was ready.
    pub guest_boot_id: Option<String>,
    /// Reboots inside this run.
    #[serde(default)]
    pub reboots: u64,
    /// A stop that was begun.
    pub stop: Option<Stop>,
    /// How the last run that ended, ended.
    pub termination: Option<Termination>,
    /// Steps of the latest start.
    #[serde(default)]
    pub timings: Vec<Timing>,
}

/// How far a run came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// It is over (or there was none).
    Idle,
    /// A VMM may have been executed and not yet noted.
    Launching,
    /// A VMM was executed and noted.
    Live,
}

/// A stop under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stop {
    /// When the VMM is killed if it still runs.
    pub deadline: SystemTime,
    /// The grace period that ends a moment before then.
    #[serde(default)]
    pub grace: Duration,
    /// Whether the guest said that it follows.
    #[serde(default)]
    pub followed: bool,
    /// Whether the VMM got SIGTERM, because it could not be talked to.
    #[serde(default)]
    pub terminated: bool,
    /// Whether the one kill was sent, or was about to be.
    pub killed: bool,
}

impl Record {
    /// The record of a machine of which nothing is known.
    pub fn new(uid: &str) -> Record {
        Record {
            version: VERSION,
            uid: uid.to_owned(),
            run: 0,
            stage: Stage::Idle,
            process: None,
            vmm: None,
            disk: None,
            initrd: None,
            ports: Vec::new(),
            started_at: None,
            ready_at: None,
            guest_boot_id: None,
            reboots: 0,
            stop: None,
            termination: None,
            timings: Vec::new(),
        }
    }

    /// Begins run `run`: all that was of the run before it is forgotten, except how that ended.
    pub fn begin(&mut self, run: u64) {
        *self = Record {
            run,
            stage: Stage::Launching,
            termination: self.termination.take(),
            disk: self.disk.take(),
            initrd: self.initrd.take(),
            ..Record::new(&self.uid)
        };
    }

    /// The VMM of this run is gone.
    pub fn over(&mut self) {
        self.stage = Stage::Idle;
        self.process = None;
        self.stop = None;
    }

    /// Writes the record into `dir`; with `synced`, so that it outlives a power cut.
    ///
    /// # Errors
    /// The file system's. The old record stays then.
    pub fn write(&self, dir: &Path, synced: bool) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(self)?;
        durable::replace(dir, RECORD, &bytes, 0o600, synced)
    }

    /// Reads the record of `uid` in `dir`. A torn or foreign one is set aside under another name and told.
    ///
    /// # Errors
    /// The file system's, other than that there is none.
    pub fn read(dir: &Path, uid: &str) -> io::Result<Found> {
        let path = dir.join(RECORD);
        let bytes = match durable::read_bounded(&path, MAX_RECORD) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return set_aside(&path, error.to_string());
            }
            Err(error) => return Err(error),
        };
        match parse(&bytes, uid) {
            Ok(record) => Ok(Found::Record(Box::new(record))),
            Err(why) => set_aside(&path, why),
        }
    }
}

/// What was found where a record should be.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    None,
    /// A record.
    Record(Box<Record>),
    /// Something else; it was renamed.
    SetAside {
        /// Its new name.
        path: PathBuf,
        /// What was wrong with it.
        why: String,
    },
}

fn parse(bytes: &[u8], uid: &str) -> Result<Record, String> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
        uid: String,
    }
    let head: Head = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if head.version != VERSION {
        return Err(format!("it has version {}, this vmlet knows {VERSION}", head.version));
    }
    if head.uid != uid {
        return Err(format!("it is of another machine, {:?}", head.uid));
    }
    serde_json::from_slice(bytes).map_err(|e| e.to_string())
}

fn set_aside(path: &Path, why: String) -> io::Result<Found> {
    // One is kept: the newest. An agent that meets a new one at every start must not fill the disk.
    let aside = path.with_extension("json.broken");
    if std::fs::rename(path, &aside).is_err() {
        // What lies there is of another kind.
        let _ = std::fs::remove_file(&aside).or_else(|_| std::fs::remove_dir_all(&aside));
        std::fs::rename(path, &aside)?;
    }
    Ok(Found::SetAside { path: aside, why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observation::TerminationReason;

    const UID: &str = "0b8e0c3e-6f4e-4a53-9a51-1d6f3f1f2a10";

    fn record() -> Record {
        let mut record = Record::new(UID);
        record.begin(4);
        record.stage = Stage::Live;
        record.process = Some(ProcessId {
            pid: 7,
            start_time: 9,
            boot_id: "b".into(),
        });
        record.termination = Some(Termination {
            run: 3,
            reason: TerminationReason::Error,
            exit_code: Some(2),
            message: "m".into(),
            finished_at: SystemTime::UNIX_EPOCH,
        });
        record
    }

    fn read_back(bytes: &[u8]) -> Found {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join(RECORD), bytes).expect("writes");
        let found = Record::read(dir.path(), UID).expect("no I/O error");
        if let Found::SetAside { path, .. } = &found {
            assert_eq!(std::fs::read(path).expect("kept"), bytes);
            assert!(!dir.path().join(RECORD).exists());
        }
        found
    }

    #[test]
    fn a_record_survives_the_round_trip() {
        let dir = tempfile::tempdir().expect("a directory");
        for synced in [true, false] {
            record().write(dir.path(), synced).expect("writes");
            let Found::Record(read) = Record::read(dir.path(), UID).expect("reads") else {
                panic!("no record")
            };
            assert_eq!(*read, record());
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 1);
    }

    #[test]
    fn a_torn_record_is_set_aside_at_every_length() {
        let whole = serde_json::to_vec(&record()).expect("serialises");
        for length in 0..whole.len() {
            assert!(
                matches!(read_back(&whole[..length]), Found::SetAside { .. }),
                "{length}"
            );
        }
        assert!(matches!(read_back(&whole), Found::Record(_)));
    }

    #[test]
    fn a_foreign_record_is_set_aside_with_the_reason() {
        for (bytes, reason) in [
            (
                r#"{"version":2,"uid":"0b8e0c3e-6f4e-4a53-9a51-1d6f3f1f2a10"}"#,
                "version 2",
            ),
            (r#"{"version":1,"uid":"other"}"#, "another machine"),
            ("\0\0\0\0", "expected value"),
        ] {
            let Found::SetAside { why, .. } = read_back(bytes.as_bytes()) else {
                panic!("accepted")
            };
            assert!(why.contains(reason), "{why}");
        }
        let huge = vec![b' '; MAX_RECORD as usize + 1];
        assert!(matches!(read_back(&huge), Found::SetAside { .. }));
    }

    #[test]
    fn a_new_run_forgets_the_old_one_but_for_its_end() {
        let mut record = record();
        record.begin(5);
        assert_eq!(
            (record.run, record.stage, record.process.as_ref()),
            (5, Stage::Launching, None)
        );
        assert_eq!(record.termination.expect("kept").run, 3);
    }
}
