//! URLs, addresses and networks.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use crate::schema::cel::value::{Fault, Map, Outcome, Value};

/// The parts of a URL as Go's `net/url` names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::schema::cel) struct Url {
    scheme: String,
    host: String,
    path: String,
    query: String,
    fragment: String,
}

/// An address and the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::schema::cel) struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn parse_url(text: &str) -> Result<Url, Fault> {
    let wrong = |why: &str| {
        Fault::Other(format!(
            "URL parse error during conversion from string: parse {text:?}: {why}"
        ))
    };
    if text.is_empty() {
        return Err(wrong("empty url"));
    }
    if text.chars().any(|c| c.is_ascii_control()) {
        return Err(wrong("net/url: invalid control character in URL"));
    }
    let (scheme, rest) = match text.split_once(':') {
        Some((scheme, rest))
            if scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) =>
        {
            (scheme.to_ascii_lowercase(), rest)
        }
        _ if text.starts_with('/') => (String::new(), text),
        _ => return Err(wrong("invalid URI for request")),
    };
    if !rest.starts_with('/') {
        // An opaque one, such as `mailto:`.
        return Ok(Url {
            scheme,
            ..Url::default()
        });
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (host, path) = match rest.strip_prefix("//") {
        Some(rest) if !(scheme.is_empty() && rest.starts_with('/')) => {
            let end = rest.find('/').unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            (authority.rsplit_once('@').map_or(authority, |(_, host)| host), path)
        }
        _ => ("", rest),
    };
    if !valid_escapes(path) || host.contains([' ', '"', '<', '>', '\\', '^', '`', '{', '|', '}']) {
        return Err(wrong("invalid character or escape"));
    }
    let port = if host.starts_with('[') {
        let (_, after) = host.rsplit_once(']').ok_or_else(|| wrong("missing ']' in host"))?;
        after
    } else {
        host.find(':').map_or("", |at| &host[at..])
    };
    let digits = port.strip_prefix(':').unwrap_or("x");
    if !port.is_empty() && !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong(&format!("invalid port {port:?} after host")));
    }
    Ok(Url {
        scheme,
        host: host.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        fragment: fragment.to_owned(),
    })
}

fn valid_escapes(path: &str) -> bool {
    let bytes = path.as_bytes();
    let hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    (0..bytes.len()).all(|i| bytes[i] != b'%' || (hex(i + 1) && hex(i + 2)))
}

impl Url {
    fn port(&self) -> &str {
        match self.host.rsplit_once(':') {
            Some((_, port)) if !port.contains(']') => port,
            _ => "",
        }
    }

    fn host_name(&self) -> &str {
        let host = self.host.strip_suffix(self.port()).unwrap_or(&self.host);
        let host = if self.port().is_empty() && host.ends_with(':') || !self.port().is_empty() {
            host.trim_end_matches(':')
        } else {
            host
        };
        host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
    }

    /// The path with everything escaped that must be.
    fn escaped_path(&self) -> String {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&b);
        if self.path.bytes().all(|b| plain(b) || b"!'()*%[]".contains(&b)) {
            return self.path.clone();
        }
        let mut out = String::new();
        for b in unescape(&self.path.replace('+', "%2B")).unwrap_or_default().bytes() {
            if plain(b) {
                out.push(char::from(b));
            } else {
                out.push_str(&format!("%{b:02X}"));
            }
        }
        out
    }

    fn query<'a>(&self) -> Value<'a> {
        let mut entries: Vec<(String, Vec<Value<'a>>)> = Vec::new();
        for pair in self.query.split('&').filter(|p| !p.is_empty() && !p.contains(';')) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(key), Some(value)) = (unescape(key), unescape(value)) else {
                continue;
            };
            match entries.iter_mut().find(|(known, _)| *known == key) {
                Some((_, values)) => values.push(Value::text(value)),
                None => entries.push((key, vec![Value::text(value)])),
            }
        }
        let entries = entries.into_iter().map(|(k, v)| (Value::text(k), Value::list(v)));
        Value::Map(Map::Own(Rc::new(entries.collect())))
    }
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(b) = rest.next() {
        bytes.push(match b {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                (high * 16 + low) as u8
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

fn parse_ip(text: &str) -> Result<IpAddr, Fault> {
    if text.contains('%') {
        return Err(Fault::Other(format!(
            "IP address {text:?} with zone value is not allowed"
        )));
    }
    let address: IpAddr = text.parse().map_err(|_| {
        Fault::Other(format!(
            "IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): unable to parse IP"
        ))
    })?;
    no_mapped(address, text)
}

/// IPv4 in IPv6 is refused: its meaning differs between programs.
fn no_mapped(address: IpAddr, text: &str) -> Result<IpAddr, Fault> {
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err(Fault::Other(format!(
            "IPv4-mapped IPv6 address {text:?} is not allowed"
        ))),
        other => Ok(other),
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn parse_cidr(text: &str) -> Result<Cidr, Fault> {
    // The real server says it twice.
    let wrong = |why: &str| {
        Fault::Other(format!(
            "network address parse error during conversion from string: network address parse error during conversion from string: netip.ParsePrefix({text:?}): {why}"
        ))
    };
    let (address, bits) = text.rsplit_once('/').ok_or_else(|| wrong("no '/'"))?;
    let wrong = || wrong("unable to parse IP or bad bits after slash");
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    // No sign, no leading zero.
    let plain = bits == "0" || (!bits.starts_with('0') && bits.bytes().all(|b| b.is_ascii_digit()));
    let prefix: u8 = bits.parse().ok().filter(|_| plain).ok_or_else(wrong)?;
    if prefix > width(address) {
        return Err(wrong());
    }
    Ok(Cidr {
        address: no_mapped(address, text)?,
        prefix,
    })
}

fn mask(address: IpAddr, prefix: u8) -> IpAddr {
    let cut = |bits: u32| bits - u32::from(prefix).min(bits);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(cut(32)).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(cut(128)).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

impl Cidr {
    fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && mask(address, self.prefix) == mask(self.address, self.prefix)
    }

    fn covers(&self, other: &Cidr) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }
}

fn global_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified() || v4.is_loopback() || v4.is_multicast() || v4.is_link_local() || v4.is_broadcast())
        }
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() || v6.is_unicast_link_local()),
    }
}

