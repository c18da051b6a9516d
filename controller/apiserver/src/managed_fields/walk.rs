//! Walks through one object: its set of fields, and the object without a set of fields.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::path::Element;
use super::set::{Branch, Set};
use super::types::{Form, Items, ListOf, MapType, Type};

/// What tells the item of a set or keyed list from the others.
///
/// # Errors
/// Why it has no identity, in the API server's words.
pub(crate) fn item_element(list: &ListOf<'_>, item: &Value) -> Result<Element, String> {
    match list.items {
        Items::Atomic => Err("invalid indexing of non-associative list".into()),
        Items::Keyed(keys) => {
            let map = match item {
                Value::Object(map) => map,
                Value::Null => return Err("associative list with keys may not have a null element".into()),
                _ => return Err("associative list with keys may not have non-map elements".into()),
            };
            let mut pairs = Vec::with_capacity(keys.len());
            for key in keys {
                if let Some(value) = map.get(key).or_else(|| key_default(list.element, key)) {
                    pairs.push((key.clone(), value.clone()));
                }
            }
            if pairs.is_empty() {
                let keys: Vec<String> = keys.iter().map(|k| crate::schema::quote(k)).collect();
                return Err(format!(
                    "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
                    keys.join(" ")
                ));
            }
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(Element::Key(pairs))
        }
        Items::Set => match item {
            Value::Object(_) => Err("associative list without keys has an element that's a map type".into()),
            Value::Array(_) => Err("not supported: associative list with lists as elements".into()),
            Value::Null => Err("associative list without keys has an element that's an explicit null".into()),
            scalar => Ok(Element::Value(scalar.clone())),
        },
    }
}

fn key_default<'a>(element: Type<'a>, key: &str) -> Option<&'a Value> {
    match element {
        Type::Schema { node, .. } => node.properties.get(key)?.default.as_ref().filter(|v| !v.is_null()),
        _ => None,
    }
}

/// The set of all fields of a (valid) object.
pub(crate) fn field_set(value: &Value, kind: Type<'_>) -> Set {
    let mut branch = Branch::default();
    collect(value, kind, &mut branch);
    branch.below
}

fn collect(value: &Value, kind: Type<'_>, branch: &mut Branch) {
    match (kind.form(value), value) {
        (Form::Scalar(_), _) => branch.member = true,
        (Form::Map(map), _) if map.atomic => branch.member = true,
        (Form::Map(kind), Value::Object(map)) => {
            for (name, value) in map {
                let mut child = Branch::default();
                collect(value, kind.field(name), &mut child);
                let hollow = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                child.member |= hollow || kind.named(name).is_none();
                branch.below.put(Element::field(name), child);
            }
        }
        (Form::List(list), Value::Array(items)) if !matches!(list.items, Items::Atomic) => {
            let mut values: BTreeMap<Element, Vec<&Value>> = BTreeMap::new();
            for item in items {
                if let Ok(element) = item_element(&list, item) {
                    values.entry(element).or_default().push(item);
                }
            }
            for (element, values) in values {
                let mut child = Branch {
                    member: true,
                    ..Branch::default()
                };
                // Of items that are there more than once, nothing but their being there is tracked.
                if let [item] = values[..] {
                    collect(item, list.element, &mut child);
                }
                branch.below.put(element, child);
            }
        }
        (Form::List(list), _) if matches!(list.items, Items::Atomic) => branch.member = true,
        _ => {}
    }
}

/// The object without the fields in `gone`. A map or list that loses all its items stays, empty,
/// unless it is in `gone` itself.
pub(crate) fn remove(value: &Value, kind: Type<'_>, gone: &Set) -> Value {
    match (kind.form(value), value) {
        (Form::Scalar(_), _) => value.clone(),
        (Form::Map(kind), Value::Object(map)) if !kind.atomic && !map.is_empty() => remove_fields(map, &kind, gone),
        (Form::List(list), Value::Array(items)) if !matches!(list.items, Items::Atomic) => {
            remove_items(items, &list, gone)
        }
        _ => Value::Null,
    }
}

fn remove_fields(map: &Map<String, Value>, kind: &MapType<'_>, gone: &Set) -> Value {
    let mut kept = Map::new();
    let mut entered = false;
    for (name, value) in map {
        let element = Element::field(name);
        if gone.has(&element) {
            continue;
        }
        let value = match gone.below(&element) {
            None => value.clone(),
            Some(below) => {
                entered = true;
                remove_below(value, kind.field(name), below)
            }
        };
        kept.insert(name.clone(), value);
    }
    if kept.is_empty() && !entered {
        return Value::Null;
    }
    Value::Object(kept)
}

fn remove_items(items: &[Value], list: &ListOf<'_>, gone: &Set) -> Value {
    let mut kept = Vec::new();
    let mut entered = false;
    for item in items {
        let Ok(element) = item_element(list, item) else {
            kept.push(item.clone());
            continue;
        };
        if gone.has(&element) {
            continue;
        }
        match gone.below(&element) {
            None => kept.push(item.clone()),
            Some(below) => {
                entered = true;
                kept.push(remove_below(item, list.element, below));
            }
        }
    }
    if kept.is_empty() && !entered {
        return Value::Null;
    }
    Value::Array(kept)
}

fn remove_below(value: &Value, kind: Type<'_>, gone: &Set) -> Value {
    match (remove(value, kind, gone), value) {
        (Value::Null, Value::Object(_)) => Value::Object(Map::new()),
        (Value::Null, Value::Array(_)) => Value::Array(Vec::new()),
        (left, _) => left,
    }
}

/// The set with every named field on the way to a member a member itself.
pub(crate) fn with_named_fields(set: &Set, kind: Type<'_>) -> Set {
    let atom = kind.atom();
    let mut out = Set::default();
    for (element, branch) in &set.0 {
        let (named, below) = match (element, atom.map, atom.list) {
            (Element::Field(name), Some(map), _) => (map.named(name).is_some(), map.field(name)),
            (Element::Key(_), _, Some(list)) => (false, list.element),
            _ => (false, Type::Nothing),
        };
        let branch = Branch {
            member: branch.member || (named && !branch.below.is_empty()),
            below: with_named_fields(&branch.below, below),
        };
        out.put(element.clone(), branch);
    }
    out
}
