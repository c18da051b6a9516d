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
    match patch
        .get("$patch")
        .map(|directive| directive.as_str().unwrap_or_default())
    {
        Some("replace") => {
            *map = patch.clone();
            map.remove("$patch");
            return Ok(());
        }
        Some("delete") => {
            map.clear();
            return Ok(());
        }
        Some(other) => return Err(PatchError::Unreadable(format!("unknown patch type: {other}"))),
        None => {}
    }
    if let Some(retain) = patch.get("$retainKeys").and_then(Value::as_array) {
        map.retain(|name, _| retain.iter().any(|r| r == name));
    }
    // Lists whose order the patch gives, as they are before it.
    let ordered = patch
        .iter()
        .filter_map(|(name, order)| Some((name.strip_prefix("$setElementOrder/")?, order)));
    let ordered: Vec<(&str, &Value, Vec<Value>)> = ordered
        .map(|(list, order)| {
            let before = map.get(list).and_then(Value::as_array);
            (list, order, before.cloned().unwrap_or_default())
        })
        .collect();
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
            // Directives are about what is there already.
            Value::Object(change) if change.contains_key("$patch") && !map.contains_key(name) => {}
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
                let fresh = !map.contains_key(name);
                let old = map.entry(name.clone()).or_insert_with(|| Value::Array(Vec::new()));
                let before = old.as_array().cloned().unwrap_or_default();
                match (old.as_array_mut(), strategy(&place)) {
                    (Some(old), Strategy::Union) => {
                        for item in change {
                            if !old.contains(item) {
                                old.push(item.clone());
                            }
                        }
                        sort(old, change, &before, None);
                    }
                    (Some(old), Strategy::ByKey(key)) => {
                        merge_list(old, change, key, strategy)?;
                        sort(old, change, &before, Some(key));
                    }
                    _ if fresh => *old = Value::Array(without_directives(change)),
                    _ => *old = Value::Array(change.clone()),
                }
            }
            other => {
                map.insert(name.clone(), other.clone());
            }
        }
    }
    for (list, order, before) in ordered {
        let order = order
            .as_array()
            .ok_or_else(|| malformed(&format!("$setElementOrder/{list}")))?;
        let key = match strategy(&join(path, list)) {
            Strategy::ByKey(key) => Some(key),
            Strategy::Union => None,
            Strategy::Replace => continue,
        };
        if let Some(items) = map.get_mut(list).and_then(Value::as_array_mut) {
            sort(items, order, &before, key);
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
        *old = without_directives(change);
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
            (None, _) => match item.as_object() {
                // Without the directives and nulls that a patch may hold.
                Some(item) => {
                    let mut fresh = Map::new();
                    merge_map(&mut fresh, item, "", strategy)?;
                    old.push(Value::Object(fresh));
                }
                None => old.push(item.clone()),
            },
        }
    }
    Ok(())
}

/// The items of a new list: there is nothing that a directive could be about.
fn without_directives(items: &[Value]) -> Vec<Value> {
    let kept = items.iter().filter(|item| item.get("$patch").is_none());
    kept.cloned().collect()
}

/// Brings the items of a list that `order` names into its order.
///
/// The others keep their own order; each stands before the first one behind which it was not `before`.
fn sort(items: &mut Vec<Value>, order: &[Value], before: &[Value], key: Option<&str>) {
    let place = |list: &[Value], item: &Value| match key {
        Some(key) => list.iter().position(|other| other.get(key) == item.get(key)),
        None => list.iter().position(|other| other == item),
    };
    let named = |item: &Value| place(order, item).is_some();
    let (mut first, mut others): (Vec<Value>, Vec<Value>) = std::mem::take(items).into_iter().partition(named);
    first.sort_by_cached_key(|item| place(order, item));
    // What the patch added is not in `before` and stays behind what is.
    others.sort_by_cached_key(|item| place(before, item).unwrap_or(usize::MAX));
    let mut others = others.into_iter().peekable();
    for item in first {
        let at = place(before, &item);
        while let Some(other) =
            others.next_if(|other| matches!((place(before, other), at), (Some(other), Some(at)) if other < at))
        {
            items.push(other);
        }
        items.push(item);
    }
    items.extend(others);
}

