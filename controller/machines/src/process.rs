//! VMM processes: started so that they outlive the agent, recognised so that no other is ever signalled.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::qemu::argv::value_of;

/// A process that cannot be mistaken for another: pids are reused, start times within a boot are not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessId {
    /// Process id.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks after boot.
    pub start_time: u64,
    /// The host's boot.
    pub boot_id: String,
}

/// A living process, held by descriptor.
#[derive(Debug)]
pub struct Process {
    /// Which.
    pub id: ProcessId,
    pidfd: AsyncFd<OwnedFd>,
    child: Option<Child>,
}

/// What to execute, and how.
pub struct Launch<'a> {
    /// The program.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Descriptors that it inherits under their own numbers. All others are closed.
    pub inherited: Vec<OwnedFd>,
    /// Where its standard output and error go.
    pub output: File,
    /// The identity it gets; None: the agent's own.
    pub identity: Option<Identity>,
    /// Whether it may listen on privileged ports although its identity is not root's.
    pub low_ports: bool,
    /// `cgroup.procs` files of the cgroups it joins before it is executed.
    pub cgroups: Vec<File>,
}

/// User and groups of a VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User and primary group.
    pub id: u32,
    /// One more group, for /dev/kvm.
    pub extra_group: Option<u32>,
}

impl Process {
    /// Executes a VMM in a session of its own.
    ///
    /// # Errors
    /// The program cannot be executed, or the identity cannot be taken.
    pub fn launch(launch: Launch<'_>, boot_id: &str) -> io::Result<Process> {
        let mut command = Command::new(launch.program);
        command
            .args(&launch.arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(launch.output.try_clone()?)
            .stderr(launch.output);
        let inherited = launch.inherited;
        let cgroups = launch.cgroups;
        let identity = launch.identity;
        let low_ports = launch.low_ports;
        // SAFETY: between fork and exec the closure makes system calls only: it neither allocates nor
        // takes locks, and all that it uses was made before the fork.
        unsafe { command.pre_exec(move || prepare_child(&inherited, &cgroups, identity, low_ports)) };
        let mut child = command.spawn()?;
        match hold(child.id() as i32, boot_id) {
            Ok((id, pidfd)) => Ok(Process {
                id,
                pidfd,
                child: Some(child),
            }),
            // Not held is not supervised: it must not go on unseen.
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Takes hold of a recorded process. None: it is gone (a zombie is gone, and so is another of the same pid).
    ///
    /// # Errors
    /// It cannot be told.
    pub fn adopt(id: &ProcessId, boot_id: &str) -> io::Result<Option<Process>> {
        if id.boot_id != boot_id {
            return Ok(None);
        }
        match hold(id.pid, boot_id) {
            Ok((found, pidfd)) if found == *id => Ok(Some(Process {
                id: found,
                pidfd,
                child: None,
            })),
            Ok(_) => Ok(None),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until the process has ended. May be cancelled.
    pub async fn exited(&self) {
        // An error of epoll leaves nothing to wait on: the caller's next check of the process decides.
        let _ = self.pidfd.ready(Interest::READABLE).await;
    }

    /// The exit status if it is a child of this agent and has ended. Reaps it.
    pub fn reap(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.wait().ok()
    }

    /// Asks exactly this process to end (SIGTERM). Gone already is success.
    ///
    /// # Errors
    /// Not permitted.
    pub fn terminate(&self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    /// Whether it may listen on privileged ports. What cannot be read says no.
    pub fn may_bind_low_ports(&self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id.pid)).unwrap_or_default();
        effective(&status).is_some_and(|set| set.contains(CapabilitySet::NET_BIND_SERVICE))
    }

    /// Kills exactly this process. Gone already is success.
    ///
    /// # Errors
    /// Not permitted.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd.get_ref(), signal) {
            Err(rustix::io::Errno::SRCH) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn prepare_child(
    inherited: &[OwnedFd],
    cgroups: &[File],
    identity: Option<Identity>,
    low_ports: bool,
) -> io::Result<()> {
    rustix::process::setsid()?;
    // First of all the cgroups, so that all it ever uses is accounted. One that cannot be joined is
    // no reason not to run.
    for mut procs in cgroups {
        let _ = procs.write(b"0");
    }
    // SAFETY: close_range with CLOEXEC closes nothing now; std's own descriptors are close-on-exec anyway.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    for fd in inherited {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
    }
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none)?;
    if let Some(identity) = identity {
        let group = Gid::from_raw(identity.id);
        let user = Uid::from_raw(identity.id);
        let extra = identity.extra_group.map(Gid::from_raw);
        rustix::thread::set_thread_groups(extra.as_slice())?;
        // The one capability, kept over the change of user; exec keeps it because it is ambient.
        rustix::thread::set_keep_capabilities(low_ports)?;
        rustix::thread::set_thread_res_gid(group, group, group)?;
        rustix::thread::set_thread_res_uid(user, user, user)?;
        if low_ports {
            let bind = CapabilitySet::NET_BIND_SERVICE;
            rustix::thread::set_capabilities(
                None,
                CapabilitySets {
                    effective: bind,
                    permitted: bind,
                    inheritable: bind,
                },
            )?;
            rustix::thread::configure_capability_in_ambient_set(bind, true)?;
        }
    }
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// A descriptor of the living process `pid`, and its identity, read while the descriptor holds the pid.
fn hold(pid: i32, boot_id: &str) -> io::Result<(ProcessId, AsyncFd<OwnedFd>)> {
    let raw = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    let pidfd = pidfd_open(raw, PidfdFlags::NONBLOCK)?;
    let start_time = start_time(pid)?;
    // Still alive after reading: then what was read is of this process and no later one.
    match pidfd_send_signal_none(&pidfd) {
        Ok(()) => {}
        Err(error) => return Err(error),
    }
    let id = ProcessId {
        pid,
        start_time,
        boot_id: boot_id.to_owned(),
    };
    // SAFETY: an OwnedFd gives the same open descriptor for as long as it lives, and the AsyncFd owns it.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE)? };
    Ok((id, pidfd))
}

fn pidfd_send_signal_none(pidfd: &OwnedFd) -> io::Result<()> {
    // SAFETY: plain integers and a null siginfo; signal 0 only checks.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            0,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).or_else(|error| match error.raw_os_error() {
            // Alive, of another user.
            Some(libc::EPERM) => Ok(()),
            _ => Err(error),
        }),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)) || error.kind() == io::ErrorKind::NotFound
}

