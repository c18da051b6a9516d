//! The steps of a recorded session with kube-apiserver 1.36.

use super::super::{apply, keep_times, track_update};
use super::*;

const START: &str = "2026-11-22T11:28:59Z";
const NOW: &str = "2026-11-22T11:29:06Z";

fn created_by_curl() -> Value {
    let schema = machine();
    let types = Types::new(Some(schema.root()), true);
    let mut object = vm(json!({"cpus": 1, "image": "ubuntu", "memory": "512Mi", "nodeName": "node1", "running": true}));
    track_update(&types, None, &mut object, &by("curl", START));
    object
}

#[test]
fn a_created_object_belongs_to_its_creator_defaults_and_all() {
    assert_eq!(
        created_by_curl()["metadata"]["managedFields"],
        json!([{"apiVersion": VERSION, "fieldsType": "FieldsV1", "manager": "curl", "operation": "Update", "time": START,
            "fieldsV1": {"f:spec": {".": {}, "f:cpus": {}, "f:image": {}, "f:memory": {}, "f:nodeName": {},
                "f:running": {}}}}])
    );
}

#[test]
fn an_apply_over_anothers_value_is_refused_in_the_servers_words() {
    let schema = machine();
    let types = Types::new(Some(schema.root()), true);
    let mut live = created_by_curl();
    live["spec"]["cpus"] = 3.into();
    let config = vm(json!({"cpus": 5, "image": "ubuntu", "nodeName": "node1"}));
    let error = apply(&types, Some(&live), &config, &by("other", NOW), false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"curl\" using vm.example.com/v1alpha1: .spec.cpus"
    );
    let ApplyError::Conflicts(conflicts) = error else {
        panic!("no conflict")
    };
    assert_eq!(
        conflicts[0].message(),
        "conflict with \"curl\" using vm.example.com/v1alpha1"
    );
    assert_eq!(conflicts[0].field, ".spec.cpus");
}

#[test]
fn force_takes_the_field_over() {
    let schema = machine();
    let types = Types::new(Some(schema.root()), true);
    let live = created_by_curl();
    let config = vm(json!({"cpus": 5, "image": "ubuntu", "nodeName": "node1"}));
    let object = apply(&types, Some(&live), &config, &by("other", NOW), true).unwrap();
    assert_eq!(object["spec"]["cpus"], 5);
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([
            {"apiVersion": VERSION, "fieldsType": "FieldsV1", "manager": "other", "operation": "Apply", "time": NOW,
                "fieldsV1": {"f:spec": {"f:cpus": {}, "f:image": {}, "f:nodeName": {}}}},
            {"apiVersion": VERSION, "fieldsType": "FieldsV1", "manager": "curl", "operation": "Update", "time": START,
                "fieldsV1": {"f:spec": {".": {}, "f:image": {}, "f:memory": {}, "f:nodeName": {}, "f:running": {}}}},
        ])
    );
}

#[test]
fn the_same_apply_twice_changes_nothing() {
    let schema = machine();
    let types = Types::new(Some(schema.root()), true);
    let config = vm(json!({"image": "ubuntu", "nodeName": "node1"}));
    let first = apply(&types, None, &config, &by("other", START), false).unwrap();
    let mut second = apply(&types, Some(&first), &config, &by("other", NOW), false).unwrap();
    keep_times(&first, &mut second);
    assert_eq!(first, second);
    assert_eq!(
        first["metadata"]["managedFields"][0]["fieldsV1"],
        json!({"f:spec": {"f:image": {}, "f:nodeName": {}}})
    );
}

#[test]
fn an_applied_status_is_owned_by_its_subresource() {
    let schema = machine();
    let types = Types::new(Some(schema.root()), true);
    let live = apply(
        &types,
        None,
        &vm(json!({"image": "ubuntu", "nodeName": "node1"})),
        &by("other", NOW),
        false,
    )
    .unwrap();
    let config = json!({"apiVersion": VERSION, "kind": "VirtualMachine", "metadata": {"name": "vm1"},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    let writer = Writer {
        subresource: "status",
        ..by("agent", NOW)
    };
    let object = apply(&types, Some(&live), &config, &writer, false).unwrap();
    assert_eq!(object["status"], config["status"]);
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([
            {"apiVersion": VERSION, "fieldsType": "FieldsV1", "manager": "agent", "operation": "Apply",
                "subresource": "status", "time": NOW, "fieldsV1": {"f:status": {
                    "f:conditions": {"k:{\"type\":\"Ready\"}": {".": {}, "f:status": {}, "f:type": {}}},
                    "f:phase": {}}}},
            {"apiVersion": VERSION, "fieldsType": "FieldsV1", "manager": "other", "operation": "Apply", "time": NOW,
                "fieldsV1": {"f:spec": {"f:image": {}, "f:nodeName": {}}}},
        ])
    );
}

#[test]
fn managed_fields_cannot_be_applied() {
    let schema = machine();
    let types = Types::new(Some(schema.root()), true);
    let mut config = vm(json!({}));
    config["metadata"]["managedFields"] = json!([]);
    let error = apply(&types, None, &config, &by("other", NOW), false).unwrap_err();
    assert_eq!(
        error,
        ApplyError::Invalid {
            code: 400,
            reason: "BadRequest",
            message: "metadata.managedFields must be nil".into()
        }
    );
}