fn malformed(name: &str) -> PatchError {
    PatchError::Unreadable(format!("error decoding patch: {name} must be a list"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(mut object: Value, patch: Value) -> Value {
        strategic(&mut object, &patch, strategy_of).expect("a good patch");
        object
    }

    #[test]
    fn maps_are_merged_and_nulls_remove() {
        let object = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "data": {"k": "v"}});
        let patch = json!({"metadata": {"labels": {"a": null, "c": "3"}}, "data": {"$patch": "replace", "x": "y"}});
        let expected = json!({"metadata": {"labels": {"b": "2", "c": "3"}}, "data": {"x": "y"}});
        assert_eq!(patched(object, patch), expected);
    }

    #[test]
    fn lists_with_a_key_are_merged_by_it() {
        let object = json!({"secrets": [{"name": "a", "kind": "K"}, {"name": "b"}]});
        let patch = json!({"secrets": [{"name": "a", "uid": "1"}, {"name": "b", "$patch": "delete"},
            {"name": "c", "kind": null}]});
        let expected = json!({"secrets": [{"name": "a", "kind": "K", "uid": "1"}, {"name": "c"}]});
        assert_eq!(patched(object, patch), expected);
    }

    #[test]
    fn a_list_without_a_strategy_is_replaced() {
        let object = json!({"spec": {"finalizers": ["a", "b"]}});
        let patch = json!({"spec": {"finalizers": ["c"]}});
        assert_eq!(patched(object, patch), json!({"spec": {"finalizers": ["c"]}}));
    }

    #[test]
    fn a_patch_of_kubectl_leaves_the_order_of_the_manifest() {
        // What kubectl 1.37 sends when a1, b becomes a2, b.
        let object = json!({"secrets": [{"name": "a1"}, {"name": "b"}]});
        let patch = json!({"$setElementOrder/secrets": [{"name": "a2"}, {"name": "b"}],
            "secrets": [{"name": "a2"}, {"$patch": "delete", "name": "a1"}]});
        let expected = json!({"secrets": [{"name": "a2"}, {"name": "b"}]});
        assert_eq!(patched(object, patch), expected);
    }

    #[test]
    fn items_that_others_added_keep_their_places() {
        let finalizers = |list: Value| json!({"metadata": {"finalizers": list}});
        let patch = json!({"metadata": {"$setElementOrder/finalizers": ["c", "a", "new"], "finalizers": ["new"]}});
        let object = finalizers(json!(["x", "a", "y", "c", "z"]));
        assert_eq!(
            patched(object, patch),
            finalizers(json!(["x", "y", "c", "a", "new", "z"]))
        );
        let patch =
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "$setElementOrder/finalizers": []}});
        assert_eq!(patched(finalizers(json!(["a", "b"])), patch), finalizers(json!(["b"])));
    }

    #[test]
    fn without_an_order_the_patch_itself_is_one() {
        let object = json!({"secrets": [{"name": "a"}, {"name": "b"}], "spec": {"podCIDRs": ["x"]}});
        let patch = json!({"secrets": [{"name": "new"}, {"name": "b", "uid": "1"}], "spec": {"podCIDRs": ["y", "x"]}});
        let expected = json!({"secrets": [{"name": "new"}, {"name": "a"}, {"name": "b", "uid": "1"}],
            "spec": {"podCIDRs": ["y", "x"]}});
        assert_eq!(patched(object, patch), expected);
    }

    #[test]
    fn directives_about_what_is_not_there_leave_nothing() {
        let patch = json!({"metadata": {"labels": {"$patch": "delete"}, "annotations": {"$patch": "replace", "a": "b"}},
            "secrets": [{"name": "a", "$patch": "delete"}, {"name": "b"}], "imagePullSecrets": [{"$patch": "replace"}]});
        let expected = json!({"metadata": {}, "secrets": [{"name": "b"}], "imagePullSecrets": []});
        assert_eq!(patched(json!({}), patch), expected);
        let patch = json!({"secrets": [{"$patch": "replace"}, {"name": "b"}, {"name": "c", "$patch": "delete"}]});
        let object = json!({"secrets": [{"name": "a"}]});
        assert_eq!(patched(object, patch), json!({"secrets": [{"name": "b"}]}));
    }

    #[test]
    fn a_malformed_directive_is_refused() {
        for patch in [
            json!([]),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": "a"}}),
            json!({"metadata": {"$setElementOrder/finalizers": 1}}),
            json!({"secrets": [{"kind": "no name"}]}),
            json!({"$patch": "wipe"}),
        ] {
            let mut object = json!({"secrets": [{"name": "a"}]});
            assert!(strategic(&mut object, &patch, strategy_of).is_err(), "{patch}");
        }
    }
}
