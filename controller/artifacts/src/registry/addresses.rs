//! Which addresses are never asked: those where a machine keeps its own secrets.
//!
//! A host name is judged by the addresses that it resolves to, at the moment of connecting, so that a
//! name cannot mean one thing when it is checked and another when it is used.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use futures::future::BoxFuture;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Metadata services that are not on link-local addresses: Alibaba Cloud, Azure, and AWS by IPv6.
const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254);

/// Link-local, metadata, unspecified and multicast addresses, also inside of IPv6 (mapped, NAT64).
pub fn is_never_asked(ip: IpAddr) -> bool {
    let v4 = |ip: Ipv4Addr| {
        ip.is_link_local() || ip.octets()[0] == 0 || ip.is_broadcast() || ip.is_multicast() || METADATA_V4.contains(&ip)
    };
    match ip {
        IpAddr::V4(ip) => v4(ip),
        IpAddr::V6(ip) => {
            ip.is_unicast_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip == METADATA_V6
                || embedded(ip).is_some_and(v4)
        }
    }
}

/// The loopback in all its spellings.
pub fn is_own(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback() || embedded(ip).is_some_and(|ip| ip.is_loopback()),
    }
}

/// The IPv4 address in a mapped (`::ffff:a.b.c.d`) or NAT64 (`64:ff9b::a.b.c.d`) one.
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let nat64 = ip.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
    let low = ip.octets();
    let low = Ipv4Addr::new(low[12], low[13], low[14], low[15]);
    ip.to_ipv4_mapped().or(nat64.then_some(low))
}

/// The address that a URL names literally.
pub fn literal(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_matches(['[', ']']).parse().ok()
}

/// Whether a URL says itself that it means this machine.
pub fn is_loopback(url: &Url) -> bool {
    url.host_str() == Some("localhost") || literal(url).is_some_and(is_own)
}

/// A name has only addresses that are never asked.
#[derive(Debug, thiserror::Error)]
#[error("{0} resolves to {1}, an address that is never asked")]
pub struct Forbidden(String, IpAddr);

/// Finds the addresses of a name.
pub type Lookup = fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;

/// Resolves host names without the addresses that are never asked.
pub struct Filtered {
    /// Whether a name may mean this machine.
    pub own: bool,
    /// Where addresses come from.
    pub lookup: Lookup,
    /// Names that may mean anything: the operator's own proxies.
    pub free: std::sync::Arc<[String]>,
}

/// The system's resolver.
pub fn system(name: String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
    Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.collect()) })
}

impl Resolve for Filtered {
    fn resolve(&self, name: Name) -> Resolving {
        let (own, name) = (self.own, name.as_str().to_owned());
        let free = self.free.contains(&name);
        let found = (self.lookup)(name.clone());
        Box::pin(async move {
            let found = found.await?;
            let refused = |at: &&SocketAddr| !free && (is_never_asked(at.ip()) || (!own && is_own(at.ip())));
            let first_refused = found.iter().find(refused).map(SocketAddr::ip);
            let good: Vec<SocketAddr> = found.iter().filter(|at| !refused(at)).copied().collect();
            match first_refused {
                Some(ip) if good.is_empty() => Err(Forbidden(name, ip).into()),
                _ => Ok(Box::new(good.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scripted(name: String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let ips: &[&str] = match &*name {
            "metadata.example" => &["169.254.169.254"],
            "rebound.example" => &["::ffff:169.254.169.254", "fe80::1"],
            "nat64.example" => &["64:ff9b::a9fe:a9fe"],
            "mine.example" | "proxy.example" => &["127.0.0.1", "::1"],
            "mixed.example" => &["169.254.1.1", "192.0.2.7"],
            _ => &["192.0.2.1", "10.0.0.1"],
        };
        let addresses = ips.iter().map(|ip| SocketAddr::new(ip.parse().expect("an address"), 0));
        let addresses = addresses.collect();
        Box::pin(async move { Ok(addresses) })
    }

    async fn resolve(name: &str, own: bool) -> Result<Vec<String>, String> {
        let filtered = Filtered {
            own,
            lookup: scripted,
            free: ["proxy.example".to_owned()].into(),
        };
        let found = filtered.resolve(name.parse().expect("a name")).await;
        found
            .map(|all| all.map(|at| at.ip().to_string()).collect())
            .map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_a_metadata_address_is_refused() {
        for name in ["metadata.example", "rebound.example", "nat64.example"] {
            let error = resolve(name, true).await.expect_err(name);
            assert!(error.contains("never asked") && error.contains(name), "{error}");
        }
        assert_eq!(
            resolve("mixed.example", true).await.expect("one is good"),
            ["192.0.2.7"]
        );
        assert_eq!(resolve("good.example", false).await.expect("good").len(), 2);
    }

    #[tokio::test]
    async fn a_name_means_this_machine_only_where_that_is_allowed() {
        assert_eq!(resolve("mine.example", true).await.expect("allowed").len(), 2);
        resolve("mine.example", false).await.expect_err("refused");
        assert_eq!(resolve("proxy.example", false).await.expect("the operator's").len(), 2);
    }

    #[test]
    fn addresses_are_judged_in_every_spelling() {
        for ip in [
            "169.254.169.254",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "224.0.0.1",
            "100.100.100.200",
            "168.63.129.16",
            "fe80::1",
            "::",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:169.254.1.1",
            "64:ff9b::169.254.169.254",
        ] {
            assert!(is_never_asked(ip.parse().expect("an address")), "{ip}");
        }
        for ip in [
            "10.0.0.1",
            "192.168.1.1",
            "127.0.0.1",
            "2001:db8::1",
            "fd00::1",
            "100.64.0.1",
        ] {
            assert!(!is_never_asked(ip.parse().expect("an address")), "{ip}");
        }
        assert!(is_own("::ffff:127.0.0.1".parse().expect("an address")));
    }
}
