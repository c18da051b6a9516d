//! FieldsV1: the JSON form of a set of fields.
//!
//! A field is `f:NAME`, a list item `k:{"KEY":VALUE}` or `v:VALUE`, an index `i:N`; `.` says that a
//! field with children is itself a member.

use serde_json::{Map, Value};

use super::path::Element;
use super::set::{Branch, Set};
use crate::schema::go_json;

/// The JSON form of a set.
pub(crate) fn encode(set: &Set) -> Value {
    Value::Object(encode_map(set, false))
}

fn encode_map(set: &Set, itself: bool) -> Map<String, Value> {
    let mut map = Map::new();
    if itself && !set.is_empty() {
        map.insert(".".into(), Value::Object(Map::new()));
    }
    for (element, branch) in &set.0 {
        let below = encode_map(&branch.below, branch.member);
        map.insert(encode_element(element), Value::Object(below));
    }
    map
}

fn encode_element(element: &Element) -> String {
    match element {
        Element::Field(name) => format!("f:{name}"),
        Element::Key(pairs) => {
            let pairs: Vec<String> = pairs
                .iter()
                .map(|(name, value)| format!("{}:{}", Value::from(name.as_str()), go_json(value)))
                .collect();
            format!("k:{{{}}}", pairs.join(","))
        }
        Element::Value(value) => format!("v:{}", go_json(value)),
        Element::Index(index) => format!("i:{index}"),
    }
}

/// Reads the JSON form.
///
/// # Errors
/// What is wrong, when it is no FieldsV1.
pub(crate) fn decode(fields: &Value) -> Result<Set, String> {
    Ok(decode_branch(fields)?.below)
}

fn decode_branch(fields: &Value) -> Result<Branch, String> {
    let mut branch = Branch::default();
    let empty = Map::new();
    let map = match fields {
        Value::Object(map) => map,
        Value::Null => &empty,
        other => return Err(format!("expected a map of fields, got {other}")),
    };
    for (key, value) in map {
        if key == "." {
            branch.member = true;
        } else if let Some(element) = decode_element(key)? {
            branch.below.put(element, decode_branch(value)?);
        }
    }
    // Nothing below: then it is the field itself that is meant.
    branch.member |= branch.below.is_empty();
    Ok(branch)
}

/// `None` for kinds of elements that a later version may know.
fn decode_element(key: &str) -> Result<Option<Element>, String> {
    let (kind, rest) = key.split_once(':').ok_or_else(|| format!("missing colon: {key}"))?;
    let read = |text: &str| serde_json::from_str::<Value>(text).map_err(|e| format!("parsing key {key}: {e}"));
    Ok(match kind {
        "f" => Some(Element::field(rest)),
        "v" => Some(Element::Value(read(rest)?)),
        "i" => Some(Element::Index(
            rest.parse().map_err(|e| format!("parsing key {key}: {e}"))?,
        )),
        "k" => match read(rest)? {
            Value::Object(map) => {
                let mut pairs: Vec<(String, Value)> = map.into_iter().collect();
                pairs.sort_by(|a, b| a.0.cmp(&b.0));
                Some(Element::Key(pairs))
            }
            _ => return Err(format!("parsing key {key}: expected a map of key fields")),
        },
        other if other.chars().count() == 1 => None,
        _ => return Err(format!("missing colon: {key}")),
    })
}
