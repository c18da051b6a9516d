//! Paths of fields: field names, keys of list items, values of sets.

use std::cmp::Ordering;
use std::fmt;

use serde_json::{Map, Number, Value};

use crate::schema::quote;

/// One step into an object.
///
/// The order is that of FieldsV1: field names, then keys, values and indices.
#[derive(Clone, Debug)]
pub(crate) enum Element {
    /// A field of a map.
    Field(String),
    /// The item of a keyed list with these key fields, sorted by name.
    Key(Vec<(String, Value)>),
    /// The item of a set.
    Value(Value),
    /// The item of an atomic list.
    Index(i64),
}

impl Element {
    /// A field of a map.
    pub(crate) fn field(name: &str) -> Element {
        Element::Field(name.to_owned())
    }
}

impl Ord for Element {
    fn cmp(&self, other: &Element) -> Ordering {
        use Element::{Field, Index, Key, Value};
        fn rank(element: &Element) -> u8 {
            match element {
                Field(_) => 0,
                Key(_) => 1,
                Value(_) => 2,
                Index(_) => 3,
            }
        }
        match (self, other) {
            (Field(a), Field(b)) => a.cmp(b),
            (Key(a), Key(b)) => {
                let pairs = a
                    .iter()
                    .zip(b)
                    .map(|((an, av), (bn, bv))| an.cmp(bn).then_with(|| order(av, bv)));
                pairs
                    .into_iter()
                    .find(|o| o.is_ne())
                    .unwrap_or_else(|| a.len().cmp(&b.len()))
            }
            (Value(a), Value(b)) => order(a, b),
            (Index(a), Index(b)) => a.cmp(b),
            _ => rank(self).cmp(&rank(other)),
        }
    }
}

impl PartialOrd for Element {
    fn partial_cmp(&self, other: &Element) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Element {
    fn eq(&self, other: &Element) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Element {}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Field(name) => write!(f, ".{name}"),
            Element::Key(pairs) => {
                let pairs: Vec<String> = pairs.iter().map(|(n, v)| format!("{n}={}", Shown(v))).collect();
                write!(f, "[{}]", pairs.join(","))
            }
            Element::Value(value) => write!(f, "[={}]", Shown(value)),
            Element::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// A path as the API server prints it: `.spec.disks[name="root"].size`.
pub(crate) fn show(path: &[Element]) -> String {
    path.iter().map(Element::to_string).collect()
}

/// A value inside a path.
struct Shown<'a>(&'a Value);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::String(text) => f.write_str(&quote(text)),
            Value::Number(number) => f.write_str(&crate::schema::go_number(number)),
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(|v| Shown(v).to_string()).collect();
                write!(f, "[{}]", items.join(","))
            }
            Value::Object(map) => map.iter().try_for_each(|(name, v)| write!(f, "{name}={}", Shown(v))),
            other => write!(f, "{other}"),
        }
    }
}

/// Whether two values are the same, `1` and `1.0` included.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| same(a, b)))
        }
        (Value::Number(a), Value::Number(b)) => order_numbers(a, b).is_eq(),
        _ => a == b,
    }
}

/// The order of values: numbers, texts, booleans, lists, maps, null.
fn order(a: &Value, b: &Value) -> Ordering {
    fn rank(value: &Value) -> u8 {
        match value {
            Value::Number(_) => 0,
            Value::String(_) => 1,
            Value::Bool(_) => 2,
            Value::Array(_) => 3,
            Value::Object(_) => 4,
            Value::Null => 5,
        }
    }
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => order_numbers(a, b),
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => {
            let first = a.iter().zip(b).map(|(a, b)| order(a, b)).find(|o| o.is_ne());
            first.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        (Value::Object(a), Value::Object(b)) => {
            let (a, b) = (sorted(a), sorted(b));
            let pairs = a
                .iter()
                .zip(&b)
                .map(|(a, b)| a.0.cmp(b.0).then_with(|| order(a.1, b.1)));
            pairs
                .into_iter()
                .find(|o| o.is_ne())
                .unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

fn sorted(map: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut pairs: Vec<_> = map.iter().collect();
    pairs.sort_by_key(|(name, _)| *name);
    pairs
}

fn order_numbers(a: &Number, b: &Number) -> Ordering {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => {
            let (a, b) = (a.as_f64().unwrap_or_default(), b.as_f64().unwrap_or_default());
            a.partial_cmp(&b).unwrap_or(Ordering::Equal)
        }
    }
}
