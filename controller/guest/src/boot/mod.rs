//! The steps of a boot, in order.

mod control;
mod disk;
mod events;
mod failure;
mod files;
mod handoff;
mod log;
mod mounts;
mod network;
mod ports;
mod power;
mod prepare;
mod terminal;
mod uevents;
mod workload;

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use vmlet_init::channel::{ExitReason, Timings};
use vmlet_init::config::{CONFIG_PATH, GuestConfig, MAX_CONFIG};
use vmlet_init::decide::Plan;

use failure::{Because, Failure};
use uevents::Uevents;

/// How long the kernel may take to present a disk or an interface that must be there.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(30);

/// What the later steps need to know of the earlier ones.
struct Guest {
    config: GuestConfig,
    boot_id: String,
    warnings: Vec<String>,
    timings: Timings,
}

/// Boots; never returns. Whatever fails ends in power-off: a panic of PID 1 would be one of the kernel.
pub fn main() {
    std::panic::set_hook(Box::new(|info| {
        power::fail(&Failure::new(ExitReason::InitFailed, info))
    }));
    power::fail(&run());
}

fn run() -> Failure {
    match boot() {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

fn boot() -> Result<std::convert::Infallible, Failure> {
    mounts::early().because(ExitReason::InitFailed)?;
    let mut timings = Timings {
        init: uptime(),
        ..Timings::default()
    };
    let uevents = Uevents::open().because(ExitReason::InitFailed)?;
    load_modules();
    timings.modules = uptime();
    // From now on a failure can be told to the host.
    ports::wait(&uevents);
    let mut guest = Guest {
        config: configuration()?,
        boot_id: boot_id(),
        warnings: Vec::new(),
        timings,
    };
    disk::mount_root(&mut guest, &uevents)?;
    guest.timings.root = uptime();
    let root = files::Root::open(mounts::NEW_ROOT).because(ExitReason::SetupFailed)?;
    if let Err(problem) = disk::mount_modules(&guest, &root, &uevents) {
        guest.warn(problem);
    }
    network::bring_up(&guest.config, &uevents)?;
    prepare::write_files(&guest.config, &root)?;
    let (plan, user) = prepare::plan(&guest.config, &root)?;
    mounts::switch_root(root).because(ExitReason::SetupFailed)?;
    // Ctrl-Alt-Del from the host becomes a signal to PID 1 instead of a reset.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::CadOff);
    match plan {
        Plan::Image { argv } => handoff::run(guest, &argv),
        Plan::Entrypoint { argv, interactive } => workload::run(guest, &argv, interactive, &user),
    }
}

impl Guest {
    fn warn(&mut self, problem: impl std::fmt::Display) {
        let text = problem.to_string();
        log::error(&text);
        self.warnings.push(text);
    }
}

/// Milliseconds since the kernel started.
fn uptime() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn configuration() -> Result<GuestConfig, Failure> {
    let path = format!("/{CONFIG_PATH}");
    let size = fs::metadata(&path)
        .map_err(|error| Failure::new(ExitReason::BadConfig, format!("no configuration at {path}: {error}")))?
        .len();
    if size > MAX_CONFIG as u64 {
        return Err(Failure::new(
            ExitReason::BadConfig,
            format!("the configuration has {size} bytes, more than {MAX_CONFIG}"),
        ));
    }
    let bytes = fs::read(&path).because(ExitReason::BadConfig)?;
    // The parser's message may quote a secret; its position does not.
    serde_json::from_slice(&bytes).map_err(|error| {
        Failure::new(
            ExitReason::BadConfig,
            format!("the configuration does not parse at column {}", error.column()),
        )
    })
}

/// Inserts the modules in the order that the initrd gives. One that does not load is only said:
/// whether it was needed shows later.
fn load_modules() {
    let Ok(order) = fs::read_to_string("/vmlet/modules/order") else {
        return;
    };
    for name in order.lines().filter(|name| !name.is_empty()) {
        let loaded = fs::File::open(format!("/vmlet/modules/{name}"))
            .and_then(|file| rustix::system::finit_module(&file, c"", 0).map_err(Into::into));
        match loaded {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => log::error(&format!("module {name}: {error}")),
        }
    }
}
