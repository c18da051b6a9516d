//! The built-in kinds, as a kube-apiserver 1.36 was seen to treat them.

use super::super::{apply, track_update};
use super::*;
use crate::core::core_schema;
use crate::registry::Core;

struct Kind {
    core: Core,
    group: &'static str,
    kind: &'static str,
    schema: Schema,
}

impl Kind {
    fn new(core: Core, group: &'static str, kind: &'static str) -> Kind {
        let schema = Schema::compile(&core_schema(group, kind), "").unwrap();
        Kind {
            core,
            group,
            kind,
            schema,
        }
    }

    fn api_version(&self) -> String {
        let slash = if self.group.is_empty() { "" } else { "/" };
        format!("{}{slash}v1", self.group)
    }

    fn object(&self, fields: Value) -> Value {
        let mut object = json!({"apiVersion": self.api_version(), "kind": self.kind});
        for (name, value) in fields.as_object().unwrap() {
            object[name] = value.clone();
        }
        object["metadata"]["name"] = "x".into();
        object
    }

    fn update(&self, live: Option<&Value>, object: Value, manager: &str, subresource: &str) -> Value {
        let types = Types::core(self.core, Some(self.schema.root()));
        let version = self.api_version();
        let writer = Writer {
            api_version: &version,
            subresource,
            ..by(manager, "2026-11-25T18:45:06Z")
        };
        let mut object = object;
        track_update(&types, live, &mut object, &writer);
        object
    }

    fn apply(
        &self,
        live: Option<&Value>,
        fields: Value,
        manager: &str,
        subresource: &str,
        force: bool,
    ) -> Result<Value, ApplyError> {
        let types = Types::core(self.core, Some(self.schema.root()));
        let version = self.api_version();
        let writer = Writer {
            api_version: &version,
            subresource,
            ..by(manager, "2026-11-25T18:45:06Z")
        };
        apply(&types, live, &self.object(fields), &writer, force)
    }
}

/// What `manager` owns through `operation`.
fn owned(object: &Value, manager: &str) -> Value {
    let entries = object["metadata"]["managedFields"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let mine = entries.into_iter().find(|entry| entry["manager"] == manager);
    mine.map_or(Value::Null, |entry| entry["fieldsV1"].clone())
}

#[test]
fn the_creator_of_a_namespace_owns_its_labels() {
    let kind = Kind::new(Core::Namespace, "", "Namespace");
    let fields = json!({"metadata": {"labels": {"kubernetes.io/metadata.name": "x"}}, "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"}});
    let object = kind.object(fields);
    let live = kind.update(None, object, "curl", "");
    let labels = json!({"f:metadata": {"f:labels": {".": {}, "f:kubernetes.io/metadata.name": {}}}});
    assert_eq!(owned(&live, "curl"), labels);
    let fields = json!({"metadata": {"labels": {"a": "b"}}, "spec": {}, "status": {"phase": "Active"}});
    let both = kind.apply(Some(&live), fields, "me", "", false).unwrap();
    assert_eq!(
        owned(&both, "me"),
        json!({"f:metadata": {"f:labels": {"f:a": {}}}, "f:spec": {}})
    );
    assert_eq!(owned(&both, "curl"), labels);
}

#[test]
fn a_config_maps_entries_are_fields() {
    let kind = Kind::new(Core::ConfigMap, "", "ConfigMap");
    let fields =
        json!({"metadata": {"annotations": {"x": "y"}}, "data": {"a": "1", "b": ""}, "binaryData": {"z": "aGk="}});
    let object = kind.update(None, kind.object(fields), "curl", "");
    assert_eq!(
        owned(&object, "curl"),
        json!({"f:binaryData": {".": {}, "f:z": {}}, "f:data": {".": {}, "f:a": {}, "f:b": {}},
            "f:metadata": {"f:annotations": {".": {}, "f:x": {}}}})
    );
    let one = kind.apply(None, json!({"data": {"a": "1"}}), "one", "", false).unwrap();
    assert_eq!(owned(&one, "one"), json!({"f:data": {"f:a": {}}}));
    let both = kind
        .apply(Some(&one), json!({"data": {"b": "1"}}), "two", "", false)
        .unwrap();
    assert_eq!(both["data"], json!({"a": "1", "b": "1"}));
}

