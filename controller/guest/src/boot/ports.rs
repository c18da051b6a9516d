//! The virtio-serial ports of the guest channel.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use vmlet_init::channel::EXIT_PORT;

use super::uevents::Uevents;

/// Virtio device id of a console (Virtual I/O Device specification, 5.3).
const CONSOLE: &str = "0x0003";

/// Waits until the ports of the channel have their names, if there is a device that has ports.
pub fn wait(uevents: &Uevents) {
    let has_device = fs::read_dir("/sys/bus/virtio/devices").is_ok_and(|devices| {
        devices
            .flatten()
            .any(|d| fs::read_to_string(d.path().join("device")).is_ok_and(|id| id.trim() == CONSOLE))
    });
    if has_device {
        uevents.wait_for(Duration::from_secs(5), || find(EXIT_PORT));
    }
}

/// Opens a port by its name. Never blocks: not in `open`, and not in what follows.
pub fn open(name: &str) -> Option<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(find(name)?)
        .ok()
}

fn find(name: &str) -> Option<String> {
    fs::read_dir("/sys/class/virtio-ports")
        .ok()?
        .flatten()
        .find_map(|port| {
            let is_it = fs::read_to_string(port.path().join("name")).is_ok_and(|n| n.trim() == name);
            is_it.then(|| format!("/dev/{}", port.file_name().to_string_lossy()))
        })
}
