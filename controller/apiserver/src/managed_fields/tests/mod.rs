//! Tests of the whole, against what a real API server answered.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod builtin;
mod compared;
mod laws;
mod recorded;
mod stories;

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::{ApplyError, Types, Writer};
use crate::schema::Schema;

/// A machine-like kind: a keyed list, a set, an atomic list and map, a map, free-form parts.
fn machine() -> &'static Schema {
    static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
        let schema: Value = serde_json::from_str(include_str!("machine.json")).unwrap();
        Schema::compile(&schema, "").unwrap_or_else(|errors| panic!("{errors:?}"))
    });
    &SCHEMA
}

/// The same kind later: lists and maps that were granular are one value, and the other way round.
fn changed_machine() -> Schema {
    let mut schema: Value = serde_json::from_str(include_str!("machine.json")).unwrap();
    let fields = &mut schema["properties"]["spec"]["properties"];
    for name in ["disks", "groups"] {
        fields[name]
            .as_object_mut()
            .unwrap()
            .remove("x-kubernetes-list-map-keys");
        fields[name]["x-kubernetes-list-type"] = "atomic".into();
    }
    fields["disks"]["items"]["properties"]["tags"]["x-kubernetes-list-type"] = "atomic".into();
    fields["args"]["x-kubernetes-list-type"] = "set".into();
    fields["place"]["x-kubernetes-map-type"] = "granular".into();
    for name in ["labels", "zones", "mixed", "extra", "template"] {
        fields[name]["x-kubernetes-map-type"] = "atomic".into();
    }
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
