//! Waiting for devices: the kernel says when one appears, nobody has to look again and again.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// A listener to the kernel's device events.
pub struct Uevents(OwnedFd);

impl Uevents {
    /// Starts to listen.
    pub fn open() -> io::Result<Uevents> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, 1))?;
        Ok(Uevents(socket))
    }

    /// Asks `look` now and after every device event, until it finds something or the time is over.
    pub fn wait_for<T>(&self, timeout: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(found) = look() {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let left = Timespec::try_from(left).ok()?;
            let _ = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&left));
            let mut event = [0u8; 4096];
            while recv(&self.0, &mut event, RecvFlags::empty()).is_ok() {}
        }
    }
}