fn start_time(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    match parse_stat(&stat) {
        // A zombie's resources are gone: it runs nothing.
        Some((b'Z' | b'X', _)) | None => Err(io::ErrorKind::NotFound.into()),
        Some((_, start_time)) => Ok(start_time),
    }
}

/// The effective capabilities in a /proc/PID/status.
fn effective(status: &str) -> Option<CapabilitySet> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let bits = u64::from_str_radix(hex.trim(), 16).ok()?;
    Some(CapabilitySet::from_bits_retain(bits))
}

/// State and start time of a line of /proc/PID/stat. The name in it may contain anything, also `)`.
fn parse_stat(stat: &str) -> Option<(u8, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// The host's boot id.
///
/// # Errors
/// No /proc.
pub fn host_boot_id() -> io::Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().to_owned())
}

/// A VMM found among all processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundVmm {
    /// Which process.
    pub id: ProcessId,
    /// Its command line.
    pub argv: Vec<String>,
}

/// All living VMMs by the uid on their command line, whatever the records say. A process of a user that
/// no VMM of ours runs as is not one: anybody may write a uid on a command line.
pub fn find_vmms(boot_id: &str, is_ours: impl Fn(u32) -> bool) -> io::Result<HashMap<String, FoundVmm>> {
    let mut found = HashMap::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        // Processes end while one looks at them.
        let Some((uid, vmm)) = look_at(pid, boot_id, &is_ours) else {
            continue;
        };
        found.insert(uid, vmm);
    }
    Ok(found)
}

/// The living VMM of one uid.
pub fn find_vmm(uid: &str, boot_id: &str, is_ours: impl Fn(u32) -> bool) -> io::Result<Option<FoundVmm>> {
    Ok(find_vmms(boot_id, is_ours)?.remove(uid))
}

