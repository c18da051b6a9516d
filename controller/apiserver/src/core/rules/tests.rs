use serde_json::{Value, json};

use super::*;

const NOW: &str = "2026-11-25T18:00:00Z";

fn said(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn created(core: Core, mut object: Value) -> (Value, Vec<String>) {
    prepare_create(core, &mut object);
    let errors = said(&validate(core, &object, None));
    (object, errors)
}

#[test]
fn a_new_namespace_is_active_with_its_finalizer_and_label() {
    let (object, errors) = created(
        Core::Namespace,
        json!({"metadata": {"name": "a"}, "status": {"phase": "x"}}),
    );
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(object["spec"], json!({"finalizers": ["kubernetes"]}));
    assert_eq!(object["status"], json!({"phase": "Active"}));
    assert_eq!(
        object["metadata"]["labels"],
        json!({"kubernetes.io/metadata.name": "a"})
    );
}

#[test]
fn an_update_of_a_namespace_keeps_spec_status_and_label() {
    let (old, _) = created(Core::Namespace, json!({"metadata": {"name": "a"}}));
    let mut new = json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {}, "status": {"phase": "Gone"}});
    prepare_update(Core::Namespace, &mut new, &old);
    assert_eq!((&new["spec"], &new["status"]), (&old["spec"], &old["status"]));
    assert_eq!(
        new["metadata"]["labels"],
        json!({"x": "y", "kubernetes.io/metadata.name": "a"})
    );
}

#[test]
fn a_finalizer_of_a_namespace_is_standard_or_qualified() {
    let (_, errors) = created(
        Core::Namespace,
        json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["mine"]}}),
    );
    assert_eq!(
        errors,
        [
            "spec.finalizers: Invalid value: \"mine\": name is neither a standard finalizer name nor is it fully qualified"
        ]
    );
}

#[test]
fn string_data_replaces_data_and_is_never_stored() {
    let (object, errors) = created(
        Core::Secret,
        json!({"data": {"a": "eA==", "b": "eQ=="}, "stringData": {"b": "z"}}),
    );
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(object, json!({"type": "Opaque", "data": {"a": "eA==", "b": "eg=="}}));
}

#[test]
fn data_that_is_not_base64_cannot_be_read() {
    let wrong = json!({"data": {"a": "x*=="}});
    assert_eq!(
        decode_problem(Core::Secret, &wrong).as_deref(),
        Some("illegal base64 data at input byte 1")
    );
    assert_eq!(decode_problem(Core::Secret, &json!({"data": {"a": "eA\n=="}})), None);
}

#[test]
fn the_type_of_a_secret_is_immutable_and_an_empty_one_means_the_old() {
    let old = json!({"type": "a/b", "data": {}});
    let mut new = json!({"data": {"k": ""}});
    prepare_update(Core::Secret, &mut new, &old);
    assert!(validate(Core::Secret, &new, Some(&old)).is_empty());
    new["type"] = json!("c/d");
    assert_eq!(
        said(&validate(Core::Secret, &new, Some(&old))),
        ["type: Invalid value: \"c/d\": field is immutable"]
    );
}

#[test]
fn typed_secrets_have_their_keys() {
    let cases = [
        (
            "kubernetes.io/tls",
            vec!["data[tls.crt]: Required value", "data[tls.key]: Required value"],
        ),
        ("kubernetes.io/ssh-auth", vec!["data[ssh-privatekey]: Required value"]),
        (
            "kubernetes.io/basic-auth",
            vec!["data[username]: Required value", "data[password]: Required value"],
        ),
        (
            "kubernetes.io/dockerconfigjson",
            vec!["data[.dockerconfigjson]: Required value"],
        ),
        (
            "kubernetes.io/service-account-token",
            vec!["metadata.annotations[kubernetes.io/service-account.name]: Required value"],
        ),
        ("my/own", vec![]),
    ];
    for (kind, wanted) in cases {
        let (_, errors) = created(Core::Secret, json!({"type": kind}));
        assert_eq!(errors, wanted, "{kind}");
    }
}

#[test]
fn a_docker_configuration_that_is_no_json_is_refused_without_showing_it() {
    let (_, errors) = created(
        Core::Secret,
        json!({"type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": "password"}}),
    );
    assert_eq!(errors.len(), 1);
    assert!(errors[0].contains("<secret contents redacted>"), "{errors:?}");
    assert!(!errors[0].contains("password"), "{errors:?}");
}

#[test]
fn immutable_data_stays_as_it_is() {
    for core in [Core::Secret, Core::ConfigMap] {
        let old = json!({"immutable": true, "data": {"a": "eA=="}});
        let same = old.clone();
        assert!(validate(core, &same, Some(&old)).is_empty());
        let new = json!({"data": {"a": "eQ=="}});
        let wanted = [
            "immutable: Forbidden: field is immutable when `immutable` is set",
            "data: Forbidden: field is immutable when `immutable` is set",
        ];
        assert_eq!(said(&validate(core, &new, Some(&old))), wanted);
    }
}

