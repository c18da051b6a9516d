//! Removal of fields that the schema does not name.

use serde_json::{Map, Value};

use super::{
    error::child,
    node::{Additional, Node},
};

const TYPE_AND_META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// The fields of ObjectMeta; anything else in `metadata` is unknown.
const META: [&str; 15] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];
const OWNER: [&str; 6] = ["apiVersion", "blockOwnerDeletion", "controller", "kind", "name", "uid"];

/// Prunes a whole object; returns the sorted paths of what was removed.
pub(super) fn prune(root: &Node, object: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    prune_metadata("", object, &mut unknown);
    level(
        Some(root),
        Place {
            root: true,
            keep: false,
        },
        object,
        "",
        &mut unknown,
    );
    unknown.sort();
    unknown
}

/// Prunes a value that is not a whole object, such as a default.
pub(super) fn prune_part(node: &Node, value: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    level(Some(node), Place::default(), value, "", &mut unknown);
    unknown.sort();
    unknown
}

fn prune_metadata(path: &str, object: &mut Value, unknown: &mut Vec<String>) {
    let place = child(path, "metadata");
    let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    meta.retain(|name, _| {
        let known = META.contains(&name.as_str());
        if !known {
            unknown.push(format!("{place}.{name}"));
        }
        known
    });
    // Empty is as good as absent, and is not kept. (Of managedFields an empty list means something: see there.)
    meta.retain(|name, value| match name.as_str() {
        "annotations" | "labels" => !value.as_object().is_some_and(Map::is_empty),
        "finalizers" | "ownerReferences" => !value.as_array().is_some_and(Vec::is_empty),
        "generateName" | "selfLink" => value != "",
        _ => true,
    });
    let owners = meta.get_mut("ownerReferences").and_then(Value::as_array_mut);
    for (i, owner) in owners.into_iter().flatten().enumerate() {
        let Some(owner) = owner.as_object_mut() else { continue };
        owner.retain(|name, _| {
            let known = OWNER.contains(&name.as_str());
            if !known {
                unknown.push(format!("{place}.ownerReferences[{i}].{name}"));
            }
            known
        });
    }
}

/// Where a value stands: at the root of the object, or in a list whose unknown fields are kept.
#[derive(Clone, Copy, Default)]
struct Place {
    root: bool,
    keep: bool,
}

fn level(node: Option<&Node>, at: Place, value: &mut Value, path: &str, unknown: &mut Vec<String>) {
    let below = Place::default();
    let preserve = at.keep || node.is_some_and(|n| n.preserve_unknown);
    match value {
        Value::Object(map) => {
            let embedded = at.root || node.is_some_and(|n| n.embedded);
            map.retain(|name, value| {
                if embedded && TYPE_AND_META.contains(&name.as_str()) {
                    return true;
                }
                let place = child(path, name);
                let named = node.and_then(|n| n.properties.get(name));
                match (named, node.and_then(|n| n.additional.as_ref())) {
                    (Some(field), _) => level(Some(field), below, value, &place, unknown),
                    (None, Some(Additional::Schema(field))) => {
                        level(Some(field), below, value, &place, unknown);
                    }
                    (None, Some(Additional::Any(_))) => level(None, below, value, &place, unknown),
                    (None, None) if preserve => {}
                    (None, None) => {
                        unknown.push(place);
                        return false;
                    }
                }
                true
            });
            if embedded && !at.root {
                prune_metadata(path, value, unknown);
            }
        }
        Value::Array(items) => {
            let item_node = node.and_then(|n| n.items.as_deref());
            if preserve && item_node.is_none() {
                return;
            }
            for (i, item) in items.iter_mut().enumerate() {
                let at = Place {
                    root: false,
                    keep: preserve,
                };
                level(item_node, at, item, &format!("{path}[{i}]"), unknown);
            }
        }
        _ => {}
    }
}
