//! The image's own init becomes PID 1; a child of ours stays to speak with the host.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::pipe::{PipeFlags, pipe_with};
use vmlet_init::channel::{ChosenInit, ExitReason, READY_PORT};
use vmlet_init::decide::environment;

use super::control::Control;
use super::events::{Events, Wake};
use super::failure::{Because, Failure};
use super::{Guest, log, ports, power, uptime};

/// Forks: the parent executes the init, the child serves the channel.
pub fn run(mut guest: Guest, argv: &[String]) -> Result<Infallible, Failure> {
    let (path, arguments) = argv
        .split_first()
        .ok_or_else(|| Failure::new(ExitReason::NothingToRun, "an empty command"))?;
    let (seen, alive) = pipe_with(PipeFlags::CLOEXEC).because(ExitReason::InitFailed)?;
    // SAFETY: PID 1 has one thread, so its child may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(Failure::new(
            ExitReason::InitFailed,
            format!("fork: {}", io::Error::last_os_error()),
        )),
        0 => {
            drop(alive);
            if executed(File::from(seen)) {
                guest.timings.ready = uptime();
                if let Err(error) = serve(&guest) {
                    log::error(&format!("the guest channel is gone: {error}"));
                }
            }
            std::process::exit(0)
        }
        _ => {
            drop(seen);
            let error = Command::new(path)
                .args(arguments)
                .env_clear()
                .env("TERM", "vt220")
                .envs(environment(&guest.config, "/"))
                .exec();
            // Only a failed exec comes back; the child must not call the guest ready.
            let _ = File::from(alive).write_all(b"!");
            Err(Failure {
                reason: ExitReason::CannotExecute,
                exit_code: 126,
                message: format!("{path}: {error}"),
            })
        }
    }
}

/// The other end closes at a successful exec without a word.
fn executed(mut seen: File) -> bool {
    let mut word = [0u8; 1];
    matches!(seen.read(&mut word), Ok(0))
}

fn serve(guest: &Guest) -> io::Result<()> {
    let _ = rustix::process::setsid();
    let _ready = ports::open(READY_PORT);
    let mut control = Control::open();
    let mut events = Events::open(&[libc::SIGTERM, libc::SIGHUP, libc::SIGINT])?;
    if let Some(port) = control.port() {
        events.watch(port.as_fd())?;
    }
    let mut stopping = false;
    loop {
        match events.next() {
            Wake::Timer => {
                log::error("the init did not power off within the grace period");
                power::record(ExitReason::ShutdownForced, -1, "init did not power off in time");
                power::off()
            }
            // An init on its way down waits for whoever ignores this.
            Wake::Signals(signals) if signals.contains(&libc::SIGTERM) => return Ok(()),
            Wake::Signals(_) | Wake::Other => {}
        }
        if let Some(grace) = control.serve(guest, ChosenInit::Image, stopping).shutdown {
            events.arm(grace);
            if !stopping {
                stopping = true;
                rustix::fs::sync();
                power::record(ExitReason::Shutdown, -1, "");
                ask_init();
            }
        }
    }
}

/// Asks PID 1 for power-off in the words that it understands.
fn ask_init() {
    let signal = |number| {
        // SAFETY: a system call on numbers.
        unsafe { libc::kill(1, number) };
    };
    match kind() {
        Kind::Systemd => signal(libc::SIGRTMIN() + 4),
        Kind::Busybox => signal(libc::SIGUSR2),
        Kind::Runit => {
            // runit looks for these modes when it gets SIGCONT (runit(8)).
            let _ = fs::write("/run/runit/reboot", "").and_then(|()| mode("/run/runit/reboot", 0));
            let _ = fs::write("/run/runit/stopit", "").and_then(|()| mode("/run/runit/stopit", 0o100));
            signal(libc::SIGCONT);
        }
        Kind::OpenRc => say("/run/openrc/init.ctl", b"0"),
        Kind::SysV => say("/run/initctl", &initctl_power_off()),
        // An init that nobody knows: its image's own command is the best guess left.
        Kind::Other => drop(
            Command::new("poweroff")
                .env("PATH", vmlet_init::decide::DEFAULT_PATH)
                .spawn(),
        ),
    }
}

enum Kind {
    Systemd,
    Busybox,
    Runit,
    OpenRc,
    SysV,
    Other,
}

fn kind() -> Kind {
    let executable = fs::read_link("/proc/1/exe").unwrap_or_default();
    let name = executable
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let there = |path| fs::exists(path).unwrap_or(false);
    match name.as_str() {
        _ if there("/run/systemd/system") => Kind::Systemd,
        "systemd" => Kind::Systemd,
        name if name.starts_with("busybox") => Kind::Busybox,
        "runit" | "runit-init" => Kind::Runit,
        "openrc-init" => Kind::OpenRc,
        _ if there("/run/initctl") => Kind::SysV,
        _ => Kind::Other,
    }
}

fn mode(path: &str, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
}

/// `struct init_request` of sysvinit (initreq.h): magic, command 1 = change the run level, to '0'.
fn initctl_power_off() -> Vec<u8> {
    let mut request = vec![0u8; 384];
    for (field, value) in [0x0309_1969i32, 1, i32::from(b'0'), 0].into_iter().enumerate() {
        request[field * 4..field * 4 + 4].copy_from_slice(&value.to_ne_bytes());
    }
    request
}

fn say(fifo: &str, words: &[u8]) {
    use std::os::unix::fs::OpenOptionsExt;
    let opened = fs::OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(fifo);
    if let Err(error) = opened.and_then(|mut fifo| fifo.write_all(words)) {
        log::error(&format!("{fifo}: {error}"));
    }
}
