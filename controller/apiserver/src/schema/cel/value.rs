//! Values at runtime. Objects, maps and lists of the checked object are seen through, not copied.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use base64::Engine as _;
use jiff::Timestamp;
use serde_json::{Map as JsonMap, Value as Json};

use super::functions::{Cidr, NamedFormat, Quantity, Semver, Url, parse_worded_duration};
use crate::schema::node::{Additional, ListType, Node};

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fault {
    /// Types that nothing is declared for: only possible where `dyn` hid them.
    NoOverload,
    /// The rule costs too much.
    Budget,
    /// Anything else, in words.
    Other(String),
}

impl Fault {
    pub(super) fn other(message: impl Into<String>) -> Fault {
        Fault::Other(message.into())
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Fault::NoOverload => "no such overload",
            Fault::Budget => "operation cancelled: actual cost limit exceeded",
            Fault::Other(message) => message,
        })
    }
}

pub(super) type Outcome<'a> = Result<Value<'a>, Fault>;

#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Arc<[u8]>),
    Timestamp(Timestamp),
    /// Nanoseconds.
    Duration(i64),
    List(List<'a>),
    Map(Map<'a>),
    Object(Object<'a>),
    Optional(Option<Rc<Value<'a>>>),
    Type(&'static str),
    Quantity(Quantity),
    Url(Rc<Url>),
    Ip(IpAddr),
    Cidr(Cidr),
    Semver(Rc<Semver>),
    Format(&'static NamedFormat),
}

/// A string of the object, or one that was made.
#[derive(Clone, Debug)]
pub(super) enum Text<'a> {
    Json(&'a str),
    Own(Arc<str>),
}

impl std::fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self)
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Text::Json(text) => text,
            Text::Own(text) => text,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum List<'a> {
    /// A list of the object, with its schema.
    Json(&'a [Json], &'a Node),
    Own(Rc<Vec<Value<'a>>>),
}

#[derive(Clone, Debug)]
pub(super) enum Map<'a> {
    /// A map of the object, with the schema of its values.
    Json(&'a JsonMap<String, Json>, &'a Node),
    Own(Rc<Vec<(Value<'a>, Value<'a>)>>),
}

/// An object with properties; `root` shows type and metadata.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object<'a> {
    pub map: &'a JsonMap<String, Json>,
    pub node: Option<&'a Node>,
    pub root: bool,
}

impl<'a> Value<'a> {
    pub(super) fn text(text: impl Into<Arc<str>>) -> Value<'a> {
        Value::String(Text::Own(text.into()))
    }

    pub(super) fn list(items: Vec<Value<'a>>) -> Value<'a> {
        Value::List(List::Own(Rc::new(items)))
    }

    pub(super) fn some(value: Value<'a>) -> Value<'a> {
        Value::Optional(Some(Rc::new(value)))
    }

    /// A JSON value as its schema says.
    pub(super) fn of(json: &'a Json, node: &'a Node, root: bool) -> Outcome<'a> {
        let wrong = || {
            let wanted = if node.int_or_string {
                "XIntOrString value to be either a string or integer"
            } else {
                node.kind.as_str()
            };
            Fault::Other(format!("invalid data, expected {wanted}"))
        };
        Ok(match json {
            Json::Null if node.nullable => Value::Null,
            Json::Null => return Err(Fault::other("invalid data, got null for schema with nullable=false")),
            Json::Object(map) if node.kind == "object" => match &node.additional {
                Some(Additional::Schema(value)) if !root => Value::Map(Map::Json(map, value)),
                _ => Value::Object(Object {
                    map,
                    node: Some(node),
                    root: root || node.embedded,
                }),
            },
            Json::Array(items) if node.kind == "array" => Value::List(List::Json(items, node)),
            Json::Bool(flag) if node.kind == "boolean" => Value::Bool(*flag),
            Json::Number(number) if node.kind == "number" => Value::Double(number.as_f64().ok_or_else(wrong)?),
            Json::Number(number) if node.kind == "integer" || node.int_or_string => {
                let whole = number.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9.2e18);
                let int = number.as_i64().or_else(|| whole.map(|f| f as i64));
                Value::Int(int.ok_or_else(wrong)?)
            }
            Json::String(text) if node.int_or_string => Value::String(Text::Json(text)),
            Json::String(text) if node.kind == "string" => {
                let invalid = || Fault::Other(format!("Invalid {} formatted string {text}", node.format));
                match node.format.as_str() {
                    "byte" => {
                        let bytes = base64::engine::general_purpose::STANDARD.decode(text);
                        Value::Bytes(bytes.map_err(|_| invalid())?.into())
                    }
                    "duration" => Value::Duration(parse_worded_duration(text).ok_or_else(invalid)?),
                    "date" => Value::Timestamp(format!("{text}T00:00:00Z").parse().map_err(|_| invalid())?),
                    "date-time" => Value::Timestamp(text.parse().map_err(|_| invalid())?),
                    _ => Value::String(Text::Json(text)),
                }
            }
            _ => return Err(wrong()),
        })
    }

    /// The CEL name of the value's type.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "null_type",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Uint(_) => "uint",
            Value::Double(_) => "double",
            Value::String(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::Timestamp(_) => "google.protobuf.Timestamp",
            Value::Duration(_) => "google.protobuf.Duration",
            Value::List(_) => "list",
            Value::Map(_) | Value::Object(_) => "map",
            Value::Optional(_) => "optional_type",
            Value::Type(_) => "type",
            Value::Quantity(_) => "kubernetes.Quantity",
            Value::Url(_) => "kubernetes.URL",
            Value::Ip(_) => "net.IP",
            Value::Cidr(_) => "net.CIDR",
            Value::Semver(_) => "kubernetes.Semver",
            Value::Format(_) => "kubernetes.NamedFormat",
        }
    }

    /// Adds what it costs to look at all of the value: its parts and a tenth of the bytes of its texts.
    /// Stops soon after `limit` is passed: a value may hold the same part many times over.
    pub(super) fn weigh(&self, limit: u64, sum: &mut u64) {
        if *sum > limit {
            return;
        }
        match self {
            Value::String(text) => *sum += text.len() as u64 / 10,
            Value::Bytes(bytes) => *sum += bytes.len() as u64 / 10,
            Value::List(List::Own(items)) => {
                *sum += items.len() as u64;
                items.iter().for_each(|item| item.weigh(limit, sum));
            }
            Value::List(List::Json(items, _)) => items.iter().for_each(|item| weigh_json(item, sum)),
            Value::Map(Map::Own(entries)) => {
                *sum += entries.len() as u64;
                for (key, value) in entries.iter() {
                    key.weigh(limit, sum);
                    value.weigh(limit, sum);
                }
            }
            Value::Map(Map::Json(map, _)) | Value::Object(Object { map, .. }) => {
                map.values().for_each(|value| weigh_json(value, sum));
            }
            Value::Optional(Some(of)) => of.weigh(limit, sum),
            _ => {}
        }
    }

    /// Order of two values of one kind; numbers of all kinds compare.
    pub(super) fn compare(&self, other: &Value<'a>) -> Option<Ordering> {
        Some(match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (Value::String(a), Value::String(b)) => (**a).cmp(&**b),
            (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
            (Value::Timestamp(a), Value::Timestamp(b)) => a.cmp(b),
            (Value::Duration(a), Value::Duration(b)) => a.cmp(b),
            (Value::Int(a), Value::Int(b)) => a.cmp(b),
            (Value::Uint(a), Value::Uint(b)) => a.cmp(b),
            (Value::Double(a), Value::Double(b)) => return a.partial_cmp(b),
            (Value::Int(a), Value::Uint(b)) => i128::from(*a).cmp(&i128::from(*b)),
            (Value::Uint(a), Value::Int(b)) => i128::from(*a).cmp(&i128::from(*b)),
            (Value::Double(a), b) => return a.partial_cmp(&b.float()?),
            (a, Value::Double(b)) => return a.float()?.partial_cmp(b),
            _ => return None,
        })
    }

    fn float(&self) -> Option<f64> {
        match self {
            Value::Int(n) => Some(*n as f64),
            Value::Uint(n) => Some(*n as f64),
            Value::Double(n) => Some(*n),
            _ => None,
        }
    }

    /// Equality; values of different kinds differ, but numbers are compared by value.
    pub(super) fn equals(&self, other: &Value<'a>) -> bool {
        match (self, other) {
            (Value::Null, Value::Null) => true,
            (Value::List(a), Value::List(b)) => a.equals(b),
            (Value::Map(a), Value::Map(b)) => a.equals(b),
            (Value::Object(a), Value::Object(b)) => a.equals(b),
            (Value::Optional(a), Value::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b),
                (a, b) => a.is_none() && b.is_none(),
            },
            (Value::Type(a), Value::Type(b)) => a == b,
            (Value::Quantity(a), Value::Quantity(b)) => a == b,
            (Value::Url(a), Value::Url(b)) => a == b,
            (Value::Ip(a), Value::Ip(b)) => a == b,
            (Value::Cidr(a), Value::Cidr(b)) => a == b,
            (Value::Semver(a), Value::Semver(b)) => a.cmp(b).is_eq(),
            (Value::Format(a), Value::Format(b)) => std::ptr::eq(*a, *b),
            _ => self.compare(other) == Some(Ordering::Equal),
        }
    }

    /// Whether the value is the zero of its kind.
    pub(super) fn is_zero(&self) -> bool {
        match self {
            Value::Null | Value::Optional(None) => true,
            Value::Bool(flag) => !flag,
            Value::Int(n) => *n == 0,
            Value::Uint(n) => *n == 0,
            Value::Double(n) => *n == 0.0,
            Value::String(text) => text.is_empty(),
            Value::Bytes(bytes) => bytes.is_empty(),
            Value::Duration(nanos) => *nanos == 0,
            Value::List(list) => list.len() == 0,
            Value::Map(map) => map.len() == 0,
            Value::Object(object) => object.map.is_empty(),
            _ => false,
        }
    }
}