#[test]
fn an_owner_who_changed_nothing_has_no_time() {
    let kind = Kind::new(Core::ConfigMap, "", "ConfigMap");
    let one = kind
        .apply(None, json!({"data": {"a": "1"}}), "curl", "", false)
        .unwrap();
    let both = kind
        .apply(Some(&one), json!({"data": {"a": "1"}}), "other", "", false)
        .unwrap();
    let entry = &both["metadata"]["managedFields"][0];
    assert_eq!((&entry["manager"], entry.get("time")), (&json!("other"), None));
}

#[test]
fn what_a_config_map_cannot_have_is_refused() {
    let kind = Kind::new(Core::ConfigMap, "", "ConfigMap");
    for (fields, why) in [
        (json!({"bogus": {}}), ".bogus: field not declared in schema"),
        (
            json!({"data": {"a": 1}}),
            ".data.a: expected string, got &value.valueUnstructured{Value:1}",
        ),
    ] {
        let error = kind.apply(None, fields, "curl", "", false).unwrap_err();
        let message = format!("failed to create typed patch object (/x; /v1, Kind=ConfigMap): {why}");
        assert_eq!(
            error,
            ApplyError::Invalid {
                code: 500,
                reason: "",
                message
            }
        );
    }
}

#[test]
fn secrets_of_an_account_are_told_apart_by_name() {
    let kind = Kind::new(Core::ServiceAccount, "", "ServiceAccount");
    let fields = json!({"secrets": [{"name": "x"}], "imagePullSecrets": [{"name": "y"}]});
    let created = kind.update(None, kind.object(fields.clone()), "curl", "");
    assert_eq!(
        owned(&created, "curl"),
        json!({"f:imagePullSecrets": {}, "f:secrets": {".": {}, "k:{\"name\":\"x\"}": {}}})
    );
    let applied = kind.apply(None, fields, "curl", "", false).unwrap();
    assert_eq!(
        owned(&applied, "curl"),
        json!({"f:imagePullSecrets": {}, "f:secrets": {"k:{\"name\":\"x\"}": {}}})
    );
}

#[test]
fn the_renewal_of_a_lease_belongs_to_who_renewed_it() {
    let kind = Kind::new(Core::Lease, "coordination.k8s.io", "Lease");
    let fields = json!({"spec": {"holderIdentity": "x", "leaseDurationSeconds": 10, "renewTime": "2026-01-01T00:00:00.000000Z"}});
    let live = kind.update(None, kind.object(fields), "curl", "");
    let all = json!({"f:spec": {"f:holderIdentity": {}, "f:leaseDurationSeconds": {}, "f:renewTime": {}}});
    assert_eq!(owned(&live, "curl"), all);
    let mut object = live.clone();
    object["spec"]["renewTime"] = "2026-01-02T00:00:00.000000Z".into();
    let renewed = kind.update(Some(&live), object, "putter", "");
    assert_eq!(owned(&renewed, "putter"), json!({"f:spec": {"f:renewTime": {}}}));
    assert_eq!(
        owned(&renewed, "curl"),
        json!({"f:spec": {"f:holderIdentity": {}, "f:leaseDurationSeconds": {}}})
    );
}

