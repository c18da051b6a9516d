//! What happens to one object when several managers write it in turn.

use super::super::{apply, track_update};
use super::*;

/// The time that many seconds after the start of a story.
fn at(second: usize) -> String {
    format!("2026-11-25T12:00:{second:02}Z")
}

fn types() -> Types<'static> {
    Types::new(Some(machine().root()), true)
}

/// Manager, operation and fields of each entry, in order.
fn owners(object: &Value) -> Vec<(String, String, Value)> {
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    entries
        .map(|entry| {
            (
                text(entry, "manager"),
                text(entry, "operation"),
                entry["fieldsV1"].clone(),
            )
        })
        .collect()
}

fn updated(live: Option<&Value>, spec: Value, manager: &str, second: usize) -> Value {
    let mut object = live.cloned().unwrap_or_else(|| vm(json!({})));
    object["spec"] = spec;
    track_update(&types(), live, &mut object, &by(manager, &at(second)));
    object
}

fn applied(live: Option<&Value>, spec: Value, manager: &str, second: usize) -> Result<Value, ApplyError> {
    apply(&types(), live, &vm(spec), &by(manager, &at(second)), false)
}

fn owner(manager: &str, operation: &str, spec: Value) -> (String, String, Value) {
    (manager.into(), operation.into(), json!({"f:spec": spec}))
}

#[test]
fn an_equal_value_is_shared_and_kept_until_the_last_owner_lets_go() {
    let one = applied(None, json!({"cpus": 2, "image": "x"}), "one", 0).unwrap();
    let both = applied(Some(&one), json!({"cpus": 2}), "two", 1).unwrap();
    let left = applied(Some(&both), json!({"image": "x"}), "one", 2).unwrap();
    assert_eq!(left["spec"], json!({"cpus": 2, "image": "x"}));
    let gone = apply(
        &types(),
        Some(&left),
        &vm(json!({"image": "x"})),
        &by("two", &at(3)),
        false,
    )
    .unwrap();
    assert_eq!(gone["spec"], json!({"image": "x"}));
}

#[test]
fn an_update_takes_what_it_changes_and_shares_nothing_else() {
    let live = applied(None, json!({"cpus": 2, "image": "x"}), "one", 0).unwrap();
    let object = updated(Some(&live), json!({"cpus": 3, "image": "x"}), "editor", 1);
    assert_eq!(
        owners(&object),
        [
            owner("one", "Apply", json!({"f:image": {}})),
            owner("editor", "Update", json!({"f:cpus": {}})),
        ]
    );
    let error = applied(Some(&object), json!({"cpus": 2, "image": "x"}), "one", 2).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"editor\" using vm.example.com/v1alpha1: .spec.cpus"
    );
}

#[test]
fn an_update_that_changes_nothing_keeps_the_times() {
    let live = updated(None, json!({"cpus": 2}), "one", 0);
    assert_eq!(updated(Some(&live), json!({"cpus": 2}), "two", 1), live);
}

#[test]
fn items_of_keyed_lists_belong_to_those_who_put_them_there() {
    let root = json!({"disks": [{"name": "root", "size": "1G"}]});
    let one = applied(None, root.clone(), "one", 0).unwrap();
    let both = applied(Some(&one), json!({"disks": [{"name": "data", "size": "2G"}]}), "two", 1).unwrap();
    let names: Vec<&Value> = both["spec"]["disks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| &d["name"])
        .collect();
    assert_eq!(names, ["root", "data"]);
    let left = applied(Some(&both), json!({"cpus": 1}), "one", 2).unwrap();
    assert_eq!(
        left["spec"],
        json!({"cpus": 1, "disks": [{"name": "data", "size": "2G"}]})
    );
}

#[test]
fn a_key_that_is_left_out_has_its_default() {
    let live = applied(None, json!({"ports": [{"guest": 22, "host": 1}]}), "one", 0).unwrap();
    let error = applied(
        Some(&live),
        json!({"ports": [{"guest": 22, "protocol": "TCP", "host": 2}]}),
        "two",
        1,
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "Apply failed with 1 conflict: conflict with \"one\": .spec.ports[guest=22,protocol=\"TCP\"].host"
    );
}

#[test]
fn conflicts_are_grouped_by_owner() {
    let live = applied(None, json!({"cpus": 1, "image": "a"}), "one", 0).unwrap();
    let live = updated(
        Some(&live),
        json!({"cpus": 1, "image": "a", "running": true, "nodeName": "n"}),
        "two",
        1,
    );
    let config = json!({"cpus": 9, "image": "b", "running": false, "nodeName": "m"});
    let error = applied(Some(&live), config, "three", 2).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 4 conflicts: conflicts with \"one\":\n- .spec.cpus\n- .spec.image\n\
         conflicts with \"two\" using vm.example.com/v1alpha1:\n- .spec.nodeName\n- .spec.running"
    );
}

#[test]
fn the_oldest_of_more_than_ten_updaters_are_ancient() {
    let mut live = updated(None, json!({"labels": {}}), "creator", 0);
    for number in 0..12 {
        let mut spec = live["spec"].clone();
        spec["labels"][format!("l{number:02}")] = "x".into();
        live = updated(Some(&live), spec, &format!("m{number:02}"), number + 1);
    }
    let owners = owners(&live);
    assert_eq!(owners.len(), 10);
    let ancient = json!({".": {}, "f:labels": {".": {}, "f:l00": {}, "f:l01": {}, "f:l02": {}}});
    assert_eq!(owners[0], owner("ancient-changes", "Update", ancient));
    assert_eq!(owners[9], owner("m11", "Update", json!({"f:labels": {"f:l11": {}}})));
}

