//! Strings, bytes and regular expressions. Places in strings are counted in characters.

use regex::Regex;

use super::{MAX_TEXT, Tools, format};
use crate::schema::cel::value::{Fault, Outcome, Value};
use crate::schema::error::{go_float, quote};

pub(super) fn call<'a>(name: &str, args: &[Value<'a>], tools: &mut Tools) -> Option<Outcome<'a>> {
    use Value::{Bool, Bytes, Int, String};
    Some(match (name, args) {
        ("_+_", [String(a), String(b)]) => bounded(a.len() + b.len()).map(|()| Value::text(format!("{a}{b}"))),
        ("_+_", [Bytes(a), Bytes(b)]) => bounded(a.len() + b.len()).map(|()| Bytes([&**a, &**b].concat().into())),
        ("size", [String(text)]) => Ok(Int(text.chars().count() as i64)),
        ("size", [Bytes(bytes)]) => Ok(Int(bytes.len() as i64)),
        ("string", [value]) => to_text(value)?,
        ("bytes", [Bytes(_)]) => Ok(args[0].clone()),
        ("bytes", [String(text)]) => Ok(Bytes(text.as_bytes().into())),
        ("contains", [String(text), String(part)]) => Ok(Bool(text.contains(&**part))),
        ("startsWith", [String(text), String(part)]) => Ok(Bool(text.starts_with(&**part))),
        ("endsWith", [String(text), String(part)]) => Ok(Bool(text.ends_with(&**part))),
        ("matches", [String(text), String(pattern)]) => searched(text, pattern, tools).map(|p| Bool(p.is_match(text))),
        ("find", [String(text), String(pattern)]) => {
            searched(text, pattern, tools).map(|p| Value::text(p.find(text).map_or("", |found| found.as_str())))
        }
        ("findAll", [String(text), String(pattern)]) => find_all(text, pattern, -1, tools),
        ("findAll", [String(text), String(pattern), Int(limit)]) => find_all(text, pattern, *limit, tools),
        ("charAt", [String(text), Int(at)]) => char_at(text, *at),
        ("indexOf", [String(text), String(part)]) => index_of(text, part, 0),
        ("indexOf", [String(text), String(part), Int(from)]) => index_of(text, part, *from),
        ("lastIndexOf", [String(text), String(part)]) => last_index_of(text, part, None),
        ("lastIndexOf", [String(text), String(part), Int(from)]) => last_index_of(text, part, Some(*from)),
        ("lowerAscii", [String(text)]) => Ok(Value::text(text.to_ascii_lowercase())),
        ("upperAscii", [String(text)]) => Ok(Value::text(text.to_ascii_uppercase())),
        ("trim", [String(text)]) => Ok(Value::text(text.trim())),
        ("replace", [String(text), String(from), String(to)]) => replace(text, from, to, -1, tools),
        ("replace", [String(text), String(from), String(to), Int(n)]) => replace(text, from, to, *n, tools),
        ("split", [String(text), String(by)]) => split(text, by, -1, tools),
        ("split", [String(text), String(by), Int(n)]) => split(text, by, *n, tools),
        ("substring", [String(text), Int(from)]) => substring(text, *from, None),
        ("substring", [String(text), Int(from), Int(to)]) => substring(text, *from, Some(*to)),
        ("join", [Value::List(list)]) => list.items().and_then(|items| join(&items, "")),
        ("join", [Value::List(list), String(by)]) => list.items().and_then(|items| join(&items, by)),
        ("format", [String(text), Value::List(list)]) => list
            .items()
            .and_then(|items| format::format(text, &items))
            .and_then(|made| bounded(made.len()).map(|()| Value::text(made))),
        ("strings.quote", [String(text)]) => Ok(Value::text(quote(text))),
        _ => return None,
    })
}

/// A pattern that will be looked for in `text`: in the worst case every part of it at every place.
fn searched(text: &str, pattern: &str, tools: &mut Tools) -> Result<Regex, Fault> {
    let cost = (text.len() as u64 / 10).saturating_mul(pattern.len() as u64 / 4);
    tools.meter.charge(cost)?;
    tools.pattern(pattern)
}

fn bounded(length: usize) -> Result<(), Fault> {
    if length > MAX_TEXT {
        return Err(Fault::Budget);
    }
    Ok(())
}

/// `string(value)`
fn to_text<'a>(value: &Value<'a>) -> Option<Outcome<'a>> {
    Some(match value {
        Value::String(_) => Ok(value.clone()),
        Value::Bytes(bytes) => std::str::from_utf8(bytes)
            .map(Value::text)
            .map_err(|_| Fault::other("invalid UTF-8 in bytes, cannot convert to string")),
        Value::List(_) | Value::Map(_) | Value::Object(_) | Value::Optional(_) | Value::Type(_) | Value::Null => {
            return None;
        }
        other => Ok(Value::text(plain_text(other))),
    })
}

