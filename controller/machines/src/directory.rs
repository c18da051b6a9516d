//! The directory of one machine, and the sockets in it.
//!
//! A socket address holds 107 bytes, a data directory may be deeper than that: sockets are bound and
//! reached through `/proc/self/fd`. QEMU gets listening descriptors, so a socket exists before QEMU
//! does, and a connection made at once is answered when QEMU comes.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use crate::durable;

/// The monitor's socket.
pub const MONITOR: &str = "monitor.sock";
/// The socket of the guest's control port.
pub const CONTROL: &str = "control.sock";
/// The socket of the interactive console.
pub const TERMINAL: &str = "console.sock";
/// Held by the process that uses the interactive console.
pub const TERMINAL_LOCK: &str = "console.lock";
/// The overlay of the root disk.
pub const OVERLAY: &str = "root.qcow2";
/// Initrd and configuration of the latest run. Holds secrets.
pub const INITRD: &str = "initrd.img";
/// What the VMM printed.
pub const VMM_LOG: &str = "vmm.log";

/// Whether `uid` is a UUID in its canonical form: it becomes a directory name and a QEMU option.
pub fn is_uid(uid: &str) -> bool {
    uid.len() == 36
        && uid.bytes().enumerate().all(|(at, b)| match at {
            8 | 13 | 18 | 23 => b == b'-',
            _ => matches!(b, b'0'..=b'9' | b'a'..=b'f'),
        })
}

/// The directory of one machine.
#[derive(Clone, Debug)]
pub struct MachineDir {
    path: PathBuf,
}

impl MachineDir {
    /// Of a machine below `root`. Nothing is made.
    pub fn new(root: &Path, uid: &str) -> MachineDir {
        MachineDir { path: root.join(uid) }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes it, readable to the agent only. There already is success.
    pub fn create(&self) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Ok(()) => self.path.parent().map_or(Ok(()), durable::sync_directory),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.path.symlink_metadata().is_ok_and(|m| m.is_dir())
    }

    /// Removes it with all that is in it. Gone already is success.
    pub fn remove(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.path.parent().map_or(Ok(()), durable::sync_directory),
        }
    }

    /// A new listening socket of this name. A stale one is replaced: ask only when no VMM runs.
    pub fn listen(&self, name: &str) -> io::Result<UnixListener> {
        match std::fs::remove_file(self.file(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let dir = File::open(&self.path)?;
        UnixListener::bind(short(&dir, name))
    }

    /// Connects to a socket in it. Follows no link.
    ///
    /// # Errors
    /// It is gone, is no socket, or nobody listens.
    pub async fn connect(&self, name: &str) -> io::Result<UnixStream> {
        let dir = self.socket(name)?;
        UnixStream::connect(short(&dir, name)).await
    }

    /// The same for a caller that may block.
    pub fn connect_blocking(&self, name: &str) -> io::Result<std::os::unix::net::UnixStream> {
        let dir = self.socket(name)?;
        std::os::unix::net::UnixStream::connect(short(&dir, name))
    }

    /// The directory, opened, in which a socket of this name lies.
    fn socket(&self, name: &str) -> io::Result<File> {
        let kind = self.file(name).symlink_metadata()?.file_type();
        if !kind.is_socket() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is not a socket", self.file(name).display()),
            ));
        }
        File::open(&self.path)
    }
}

fn short(dir: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b8e0c3e-6f4e-4a53-9a51-1d6f3f1f2a10";

    #[test]
    fn only_a_uuid_becomes_a_directory() {
        assert!(is_uid(UID));
        for bad in [
            "",
            ".",
            "..",
            "../../../etc/0000000000000000000000000",
            &UID.to_uppercase(),
            &UID[1..],
        ] {
            assert!(!is_uid(bad), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_socket_in_a_deep_directory_is_reached() {
        let root = tempfile::tempdir().expect("a directory");
        let deep = root.path().join("d".repeat(200));
        std::fs::create_dir(&deep).expect("creates");
        let dir = MachineDir::new(&deep, UID);
        dir.create().expect("creates");
        dir.create().expect("there already");
        let listener = dir.listen(MONITOR).expect("binds");
        dir.connect(MONITOR).await.expect("connects");
        listener.accept().expect("a client");
        drop(dir.listen(MONITOR).expect("replaces"));
        dir.connect(MONITOR).await.expect_err("nobody listens");
    }

    #[tokio::test]
    async fn a_link_in_place_of_a_socket_is_not_followed() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = MachineDir::new(root.path(), UID);
        dir.create().expect("creates");
        let _listener = dir.listen(MONITOR).expect("binds");
        std::os::unix::fs::symlink(MONITOR, dir.file(CONTROL)).expect("links");
        let error = dir.connect(CONTROL).await.expect_err("refused");
        assert!(error.to_string().contains("is not a socket"), "{error}");
        dir.remove().expect("removes");
        dir.remove().expect("gone already");
    }
}