/// JSON holds nothing twice: its weight is bounded by the size of the request.
fn weigh_json(json: &Json, sum: &mut u64) {
    *sum += 1;
    match json {
        Json::String(text) => *sum += text.len() as u64 / 10,
        Json::Array(items) => items.iter().for_each(|item| weigh_json(item, sum)),
        Json::Object(map) => map.values().for_each(|value| weigh_json(value, sum)),
        _ => {}
    }
}

impl<'a> List<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            List::Json(items, _) => items.len(),
            List::Own(items) => items.len(),
        }
    }

    pub(super) fn get(&self, index: usize) -> Outcome<'a> {
        let missing = || Fault::Other(format!("index out of bounds: {index}"));
        match self {
            List::Own(items) => items.get(index).cloned().ok_or_else(missing),
            List::Json(items, node) => {
                let item = items.get(index).ok_or_else(missing)?;
                match node.items.as_deref() {
                    Some(item_node) => Value::of(item, item_node, item_node.embedded),
                    None => Err(Fault::other(
                        "invalid array type, expected Items with a non-empty Schema",
                    )),
                }
            }
        }
    }

    pub(super) fn items(&self) -> Result<Vec<Value<'a>>, Fault> {
        match self {
            List::Own(items) => Ok((**items).clone()),
            List::Json(..) => (0..self.len()).map(|i| self.get(i)).collect(),
        }
    }

    fn keys(&self) -> Option<(&'a ListType, &'a [Json])> {
        match self {
            List::Json(items, node) => Some((node.list_type.as_ref()?, items)),
            List::Own(_) => None,
        }
    }

    fn equals(&self, other: &List<'a>) -> bool {
        let (Ok(a), Ok(b)) = (self.items(), other.items()) else {
            return false;
        };
        if a.len() != b.len() {
            return false;
        }
        match self.keys() {
            // Sets and keyed lists have no order.
            Some((ListType::Set | ListType::Map(_), _)) => {
                a.iter().all(|item| b.iter().any(|other| item.equals(other)))
            }
            _ => a.iter().zip(&b).all(|(a, b)| a.equals(b)),
        }
    }

    /// Both lists: sets and keyed lists are joined by identity, with the items of `other` winning.
    pub(super) fn plus(&self, other: &List<'a>) -> Outcome<'a> {
        let mut items = self.items()?;
        let set = match self.keys() {
            Some((ListType::Set, _)) => true,
            Some((ListType::Map(keys), _)) => return Ok(Value::list(joined(items, other.items()?, keys))),
            _ => false,
        };
        for item in other.items()? {
            if !(set && items.iter().any(|known| known.equals(&item))) {
                items.push(item);
            }
        }
        Ok(Value::list(items))
    }
}

