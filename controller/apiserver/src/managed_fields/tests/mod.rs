//! Tests of the whole, against what a real API server answered.

mod recorded;

use serde_json::{Value, json};

use super::{ApplyError, Types, Writer};
use crate::schema::Schema;

/// A machine-like kind: a keyed list, a set, an atomic list and map, a map, free-form parts.
fn machine() -> Schema {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "cpus": {"type": "integer", "default": 1},
            "image": {"type": "string"},
            "memory": {"x-kubernetes-int-or-string": true},
            "nodeName": {"type": "string"},
            "running": {"type": "boolean"},
            "disks": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string"}, "size": {"type": "string"},
                    "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}}}},
            "ports": {"type": "array", "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["guest", "protocol"],
                "items": {"type": "object", "required": ["guest"], "properties": {
                    "guest": {"type": "integer"}, "host": {"type": "integer"},
                    "protocol": {"type": "string", "default": "TCP"}}}},
            "groups": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "args": {"type": "array", "items": {"type": "string"}},
            "place": {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {
                "zone": {"type": "string"}, "rack": {"type": "string"}}},
            "extra": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "template": {"type": "object", "x-kubernetes-embedded-resource": true,
                "x-kubernetes-preserve-unknown-fields": true},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        }},
        "status": {"type": "object", "properties": {
            "phase": {"type": "string"},
            "conditions": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
                "items": {"type": "object", "required": ["type", "status"], "properties": {
                    "type": {"type": "string"}, "status": {"type": "string"}}}}}},
    }});
    Schema::compile(&schema, "").unwrap_or_else(|errors| panic!("{errors:?}"))
}

const VERSION: &str = "vm.example.com/v1alpha1";

fn by<'a>(manager: &'a str, time: &'a str) -> Writer<'a> {
    Writer {
        manager,
        api_version: VERSION,
        subresource: "",
        time,
    }
}

/// An object of the kind.
fn vm(spec: Value) -> Value {
    json!({"apiVersion": VERSION, "kind": "VirtualMachine", "metadata": {"name": "vm1", "namespace": "default"},
        "spec": spec})
}
