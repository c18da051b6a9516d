//! The string formats that kube-apiserver checks; unknown ones are not checked.

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine as _;

/// Whether `text` has the format `name`; true for formats that no one checks.
pub(super) fn matches(name: &str, text: &str) -> bool {
    match name.replace('-', "").as_str() {
        "datetime" => date_time(text),
        "date" => date(text),
        "duration" => duration(text),
        "uri" => uri(text),
        "email" => email(text),
        "hostname" => hostname(text),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => cidr(text),
        "mac" => mac(text),
        "uuid" => uuid(text, None),
        "uuid3" => uuid(text, Some('3')),
        "uuid4" => uuid(text, Some('4')),
        "uuid5" => uuid(text, Some('5')),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "hexcolor" => {
            let digits = text.strip_prefix('#').unwrap_or(text);
            matches!(digits.len(), 3 | 6) && digits.bytes().all(|b| b.is_ascii_hexdigit())
        }
        "k8sshortname" => text.len() <= 63 && label(text),
        "k8slongname" => text.len() <= 253 && text.split('.').all(label),
        _ => true,
    }
}

fn date(text: &str) -> bool {
    text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok()
}

fn date_time(text: &str) -> bool {
    let shape = text.len() >= 20
        && matches!(text.as_bytes()[10], b'T' | b't' | b' ')
        && text.is_char_boundary(10)
        && date(&text[..10]);
    shape && text.parse::<jiff::Timestamp>().is_ok()
}

/// A Go duration (`1h30m`) or one with a unit in words (`22 ns`, `3 hours`).
fn duration(text: &str) -> bool {
    const UNITS: [&str; 26] = [
        "ns", "us", "µs", "μs", "ms", "s", "m", "h", "d", "w", "nano", "nanos", "micro", "micros", "milli", "millis",
        "sec", "secs", "second", "seconds", "min", "mins", "minute", "minutes", "hr", "hour",
    ];
    const MORE: [&str; 6] = ["hours", "hrs", "day", "days", "week", "weeks"];
    let mut rest = text.trim_start_matches(['-', '+']);
    if rest == "0" {
        return true;
    }
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let unit = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        if unit.len() == rest.len() {
            return false;
        }
        let unit = unit.trim_start();
        let end = unit.find(|c: char| !c.is_alphabetic()).unwrap_or(unit.len());
        if !UNITS.contains(&&unit[..end]) && !MORE.contains(&&unit[..end]) {
            return false;
        }
        rest = unit[end..].trim_start();
    }
    true
}

/// As Go's `url.ParseRequestURI`: a URI with a scheme or an absolute path.
fn uri(text: &str) -> bool {
    if text.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return false;
    }
    if text.starts_with('/') {
        return true;
    }
    text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    })
}

fn email(text: &str) -> bool {
    text.rsplit_once('@')
        .is_some_and(|(user, host)| !user.is_empty() && !host.is_empty() && !text.contains(char::is_whitespace))
}

fn hostname(text: &str) -> bool {
    text.len() <= 255
        && text.trim_end_matches('.').split('.').all(|part| {
            !part.is_empty()
                && part.len() <= 63
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part.chars().all(|c| c.is_alphanumeric() || c == '-')
        })
}

fn cidr(text: &str) -> bool {
    text.split_once('/').is_some_and(|(address, bits)| {
        let width = if address.parse::<Ipv4Addr>().is_ok() {
            32
        } else if address.parse::<Ipv6Addr>().is_ok() {
            128
        } else {
            return false;
        };
        bits.len() <= 3 && bits.bytes().all(|b| b.is_ascii_digit()) && bits.parse::<u8>().is_ok_and(|b| b <= width)
    })
}

fn mac(text: &str) -> bool {
    let pairs = |separator| {
        let parts: Vec<&str> = text.split(separator).collect();
        matches!(parts.len(), 6 | 8 | 20)
            && parts
                .iter()
                .all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    pairs(':') || pairs('-')
}

fn uuid(text: &str, version: Option<char>) -> bool {
    let digits: String = match text.split('-').map(str::len).collect::<Vec<_>>().as_slice() {
        [8, 4, 4, 4, 12] => text.replace('-', ""),
        [32] => text.to_owned(),
        _ => return false,
    };
    let variant_free = matches!(version, None | Some('3'));
    digits.chars().all(|c| c.is_ascii_hexdigit())
        && version.is_none_or(|v| digits.chars().nth(12) == Some(v))
        && (variant_free || digits.chars().nth(16).is_some_and(|c| "89abAB".contains(c)))
}

fn label(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}