fn joined<'a>(mut items: Vec<Value<'a>>, others: Vec<Value<'a>>, keys: &[String]) -> Vec<Value<'a>> {
    let same = |a: &Value<'a>, b: &Value<'a>| match (a, b) {
        (Value::Object(a), Value::Object(b)) => keys.iter().all(|key| a.map.get(key) == b.map.get(key)),
        _ => false,
    };
    for item in others {
        match items.iter_mut().find(|known| same(known, &item)) {
            Some(known) => *known = item,
            None => items.push(item),
        }
    }
    items
}

impl<'a> Map<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Map::Json(map, _) => map.len(),
            Map::Own(entries) => entries.len(),
        }
    }

    pub(super) fn get(&self, key: &Value<'a>) -> Option<Outcome<'a>> {
        match self {
            Map::Json(map, node) => {
                let Value::String(key) = key else { return None };
                map.get(&**key).map(|value| Value::of(value, node, node.embedded))
            }
            Map::Own(entries) => entries.iter().find(|(k, _)| k.equals(key)).map(|(_, v)| Ok(v.clone())),
        }
    }

    pub(super) fn entries(&self) -> Result<Vec<(Value<'a>, Value<'a>)>, Fault> {
        match self {
            Map::Own(entries) => Ok((**entries).clone()),
            Map::Json(map, node) => map
                .iter()
                .map(|(key, value)| Ok((Value::String(Text::Json(key)), Value::of(value, node, node.embedded)?)))
                .collect(),
        }
    }

    fn equals(&self, other: &Map<'a>) -> bool {
        let Ok(entries) = self.entries() else { return false };
        entries.len() == other.len()
            && entries
                .iter()
                .all(|(key, value)| matches!(other.get(key), Some(Ok(found)) if found.equals(value)))
    }
}