#[test]
fn an_empty_list_of_owners_starts_afresh_and_a_broken_one_is_ignored() {
    let live = updated(None, json!({"cpus": 1}), "one", 0);
    for reset in [json!([]), json!([{}])] {
        let mut object = live.clone();
        object["metadata"]["managedFields"] = reset;
        track_update(&types(), Some(&live), &mut object, &by("two", &at(1)));
        assert_eq!(object["metadata"].get("managedFields"), None);
    }
    let broken = [
        json!("x"),
        json!([{"manager": 1}]),
        json!([{"manager": "x", "operation": "Eat", "apiVersion": VERSION, "fieldsType": "FieldsV1"}]),
        json!([{"manager": "x", "operation": "Apply", "fieldsType": "FieldsV1"}]),
        json!([{"manager": "x", "operation": "Apply", "apiVersion": VERSION, "fieldsType": "FieldsV2"}]),
        json!([{"manager": "x", "operation": "Apply", "apiVersion": VERSION, "fieldsType": "FieldsV1", "time": "noon"}]),
        json!([{"manager": "x", "operation": "Apply", "apiVersion": VERSION, "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": 3}}]),
    ];
    for list in broken {
        let mut object = live.clone();
        object["metadata"]["managedFields"] = list;
        track_update(&types(), Some(&live), &mut object, &by("two", &at(1)));
        assert_eq!(object, live);
    }
}

#[test]
fn a_subresource_cannot_change_the_list_of_owners() {
    let live = updated(None, json!({"cpus": 1}), "one", 0);
    let mut object = live.clone();
    object["metadata"]["managedFields"] = json!([]);
    let writer = Writer {
        subresource: "status",
        ..by("two", "2026-11-25T12:00:01Z")
    };
    track_update(&types(), Some(&live), &mut object, &writer);
    assert_eq!(object, live);
}

#[test]
fn what_was_there_before_the_first_apply_has_an_owner_of_its_own() {
    let mut live = vm(json!({"cpus": 1}));
    live["metadata"]["uid"] = "u".into();
    let error = applied(Some(&live), json!({"cpus": 2}), "me", 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using vm.example.com/v1alpha1: .spec.cpus"
    );
}

/// What kubectl does when it applies at the server for the first time what it applied itself before.
#[test]
fn kubectl_moves_from_client_side_to_server_side_apply() {
    let annotation = "kubectl.kubernetes.io/last-applied-configuration";
    let first = vm(json!({"cpus": 1, "image": "x"}));
    let mut live = first.clone();
    live["metadata"]["annotations"] = json!({annotation: first.to_string() + "\n"});
    track_update(&types(), None, &mut live, &by("kubectl-client-side-apply", &at(0)));

    let second = vm(json!({"cpus": 2}));
    let mine = apply(&types(), Some(&live), &second, &by("kubectl", &at(1)), false).unwrap();
    assert_eq!(mine["spec"], json!({"cpus": 2, "image": "x"}));
    assert_eq!(
        mine["metadata"]["annotations"][annotation],
        second.to_string() + "\n",
        "the annotation goes along"
    );

    let only_annotation = json!({"apiVersion": VERSION, "kind": "VirtualMachine", "metadata": {"name": "vm1",
        "namespace": "default", "annotations": {annotation: mine["metadata"]["annotations"][annotation]}}});
    let writer = by("kubectl-last-applied", "2026-11-25T12:00:02Z");
    let mut moved = apply(&types(), Some(&mine), &only_annotation, &writer, false).unwrap();

    // kubectl folds the entries of client-side apply into its own and patches the list.
    let before = moved.clone();
    moved["metadata"]["managedFields"] = json!([{"manager": "kubectl", "operation": "Apply", "apiVersion": VERSION,
        "fieldsType": "FieldsV1", "fieldsV1": {
            "f:metadata": {"f:annotations": {".": {}, format!("f:{annotation}"): {}}},
            "f:spec": {".": {}, "f:cpus": {}, "f:image": {}}}}]);
    track_update(&types(), Some(&before), &mut moved, &by("kubectl", &at(3)));
    assert_eq!(owners(&moved).len(), 1);

    let last = apply(&types(), Some(&moved), &second, &by("kubectl", &at(4)), false).unwrap();
    assert_eq!(
        last["spec"],
        json!({"cpus": 2}),
        "what the second configuration left out is gone"
    );
    assert_eq!(last["metadata"].get("annotations"), None);
}

#[test]
fn another_manager_gets_no_pardon_from_the_annotation() {
    let mut live = vm(json!({"cpus": 1}));
    live["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": vm(json!({"cpus": 1})).to_string()});
    track_update(&types(), None, &mut live, &by("kubectl-client-side-apply", &at(0)));
    assert!(applied(Some(&live), json!({"cpus": 2}), "helm", 1).is_err());
}

#[test]
fn a_kind_without_a_schema_has_granular_maps_and_whole_lists() {
    let types = Types::new(None, false);
    let object = apply(
        &types,
        None,
        &vm(json!({"a": {"b": 1}, "l": [{"x": 1}]})),
        &by("me", &at(0)),
        false,
    )
    .unwrap();
    assert_eq!(
        owners(&object)[0].2,
        json!({"f:spec": {".": {}, "f:a": {".": {}, "f:b": {}}, "f:l": {}}})
    );
}
