//! The interactive console of one machine: the guest's /dev/hvc0.
//!
//! It is a socket of the VMM's in the machine's directory, so it needs neither the agent nor the API, and
//! whoever may open that directory may use it. The VMM serves one client and lets others wait without a word:
//! a lock says who it is. Its holder may end in any way, the lock goes with it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::directory::{MachineDir, TERMINAL, TERMINAL_LOCK, is_uid};
use crate::process::{find_vmm, host_boot_id};

/// An open interactive console. Nobody else has it until this is dropped.
#[derive(Debug)]
pub struct Terminal {
    /// What the guest writes, and what it reads. At its end the machine has stopped.
    pub stream: UnixStream,
    _lock: File,
}

/// Why there is no interactive console.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// Nothing of this machine is below the directory.
    #[error("there is no machine {uid} below {}", .dir.display())]
    Absent {
        /// Its uid.
        uid: String,
        /// The directory of all machines.
        dir: PathBuf,
    },
    /// It has no VMM.
    #[error("the machine does not run")]
    NotRunning,
    /// Its VMM was started by a vmlet that knew no interactive console.
    #[error(
        "this run of the machine has no interactive console, because an older vmlet started it; it gets one at its next start"
    )]
    StartedByOlder,
    /// Somebody else uses it.
    #[error("{} uses the console already: end that session first", holder(*.pid))]
    Busy {
        /// The process, if it said so.
        pid: Option<u32>,
    },
    /// A file cannot be used.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

impl Terminal {
    /// Opens the console of the machine `uid` below the directory of all machines. Never waits.
    ///
    /// # Errors
    /// [`TerminalError`].
    pub fn open(machines: &Path, uid: &str) -> Result<Terminal, TerminalError> {
        let absent = || TerminalError::Absent {
            uid: uid.to_owned(),
            dir: machines.to_owned(),
        };
        if !is_uid(uid) {
            return Err(absent());
        }
        let dir = MachineDir::new(machines, uid);
        let failed = |name: &str| {
            let path = dir.file(name);
            move |source| TerminalError::Io { path, source }
        };
        match dir.path().symlink_metadata() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(absent()),
            Err(error) => return Err(failed("")(error)),
        }
        let lock = lock(&dir).map_err(failed(TERMINAL_LOCK))??;
        match dir.connect_blocking(TERMINAL) {
            Ok(stream) => Ok(Terminal { stream, _lock: lock }),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                // For the message only, so anybody's process with this uid on its command line will do.
                let vmm = host_boot_id().and_then(|boot| find_vmm(uid, &boot, |_| true));
                Err(match vmm {
                    Ok(Some(_)) => TerminalError::StartedByOlder,
                    _ => TerminalError::NotRunning,
                })
            }
            Err(error) => Err(failed(TERMINAL)(error)),
        }
    }
}

fn lock(dir: &MachineDir) -> io::Result<Result<File, TerminalError>> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(dir.file(TERMINAL_LOCK))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // A pid has at most 7 digits.
            let read = (&mut file).take(16).read_to_string(&mut text);
            let pid = read.ok().and_then(|_| text.trim().parse().ok());
            return Ok(Err(TerminalError::Busy { pid }));
        }
        Err(TryLockError::Error(error)) => return Err(error),
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(Ok(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b8e0c3e-6f4e-4a53-9a51-1d6f3f1f2a11";

    fn machine() -> (tempfile::TempDir, MachineDir) {
        let root = tempfile::tempdir().expect("a directory");
        let dir = MachineDir::new(root.path(), UID);
        dir.create().expect("creates");
        (root, dir)
    }

    #[test]
    fn one_at_a_time_has_the_console_and_the_next_is_told_who() {
        let (root, dir) = machine();
        let _vmm = dir.listen(TERMINAL).expect("binds");
        let first = Terminal::open(root.path(), UID).expect("opens");
        let error = Terminal::open(root.path(), UID).expect_err("busy").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        Terminal::open(root.path(), UID).expect("free again");
    }

    #[test]
    fn a_machine_that_is_not_there_or_does_not_run_is_told_apart() {
        let (root, dir) = machine();
        for other in ["0b8e0c3e-6f4e-4a53-9a51-1d6f3f1f2a99", "../../etc"] {
            let error = Terminal::open(root.path(), other).expect_err("absent");
            assert!(matches!(error, TerminalError::Absent { .. }), "{error}");
        }
        let error = Terminal::open(root.path(), UID).expect_err("no socket");
        assert!(matches!(error, TerminalError::NotRunning), "{error}");
        // What a run left behind.
        drop(dir.listen(TERMINAL).expect("binds"));
        let error = Terminal::open(root.path(), UID).expect_err("nobody listens");
        assert!(matches!(error, TerminalError::NotRunning), "{error}");
    }

    #[test]
    fn a_link_in_place_of_the_lock_is_not_followed() {
        let (root, dir) = machine();
        let victim = root.path().join("victim");
        std::fs::write(&victim, "precious").expect("writes");
        std::os::unix::fs::symlink(&victim, dir.file(TERMINAL_LOCK)).expect("links");
        let error = Terminal::open(root.path(), UID).expect_err("refused");
        assert!(matches!(error, TerminalError::Io { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&victim).expect("reads"), "precious");
    }
}