impl<'a> Object<'a> {
    /// The property `name`; a null counts as absent.
    pub(super) fn get(&self, name: &str) -> Option<Outcome<'a>> {
        let json = self.map.get(name).filter(|json| !json.is_null())?;
        if self.root && name == "metadata" {
            let map = json.as_object()?;
            return Some(Ok(Value::Object(Object {
                map,
                node: None,
                root: false,
            })));
        }
        match self.node {
            Some(node) if !(self.root && (name == "kind" || name == "apiVersion")) => {
                let property = node.properties.get(name)?;
                Some(Value::of(json, property, property.embedded))
            }
            // Type and names are strings.
            _ => Some(Ok(Value::String(Text::Json(json.as_str()?)))),
        }
    }

    /// The properties that the schema knows, by name.
    pub(super) fn entries(&self) -> Result<Vec<(Value<'a>, Value<'a>)>, Fault> {
        let known = self.map.keys().filter_map(|name| Some((name, self.get(name)?)));
        known
            .map(|(name, value)| Ok((Value::String(Text::Json(name)), value?)))
            .collect()
    }

    fn equals(&self, other: &Object<'a>) -> bool {
        self.map.len() == other.map.len()
            && self
                .map
                .iter()
                .all(|(name, json)| match (self.get(name), other.get(name)) {
                    (Some(Ok(a)), Some(Ok(b))) => a.equals(&b),
                    (None, None) => other.map.get(name).is_none_or(|found| found == json),
                    _ => false,
                })
    }
}
