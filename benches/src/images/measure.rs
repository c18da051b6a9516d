//! What a command costs: wall time, and what the kernel counts for it and all that it waited for.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// The cost of one run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// From the start to the end.
    pub wall: Duration,
    /// User and system time.
    pub cpu: Duration,
    /// Peak resident memory of the largest process, bytes. Never less than this program's own.
    pub rss: u64,
    /// Bytes that were made dirty in the page cache.
    pub written: u64,
}

impl Cost {
    /// Both one after the other.
    pub fn then(self, next: Cost) -> Cost {
        Cost {
            wall: self.wall + next.wall,
            cpu: self.cpu + next.cpu,
            rss: self.rss.max(next.rss),
            written: self.written + next.written,
        }
    }
}

/// Runs a command to its end; its output goes to `log`, and it must succeed.
pub fn run(mut command: Command, log: &Path) -> Result<Cost> {
    let out = std::fs::File::create(log).with_context(|| log.display().to_string())?;
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    let start = Instant::now();
    let child = command.spawn().with_context(|| format!("{command:?}"))?;
    let pid = libc::pid_t::try_from(child.id())?;
    let mut status = 0;
    // SAFETY: all zeros is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the child is ours and nobody else waits for it; both pointers are valid.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    let wall = start.elapsed();
    ensure!(waited == pid, "wait4: {}", std::io::Error::last_os_error());
    let status = ExitStatus::from_raw(status);
    if !status.success() {
        let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        anyhow::bail!(
            "{command:?}: {status}\n{}",
            lines[lines.len().saturating_sub(10)..].join("\n")
        );
    }
    Ok(Cost {
        wall,
        cpu: cpu(&usage),
        rss: u64::try_from(usage.ru_maxrss).unwrap_or(0) << 10,
        written: u64::try_from(usage.ru_oublock).unwrap_or(0) * 512,
    })
}

/// CPU time of this process so far.
pub fn own_cpu() -> Duration {
    // SAFETY: all zeros is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is valid.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    cpu(&usage)
}

fn cpu(usage: &libc::rusage) -> Duration {
    let time = |time: libc::timeval| {
        Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0))
            + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_costs_includes_the_processes_that_it_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg("sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'; :");
        let cost = run(command, &dir.path().join("log")).expect("it runs");
        assert!(cost.cpu > Duration::from_millis(1), "{cost:?}");
        assert!(cost.wall >= cost.cpu / 2);
        assert!(cost.rss > 0);
    }

    #[test]
    fn a_command_that_fails_is_an_error_with_its_words() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = Command::new("sh");
        command.arg("-c").arg("echo a reason; exit 3");
        let error = run(command, &dir.path().join("log")).expect_err("it fails").to_string();
        assert!(error.contains("a reason"), "{error}");
    }
}
