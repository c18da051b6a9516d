//! Namespaces.

use serde_json::{Value, json};

use super::keep;
use crate::names;
use crate::schema::FieldError;

const FINALIZER: &str = "kubernetes";
const LABEL: &str = "kubernetes.io/metadata.name";

pub(super) fn create(object: &mut Value) {
    if !object["spec"].is_object() {
        object["spec"] = json!({});
    }
    let finalizers = &mut object["spec"]["finalizers"];
    match finalizers.as_array_mut() {
        Some(list) if list.iter().any(|f| f == FINALIZER) => {}
        Some(list) => list.push(FINALIZER.into()),
        None => *finalizers = json!([FINALIZER]),
    }
    object["status"] = json!({"phase": "Active"});
    label(object);
}

pub(super) fn update(object: &mut Value, old: &Value) {
    keep(object, old, "spec");
    keep(object, old, "status");
    label(object);
}

pub(super) fn label(object: &mut Value) {
    let name = object["metadata"]["name"].clone();
    if name.is_string() {
        object["metadata"]["labels"][LABEL] = name;
    }
}

pub(super) fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for finalizer in object["spec"]["finalizers"].as_array().into_iter().flatten() {
        let name = finalizer.as_str().unwrap_or_default();
        for problem in names::qualified_name_problems(name) {
            errors.push(FieldError::invalid("spec.finalizers", name, problem));
        }
        if !name.contains('/') && ![FINALIZER, "orphan", "foregroundDeletion"].contains(&name) {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid("spec.finalizers", name, why));
        }
    }
    errors
}
