//! The entrypoint as a supervised child of PID 1.

use std::convert::Infallible;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{WaitOptions, WaitStatus, wait};
use vmlet_init::channel::{ChosenInit, ExitReason, READY_PORT, signal_name};
use vmlet_init::decide::{environment, stop_signal};
use vmlet_init::supervise::{Effect, End, Input, Supervisor};
use vmlet_init::users::User;

use super::control::Control;
use super::events::{Events, Wake};
use super::failure::{Because, Failure};
use super::terminal::{self, Terminal};
use super::{Guest, mounts, ports, power, uptime};

/// What a workload gets when the guest itself asks for its end, in milliseconds.
const GRACE_INSIDE: u64 = 30_000;

/// Runs it, and powers off when it has ended.
pub fn run(mut guest: Guest, argv: &[String], interactive: bool, user: &User) -> Result<Infallible, Failure> {
    mounts::for_entrypoint().because(ExitReason::SetupFailed)?;
    let mut events = Events::open(&signals()).because(ExitReason::InitFailed)?;
    let workload = start(&guest, argv, interactive, user)?;
    guest.timings.ready = uptime();
    let mut ready = ports::open(READY_PORT);
    let mut control = Control::open();
    if let Some(port) = control.port() {
        events.watch(port).because(ExitReason::InitFailed)?;
    }
    // A shell at its prompt ignores SIGTERM.
    let default = if interactive { libc::SIGHUP } else { libc::SIGTERM };
    let stop = Some(guest.config.image.stop_signal.as_str()).filter(|signal| !signal.is_empty());
    let stop = stop.and_then(stop_signal).unwrap_or(default);
    let mut terminal = match interactive {
        true => Terminal::None,
        false => Terminal::open(&events),
    };
    let mut supervisor = Supervisor::new(GRACE_INSIDE);
    let mut ended_by = None;
    loop {
        let mut inputs = Vec::new();
        match events.next() {
            Wake::Timer => inputs.push(Input::Timer),
            Wake::Signals(signals) => inputs.extend(signals.into_iter().filter_map(meaning)),
            Wake::Other => {}
        }
        let (ended, alone) = reap();
        for (pid, status) in ended {
            if pid != workload {
                terminal.ended(pid, &events);
                continue;
            }
            ended_by = status.terminating_signal();
            let code = status.exit_status();
            inputs.push(Input::Ended(code.unwrap_or_else(|| 128 + ended_by.unwrap_or_default())));
        }
        inputs.extend(alone.then_some(Input::NoChildren));
        if !supervisor.stopping() {
            terminal.serve(&guest);
        }
        let asked = control.serve(&guest, ChosenInit::Entrypoint, supervisor.stopping());
        inputs.extend(asked.shutdown.map(|grace| Input::Shutdown { grace }));
        for effect in inputs
            .into_iter()
            .flat_map(|input| supervisor.on(input))
            .collect::<Vec<_>>()
        {
            match effect {
                Effect::StopWorkload => kill(workload, stop),
                Effect::TermAll => {
                    terminal.hang_up();
                    kill(-1, libc::SIGTERM);
                }
                Effect::KillAll => kill(-1, libc::SIGKILL),
                Effect::Arm(milliseconds) => events.arm(milliseconds),
                Effect::End(End::Reboot) => power::again(),
                Effect::End(End::PowerOff { reason, exit_code }) => {
                    let message = ended_by
                        .map(|signal| format!("ended by {}", signal_name(signal)))
                        .unwrap_or_default();
                    power::record(reason, exit_code.unwrap_or(-1), &message);
                    power::off()
                }
            }
        }
        if supervisor.stopping() {
            drop(ready.take());
        }
    }
}