#[test]
fn a_nodes_status_belongs_to_who_writes_the_subresource() {
    let kind = Kind::new(Core::Node, "", "Node");
    let info = json!({"architecture": "", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
        "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "",
        "systemUUID": ""});
    let fields = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"podCIDRs": ["10.0.0.0/24"], "podCIDR": "10.0.0.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": "1.2.3.4"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}}, "nodeInfo": info}});
    let live = kind.update(None, kind.object(fields), "curl", "");
    assert_eq!(
        owned(&live, "curl"),
        json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}},
            "f:spec": {"f:podCIDR": {}, "f:podCIDRs": {".": {}, "v:\"10.0.0.0/24\"": {}}}})
    );
    let mut object = live.clone();
    object["status"]["nodeInfo"]["kubeletVersion"] = "v1".into();
    object["status"]["addresses"] =
        json!([{"type": "InternalIP", "address": "1.2.3.4"}, {"type": "Hostname", "address": "n"}]);
    object["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    let live = kind.update(Some(&live), object, "kubelet", "status");
    assert_eq!(
        owned(&live, "kubelet"),
        json!({"f:status": {
            "f:addresses": {"k:{\"type\":\"Hostname\"}": {".": {}, "f:address": {}, "f:type": {}}},
            "f:conditions": {".": {}, "k:{\"type\":\"Ready\"}": {".": {}, "f:status": {}, "f:type": {}}},
            "f:nodeInfo": {"f:kubeletVersion": {}}}})
    );
    let fields =
        json!({"metadata": {"labels": {"q": "r"}}, "status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    let object = kind.apply(Some(&live), fields, "ssa", "status", true).unwrap();
    assert_eq!(
        owned(&object, "ssa"),
        json!({"f:metadata": {"f:labels": {"f:q": {}}},
            "f:status": {"f:conditions": {"k:{\"type\":\"Ready\"}": {".": {}, "f:status": {}, "f:type": {}}}}})
    );
    assert_eq!(
        owned(&object, "kubelet")["f:status"]["f:conditions"],
        json!({".": {}, "k:{\"type\":\"Ready\"}": {".": {}, "f:type": {}}})
    );
}

#[test]
fn nobody_owns_what_an_event_always_has() {
    let kind = Kind::new(Core::CoreEvent, "", "Event");
    let fields = json!({"involvedObject": {"kind": "X", "namespace": "default", "name": "x"}, "reason": "R", "message": "m",
        "type": "Normal", "count": 1, "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z",
        "source": {"component": "c"}, "eventTime": null, "reportingComponent": "", "reportingInstance": ""});
    let object = kind.update(None, kind.object(fields), "curl", "");
    assert_eq!(
        owned(&object, "curl"),
        json!({"f:count": {}, "f:firstTimestamp": {}, "f:involvedObject": {}, "f:lastTimestamp": {}, "f:message": {},
            "f:reason": {}, "f:source": {"f:component": {}}, "f:type": {}})
    );
    let kind = Kind::new(Core::Event, "events.k8s.io", "Event");
    let fields = json!({"eventTime": "2026-11-22T11:00:00.000000Z", "reportingController": "vm-agent",
        "reportingInstance": "node1", "action": "Boot", "reason": "Started", "note": "VM started", "type": "Normal",
        "regarding": {"kind": "VirtualMachine", "namespace": "default", "name": "vm1"},
        "deprecatedSource": {}, "deprecatedFirstTimestamp": null, "deprecatedLastTimestamp": null});
    let object = kind.update(None, kind.object(fields), "curl", "");
    assert_eq!(
        owned(&object, "curl"),
        json!({"f:action": {}, "f:eventTime": {}, "f:note": {}, "f:reason": {}, "f:regarding": {},
            "f:reportingController": {}, "f:reportingInstance": {}, "f:type": {}})
    );
}

#[test]
fn the_versions_of_a_definition_are_one_value() {
    let kind = Kind::new(Core::Definition, "apiextensions.k8s.io", "CustomResourceDefinition");
    let versions = json!([{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
        "properties": {"spec": {"type": "object"}}}}}]);
    let names = json!({"plural": "things", "kind": "Thing"});
    let fields = json!({"spec": {"group": "x.io", "scope": "Namespaced", "names": names, "versions": versions}});
    let applied = kind.apply(None, fields.clone(), "curl", "", false).unwrap();
    assert_eq!(
        owned(&applied, "curl"),
        json!({"f:spec": {"f:group": {}, "f:names": {"f:kind": {}, "f:plural": {}}, "f:scope": {}, "f:versions": {}}})
    );
    let mut object = kind.object(fields);
    object["spec"]["conversion"] = json!({"strategy": "None"});
    object["spec"]["names"]["singular"] = "thing".into();
    object["spec"]["names"]["listKind"] = "ThingList".into();
    let created = kind.update(None, object, "curl", "");
    assert_eq!(
        owned(&created, "curl"),
        json!({"f:spec": {"f:conversion": {".": {}, "f:strategy": {}}, "f:group": {},
            "f:names": {"f:kind": {}, "f:listKind": {}, "f:plural": {}, "f:singular": {}}, "f:scope": {},
            "f:versions": {}}})
    );
}
