//! Semantic versions.

use std::cmp::Ordering;
use std::rc::Rc;

use crate::schema::cel::value::{Fault, Outcome, Value};

/// A version; its build metadata plays no part.
#[derive(Clone, Debug)]
pub(in crate::schema::cel) struct Semver {
    numbers: [u64; 3],
    pre: Vec<String>,
}

fn number(text: &str) -> Option<u64> {
    let plain = text == "0" || (!text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()));
    plain.then(|| text.parse().ok()).flatten()
}

fn identifiers(text: &str) -> bool {
    text.split('.')
        .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
}

impl Semver {
    fn parse(text: &str) -> Option<Semver> {
        let (text, build) = text.split_once('+').map_or((text, None), |(t, b)| (t, Some(b)));
        let (core, pre) = text.split_once('-').map_or((text, None), |(c, p)| (c, Some(p)));
        let parts: Vec<&str> = core.split('.').collect();
        let [major, minor, patch] = parts.as_slice() else {
            return None;
        };
        if !build.is_none_or(identifiers) || !pre.is_none_or(identifiers) {
            return None;
        }
        let pre: Vec<String> = pre.into_iter().flat_map(|p| p.split('.')).map(str::to_owned).collect();
        // Numbers among the identifiers have no leading zeros.
        let zeros = |p: &String| p.len() > 1 && p.starts_with('0') && p.bytes().all(|b| b.is_ascii_digit());
        if pre.iter().any(zeros) {
            return None;
        }
        Some(Semver {
            numbers: [number(major)?, number(minor)?, number(patch)?],
            pre,
        })
    }

    /// Forgives a leading `v`, missing parts and leading zeros.
    fn parse_lenient(text: &str) -> Option<Semver> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let mut parts: Vec<String> = text.splitn(3, '.').map(str::to_owned).collect();
        for part in &mut parts {
            if part.len() > 1 {
                let kept = part.trim_start_matches('0');
                let bare = !kept.starts_with(|c: char| c.is_ascii_digit());
                *part = if bare { format!("0{kept}") } else { kept.to_owned() };
            }
        }
        if parts.len() < 3 {
            if parts.last().is_some_and(|part| part.contains(['+', '-'])) {
                return None;
            }
            parts.resize(3, "0".into());
        }
        Semver::parse(&parts.join("."))
    }

    /// Precedence: a version with identifiers comes before the one without.
    pub(in crate::schema::cel) fn cmp(&self, other: &Semver) -> Ordering {
        let part = |a: &String, b: &String| match (a.parse::<u64>(), b.parse::<u64>()) {
            (Ok(a), Ok(b)) => a.cmp(&b),
            (Ok(_), Err(_)) => Ordering::Less,
            (Err(_), Ok(_)) => Ordering::Greater,
            _ => a.cmp(b),
        };
        self.numbers
            .cmp(&other.numbers)
            .then_with(|| match (self.pre.as_slice(), other.pre.as_slice()) {
                ([], []) => Ordering::Equal,
                ([], _) => Ordering::Greater,
                (_, []) => Ordering::Less,
                (a, b) => {
                    let first = a.iter().zip(b).map(|(a, b)| part(a, b)).find(|order| order.is_ne());
                    first.unwrap_or_else(|| a.len().cmp(&b.len()))
                }
            })
    }
}

pub(super) fn call<'a>(name: &str, args: &[Value<'a>]) -> Option<Outcome<'a>> {
    use Value::{Bool, Int, String};
    let read = |text: &str, lenient: bool| {
        if lenient {
            Semver::parse_lenient(text)
        } else {
            Semver::parse(text)
        }
    };
    let version = |text: &str, lenient: bool| {
        read(text, lenient)
            .map(|v| Value::Semver(Rc::new(v)))
            .ok_or_else(|| Fault::other("No Major.Minor.Patch elements found"))
    };
    Some(match (name, args) {
        ("semver", [String(text)]) => version(text, false),
        ("semver", [String(text), Bool(lenient)]) => version(text, *lenient),
        ("isSemver", [String(text)]) => Ok(Bool(read(text, false).is_some())),
        ("isSemver", [String(text), Bool(lenient)]) => Ok(Bool(read(text, *lenient).is_some())),
        ("major", [Value::Semver(v)]) => Ok(Int(v.numbers[0] as i64)),
        ("minor", [Value::Semver(v)]) => Ok(Int(v.numbers[1] as i64)),
        ("patch", [Value::Semver(v)]) => Ok(Int(v.numbers[2] as i64)),
        ("compareTo", [Value::Semver(a), Value::Semver(b)]) => Ok(Int(a.cmp(b) as i64)),
        ("isGreaterThan", [Value::Semver(a), Value::Semver(b)]) => Ok(Bool(a.cmp(b).is_gt())),
        ("isLessThan", [Value::Semver(a), Value::Semver(b)]) => Ok(Bool(a.cmp(b).is_lt())),
        _ => return None,
    })
}