/// Starts it; its exit code is 127 when there is no such command and 126 when it cannot be executed.
fn start(guest: &Guest, argv: &[String], interactive: bool, user: &User) -> Result<i32, Failure> {
    let cannot = |exit_code, message: String| Failure {
        reason: ExitReason::CannotExecute,
        exit_code,
        message,
    };
    let (program, arguments) = argv
        .split_first()
        .ok_or_else(|| cannot(127, "an empty command".to_owned()))?;
    let directory = match guest.config.image.working_dir.as_str() {
        "" => "/",
        directory => directory,
    };
    let made = fs::create_dir_all(directory);
    made.map_err(|error| cannot(126, format!("working directory {directory}: {error}")))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(environment(&guest.config, &user.home))
        .current_dir(directory);
    let (console, path) = console(interactive).map_err(|error| cannot(126, format!("console: {error}")))?;
    if user.uid != 0 {
        // The workload may open its output again (/dev/stdout).
        let _ = chown(path, Some(user.uid), None);
    }
    if interactive {
        command
            .env("TERM", "vt220")
            .stdin(Stdio::from(console.try_clone().because(ExitReason::InitFailed)?));
    } else {
        command.stdin(Stdio::null());
    }
    command
        .stdout(Stdio::from(console.try_clone().because(ExitReason::InitFailed)?))
        .stderr(Stdio::from(console));
    let identity = user.clone();
    // SAFETY: between fork and exec only system calls are made, on memory that existed before.
    unsafe { command.pre_exec(move || become_workload(&identity, interactive)) };
    match command.spawn() {
        Ok(child) => Ok(child.id() as i32),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(cannot(127, format!("{program}: not found in the image")))
        }
        Err(error) => Err(cannot(126, format!("{program}: {error}"))),
    }
}

/// The console, and its path. One to type at is the interactive one; where there is none it is the kernel's,
/// by its own name, because /dev/console cannot be a controlling terminal.
fn console(interactive: bool) -> io::Result<(fs::File, PathBuf)> {
    let open = |path: PathBuf| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NOCTTY);
        options.open(&path).map(|file| (file, path))
    };
    if !interactive {
        return open("/dev/console".into());
    }
    open(terminal::DEVICE.into()).or_else(|_| {
        let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
        let name = active.split_whitespace().next_back().unwrap_or("console");
        open(Path::new("/dev").join(name))
    })
}

/// Turns a forked child into a process of `user` in a session of its own; with `interactive` its standard
/// input becomes its controlling terminal. Calls the system only.
pub fn become_workload(user: &User, interactive: bool) -> io::Result<()> {
    let checked = |result: libc::c_int| {
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: system calls with valid pointers, in a process that has one thread.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        checked(libc::sigprocmask(
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null_mut(),
        ))?;
        libc::setsid();
        if interactive {
            checked(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
        }
        checked(libc::setgroups(user.groups.len(), user.groups.as_ptr()))?;
        checked(libc::setgid(user.gid))?;
        checked(libc::setuid(user.uid))
    }
}

/// Reaps everything that has ended, and says whether no child is left.
fn reap() -> (Vec<(i32, WaitStatus)>, bool) {
    let mut ended = Vec::new();
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => ended.push((pid.as_raw_nonzero().get(), status)),
            Ok(None) => return (ended, false),
            Err(_) => return (ended, true),
        }
    }
}

/// What a signal to PID 1 asks for, by the habits of busybox (`halt`, `poweroff`, `reboot`) and
/// systemd. Halt is power-off: a halted guest would look alive for ever.
fn meaning(signal: i32) -> Option<Input> {
    let realtime = signal - libc::SIGRTMIN();
    match (signal, realtime) {
        // Ctrl-Alt-Del from the host is SIGINT.
        (libc::SIGINT | libc::SIGUSR1 | libc::SIGUSR2 | libc::SIGPWR, _) | (_, 3 | 4) => Some(Input::PowerOff),
        (libc::SIGTERM, _) | (_, 5) => Some(Input::Reboot),
        _ => None,
    }
}

fn signals() -> Vec<i32> {
    let realtime = (3..=5).map(|offset| libc::SIGRTMIN() + offset);
    [
        libc::SIGCHLD,
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGPWR,
    ]
    .into_iter()
    .chain(realtime)
    .collect()
}

fn kill(pid: i32, signal: i32) {
    // SAFETY: a system call on numbers.
    unsafe { libc::kill(pid, signal) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halt_inside_the_guest_is_power_off() {
        for signal in [
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGRTMIN() + 3,
            libc::SIGRTMIN() + 4,
            libc::SIGINT,
        ] {
            assert_eq!(meaning(signal), Some(Input::PowerOff), "{signal}");
        }
        assert_eq!(
            [meaning(libc::SIGTERM), meaning(libc::SIGRTMIN() + 5)],
            [Some(Input::Reboot); 2]
        );
        assert_eq!(meaning(libc::SIGCHLD), None);
    }
}