/// A scalar in words, as `string()`, `%s` and errors show it.
pub(in crate::schema::cel) fn plain_text(value: &Value<'_>) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(flag) => flag.to_string(),
        Value::Int(n) => n.to_string(),
        Value::Uint(n) => n.to_string(),
        Value::Double(n) => double(*n),
        Value::String(text) => text.to_string(),
        Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::Timestamp(moment) => moment.to_string(),
        Value::Duration(nanos) => super::times::duration_text(*nanos),
        Value::Type(name) => (*name).into(),
        Value::Ip(address) => address.to_string(),
        Value::Cidr(cidr) => cidr.to_string(),
        other => other.type_name().into(),
    }
}

/// The shortest digits, with an exponent from a million on.
fn double(n: f64) -> String {
    if n.is_infinite() {
        return if n > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    if n.abs() < 1e6 || n.is_nan() {
        return go_float(n);
    }
    match format!("{n:e}").split_once('e') {
        Some((mantissa, exponent)) => format!("{mantissa}e+{exponent:0>2}"),
        None => go_float(n),
    }
}

fn place(text: &str, at: i64) -> Result<usize, Fault> {
    usize::try_from(at)
        .ok()
        .filter(|at| *at <= text.chars().count())
        .ok_or_else(|| Fault::Other(format!("index out of range: {at}")))
}

/// The byte where character number `at` begins.
fn byte(text: &str, at: usize) -> usize {
    text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte)
}

fn char_at<'a>(text: &str, at: i64) -> Outcome<'a> {
    let at = place(text, at)?;
    Ok(Value::text(text.chars().nth(at).map(String::from).unwrap_or_default()))
}

fn index_of<'a>(text: &str, part: &str, from: i64) -> Outcome<'a> {
    if part.is_empty() {
        return Ok(Value::Int(from));
    }
    let start = byte(text, offset(from)?);
    let found = text[start..].find(part).map(|at| text[..start + at].chars().count());
    Ok(Value::Int(found.map_or(-1, |at| at as i64)))
}

/// Where a search begins; beyond the end nothing is found.
fn offset(from: i64) -> Result<usize, Fault> {
    usize::try_from(from).map_err(|_| Fault::Other(format!("index out of range: {from}")))
}

/// The last match that begins at `from` or before.
fn last_index_of<'a>(text: &str, part: &str, from: Option<i64>) -> Outcome<'a> {
    let size = text.chars().count();
    if part.is_empty() {
        return Ok(Value::Int(from.unwrap_or(size as i64)));
    }
    let end = match from.map(offset).transpose()? {
        Some(from) if from >= size => return Ok(Value::Int(-1)),
        Some(from) => (byte(text, from) + part.len()).min(text.len()),
        None => text.len(),
    };
    // The end may fall into a character when `part` does not fit there: then nothing matches there either.
    let end = (0..=end).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let found = text[..end].rfind(part).map(|at| text[..at].chars().count());
    Ok(Value::Int(found.map_or(-1, |at| at as i64)))
}

fn substring<'a>(text: &str, from: i64, to: Option<i64>) -> Outcome<'a> {
    let start = place(text, from)?;
    let end = to.map_or(Ok(usize::MAX), |to| place(text, to))?;
    if start > end {
        let message = format!("invalid substring range. start: {start}, end: {end}");
        return Err(Fault::Other(message));
    }
    Ok(Value::text(&text[byte(text, start)..byte(text, end)]))
}

fn replace<'a>(text: &str, from: &str, to: &str, limit: i64, tools: &mut Tools) -> Outcome<'a> {
    let times = usize::try_from(limit).unwrap_or(usize::MAX);
    let found = text.matches(from).take(times).count();
    let length = text.len().saturating_add(found.saturating_mul(to.len()));
    bounded(length)?;
    tools.meter.charge(length as u64 / 10)?;
    Ok(Value::text(text.replacen(from, to, times)))
}

fn split<'a>(text: &str, by: &str, limit: i64, tools: &mut Tools) -> Outcome<'a> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let parts: Vec<Value<'a>> = match limit {
        0 => Vec::new(),
        // Go splits into characters, without empty ends.
        _ if by.is_empty() => {
            let cut = byte(text, limit - 1);
            let mut parts: Vec<_> = text[..cut].chars().map(|c| Value::text(String::from(c))).collect();
            if cut < text.len() {
                parts.push(Value::text(&text[cut..]));
            }
            parts
        }
        _ => text.splitn(limit, by).map(Value::text).collect(),
    };
    tools.meter.charge(parts.len() as u64)?;
    Ok(Value::list(parts))
}

fn join<'a>(items: &[Value<'a>], by: &str) -> Outcome<'a> {
    let mut texts: Vec<&str> = Vec::with_capacity(items.len());
    for item in items {
        match item {
            Value::String(text) => texts.push(text),
            _ => return Err(Fault::NoOverload),
        }
    }
    let length: usize = texts.iter().map(|t| t.len().saturating_add(by.len())).sum();
    bounded(length)?;
    Ok(Value::text(texts.join(by)))
}

fn find_all<'a>(text: &str, pattern: &str, limit: i64, tools: &mut Tools) -> Outcome<'a> {
    let pattern = searched(text, pattern, tools)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let found = pattern.find_iter(text).take(limit);
    Ok(Value::list(found.map(|m| Value::text(m.as_str())).collect()))
}
