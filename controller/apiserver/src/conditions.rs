//! `status.conditions` of the objects whose status is the server's own.

use serde_json::{Value, json};

/// The condition of a type.
pub fn find<'o>(object: &'o Value, kind: &str) -> Option<&'o Value> {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|c| c["type"] == kind)
}

/// Writes a condition in its place. Its time is that of the last change of its status.
pub fn set(object: &mut Value, kind: &str, holds: bool, reason: &str, message: &str, now: &str) {
    let status = if holds { "True" } else { "False" };
    let since = match find(object, kind).filter(|c| c["status"] == status) {
        Some(before) => before["lastTransitionTime"].clone(),
        None => now.into(),
    };
    let new =
        json!({"type": kind, "status": status, "lastTransitionTime": since, "reason": reason, "message": message});
    let conditions = &mut object["status"]["conditions"];
    if conditions.is_null() {
        *conditions = json!([]);
    }
    let Some(conditions) = conditions.as_array_mut() else {
        return;
    };
    match conditions.iter_mut().find(|c| c["type"] == kind) {
        Some(condition) => *condition = new,
        None => conditions.push(new),
    }
}
