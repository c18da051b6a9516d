//! Whether a schema is structural: every value has one known type, and junctors only restrict it.

use super::{
    check,
    error::{FieldError, child},
    fill,
    node::{Additional, ListType, Node},
    prune,
};

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Appends everything that keeps the schema from being structural.
pub(super) fn check(root: &Node, path: &str, errors: &mut Vec<FieldError>) {
    invariants(root, Level::Root, path, errors);
}

fn invariants(node: &Node, level: Level, path: &str, errors: &mut Vec<FieldError>) {
    let at = |name: &str| child(path, name);
    if !node.kind.is_empty() && !TYPES.contains(&node.kind.as_str()) {
        errors.push(FieldError::not_supported(at("type"), node.kind.as_str(), &TYPES));
    }
    match &node.items {
        Some(items) => invariants(items, Level::Item, &at("items"), errors),
        None if node.kind == "array" => {
            errors.push(FieldError::required(at("items"), "must be specified"));
        }
        None => {}
    }
    for (name, property) in &node.properties {
        if level == Level::Root && name == "metadata" {
            metadata(property, &format!("{}[metadata]", at("properties")), errors);
            continue;
        }
        let place = format!("{}[{name}]", at("properties"));
        invariants(property, Level::Field, &place, errors);
    }
    if let Some(additional) = &node.additional {
        if level == Level::Root {
            errors.push(FieldError::forbidden(
                at("additionalProperties"),
                "must not be used at the root",
            ));
        }
        if let Additional::Schema(other) = additional {
            invariants(other, Level::Field, &at("additionalProperties"), errors);
        }
    }
    extensions(node, path, errors);
    kind(node, level, path, errors);
    lists(node, path, errors);
    junctors(node, node, path, path, errors);
}

fn metadata(node: &Node, path: &str, errors: &mut Vec<FieldError>) {
    if node.kind != "object" {
        errors.push(FieldError::invalid(
            child(path, "type"),
            node.kind.as_str(),
            "must be object",
        ));
    }
    let only_names = node.properties.keys().all(|k| k == "name" || k == "generateName");
    if !only_names || node.additional.is_some() || !node.required.is_empty() || !node.rules.is_empty() {
        errors.push(FieldError::forbidden(
            path,
            "must not specify anything other than name and generateName, but metadata is implicitly specified",
        ));
    }
}

fn extensions(node: &Node, path: &str, errors: &mut Vec<FieldError>) {
    let at = |name: &str| child(path, name);
    if node.int_or_string && node.preserve_unknown {
        errors.push(FieldError::invalid(
            at("x-kubernetes-preserve-unknown-fields"),
            true,
            "must be false if x-kubernetes-int-or-string is true",
        ));
    }
    if node.int_or_string && node.embedded {
        errors.push(FieldError::invalid(
            at("x-kubernetes-embedded-resource"),
            true,
            "must be false if x-kubernetes-int-or-string is true",
        ));
    }
    if node.int_or_string && !node.kind.is_empty() {
        errors.push(FieldError::invalid(
            at("type"),
            node.kind.as_str(),
            "must be empty if x-kubernetes-int-or-string is true",
        ));
    }
    if node.embedded && node.additional.is_some() {
        errors.push(FieldError::forbidden(
            at("additionalProperties"),
            "must not be used if x-kubernetes-embedded-resource is set",
        ));
    }
    if node.embedded && !node.preserve_unknown && node.properties.is_empty() {
        errors.push(FieldError::required(
            at("properties"),
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
        ));
    }
}

fn kind(node: &Node, level: Level, path: &str, errors: &mut Vec<FieldError>) {
    let place = child(path, "type");
    if node.embedded && node.kind != "object" {
        let words = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(if node.kind.is_empty() {
            FieldError::required(place, words)
        } else {
            FieldError::invalid(place, node.kind.as_str(), words)
        });
    } else if node.kind.is_empty() && !node.int_or_string && !node.preserve_unknown {
        errors.push(FieldError::required(
            place,
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
        ));
    } else if level == Level::Root && node.kind != "object" {
        errors.push(FieldError::invalid(
            place,
            node.kind.as_str(),
            "must be object at the root",
        ));
    }
}

