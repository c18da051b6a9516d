//! Port forwards of QEMU's user network: what there is, what there should be, and the commands between.

use std::net::{IpAddr, Ipv4Addr};

use crate::observation::PortStatus;
use crate::qemu::argv::NETDEV;
use crate::spec::{PortForward, Protocol};

/// A forward that QEMU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address on the host.
    pub host_ip: Ipv4Addr,
    /// Port on the host.
    pub host_port: u16,
    /// Port of the guest.
    pub guest_port: u16,
}

/// Reads the answer of `info usernet`. Of the other lines the guest decides what stands there: only
/// lines of host forwards count.
pub fn parse_usernet(text: &str) -> Vec<Forward> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Forward> {
    let mut words = line.split_ascii_whitespace();
    let protocol = match words.next()? {
        "TCP[HOST_FORWARD]" => Protocol::Tcp,
        "UDP[HOST_FORWARD]" => Protocol::Udp,
        _ => return None,
    };
    let host = words.nth(1)?;
    let host_port = words.next()?.parse().ok()?;
    let guest_port = words.nth(1)?.parse().ok()?;
    let host_ip = match host {
        "*" => Ipv4Addr::UNSPECIFIED,
        text => text.parse().ok()?,
    };
    Some(Forward {
        protocol,
        host_ip,
        host_port,
        guest_port,
    })
}

/// What to change.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Of each wanted forward, in order: the one there is.
    pub kept: Vec<Option<Forward>>,
    /// Forwards that nobody wants.
    pub remove: Vec<Forward>,
}

/// Finds a forward for each wanted one; every forward serves once. Fixed ports choose first.
pub fn plan(wanted: &[PortForward], mut there: Vec<Forward>) -> Plan {
    let mut kept = vec![None; wanted.len()];
    for fixed in [true, false] {
        for (slot, want) in kept.iter_mut().zip(wanted) {
            if fixed_port(want).is_some() != fixed {
                continue;
            }
            if let Some(at) = there.iter().position(|f| serves(f, want)) {
                *slot = Some(there.remove(at));
            }
        }
    }
    Plan { kept, remove: there }
}

fn fixed_port(want: &PortForward) -> Option<u16> {
    want.host_port.filter(|p| *p != 0)
}

fn serves(forward: &Forward, want: &PortForward) -> bool {
    forward.protocol == want.protocol
        && IpAddr::V4(forward.host_ip) == want.host_ip
        && forward.guest_port == want.guest_port
        && fixed_port(want).is_none_or(|port| port == forward.host_port)
}

/// The monitor command that adds a forward.
///
/// # Errors
/// Why it cannot be had, for people.
pub fn add_command(want: &PortForward) -> Result<String, String> {
    let IpAddr::V4(ip) = want.host_ip else {
        return Err(format!(
            "{} is an IPv6 address; QEMU's user network forwards from IPv4 only: use 127.0.0.1 or 0.0.0.0",
            want.host_ip
        ));
    };
    if want.guest_port == 0 {
        return Err("the guest's port cannot be 0".to_owned());
    }
    Ok(format!(
        "hostfwd_add {NETDEV} {}:{ip}:{}-:{}",
        word(want.protocol),
        fixed_port(want).unwrap_or(0),
        want.guest_port
    ))
}

/// The monitor command that removes a forward.
pub fn remove_command(forward: &Forward) -> String {
    format!(
        "hostfwd_remove {NETDEV} {}:{}:{}",
        word(forward.protocol),
        forward.host_ip,
        forward.host_port
    )
}

/// Whether one of these ports needs a privilege: those below the first free one do (ip(7)).
pub fn wants_privilege(wanted: &[PortForward], first_free: u16) -> bool {
    wanted.iter().any(|want| is_low(want, first_free))
}

fn is_low(want: &PortForward, first_free: u16) -> bool {
    fixed_port(want).is_some_and(|port| port < first_free)
}

/// What QEMU says about a failed addition, in words that help.
pub fn explain(want: &PortForward, answer: &str, privileged: bool, first_free: u16) -> String {
    let port = fixed_port(want).unwrap_or(0);
    let hint = if is_low(want, first_free) && !privileged {
        format!(
            "ports below {first_free} need a privilege that this machine's VMM does not have. With an agent that runs as root it has it from its next start; otherwise choose a higher port, or lower net.ipv4.ip_unprivileged_port_start"
        )
    } else {
        "the port is taken by another process or machine, or the address is not of this host".to_owned()
    };
    format!(
        "{}:{port} cannot be listened on: {hint} ({})",
        want.host_ip,
        answer.trim()
    )
}

