//! Arithmetic, conversions between numbers, `bool`.

use super::overflow;
use crate::schema::cel::value::{Fault, Outcome, Value};

pub(super) fn call<'a>(name: &str, args: &[Value<'a>]) -> Option<Outcome<'a>> {
    let int = |n: Option<i64>| n.map(Value::Int).ok_or_else(overflow);
    let uint = |n: Option<u64>| {
        n.map(Value::Uint)
            .ok_or_else(|| Fault::other("unsigned integer overflow"))
    };
    let zero = |what: &str| Err(Fault::Other(what.to_owned()));
    Some(match (name, args) {
        ("-_", [Value::Int(n)]) => int(n.checked_neg()),
        ("-_", [Value::Double(n)]) => Ok(Value::Double(-n)),
        ("_+_", [Value::Int(a), Value::Int(b)]) => int(a.checked_add(*b)),
        ("_-_", [Value::Int(a), Value::Int(b)]) => int(a.checked_sub(*b)),
        ("_*_", [Value::Int(a), Value::Int(b)]) => int(a.checked_mul(*b)),
        ("_/_", [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)]) => zero("division by zero"),
        ("_%_", [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)]) => zero("modulus by zero"),
        ("_/_", [Value::Int(a), Value::Int(b)]) => int(a.checked_div(*b)),
        ("_%_", [Value::Int(a), Value::Int(b)]) => int(a.checked_rem(*b)),
        ("_+_", [Value::Uint(a), Value::Uint(b)]) => uint(a.checked_add(*b)),
        ("_-_", [Value::Uint(a), Value::Uint(b)]) => uint(a.checked_sub(*b)),
        ("_*_", [Value::Uint(a), Value::Uint(b)]) => uint(a.checked_mul(*b)),
        ("_/_", [Value::Uint(a), Value::Uint(b)]) => uint(a.checked_div(*b)),
        ("_%_", [Value::Uint(a), Value::Uint(b)]) => uint(a.checked_rem(*b)),
        ("_+_", [Value::Double(a), Value::Double(b)]) => Ok(Value::Double(a + b)),
        ("_-_", [Value::Double(a), Value::Double(b)]) => Ok(Value::Double(a - b)),
        ("_*_", [Value::Double(a), Value::Double(b)]) => Ok(Value::Double(a * b)),
        ("_/_", [Value::Double(a), Value::Double(b)]) => Ok(Value::Double(a / b)),
        ("bool", [Value::Bool(flag)]) => Ok(Value::Bool(*flag)),
        ("bool", [Value::String(text)]) => match &**text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => Err(conversion("bool")),
        },
        ("int", [value]) => int_of(value)?,
        ("uint", [value]) => uint_of(value)?,
        ("double", [value]) => match value {
            Value::Double(n) => Ok(Value::Double(*n)),
            Value::Int(n) => Ok(Value::Double(*n as f64)),
            Value::Uint(n) => Ok(Value::Double(*n as f64)),
            Value::String(text) => text.parse().map(Value::Double).map_err(|_| conversion("double")),
            _ => return None,
        },
        _ => return None,
    })
}

fn conversion(to: &str) -> Fault {
    Fault::Other(format!("type conversion error from 'string' to '{to}'"))
}

fn int_of<'a>(value: &Value<'a>) -> Option<Outcome<'a>> {
    Some(match value {
        Value::Int(n) => Ok(Value::Int(*n)),
        Value::Uint(n) => i64::try_from(*n).map(Value::Int).map_err(|_| overflow()),
        // Strictly inside: the limits themselves are not exact as doubles.
        Value::Double(n) if n.abs() < i64::MAX as f64 => Ok(Value::Int(*n as i64)),
        Value::Double(_) => Err(overflow()),
        Value::String(text) => text.parse().map(Value::Int).map_err(|_| conversion("int")),
        Value::Timestamp(moment) => Ok(Value::Int(moment.as_second())),
        Value::Duration(nanos) => Ok(Value::Int(*nanos)),
        _ => return None,
    })
}

fn uint_of<'a>(value: &Value<'a>) -> Option<Outcome<'a>> {
    let overflow = || Fault::other("unsigned integer overflow");
    Some(match value {
        Value::Uint(n) => Ok(Value::Uint(*n)),
        Value::Int(n) => u64::try_from(*n).map(Value::Uint).map_err(|_| overflow()),
        Value::Double(n) if *n >= 0.0 && *n < u64::MAX as f64 => Ok(Value::Uint(*n as u64)),
        Value::Double(_) => Err(overflow()),
        Value::String(text) => text.parse().map(Value::Uint).map_err(|_| conversion("uint")),
        _ => return None,
    })
}