fn lists(node: &Node, path: &str, errors: &mut Vec<FieldError>) {
    let at = |name: &str| child(path, name);
    let Some(list_type) = &node.list_type else { return };
    if node.kind != "array" {
        let words = "must be array if x-kubernetes-list-type is specified";
        errors.push(if node.kind.is_empty() {
            FieldError::required(at("type"), words)
        } else {
            FieldError::invalid(at("type"), node.kind.as_str(), words)
        });
    }
    let Some(items) = &node.items else { return };
    let ListType::Map(keys) = list_type else {
        if *list_type == ListType::Set && items.nullable {
            errors.push(FieldError::forbidden(
                at("items.nullable"),
                "cannot be nullable when x-kubernetes-list-type is set",
            ));
        }
        return;
    };
    if items.kind != "object" {
        errors.push(FieldError::invalid(
            at("items.type"),
            items.kind.as_str(),
            "must be object if parent array's x-kubernetes-list-type is map",
        ));
    }
    for key in keys {
        let Some(property) = items.properties.get(key) else {
            errors.push(FieldError::invalid(
                at("x-kubernetes-list-map-keys"),
                keys.clone(),
                "entries must all be names of item properties",
            ));
            continue;
        };
        if property.kind == "object" || property.kind == "array" {
            errors.push(FieldError::invalid(
                format!("{}[{key}].type", at("items.properties")),
                property.kind.as_str(),
                "must be a scalar type if parent array's x-kubernetes-list-type is map",
            ));
        }
        if property.default.is_none() && !items.required.contains(key) {
            errors.push(FieldError::required(
                format!("{}[{key}].default", at("items.properties")),
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ));
        }
    }
}

/// `{type: integer}, {type: string}`: the one place where a junctor may name types.
fn int_or_string_alternatives(nodes: &[Node]) -> bool {
    matches!(nodes, [a, b] if a.kind == "integer" && b.kind == "string")
}

fn junctors(node: &Node, whole: &Node, path: &str, whole_path: &str, errors: &mut Vec<FieldError>) {
    let groups = [
        ("anyOf", &node.any_of),
        ("allOf", &node.all_of),
        ("oneOf", &node.one_of),
    ];
    for (name, nodes) in groups {
        if name == "anyOf" && whole.int_or_string && int_or_string_alternatives(nodes) {
            continue;
        }
        for (i, nested) in nodes.iter().enumerate() {
            let place = format!("{}[{i}]", child(path, name));
            restriction(nested, Some(whole), &place, whole_path, errors);
        }
    }
    if let Some(nested) = node.not.as_deref() {
        restriction(nested, Some(whole), &child(path, "not"), whole_path, errors);
    }
}

/// A schema below a junctor: it may restrict what `whole` describes and nothing else.
fn restriction(nested: &Node, whole: Option<&Node>, path: &str, whole_path: &str, errors: &mut Vec<FieldError>) {
    let Some(whole) = whole else {
        errors.push(FieldError::required(
            whole_path,
            format!("because it is defined in {path}"),
        ));
        return;
    };
    let mut forbid = |broken: bool, name: &str, words: &str| {
        if broken {
            errors.push(FieldError::forbidden(
                child(path, name),
                format!("{words} to be structural"),
            ));
        }
    };
    forbid(!nested.kind.is_empty(), "type", "must be empty");
    forbid(nested.additional.is_some(), "additionalProperties", "must be undefined");
    forbid(nested.default.is_some(), "default", "must be undefined");
    forbid(nested.described, "description", "must be empty");
    forbid(nested.nullable, "nullable", "must be false");
    forbid(
        nested.preserve_unknown,
        "x-kubernetes-preserve-unknown-fields",
        "must be false",
    );
    forbid(nested.embedded, "x-kubernetes-embedded-resource", "must be false");
    forbid(nested.int_or_string, "x-kubernetes-int-or-string", "must be false");
    forbid(
        nested.list_type.is_some(),
        "x-kubernetes-list-type",
        "must be undefined",
    );
    forbid(nested.map_atomic, "x-kubernetes-map-type", "must be undefined");
    forbid(!nested.rules.is_empty(), "x-kubernetes-validations", "must be empty");
    junctors(nested, whole, path, whole_path, errors);
    if let Some(items) = nested.items.as_deref() {
        let place = child(whole_path, "items");
        restriction(items, whole.items.as_deref(), &child(path, "items"), &place, errors);
    }
    for (name, property) in &nested.properties {
        let place = format!("{}[{name}]", child(path, "properties"));
        if name == "metadata" {
            errors.push(FieldError::forbidden(
                place,
                "must not be specified in a nested context",
            ));
            continue;
        }
        let whole_place = format!("{}[{name}]", child(whole_path, "properties"));
        restriction(property, whole.properties.get(name), &place, &whole_place, errors);
    }
}

/// Appends every default that its own schema would reject or prune.
pub(super) fn check_defaults(node: &Node, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(default) = &node.default {
        let place = child(path, "default");
        let mut filled = default.clone();
        let unknown = prune::prune_part(node, &mut filled);
        if !unknown.is_empty() {
            errors.push(FieldError::invalid(
                place.as_str(),
                default.clone(),
                format!("must not have unknown fields: {}", unknown.join(", ")),
            ));
        }
        fill::defaults(Some(node), &mut filled);
        errors.extend(check::check(node, &place, &filled, None));
    }
    if let Some(items) = &node.items {
        check_defaults(items, &child(path, "items"), errors);
    }
    for (name, property) in &node.properties {
        check_defaults(property, &format!("{}[{name}]", child(path, "properties")), errors);
    }
    if let Some(Additional::Schema(other)) = &node.additional {
        check_defaults(other, &child(path, "additionalProperties"), errors);
    }
}
