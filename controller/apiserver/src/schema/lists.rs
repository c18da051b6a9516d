//! Uniqueness in lists of type `set` and `map`.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{
    error::{FieldError, child, go_json},
    node::{ListType, Node},
};

/// Reports every item that appears for the second time in a set or keyed list.
pub(super) fn check(node: &Node, path: &str, value: &Value, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if let Some(field) = node.properties.get(name) {
                    check(field, &child(path, name), value, errors);
                } else if let Some(field) = node.field(name) {
                    check(field, &format!("{path}[{name}]"), value, errors);
                }
            }
        }
        Value::Array(items) => {
            match &node.list_type {
                Some(ListType::Set) => {
                    for i in repeated(items.iter().map(go_json)) {
                        errors.push(FieldError::duplicate(format!("{path}[{i}]"), items[i].clone()));
                    }
                }
                Some(ListType::Map(keys)) => keyed(keys, path, items, errors),
                _ => {}
            }
            if let Some(item_node) = node.items.as_deref() {
                for (i, item) in items.iter().enumerate() {
                    check(item_node, &format!("{path}[{i}]"), item, errors);
                }
            }
        }
        _ => {}
    }
}

fn keyed(keys: &[String], path: &str, items: &[Value], errors: &mut Vec<FieldError>) {
    if let Some(i) = items.iter().position(|item| !item.is_object() && !item.is_null()) {
        errors.push(FieldError::invalid(
            format!("{path}[{i}]"),
            items[i].clone(),
            "must be an object for an array of list-type map",
        ));
        return;
    }
    let identity = |item: &Value| {
        let pairs = keys
            .iter()
            .filter_map(|key| item.get(key).map(|v| (key.clone(), v.clone())));
        Value::Object(pairs.collect::<Map<_, _>>())
    };
    let identities: Vec<Value> = items.iter().map(identity).collect();
    for i in repeated(identities.iter().map(go_json)) {
        errors.push(FieldError::duplicate(format!("{path}[{i}]"), identities[i].clone()));
    }
}

/// The indices at which a value is seen for the second time (not the third).
fn repeated(values: impl Iterator<Item = String>) -> Vec<usize> {
    let mut seen: HashMap<String, u32> = HashMap::new();
    let mut second = Vec::new();
    for (i, value) in values.enumerate() {
        let times = seen.entry(value).or_insert(0);
        *times += 1;
        if *times == 2 {
            second.push(i);
        }
    }
    second
}
