//! What the built-in kinds do beyond their schemas: the strategies of `k8s.io/kubernetes/pkg/registry`.
//!
//! ```text
//! decode_problem(core, &object)             // Some: 400 "... cannot be handled as a Secret: ..."
//! prepare_create(core, &mut object)         // or prepare_update(core, &mut object, &old)
//! validate(core, &object, old)              // besides names::metadata_errors with name_problems(core)
//! ```
//! The order of a write is: decode_problem, prepare, (name generated), validate. Events are prepared and
//! validated in either form; they are stored in core/v1 form.

mod data;
mod definitions;
mod events;
mod leases;
mod namespaces;
#[cfg(test)]
mod tests;

use serde_json::Value;

pub use events::{event_to_core, event_to_events};
pub use namespaces::{Remaining, say_remaining};

use crate::names;
use crate::registry::Core;
use crate::schema::FieldError;

/// The rule for the names of a kind.
pub fn name_problems(core: Core) -> fn(&str) -> Vec<String> {
    match core {
        Core::Namespace => names::label_problems,
        _ => names::subdomain_problems,
    }
}

/// Why the object cannot even be read as its kind: ends the sentence of a 400.
pub fn decode_problem(core: Core, object: &Value) -> Option<String> {
    match core {
        Core::Secret => data::base64_problem(object, "data"),
        Core::ConfigMap => data::base64_problem(object, "binaryData"),
        _ => None,
    }
}

/// Fills in and takes away what the writer of a new object does not decide.
pub fn prepare_create(core: Core, object: &mut Value) {
    match core {
        Core::Namespace => namespaces::create(object),
        Core::Secret => data::secret(object),
        Core::CoreEvent => events::complete(object),
        Core::Definition => definitions::create(object),
        _ => {}
    }
}

/// Puts back what an update of the main resource cannot change.
pub fn prepare_update(core: Core, object: &mut Value, old: &Value) {
    match core {
        Core::Namespace => namespaces::update(object, old),
        Core::Secret => {
            if object["type"].as_str().unwrap_or_default().is_empty() {
                object["type"] = old["type"].clone();
            }
            data::secret(object);
        }
        Core::CoreEvent => events::complete(object),
        Core::Node => keep(object, old, "status"),
        Core::Definition => definitions::update(object, old),
        _ => {}
    }
}

/// The label that names the namespace; call it once the name is known, at every write.
pub fn label_namespace(object: &mut Value) {
    namespaces::label(object);
}

/// What is wrong with a new object, or with `old` an update, apart from its metadata.
pub fn validate(core: Core, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    match core {
        Core::Namespace => namespaces::validate(object),
        Core::Secret => data::validate_secret(object, old),
        Core::ConfigMap => data::validate_config_map(object, old),
        Core::CoreEvent => events::validate(object, old, false),
        Core::Event => events::validate(object, old, true),
        Core::Lease => leases::validate(object),
        Core::Definition => definitions::validate(object, old),
        Core::ServiceAccount | Core::Node => Vec::new(),
    }
}

/// `field` of the object becomes what it was.
fn keep(object: &mut Value, old: &Value, field: &str) {
    let Some(map) = object.as_object_mut() else { return };
    match old.get(field) {
        Some(value) => map.insert(field.to_owned(), value.clone()),
        None => map.remove(field),
    };
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}