/// The state of a wanted forward.
pub fn status(want: &PortForward, there: Option<Forward>, error: Option<String>) -> PortStatus {
    PortStatus {
        name: want.name.clone(),
        protocol: want.protocol,
        host_ip: want.host_ip,
        host_port: there.map(|f| f.host_port),
        guest_port: want.guest_port,
        error,
    }
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERNET: &str = "Hub -1 (n0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  TCP[HOST_FORWARD]  11       127.0.0.1 35051       10.0.2.15    22     0     0\r\n  TCP[ESTABLISHED]   12       127.0.0.1 35051       10.0.2.15    22     0     0\r\n  TCP[HOST_FORWARD]   8               * 37823       10.0.2.15    90     0     0\r\n  UDP[HOST_FORWARD]  10       127.0.0.1 52264       10.0.2.15    53     0     0\r\n";

    fn want(guest_port: u16, host_port: Option<u16>) -> PortForward {
        PortForward {
            name: format!("p{guest_port}"),
            protocol: Protocol::Tcp,
            host_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            host_port,
            guest_port,
        }
    }

    fn forward(host_port: u16, guest_port: u16) -> Forward {
        Forward {
            protocol: Protocol::Tcp,
            host_ip: Ipv4Addr::LOCALHOST,
            host_port,
            guest_port,
        }
    }

    #[test]
    fn only_lines_of_host_forwards_are_read() {
        let found = parse_usernet(USERNET);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0], forward(35051, 22));
        assert_eq!(found[1].host_ip, Ipv4Addr::UNSPECIFIED);
        assert_eq!(
            (found[2].protocol, found[2].host_port, found[2].guest_port),
            (Protocol::Udp, 52264, 53)
        );
        assert_eq!(parse_usernet("TCP[HOST_FORWARD] 1 x y z\nTCP[HOST_FORWARD]"), []);
    }

    #[test]
    fn a_forward_that_serves_stays_and_what_nobody_wants_goes() {
        let plan = plan(
            &[want(22, None), want(22, Some(2222)), want(80, Some(8080))],
            vec![forward(2222, 22), forward(40000, 22), forward(9, 9)],
        );
        assert_eq!(plan.kept, [Some(forward(40000, 22)), Some(forward(2222, 22)), None]);
        assert_eq!(plan.remove, [forward(9, 9)]);
    }

    #[test]
    fn a_changed_fixed_port_is_another_forward() {
        let plan = plan(&[want(22, Some(2223))], vec![forward(2222, 22)]);
        assert_eq!((plan.kept, plan.remove), (vec![None], vec![forward(2222, 22)]));
    }

    #[test]
    fn commands_carry_nothing_but_numbers() {
        assert_eq!(
            add_command(&want(22, None)).expect("v4"),
            "hostfwd_add net0 tcp:127.0.0.1:0-:22"
        );
        assert_eq!(
            remove_command(&forward(2222, 22)),
            "hostfwd_remove net0 tcp:127.0.0.1:2222"
        );
        let v6 = PortForward {
            host_ip: "::1".parse().expect("an address"),
            ..want(22, None)
        };
        assert!(add_command(&v6).expect_err("v6").contains("IPv4 only"));
        assert!(add_command(&want(0, None)).is_err());
    }

    #[test]
    fn a_taken_port_is_named() {
        let answer = "Could not set up host forwarding rule\r\n";
        for (port, privileged) in [(2222, false), (1024, false), (80, true)] {
            let text = explain(&want(22, Some(port)), answer, privileged, 1024);
            let start = format!("127.0.0.1:{port} cannot be listened on: the port is taken");
            assert!(text.starts_with(&start), "{text}");
        }
    }

    #[test]
    fn a_low_port_without_the_privilege_says_what_to_do() {
        let low = want(22, Some(80));
        let text = explain(&low, "no\r\n", false, 1024);
        assert!(
            text.contains("below 1024 need a privilege") && text.contains("next start"),
            "{text}"
        );
        assert!(wants_privilege(&[want(22, None), low.clone()], 1024));
        assert!(!wants_privilege(&[low], 80));
        assert!(!wants_privilege(
            &[want(80, None), want(80, Some(0)), want(80, Some(1024))],
            1024
        ));
    }
}
