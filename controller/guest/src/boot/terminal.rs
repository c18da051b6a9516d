//! The interactive console, /dev/hvc0: root's shell for whoever presses Enter there.
//!
//! The device is the host's alone: nobody reaches it who may not open the machine's directory on the host,
//! and who may could change the disk as well. So it asks for no password, as `docker exec` asks for none. An
//! image's own init has its own idea of a console (systemd puts a login there); this is for entrypoints.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::events::Events;
use super::{Guest, log};

/// The interactive console.
pub const DEVICE: &str = "/dev/hvc0";
/// Shells, the most comfortable first.
const SHELLS: [&str; 3] = ["/bin/bash", "/bin/sh", "/usr/bin/sh"];

/// Who uses the interactive console.
pub enum Terminal {
    /// Nobody can: there is none, or it belongs to the workload.
    None,
    /// Nobody does; input is waited for.
    Waiting(File),
    /// This process of ours.
    Shell(i32),
}

impl Terminal {
    /// Waits for input, where there is an interactive console.
    pub fn open(events: &Events) -> Terminal {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open(DEVICE);
        let watched = opened.and_then(|file| events.watch(&file).map(|()| file));
        // A VMM of an older vmlet has no such device.
        watched.map_or(Terminal::None, Terminal::Waiting)
    }

    /// Starts a shell if somebody pressed Enter. The line is left for the shell: it may be a command.
    pub fn serve(&mut self, guest: &Guest) {
        let Terminal::Waiting(file) = self else { return };
        let mut ready = [PollFd::new(file, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if !matches!(poll(&mut ready, Some(&now)), Ok(1)) {
            return;
        }
        match shell(guest, file) {
            Ok(pid) => *self = Terminal::Shell(pid),
            Err(error) => {
                let text = format!("\r\nvmlet-init: no shell for this console: {error}\r\n");
                let _ = file.write_all(text.as_bytes());
                log::error(text.trim());
                *self = Terminal::None;
            }
        }
    }

    /// A process ended; if it was the shell, input is waited for again.
    pub fn ended(&mut self, pid: i32, events: &Events) {
        if matches!(self, Terminal::Shell(shell) if *shell == pid) {
            *self = Terminal::open(events);
            if let Terminal::Waiting(file) = self {
                let _ = file.write_all(b"\r\nThe shell has ended. Press Enter for another one.\r\n");
            }
        }
    }

    /// Ends the shell: an interactive one ignores SIGTERM, and would hold up every stop.
    pub fn hang_up(&self) {
        if let Terminal::Shell(pid) = self {
            // SAFETY: a system call on numbers; the process was not reaped, or `ended` would know.
            unsafe { libc::kill(*pid, libc::SIGHUP) };
        }
    }
}

fn shell(guest: &Guest, file: &File) -> io::Result<i32> {
    let there = |path: &&&str| std::fs::metadata(path).is_ok_and(|m| m.is_file());
    let path = *SHELLS
        .iter()
        .find(there)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the image has no /bin/sh"))?;
    // The flag is shared with the shell's descriptors.
    let flags = fcntl_getfl(file)?;
    fcntl_setfl(file, flags - OFlags::NONBLOCK)?;
    let home = if std::fs::metadata("/root").is_ok() {
        "/root"
    } else {
        "/"
    };
    let mut command = Command::new(path);
    command
        // A login shell.
        .arg0(format!("-{}", path.rsplit('/').next().unwrap_or("sh")))
        .env_clear()
        .env("TERM", "vt220")
        .envs(vmlet_init::decide::environment(&guest.config, home))
        .current_dir(home)
        .stdin(Stdio::from(file.try_clone()?))
        .stdout(Stdio::from(file.try_clone()?))
        .stderr(Stdio::from(file.try_clone()?));
    let root = vmlet_init::users::User {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        home: home.to_owned(),
    };
    // SAFETY: between fork and exec only system calls are made, on memory that existed before.
    unsafe { command.pre_exec(move || super::workload::become_workload(&root, true)) };
    Ok(command.spawn()?.id() as i32)
}
