//! The functions and operators, dispatched by name and by the kinds of their arguments.

mod format;
mod lists;
mod named;
mod net;
mod numbers;
mod quantity;
mod semver;
mod strings;
mod times;

use std::collections::HashMap;

use regex::{Regex, RegexBuilder};

use super::eval::Meter;
use super::value::{Fault, Outcome, Value};

pub(super) use lists::sort_by_key;
pub(super) use named::NamedFormat;
pub(super) use net::{Cidr, Url};
pub(super) use quantity::Quantity;
pub(super) use semver::Semver;
pub(super) use strings::plain_text;
pub(super) use times::{parse_duration, parse_timestamp, parse_worded_duration};

/// Longest text that a function makes, in bytes.
const MAX_TEXT: usize = 3 * 1024 * 1024;
/// Size of a compiled regular expression, in bytes.
const MAX_REGEX: usize = 1024 * 1024;

/// The budget, and the regular expressions that were compiled under it.
pub(super) struct Tools {
    pub meter: Meter,
    patterns: HashMap<String, Regex>,
}

impl Tools {
    pub(super) fn new(meter: Meter) -> Tools {
        Tools {
            meter,
            patterns: HashMap::new(),
        }
    }

    /// Compiles a pattern, once.
    fn pattern(&mut self, source: &str) -> Result<Regex, Fault> {
        if let Some(known) = self.patterns.get(source) {
            return Ok(known.clone());
        }
        self.meter.charge(100 + source.len() as u64)?;
        let compiled = regex(source).map_err(|e| Fault::Other(format!("error parsing regexp: {e}")))?;
        self.patterns.insert(source.to_owned(), compiled.clone());
        Ok(compiled)
    }
}

/// Compiles a regular expression of bounded size.
pub(super) fn regex(source: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(source)
        .size_limit(MAX_REGEX)
        .dfa_size_limit(MAX_REGEX)
        .build()
}

/// Functions that do not look into their arguments.
const CHEAP: [&str; 12] = [
    "type",
    "dyn",
    "optional.none",
    "optional.of",
    "optional.ofNonZeroValue",
    "hasValue",
    "value",
    "or",
    "orValue",
    "first",
    "last",
    "lists.range",
];

/// Calls a function; of a method the target is the first argument.
pub(super) fn call<'a>(name: &str, args: &[Value<'a>], tools: &mut Tools) -> Outcome<'a> {
    if !CHEAP.contains(&name) {
        for arg in args {
            tools.meter.charge_for(arg)?;
        }
    }
    let outcome = general(name, args)
        .or_else(|| numbers::call(name, args))
        .or_else(|| strings::call(name, args, tools))
        .or_else(|| lists::call(name, args, tools))
        .or_else(|| times::call(name, args))
        .or_else(|| quantity::call(name, args))
        .or_else(|| net::call(name, args))
        .or_else(|| semver::call(name, args))
        .or_else(|| named::call(name, args));
    outcome.unwrap_or(Err(Fault::NoOverload))
}

/// Equality, order, types and optionals.
fn general<'a>(name: &str, args: &[Value<'a>]) -> Option<Outcome<'a>> {
    Some(Ok(match (name, args) {
        ("!_", [Value::Bool(flag)]) => Value::Bool(!flag),
        ("_==_", [a, b]) => Value::Bool(a.equals(b)),
        ("_!=_", [a, b]) => Value::Bool(!a.equals(b)),
        ("_<_" | "_<=_" | "_>_" | "_>=_", [a, b]) => {
            let nan = |v: &Value<'_>| matches!(v, Value::Double(n) if n.is_nan());
            let Some(order) = a.compare(b) else {
                return (nan(a) || nan(b)).then_some(Ok(Value::Bool(false)));
            };
            Value::Bool(match name {
                "_<_" => order.is_lt(),
                "_<=_" => order.is_le(),
                "_>_" => order.is_gt(),
                _ => order.is_ge(),
            })
        }
        ("type", [value]) => Value::Type(value.type_name()),
        ("dyn", [value]) => value.clone(),
        ("optional.none", []) => Value::Optional(None),
        ("optional.of", [value]) => Value::some(value.clone()),
        ("optional.ofNonZeroValue", [value]) if value.is_zero() => Value::Optional(None),
        ("optional.ofNonZeroValue", [value]) => Value::some(value.clone()),
        ("hasValue", [Value::Optional(of)]) => Value::Bool(of.is_some()),
        ("value", [Value::Optional(Some(of))]) => (**of).clone(),
        ("value", [Value::Optional(None)]) => return Some(Err(Fault::other("optional.none() dereference"))),
        ("or", [Value::Optional(Some(_)), _]) => args[0].clone(),
        ("or", [Value::Optional(None), other]) => other.clone(),
        ("orValue", [Value::Optional(Some(of)), _]) => (**of).clone(),
        ("orValue", [Value::Optional(None), other]) => other.clone(),
        _ => return None,
    }))
}

fn overflow() -> Fault {
    Fault::other("integer overflow")
}
