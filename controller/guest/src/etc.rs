//! What the guest writes below `/etc` and for root's ssh keys.

/// `/etc/hosts` for a host of this name and address (without its prefix length).
pub fn hosts(hostname: &str, address: Option<&str>) -> String {
    let mut text = String::from(
        "# Written by vmlet-init at every start.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    );
    if !hostname.is_empty() {
        text.push_str(&format!("{}\t{hostname}\n", address.unwrap_or("127.0.1.1")));
    }
    text
}

/// `/etc/resolv.conf` with these name servers.
pub fn resolv_conf(servers: &[String]) -> String {
    let lines = servers.iter().map(|server| format!("nameserver {server}\n"));
    std::iter::once("# Written by vmlet-init at every start.\n".to_owned())
        .chain(lines)
        .collect()
}

const BEGIN: &str = "# vmlet: keys of the VirtualMachine begin";
const END: &str = "# vmlet: keys of the VirtualMachine end";

/// The new content of an `authorized_keys` file: the block of ours is replaced (or goes, without
/// keys), every other line stays. None: nothing changes.
pub fn authorized_keys(existing: &str, keys: &[String]) -> Option<String> {
    let mut kept = String::new();
    let mut ours = false;
    for line in existing.lines() {
        match line {
            BEGIN => ours = true,
            END => ours = false,
            _ if ours => {}
            _ => kept.extend([line, "\n"]),
        }
    }
    let keys: Vec<&str> = keys
        .iter()
        .flat_map(|key| key.lines())
        .map(str::trim)
        .filter(|key| !key.is_empty())
        .collect();
    if !keys.is_empty() {
        kept.extend([BEGIN, "\n"]);
        kept.extend(keys.iter().flat_map(|key| [*key, "\n"]));
        kept.extend([END, "\n"]);
    }
    (kept != existing).then_some(kept)
}

/// Splits `10.0.2.15/24` into address and netmask. None: not that.
pub fn parse_address(text: &str) -> Option<(std::net::Ipv4Addr, std::net::Ipv4Addr)> {
    let (address, length) = text.split_once('/')?;
    let length: u32 = length.parse().ok().filter(|l| *l <= 32)?;
    let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
    Some((address.parse().ok()?, mask.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_machine_change_and_those_of_the_user_stay() {
        let first = authorized_keys("ssh-rsa mine\n", &["ssh-ed25519 a".into()]).expect("changed");
        assert_eq!(first, format!("ssh-rsa mine\n{BEGIN}\nssh-ed25519 a\n{END}\n"));
        assert_eq!(authorized_keys(&first, &["ssh-ed25519 a".into()]), None);
        let edited = first + "ssh-rsa later\n";
        let second = authorized_keys(&edited, &["b\n\nc ".into()]).expect("changed");
        assert_eq!(second, format!("ssh-rsa mine\nssh-rsa later\n{BEGIN}\nb\nc\n{END}\n"));
        assert_eq!(
            authorized_keys(&second, &[]).as_deref(),
            Some("ssh-rsa mine\nssh-rsa later\n")
        );
        assert_eq!(authorized_keys("", &[]), None);
    }

    #[test]
    fn hosts_name_the_guest_by_its_address() {
        assert!(hosts("web", Some("10.0.2.15")).ends_with("10.0.2.15\tweb\n"));
        assert!(hosts("web", None).ends_with("127.0.1.1\tweb\n"));
        assert!(hosts("", None).contains("localhost"));
    }

    #[test]
    fn addresses_have_a_prefix_length() {
        assert_eq!(
            parse_address("10.0.2.15/24"),
            Some(([10, 0, 2, 15].into(), [255, 255, 255, 0].into()))
        );
        assert_eq!(parse_address("10.0.2.15/0").map(|(_, m)| m), Some([0, 0, 0, 0].into()));
        assert_eq!(parse_address("10.0.2.15/32").map(|(_, m)| m), Some([255; 4].into()));
        assert_eq!(
            [
                parse_address("10.0.2.15"),
                parse_address("::1/64"),
                parse_address("1.1.1.1/33")
            ],
            [None; 3]
        );
    }
}