fn link_local_multicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    }
}

fn link_local_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

pub(super) fn call<'a>(name: &str, args: &[Value<'a>]) -> Option<Outcome<'a>> {
    use Value::{Bool, Int, Ip, String};
    Some(match (name, args) {
        ("url", [String(text)]) => parse_url(text).map(|url| Value::Url(Rc::new(url))),
        ("isURL", [String(text)]) => Ok(Bool(parse_url(text).is_ok())),
        ("getScheme", [Value::Url(url)]) => Ok(Value::text(url.scheme.as_str())),
        ("getHost", [Value::Url(url)]) => Ok(Value::text(url.host.as_str())),
        ("getHostname", [Value::Url(url)]) => Ok(Value::text(url.host_name())),
        ("getPort", [Value::Url(url)]) => Ok(Value::text(url.port())),
        ("getEscapedPath", [Value::Url(url)]) => Ok(Value::text(url.escaped_path())),
        ("getQuery", [Value::Url(url)]) => Ok(url.query()),
        ("ip", [String(text)]) => parse_ip(text).map(Ip),
        ("ip", [Value::Cidr(cidr)]) => Ok(Ip(cidr.address)),
        ("isIP", [String(text)]) => Ok(Bool(parse_ip(text).is_ok())),
        ("ip.isCanonical", [String(text)]) => parse_ip(text).map(|ip| Bool(ip.to_string() == **text)),
        ("family", [Ip(ip)]) => Ok(Int(if ip.is_ipv4() { 4 } else { 6 })),
        ("isUnspecified", [Ip(ip)]) => Ok(Bool(ip.is_unspecified())),
        ("isLoopback", [Ip(ip)]) => Ok(Bool(ip.is_loopback())),
        ("isLinkLocalMulticast", [Ip(ip)]) => Ok(Bool(link_local_multicast(*ip))),
        ("isLinkLocalUnicast", [Ip(ip)]) => Ok(Bool(link_local_unicast(*ip))),
        ("isGlobalUnicast", [Ip(ip)]) => Ok(Bool(global_unicast(*ip))),
        ("cidr", [String(text)]) => parse_cidr(text).map(Value::Cidr),
        ("isCIDR", [String(text)]) => Ok(Bool(parse_cidr(text).is_ok())),
        ("containsIP", [Value::Cidr(cidr), Ip(ip)]) => Ok(Bool(cidr.contains(*ip))),
        ("containsIP", [Value::Cidr(cidr), String(text)]) => parse_ip(text).map(|ip| Bool(cidr.contains(ip))),
        ("containsCIDR", [Value::Cidr(cidr), Value::Cidr(other)]) => Ok(Bool(cidr.covers(other))),
        ("containsCIDR", [Value::Cidr(cidr), String(text)]) => parse_cidr(text).map(|other| Bool(cidr.covers(&other))),
        ("prefixLength", [Value::Cidr(cidr)]) => Ok(Int(cidr.prefix.into())),
        ("masked", [Value::Cidr(cidr)]) => Ok(Value::Cidr(Cidr {
            address: mask(cidr.address, cidr.prefix),
            prefix: cidr.prefix,
        })),
        _ => return None,
    })
}
