//! Strategic merge for the core kinds: a merge patch that knows a few keyed lists.

use serde_json::{Map, Value};

use super::PatchError;

/// How a list is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// The patch's list replaces the old one.
    Replace,
    /// Items are merged by this key.
    ByKey(&'static str),
    /// Values are added that are not there yet.
    Union,
}

/// The strategy for the list at a dotted path of a core kind.
///
/// These are all the lists with a `patchStrategy` in the kinds that this server has.
pub fn strategy_of(path: &str) -> Strategy {
    match path {
        "metadata.ownerReferences" => Strategy::ByKey("uid"),
        "metadata.finalizers" => Strategy::Union,
        "status.conditions" => Strategy::ByKey("type"),
        "status.addresses" => Strategy::ByKey("type"),
        "spec.podCIDRs" => Strategy::Union,
        // Of service accounts.
        "secrets" => Strategy::ByKey("name"),
        _ => Strategy::Replace,
    }
}

/// Applies a strategic merge patch, directives (`$patch`, `$deleteFromPrimitiveList/…`,
/// `$setElementOrder/…`, `$retainKeys`) included.
///
/// # Errors
/// [`PatchError::Unreadable`] when the patch is not an object or a directive is malformed.
pub fn strategic(object: &mut Value, patch: &Value, strategy: fn(&str) -> Strategy) -> Result<(), PatchError> {
    let Some(patch) = patch.as_object() else {
        return Err(PatchError::Unreadable(
            "error decoding patch: the patch must be an object".to_owned(),
        ));
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    if let Some(map) = object.as_object_mut() {
        merge_map(map, patch, "", strategy)?;
    }
    Ok(())
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn merge_map(
    map: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    path: &str,
    strategy: fn(&str) -> Strategy,
) -> Result<(), PatchError> {
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            *map = patch.clone();
            map.remove("$patch");
            return Ok(());
        }
        Some("delete") => {
            map.clear();
            return Ok(());
        }
        _ => {}
    }
    if let Some(retain) = patch.get("$retainKeys").and_then(Value::as_array) {
        map.retain(|name, _| retain.iter().any(|r| r == name));
    }
    for (name, change) in patch {
        if let Some(list) = name.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = change.as_array().ok_or_else(|| malformed(name))?;
            if let Some(items) = map.get_mut(list).and_then(Value::as_array_mut) {
                items.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if name.starts_with('$') {
            continue;
        }
        let place = join(path, name);
        match change {
            Value::Null => {
                map.remove(name);
            }
            Value::Object(change) => {
                let old = map.entry(name.clone()).or_insert_with(|| Value::Object(Map::new()));
                if !old.is_object() {
                    *old = Value::Object(Map::new());
                }
                if let Some(old) = old.as_object_mut() {
                    merge_map(old, change, &place, strategy)?;
                }
            }
            Value::Array(change) => {
                let old = map.entry(name.clone()).or_insert_with(|| Value::Array(Vec::new()));
                match (old.as_array_mut(), strategy(&place)) {
                    (Some(old), Strategy::Union) => {
                        for item in change {
                            if !old.contains(item) {
                                old.push(item.clone());
                            }
                        }
                    }
                    (Some(old), Strategy::ByKey(key)) => merge_list(old, change, key, strategy)?,
                    _ => *old = Value::Array(change.clone()),
                }
            }
            other => {
                map.insert(name.clone(), other.clone());
            }
        }
    }
    Ok(())
}

fn merge_list(
    old: &mut Vec<Value>,
    change: &[Value],
    key: &str,
    strategy: fn(&str) -> Strategy,
) -> Result<(), PatchError> {
    if change.iter().any(|item| item["$patch"] == "replace") {
        *old = change
            .iter()
            .filter(|item| item["$patch"] != "replace")
            .cloned()
            .collect();
        return Ok(());
    }
    for item in change {
        let id = item
            .get(key)
            .ok_or_else(|| PatchError::Unreadable(format!("map: {item} does not contain declared merge key: {key}")))?;
        let at = old.iter().position(|o| o.get(key) == Some(id));
        match (at, item["$patch"].as_str()) {
            (Some(at), Some("delete")) => {
                old.remove(at);
            }
            (None, Some("delete")) => {}
            (Some(at), _) => {
                if let (Some(map), Some(item)) = (old[at].as_object_mut(), item.as_object()) {
                    merge_map(map, item, "", strategy)?;
                }
            }
            (None, _) => old.push(item.clone()),
        }
    }
    Ok(())
}

fn malformed(name: &str) -> PatchError {
    PatchError::Unreadable(format!("error decoding patch: {name} must be a list"))
}
