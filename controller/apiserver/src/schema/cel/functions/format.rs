//! `"%s: %d".format([...])`, with the American number format that cel-go has.

use super::plain_text;
use crate::schema::cel::value::{Fault, List, Map, Value};
use crate::schema::quote;

/// Most digits after the point.
const MAX_PRECISION: usize = 1000;
/// Digits after the point when nothing is said.
const DIGITS: usize = 6;

/// Puts `args` into `template`.
pub(super) fn format(template: &str, args: &[Value<'_>]) -> Result<String, Fault> {
    let mut out = String::new();
    let mut taken = 0;
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
        let verb = rest
            .next()
            .ok_or_else(|| Fault::other("unexpected end of format string"))?;
        let arg = args
            .get(taken)
            .ok_or_else(|| Fault::Other(format!("index {taken} out of range")))?;
        taken += 1;
        out += &one(verb, precision, arg)?;
    }
    Ok(out)
}

fn one(verb: char, precision: Option<usize>, arg: &Value<'_>) -> Result<String, Fault> {
    let precision = precision.unwrap_or(DIGITS);
    Ok(match (verb, arg) {
        ('s', value) => shown(value)?,
        ('d', Value::Int(_) | Value::Uint(_)) => plain_text(arg),
        ('f', Value::Double(n)) => grouped(&format!("{n:.precision$}")),
        // The real server does not heed the precision here.
        ('e', Value::Double(n)) => exponent(&format!("{n:.DIGITS$e}")),
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
        _ => {
            let why = match verb {
                'd' => "decimal clause can only be used on integers",
                'f' => "fixed-point clause can only be used on doubles",
                'e' => "scientific clause can only be used on doubles",
                'b' => "only integers and bools can be formatted as binary",
                'o' => "octal clause can only be used on integers",
                'x' => "only integers, byte buffers, and strings can be formatted as hex",
                other => {
                    let message =
                        format!("could not parse formatting clause: unrecognized formatting clause \"{other}\"");
                    return Err(Fault::Other(message));
                }
            };
            return Err(wrong(why, arg));
        }
    })
}

fn wrong(why: &str, arg: &Value<'_>) -> Fault {
    Fault::Other(format!("error during formatting: {why}, was given {}", arg.type_name()))
}

fn signed(n: i64, digits: String) -> String {
    if n < 0 { format!("-{digits}") } else { digits }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Commas between thousands.
fn grouped(number: &str) -> String {
    let end = number.find('.').unwrap_or(number.len());
    let (whole, fraction) = number.split_at(end);
    let mut out = String::new();
    for (i, c) in whole.chars().enumerate() {
        let left = whole.len() - i;
        if left % 3 == 0 && out.ends_with(|c: char| c.is_ascii_digit()) {
            out.push(',');
        }
        out.push(c);
    }
    out + fraction
}

/// `1.5e3` as `1.5×10⁰³`.
fn exponent(text: &str) -> String {
    let Some((mantissa, exponent)) = text.split_once('e') else {
        return text.to_owned();
    };
    let (sign, digits) = exponent.strip_prefix('-').map_or(("", exponent), |d| ("⁻", d));
    let raised: String = format!("{digits:0>2}")
        .bytes()
        .map(|b| ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'][usize::from(b.saturating_sub(b'0')) % 10])
        .collect();
    format!("{mantissa}×10{sign}{raised}")
}

/// `%s`
fn shown(value: &Value<'_>) -> Result<String, Fault> {
    Ok(match value {
        Value::List(_) | Value::Map(_) | Value::Object(_) => nested(value)?,
        Value::Optional(_)
        | Value::Quantity(_)
        | Value::Url(_)
        | Value::Ip(_)
        | Value::Cidr(_)
        | Value::Semver(_)
        | Value::Format(_) => {
            let why = "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps";
            return Err(wrong(why, value));
        }
        other => plain_text(other),
    })
}

fn braced(entries: Vec<(Value<'_>, Value<'_>)>) -> Result<String, Fault> {
    let mut shown = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        shown.push((nested(&key)?, nested(&value)?));
    }
    shown.sort();
    let shown: Vec<String> = shown.iter().map(|(k, v)| format!("{k}:{v}")).collect();
    Ok(format!("{{{}}}", shown.join(", ")))
}

/// A part of a list or map, as a CEL literal.
fn nested(value: &Value<'_>) -> Result<String, Fault> {
    Ok(match value {
        Value::List(list) => {
            let items: Result<Vec<String>, Fault> = List::items(list)?.iter().map(nested).collect();
            format!("[{}]", items?.join(", "))
        }
        Value::Map(map) => braced(Map::entries(map)?)?,
        Value::Object(object) => braced(object.entries()?)?,
        Value::String(text) => quote(text),
        Value::Bytes(_) => format!("b{}", quote(&plain_text(value))),
        Value::Timestamp(_) => format!("timestamp({})", quote(&plain_text(value))),
        Value::Duration(_) => format!("duration({})", quote(&plain_text(value))),
        Value::Double(n) if n.is_finite() => format!("{n:.DIGITS$}"),
        other => shown(other)?,
    })
}
