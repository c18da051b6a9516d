//! `"%s: %d".format([...])`

use super::plain_text;
use crate::schema::cel::value::{Fault, List, Map, Value};

/// Most digits after the point.
const MAX_PRECISION: usize = 1000;

/// Puts `args` into `template`.
pub(super) fn format(template: &str, args: &[Value<'_>]) -> Result<String, Fault> {
    let mut out = String::new();
    let mut args = args.iter();
    let mut rest = template.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if rest.next_if_eq(&'%').is_some() {
            out.push('%');
            continue;
        }
        let mut precision = None;
        if rest.next_if_eq(&'.').is_some() {
            let mut digits = String::new();
            while let Some(digit) = rest.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            let wanted = digits.parse().ok().filter(|n| *n <= MAX_PRECISION);
            precision = Some(wanted.ok_or_else(|| Fault::other("invalid precision in format string"))?);
        }
        let verb = rest.next().ok_or_else(|| Fault::other("unexpected end of format string"))?;
        let index = args.len();
        let arg = args
            .next()
            .ok_or_else(|| Fault::Other(format!("index {index} out of range")))?;
        out += &one(verb, precision, arg)?;
    }
    Ok(out)
}

fn one(verb: char, precision: Option<usize>, arg: &Value<'_>) -> Result<String, Fault> {
    let wrong = |wanted: &str| {
        let found = arg.type_name();
        Fault::Other(format!(
            "error during formatting: {wanted} clause can only be used on other types, was given {found}"
        ))
    };
    Ok(match (verb, arg) {
        ('s', value) => shown(value)?,
        ('d', Value::Int(_) | Value::Uint(_)) => plain_text(arg),
        ('d', Value::Double(n)) if !n.is_finite() => plain_text(arg),
        ('d', _) => return Err(wrong("decimal")),
        ('f', Value::Double(n)) => format!("{n:.*}", precision.unwrap_or(6)),
        ('e', Value::Double(n)) => exponent(&format!("{n:.*e}", precision.unwrap_or(6))),
        ('f' | 'e', Value::Int(n)) => return one(verb, precision, &Value::Double(*n as f64)),
        ('f' | 'e', Value::Uint(n)) => return one(verb, precision, &Value::Double(*n as f64)),
        ('f' | 'e', _) => return Err(wrong("floating point")),
        ('b', Value::Bool(flag)) => u8::from(*flag).to_string(),
        ('b', Value::Int(n)) => signed(*n, format!("{:b}", n.unsigned_abs())),
        ('b', Value::Uint(n)) => format!("{n:b}"),
        ('o', Value::Int(n)) => signed(*n, format!("{:o}", n.unsigned_abs())),
        ('o', Value::Uint(n)) => format!("{n:o}"),
        ('x', Value::Int(n)) => signed(*n, format!("{:x}", n.unsigned_abs())),
        ('x', Value::Uint(n)) => format!("{n:x}"),
        ('x', Value::String(text)) => hex(text.as_bytes()),
        ('x', Value::Bytes(bytes)) => hex(bytes),
        ('X', _) => one('x', None, arg)?.to_uppercase(),
        ('b' | 'o' | 'x', _) => return Err(wrong("number")),
        (other, _) => {
            let message = format!("could not parse formatting clause: unrecognized formatting clause \"{other}\"");
            return Err(Fault::Other(message));
        }
    })
}

fn signed(n: i64, digits: String) -> String {
    if n < 0 { format!("-{digits}") } else { digits }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Go's exponents have a sign and two digits.
fn exponent(text: &str) -> String {
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |d| ('-', d));
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        None => text.to_owned(),
    }
}

fn shown(value: &Value<'_>) -> Result<String, Fault> {
    Ok(match value {
        Value::List(list) => {
            let items: Result<Vec<String>, Fault> = List::items(list)?.iter().map(shown).collect();
            format!("[{}]", items?.join(", "))
        }
        Value::Map(map) => {
            let mut entries = Vec::new();
            for (key, value) in Map::entries(map)? {
                entries.push(format!("{}: {}", shown(&key)?, shown(&value)?));
            }
            entries.sort();
            format!("{{{}}}", entries.join(", "))
        }
        Value::Object(_) | Value::Optional(_) => {
            let message = format!("string clause cannot be used on {}", value.type_name());
            return Err(Fault::Other(message));
        }
        other => plain_text(other),
    })
}
