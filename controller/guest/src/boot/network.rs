//! Loopback and one interface with a static address, by the classic ioctls (netdevice(7)).

use std::fs;
use std::io;
use std::net::Ipv4Addr;

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use vmlet_init::channel::ExitReason;
use vmlet_init::config::GuestConfig;
use vmlet_init::etc::parse_address;

use super::failure::{Because, Failure};
use super::uevents::Uevents;
use super::{DEVICE_TIMEOUT, log};

/// Brings up what the configuration says.
pub fn bring_up(config: &GuestConfig, uevents: &Uevents) -> Result<(), Failure> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .because(ExitReason::SetupFailed)?;
    if let Err(error) = up(&socket, "lo") {
        log::error(&format!("lo: {error}"));
    }
    let Some(network) = &config.network else {
        return Ok(());
    };
    let fail = |message: String| Failure::new(ExitReason::SetupFailed, message);
    let (address, mask) = parse_address(&network.address).ok_or_else(|| {
        fail(format!(
            "{:?} is not an IPv4 address with a prefix length",
            network.address
        ))
    })?;
    let interface = uevents
        .wait_for(DEVICE_TIMEOUT, interface)
        .ok_or_else(|| fail("no network interface appeared".to_owned()))?;
    let configure = || -> io::Result<()> {
        set_address(&socket, &interface, libc::SIOCSIFADDR, address)?;
        set_address(&socket, &interface, libc::SIOCSIFNETMASK, mask)?;
        up(&socket, &interface)?;
        match &network.gateway {
            Some(gateway) => default_route(
                &socket,
                gateway
                    .parse()
                    .map_err(|_| io::Error::other(format!("{gateway:?} is no IPv4 address")))?,
            ),
            None => Ok(()),
        }
    };
    configure().map_err(|error| fail(format!("{interface}: {error}")))
}

fn interface() -> Option<String> {
    let mut names: Vec<String> = fs::read_dir("/sys/class/net")
        .ok()?
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.retain(|name| fs::exists(format!("/sys/class/net/{name}/device")).unwrap_or(false));
    names.sort();
    names.into_iter().next()
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq is plain data; all zeroes is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0 as libc::c_char; 14];
    for (to, from) in data[2..].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: data,
    }
}

fn set_address(socket: &OwnedFd, name: &str, which: libc::c_ulong, address: Ipv4Addr) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_addr = socket_address(address);
    // SAFETY: both requests read an ifreq through the pointer.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), which as _, &raw mut request) })
}

fn up(socket: &OwnedFd, name: &str) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request reads an ifreq through the pointer.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) })
}

fn default_route(socket: &OwnedFd, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: an rtentry is plain data; all zeroes is a valid one.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: the request reads an rtentry through the pointer.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as _, &raw mut route) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
