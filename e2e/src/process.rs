//! Child processes that cannot outlive the process that started them.

use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};

use anyhow::{Context as _, Result};

type Job = (Command, mpsc::Sender<io::Result<Child>>);

/// The kernel sends the parent-death signal when the *thread* that forked ends, not the process. So
/// every child is forked by one thread that lives as long as the process.
fn spawner() -> &'static mpsc::Sender<Job> {
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in jobs {
                // The child of a caller that is gone is killed by the drop of its handle.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    })
}

/// A running child with a log file. Dropping it kills it and its process group.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` in a process group of its own, with both outputs appended to `log`.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Process> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0);
        let parent = std::process::id();
        // SAFETY: the closure only makes system calls that are async-signal-safe, and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // The parent may have ended before the signal was asked for.
                if u32::try_from(libc::getppid()) != Ok(parent) {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                Ok(())
            });
        }
        let program = command.get_program().to_owned();
        let (sender, answer) = mpsc::channel();
        spawner()
            .send((command, sender))
            .context("the thread that starts processes has ended")?;
        let child = answer
            .recv()
            .context("the thread that starts processes has ended")?
            .with_context(|| format!("start {name} ({})", program.display()))?;
        Ok(Process {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails with the end of the log when the process has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let how = status
                    .signal()
                    .map_or_else(|| status.to_string(), |signal| format!("signal {signal}"));
                anyhow::bail!(
                    "{} has ended ({how}); its log ends with:\n{}",
                    self.name,
                    self.log_tail()
                )
            }
        }
    }

    /// Sends SIGKILL to the process alone (not to what it started) and waits for its end.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        signal(self.child.id(), libc::SIGTERM);
    }

    /// The last lines of what the process printed.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            if let Ok(group) = i32::try_from(self.child.id()) {
                // SAFETY: a plain system call; the group is the child's own, made at its start, and
                // its leader has not been waited for, so that the number cannot be another's.
                unsafe { libc::kill(-group, libc::SIGKILL) };
            }
            let _ = self.child.wait();
        }
    }
}

/// Sends a signal to one process.
pub fn signal(pid: u32, signal: i32) {
    if let Ok(pid) = i32::try_from(pid) {
        // SAFETY: a plain system call.
        unsafe { libc::kill(pid, signal) };
    }
}

/// A TCP port of 127.0.0.1 that was free a moment ago, for servers that cannot choose one themselves.
/// Whoever uses it retries with another when the server does not start.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
