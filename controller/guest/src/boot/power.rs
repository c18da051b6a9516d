//! The end of a guest: record, sync, power-off. Never halt, never a panic.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::system::{RebootCommand, reboot};
use vmlet_init::channel::{EXIT_PORT, ExitReason, ExitRecord, RECORD_COPIES, parse_boot_id};

use super::failure::Failure;
use super::{boot_id, log, ports};

/// Says why on the console and in the exit record, then powers off.
pub fn fail(failure: &Failure) -> ! {
    log::error(&format!("{}: {}", failure.reason.as_str(), failure.message));
    record(failure.reason, failure.exit_code, &failure.message);
    off()
}

/// Leaves the exit record with the host, if there is a port for it.
pub fn record(reason: ExitReason, exit_code: i32, message: &str) {
    let record = ExitRecord {
        reason,
        exit_code,
        boot_id: parse_boot_id(&boot_id()).unwrap_or_default(),
        message: message.to_owned(),
    };
    if let Some(mut port) = ports::open(EXIT_PORT) {
        let bytes = record.encode();
        for _ in 0..RECORD_COPIES {
            let _ = port.write_all(&bytes);
        }
    }
}

/// Powers off, with everything on disk.
pub fn off() -> ! {
    end(RebootCommand::PowerOff, "o")
}

/// Reboots, with everything on disk.
pub fn again() -> ! {
    end(RebootCommand::Restart, "b")
}

fn end(command: RebootCommand, sysrq: &str) -> ! {
    settle();
    let _ = reboot(command);
    // The kernel refused: ask it another way, then wait for the host. PID 1 must not return.
    if let Ok(mut trigger) = File::create("/proc/sysrq-trigger") {
        let _ = trigger.write_all(sysrq.as_bytes());
    }
    loop {
        // SAFETY: `pause` takes nothing and touches no memory of ours.
        unsafe { libc::pause() };
    }
}

/// Brings file systems to rest: synced, the extra ones unmounted, the root read-only.
fn settle() {
    rustix::fs::sync();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for target in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
        let kernels = ["/dev", "/proc", "/sys"]
            .iter()
            .any(|own| Path::new(target).starts_with(own));
        if target != "/" && !kernels {
            let _ = unmount(target, UnmountFlags::DETACH);
        }
    }
    let _ = mount_remount("/", MountFlags::RDONLY, c"");
    rustix::fs::sync();
}