#[test]
fn a_config_map_checks_keys_overlap_and_size() {
    let (_, errors) = created(
        Core::ConfigMap,
        json!({"data": {"a b": "", "both": ""}, "binaryData": {"both": "", "..up": ""}}),
    );
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(errors[0].starts_with("data[a b]: Invalid value: \"a b\": a valid config key must consist of"));
    assert_eq!(
        errors[1],
        "data[both]: Invalid value: \"both\": duplicate of key present in binaryData"
    );
    assert_eq!(
        errors[2],
        "binaryData[..up]: Invalid value: \"..up\": must not start with '..'"
    );
    let (_, errors) = created(Core::ConfigMap, json!({"data": {"a": "x".repeat(1024 * 1024 + 1)}}));
    assert_eq!(errors, ["[]: Too long: may not be more than 1048576 bytes"]);
}

fn event() -> Value {
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "vm1.18a", "namespace": "default"},
        "eventTime": "2026-11-22T11:00:00.000000Z", "reportingController": "vm-agent", "reportingInstance": "node1",
        "action": "Boot", "reason": "Started", "regarding": {"kind": "VirtualMachine", "namespace": "default"},
        "note": "VM started", "type": "Normal",
    })
}

#[test]
fn an_event_goes_to_core_and_back() {
    let mut object = event();
    assert!(validate(Core::Event, &object, None).is_empty());
    event_to_core(&mut object);
    assert_eq!(object["apiVersion"], "v1");
    assert_eq!(object["message"], "VM started");
    assert_eq!(object["involvedObject"]["kind"], "VirtualMachine");
    assert_eq!(
        (&object["source"], &object["firstTimestamp"]),
        (&json!({}), &Value::Null)
    );
    assert_eq!(object["reportingComponent"], "vm-agent");
    event_to_events(&mut object);
    let mut wanted = event();
    wanted["deprecatedSource"] = json!({});
    wanted["deprecatedFirstTimestamp"] = Value::Null;
    wanted["deprecatedLastTimestamp"] = Value::Null;
    assert_eq!(object, wanted);
}

#[test]
fn an_event_without_time_and_type_is_refused_by_the_newer_api_only() {
    let bare = json!({"apiVersion": "events.k8s.io/v1", "metadata": {"name": "x", "namespace": "default"}});
    assert_eq!(
        said(&validate(Core::Event, &bare, None)),
        [
            "eventTime: Required value",
            "type: Invalid value: \"\": has invalid value: "
        ]
    );
    let core = json!({"apiVersion": "v1", "metadata": {"name": "x", "namespace": "default"}});
    assert!(validate(Core::CoreEvent, &core, None).is_empty());
}

#[test]
fn an_old_style_event_lives_in_the_namespace_of_its_object() {
    let event = json!({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "b"}});
    assert_eq!(
        said(&validate(Core::CoreEvent, &event, None)),
        ["involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"]
    );
}

#[test]
fn an_update_by_the_newer_api_changes_the_series_only() {
    let old = event();
    let mut new = event();
    new["series"] = json!({"count": 2, "lastObservedTime": "2026-11-22T11:05:00.000000Z"});
    new["eventTime"] = json!("2026-11-22T11:00:00Z");
    assert!(validate(Core::Event, &new, Some(&old)).is_empty());
    new["series"] = json!({"count": 1});
    new["note"] = json!("other");
    assert_eq!(
        said(&validate(Core::Event, &new, Some(&old))),
        [
            "series.count: Invalid value: \"\": should be at least 2",
            "series.lastObservedTime: Required value",
            "message: Invalid value: \"other\": field is immutable",
        ]
    );
}

#[test]
fn a_lease_has_a_positive_duration() {
    let lease = json!({"spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1, "preferredHolder": "x"}});
    assert_eq!(
        said(&validate(Core::Lease, &lease, None)),
        [
            "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
            "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
            "spec.preferredHolder: Forbidden: may only be specified if `strategy` is defined",
        ]
    );
}

fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com", "creationTimestamp": NOW},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": {"type": "object", "properties": {
                    "size": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}}}},
            }}}],
        },
    })
}

#[test]
fn a_new_definition_gets_its_names_and_a_status() {
    let (object, errors) = created(Core::Definition, definition());
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(object["spec"]["names"]["singular"], "widget");
    assert_eq!(object["spec"]["names"]["listKind"], "WidgetList");
    assert_eq!(object["status"]["storedVersions"], json!(["v1"]));
    assert!(crate::registry::definition::resource(&object).is_ok());
}

