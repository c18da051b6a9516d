//! CustomResourceDefinitions: what `registry::definition::resource` does not check while compiling them.

use serde_json::Value;

use super::{keep, text};
use crate::registry::definition;
use crate::schema::FieldError;

pub(super) fn create(object: &mut Value, now: &str) {
    definition::default_spec(object);
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
    }
    definition::accept(object, now);
}

pub(super) fn update(object: &mut Value, old: &Value) {
    keep(object, old, "status");
    definition::default_spec(object);
    // The conditions are there since the creation; a stored version may be new.
    definition::accept(object, text(&old["metadata"], "creationTimestamp"));
}

pub(super) fn validate(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(old) = old {
        let fixed = [
            ("/spec/scope", "spec.scope"),
            ("/spec/names/kind", "spec.names.kind"),
            ("/spec/group", "spec.group"),
            ("/spec/names/plural", "spec.names.plural"),
        ];
        for (pointer, field) in fixed {
            let new = object.pointer(pointer);
            if new != old.pointer(pointer) {
                let value = new.cloned().unwrap_or_default();
                errors.push(FieldError::invalid(field, value, "field is immutable"));
            }
        }
    }
    errors
}
