//! Defaulting, and the removal of nulls that come before it.

use serde_json::Value;

use super::node::{Additional, Node};

fn unwanted_null(value: &Value, node: Option<&Node>) -> bool {
    value.is_null() && node.is_some_and(|n| !n.nullable)
}

/// Fills in defaults; a null where none is allowed counts as absent.
pub(super) fn defaults(node: Option<&Node>, value: &mut Value) {
    let Some(node) = node else { return };
    match value {
        Value::Object(map) => {
            for (name, property) in &node.properties {
                let Some(default) = &property.default else { continue };
                if map.get(name).is_none_or(|v| unwanted_null(v, Some(property))) {
                    map.insert(name.clone(), default.clone());
                }
            }
            for (name, value) in map.iter_mut() {
                let named = node.properties.get(name);
                if let (None, Some(Additional::Schema(other))) = (named, &node.additional)
                    && unwanted_null(value, Some(other))
                    && let Some(default) = &other.default
                {
                    *value = default.clone();
                }
                defaults(node.field(name), value);
            }
        }
        Value::Array(items) => {
            let Some(item_node) = node.items.as_deref() else { return };
            for item in items {
                if unwanted_null(item, Some(item_node))
                    && let Some(default) = &item_node.default
                {
                    *item = default.clone();
                }
                defaults(Some(item_node), item);
            }
        }
        _ => {}
    }
}

/// Removes properties that are null although the schema does not allow it and has no default for them.
pub(super) fn prune_nulls(node: Option<&Node>, value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|name, value| {
                let field = node.and_then(|n| n.field(name));
                !(unwanted_null(value, field) && field.is_some_and(|f| f.default.is_none()))
            });
            for (name, value) in map.iter_mut() {
                prune_nulls(node.and_then(|n| n.field(name)), value);
            }
        }
        Value::Array(items) => {
            let item_node = node.and_then(|n| n.items.as_deref());
            for item in items {
                prune_nulls(item_node, item);
            }
        }
        _ => {}
    }
}