#[test]
fn names_in_a_definition_are_labels() {
    let mut wrong = definition();
    wrong["spec"]["group"] = json!("example");
    wrong["spec"]["names"]["shortNames"] = json!(["W"]);
    wrong["spec"]["names"]["kind"] = json!("Wid get");
    wrong["spec"]["names"]["listKind"] = json!("Wid get");
    wrong["spec"]["versions"][0]["name"] = json!("1");
    let (_, errors) = created(Core::Definition, wrong);
    let starts = [
        "spec.group: Invalid value: \"example\": should be a domain with at least one dot",
        "spec.versions[0].name: Invalid value: \"1\": a DNS-1035 label must consist of",
        "spec.names.singular: Invalid value: \"wid get\": a DNS-1035 label",
        "spec.names.kind: Invalid value: \"Wid get\": may have mixed case, but should otherwise match: a DNS-1035 label",
        "spec.names.listKind: Invalid value: \"Wid get\": may have mixed case",
        "spec.names.shortNames[0]: Invalid value: \"W\": a DNS-1035 label",
        "spec.names.listKind: Invalid value: \"Wid get\": kind and listKind may not be the same",
    ];
    assert_eq!(errors.len(), starts.len(), "{errors:?}");
    for (error, start) in errors.iter().zip(starts) {
        assert!(error.starts_with(start), "{error}");
    }
}

#[test]
fn selectable_fields_are_scalars_of_the_schema() {
    let mut wrong = definition();
    let paths = [".spec.size", ".spec.tags", ".spec.none", ".spec.tags[0]", ".spec.size"];
    wrong["spec"]["versions"][0]["selectableFields"] = paths.iter().map(|p| json!({"jsonPath": p})).collect();
    let (_, errors) = created(Core::Definition, wrong);
    let place = |i: usize| format!("spec.selectableFields[{i}].jsonPath");
    assert_eq!(
        errors,
        [
            format!(
                "{}: Invalid value: \".spec.tags\": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
                place(1)
            ),
            format!(
                "{}: Invalid value: \".spec.none\": is an invalid path: does not refer to a valid field",
                place(2)
            ),
            format!(
                "{}: Invalid value: \".spec.tags[0]\": is an invalid path: array notation is not allowed",
                place(3)
            ),
            format!("{}: Duplicate value: \".spec.size\"", place(4)),
        ]
    );
}

#[test]
fn a_scale_subresource_has_its_paths() {
    let mut wrong = definition();
    wrong["spec"]["versions"][0]["subresources"] =
        json!({"scale": {"specReplicasPath": ".status.n", "labelSelectorPath": "spec.s"}});
    let (_, errors) = created(Core::Definition, wrong);
    let place = "spec.subresources.scale";
    assert_eq!(
        errors,
        [
            format!("{place}.specReplicasPath: Invalid value: \".status.n\": should be a json path under .spec"),
            format!("{place}.statusReplicasPath: Required value"),
            format!("{place}.labelSelectorPath: Invalid value: \"spec.s\": must be a simple json path starting with ."),
        ]
    );
}

#[test]
fn an_update_of_a_definition_keeps_identity_status_and_stored_versions() {
    let (old, _) = created(Core::Definition, definition());
    let mut new = definition();
    new["spec"]["scope"] = json!("Cluster");
    new["spec"]["names"]["kind"] = json!("Gadget");
    new["spec"]["versions"][0]["name"] = json!("v2");
    prepare_update(Core::Definition, &mut new, &old);
    assert_eq!(new["status"]["storedVersions"], json!(["v1", "v2"]));
    assert_eq!(new["status"]["conditions"], old["status"]["conditions"]);
    assert_eq!(
        said(&validate(Core::Definition, &new, Some(&old))),
        [
            "spec.scope: Invalid value: \"Cluster\": field is immutable",
            "spec.names.kind: Invalid value: \"Gadget\": field is immutable",
            "status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions; v1 was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in v1 and removes v1 from status.storedVersions",
        ]
    );
}

#[test]
fn an_update_of_a_definition_that_is_being_deleted_keeps_saying_so() {
    let (mut old, _) = created(Core::Definition, definition());
    old["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let conditions = json!([{"type": "Terminating", "status": "True", "reason": "InstanceDeletionInProgress"}]);
    old["status"]["conditions"] = conditions.clone();
    let mut new = definition();
    prepare_update(Core::Definition, &mut new, &old);
    assert_eq!(new["status"]["conditions"], conditions);
}

#[test]
fn a_group_of_the_kubernetes_project_wants_approval() {
    let mut object = definition();
    object["spec"]["group"] = json!("things.k8s.io");
    object["metadata"]["name"] = json!("widgets.things.k8s.io");
    let (_, errors) = created(Core::Definition, object.clone());
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0].starts_with("metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups")
    );
    object["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": "unapproved, a test"});
    assert!(created(Core::Definition, object).1.is_empty());
}