fn look_at(pid: i32, boot_id: &str, is_ours: &impl Fn(u32) -> bool) -> Option<(String, FoundVmm)> {
    use std::os::unix::fs::MetadataExt;
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let argv: Vec<String> = bytes
        .split(|b| *b == 0)
        .map(|a| String::from_utf8_lossy(a).into_owned())
        .collect();
    let uid = value_of(&argv, "-uuid")?.to_owned();
    crate::qemu::argv::run_of(&argv)?;
    if !is_ours(std::fs::metadata(format!("/proc/{pid}")).ok()?.uid()) {
        return None;
    }
    let id = ProcessId {
        pid,
        start_time: start_time(pid).ok()?,
        boot_id: boot_id.to_owned(),
    };
    Some((uid, FoundVmm { id, argv }))
}

/// Whether a VMM has something open below `dir`: a uid on a command line does not say whose machine it is.
pub fn has_open_below(pid: i32, dir: &Path) -> bool {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    descriptors
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .any(|target| target.starts_with(dir))
}

/// The number of a descriptor that will be inherited.
pub fn number(fd: &impl AsFd) -> RawFd {
    fd.as_fd().as_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Process {
        let launch = Launch {
            program: Path::new("/bin/sleep"),
            arguments: vec!["1000".into()],
            inherited: Vec::new(),
            output: File::options().write(true).open("/dev/null").expect("opens"),
            identity: None,
            low_ports: false,
            cgroups: Vec::new(),
        };
        Process::launch(launch, "boot").expect("starts")
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(parse_stat(&format!("7 (a) b) {tail}")), Some((b'S', 4242)));
        assert_eq!(parse_stat("7 (a"), None);
        assert_eq!(parse_stat("7 (a) S 1"), None);
    }

    #[tokio::test]
    async fn a_killed_process_is_seen_to_end_and_is_reaped() {
        let mut process = sleeper();
        process.kill().expect("kills");
        process.exited().await;
        let status = process.reap().expect("its own child");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
        process.kill().expect("killing what is gone is success");
    }

    #[tokio::test]
    async fn a_reused_pid_or_another_boot_is_not_adopted() {
        let mut process = sleeper();
        let id = process.id.clone();
        assert!(Process::adopt(&id, "boot").expect("tells").is_some());
        let other = ProcessId {
            start_time: id.start_time + 1,
            ..id.clone()
        };
        assert!(Process::adopt(&other, "boot").expect("tells").is_none());
        assert!(Process::adopt(&id, "later boot").expect("tells").is_none());
        process.kill().expect("kills");
        process.exited().await;
        // A zombie still: dead all the same.
        assert!(Process::adopt(&id, "boot").expect("tells").is_none());
        process.reap();
        assert!(Process::adopt(&id, "boot").expect("tells").is_none());
    }

    #[tokio::test]
    async fn a_vmm_has_its_own_session_and_only_the_descriptors_it_was_given() {
        let dir = tempfile::tempdir().expect("a directory");
        let out = dir.path().join("out");
        let kept = OwnedFd::from(File::open("/dev/zero").expect("opens"));
        let number = number(&kept);
        let _leak: OwnedFd = {
            let fd = OwnedFd::from(File::open("/dev/zero").expect("opens"));
            rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).expect("leaks");
            fd
        };
        let script =
            "ls -v /proc/$$/fd; cut -d' ' -f 1,6 /proc/$$/stat; echo $$; ulimit -c; grep NoNewPrivs /proc/$$/status";
        let launch = Launch {
            program: Path::new("/bin/sh"),
            arguments: vec!["-c".into(), script.into()],
            inherited: vec![kept],
            output: File::create(&out).expect("creates"),
            identity: None,
            low_ports: false,
            cgroups: Vec::new(),
        };
        let mut process = Process::launch(launch, "boot").expect("starts");
        process.exited().await;
        process.reap();
        let text = std::fs::read_to_string(&out).expect("reads");
        let pid = process.id.pid;
        let expected = format!("0\n1\n2\n{number}\n{pid} {pid}\n{pid}\n0\nNoNewPrivs:\t1\n");
        assert_eq!(text, expected);
    }

    #[tokio::test]
    async fn a_missing_program_is_an_error() {
        let launch = Launch {
            program: Path::new("/nonexistent/qemu"),
            arguments: Vec::new(),
            inherited: Vec::new(),
            output: File::options().write(true).open("/dev/null").expect("opens"),
            identity: None,
            low_ports: false,
            cgroups: Vec::new(),
        };
        let error = Process::launch(launch, "boot").expect_err("fails");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
