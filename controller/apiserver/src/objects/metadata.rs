//! What the server itself writes into `metadata`, and what it does not let clients write.

use serde_json::{Map, Value};

use super::{Call, rfc3339};
use crate::registry::Core;
use crate::schema::{FieldError, go_json, quote};
use crate::status::Failure;
use crate::{core, names};

/// Letters of generated names: no vowels and nothing that looks like another letter, as apimachinery's.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Prefixes are cut so that the whole name is a valid label.
const PREFIX: usize = 58;

/// `metadata` as a map; made when missing.
pub fn map(object: &mut Value) -> Result<&mut Map<String, Value>, Failure> {
    let wrong = || Failure::bad_request("metadata: Invalid value: must be an object");
    let object = object
        .as_object_mut()
        .ok_or_else(|| Failure::bad_request("the object is not a JSON object"))?;
    let metadata = object.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if metadata.is_null() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut().ok_or_else(wrong)
}

/// Checks and fills in the metadata of an object that is about to be created.
pub fn begin(call: &Call, object: &mut Value) -> Result<(), Failure> {
    let namespace = call.place.namespace.clone();
    let now = rfc3339(call.now);
    let metadata = map(object)?;
    if metadata
        .get("resourceVersion")
        .and_then(Value::as_str)
        .is_some_and(|v| !v.is_empty())
    {
        return Err(Failure::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    in_namespace(metadata, &namespace)?;
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "resourceVersion",
    ] {
        metadata.remove(field);
    }
    let text = |field: &str| {
        metadata
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let prefix = text("generateName");
    if text("name").is_empty() && !prefix.is_empty() {
        metadata.insert("name".into(), generated(&prefix).into());
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), now.into());
    if has_generation(call) {
        metadata.insert("generation".into(), 1.into());
    } else {
        metadata.remove("generation");
    }
    Ok(())
}

/// Which kinds count their changes.
pub fn has_generation(call: &Call) -> bool {
    matches!(call.resource.core, None | Some(Core::Definition))
}

fn generated(prefix: &str) -> String {
    let mut name: String = prefix.chars().take(PREFIX).collect();
    let random = uuid::Uuid::new_v4();
    name.extend(
        random.as_bytes()[..5]
            .iter()
            .map(|b| char::from(LETTERS[usize::from(*b) % LETTERS.len()])),
    );
    name
}

/// The object's namespace is the request's; anything else is refused.
fn in_namespace(metadata: &mut Map<String, Value>, namespace: &str) -> Result<(), Failure> {
    match metadata.get("namespace").and_then(Value::as_str) {
        Some(said) if !said.is_empty() && said != namespace => Err(Failure::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )),
        _ if namespace.is_empty() => {
            metadata.remove("namespace");
            Ok(())
        }
        _ => {
            metadata.insert("namespace".into(), namespace.into());
            Ok(())
        }
    }
}

/// The name of the object is the request's, if it says one.
pub fn check_name(metadata: &Map<String, Value>, name: &str) -> Result<(), Failure> {
    let said = metadata.get("name").and_then(Value::as_str).unwrap_or_default();
    if said.is_empty() || said == name {
        return Ok(());
    }
    Err(Failure::bad_request(format!(
        "the name of the object ({said}) does not match the name on the URL ({name})"
    )))
}

/// Checks the metadata of an update against the request and the live object, and puts back what only the server writes.
///
/// # Errors
/// 400 for another name or namespace, 409 for a stale resourceVersion. Another uid is a precondition that does
/// not hold when the object is `replaced` (409), a change of what cannot change in a patch (422), and nothing in a
/// patch of the status, which has no metadata of its own.
pub fn carry_over(call: &Call, name: &str, live: &Value, object: &mut Value, replaced: bool) -> Result<(), Failure> {
    let old = &live["metadata"];
    let metadata = map(object)?;
    check_name(metadata, name)?;
    metadata.insert("name".into(), name.into());
    in_namespace(metadata, &call.place.namespace)?;
    let text = |field: &str| metadata.get(field).and_then(Value::as_str).unwrap_or_default();
    let (uid, live_uid) = (text("uid"), old["uid"].as_str().unwrap_or_default());
    if !uid.is_empty() && uid != live_uid && !replaced {
        if call.place.subresource.as_deref() != Some("status") {
            let error = FieldError::invalid("metadata.uid", uid, "field is immutable");
            return Err(Failure::invalid(&call.kind_subject(name), &[error.into()]));
        }
    } else if !uid.is_empty() && uid != live_uid {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {live_uid}");
        return Err(Failure::conflict(&call.subject(name), &why));
    }
    let version = text("resourceVersion");
    if !version.is_empty() && Some(version) != old["resourceVersion"].as_str() {
        return Err(Failure::modified(&call.subject(name)));
    }
    for field in [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
        "generateName",
    ] {
        match old.get(field) {
            Some(value) => metadata.insert(field.into(), value.clone()),
            None => metadata.remove(field),
        };
    }
    Ok(())
}

/// What is wrong with the metadata of a new object, or of an update of `live`.
pub fn errors(call: &Call, object: &Value, live: Option<&Value>) -> Vec<FieldError> {
    let rule = call.resource.core.map_or(
        names::subdomain_problems as fn(&str) -> Vec<String>,
        core::name_problems,
    );
    let mut errors = names::metadata_errors(object, rule);
    for (index, name) in list(object, "finalizers").iter().enumerate() {
        for problem in names::qualified_name_problems(name.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(
                format!("metadata.finalizers[{index}]"),
                name.clone(),
                problem,
            ));
        }
    }
    for (index, owner) in list(object, "ownerReferences").iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                let path = format!("metadata.ownerReferences[{index}].{field}");
                errors.push(FieldError::invalid(path, "", "must not be empty"));
            }
        }
    }
    if list(object, "ownerReferences")
        .iter()
        .filter(|o| o["controller"] == true)
        .count()
        > 1
    {
        let owners = object["metadata"]["ownerReferences"].clone();
        errors.push(FieldError::invalid(
            "metadata.ownerReferences",
            go_json(&owners),
            "Only one reference can have Controller set to true.",
        ));
    }
    if let Some(live) = live
        && live["metadata"]["deletionTimestamp"].is_string()
    {
        let added = added(live, object);
        if !added.is_empty() {
            let quoted: Vec<String> = added.iter().map(|f| quote(f)).collect();
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                quoted.join(", ")
            );
            errors.push(FieldError::forbidden("metadata.finalizers", why));
        }
    }
    errors
}

fn list<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object["metadata"][field].as_array().map_or(&[], Vec::as_slice)
}

fn added(live: &Value, object: &Value) -> Vec<String> {
    let old = list(live, "finalizers");
    let new = list(object, "finalizers").iter().filter(|f| !old.contains(f));
    new.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Warnings for finalizers that this write adds.
pub fn warnings(object: &Value, live: Option<&Value>) -> Vec<String> {
    names::finalizer_warnings(&added(live.unwrap_or(&Value::Null), object))
}

/// Whether nothing holds an object that is being deleted any more.
pub fn may_go(object: &Value) -> bool {
    let namespace_finalizers = match object["kind"].as_str() {
        Some("Namespace") => object["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty()),
        _ => false,
    };
    object["metadata"]["deletionTimestamp"].is_string()
        && list(object, "finalizers").is_empty()
        && !namespace_finalizers
}
