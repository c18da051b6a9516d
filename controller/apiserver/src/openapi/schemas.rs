//! `components.schemas`: the kinds of a group, their lists, and the types that all share.

use serde_json::{Map, Value, json};

use super::{meta, reference, schema_name};
use crate::core;
use crate::registry::{Resource, Version};
use crate::reviews::Review;

/// The types that all kinds share, by their short names.
pub const SHARED: &str = include_str!("shared.yaml");

/// The schemas of one document.
pub struct Schemas {
    group: String,
    version: String,
    map: Map<String, Value>,
    scale: bool,
}

impl Schemas {
    pub fn new(group: &str, version: &str) -> Schemas {
        Schemas {
            group: group.to_owned(),
            version: version.to_owned(),
            map: Map::new(),
            scale: false,
        }
    }

    /// A kind and its list; `source` is its structural schema.
    pub fn add(&mut self, resource: &Resource, version: &Version, source: Value) {
        self.scale |= version.scale.is_some();
        let mut schema = self.object(&resource.kind, source);
        // Lists of core/v1 say how strategic patches merge them: kubectl reads it here.
        if resource.group.is_empty() {
            patch_strategies(&mut schema);
        }
        let name = schema_name(&self.group, &self.version, &resource.kind);
        let mut list = json!({
            "description": format!("A list of {}.", resource.plural),
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": described("Group and version of this form of the list."),
                "kind": described("Kind of the list."),
                "metadata": {
                    "description": "What lists have besides their items.",
                    "allOf": [reference(&meta("ListMeta"))],
                },
                "items": {
                    "description": format!("The {}.", resource.plural),
                    "type": "array",
                    "items": reference(&name),
                },
            },
            "x-kubernetes-group-version-kind": [self.kind(&resource.list_kind)],
        });
        if resource.is_custom() && !version.selectable.is_empty() {
            let fields: Vec<Value> = version.selectable.iter().map(|f| json!({"fieldPath": f})).collect();
            for schema in [&mut schema, &mut list] {
                schema["x-kubernetes-selectable-fields"] = json!(fields);
            }
        }
        let list_name = schema_name(&self.group, &self.version, &resource.list_kind);
        self.map.insert(list_name, list);
        self.map.insert(name, schema);
    }

    /// A kind that is only posted.
    pub fn add_review(&mut self, review: &Review) {
        let schema = self.object(review.kind, core::core_schema(review.group, review.kind));
        self.map
            .insert(schema_name(&self.group, &self.version, review.kind), schema);
    }

    fn kind(&self, kind: &str) -> Value {
        json!({"group": self.group, "version": self.version, "kind": kind})
    }

    fn object(&self, kind: &str, mut source: Value) -> Value {
        complete(&mut source);
        let mut schema = match source {
            Value::Object(schema) => schema,
            _ => Map::new(),
        };
        schema.entry("type").or_insert_with(|| "object".into());
        let mut properties = match schema.remove("properties") {
            Some(Value::Object(properties)) => properties,
            _ => Map::new(),
        };
        common(&mut properties);
        schema.insert("properties".into(), properties.into());
        schema.insert(
            "x-kubernetes-group-version-kind".into(),
            Value::Array(vec![self.kind(kind)]),
        );
        Value::Object(schema)
    }

    /// All schemas, with those that they refer to.
    pub fn finish(mut self) -> Map<String, Value> {
        let shared: Map<String, Value> = serde_saphyr::from_str(SHARED).unwrap_or_default();
        for (name, mut schema) in shared {
            if name.starts_with("Scale") {
                if self.scale {
                    self.map.insert(format!("io.k8s.api.autoscaling.v1.{name}"), schema);
                }
                continue;
            }
            if name == "DeleteOptions" {
                schema["x-kubernetes-group-version-kind"] = json!([self.kind(&name)]);
            }
            self.map.insert(meta(&name), schema);
        }
        self.map
    }
}

fn described(text: &str) -> Value {
    json!({"description": text, "type": "string"})
}

/// The fields of every object.
fn common(properties: &mut Map<String, Value>) {
    properties.insert(
        "apiVersion".into(),
        described("Group and version of this form of the object."),
    );
    properties.insert("kind".into(), described("Kind of the object."));
    properties.insert(
        "metadata".into(),
        json!({
            "description": "Name, labels and what else all objects have.",
            "allOf": [reference(&meta("ObjectMeta"))],
        }),
    );
}

/// Calls `change` for a schema and all below.
fn walk(schema: &mut Value, change: &mut dyn FnMut(&mut Map<String, Value>)) {
    let Some(map) = schema.as_object_mut() else { return };
    change(map);
    for part in ["items", "additionalProperties"] {
        if let Some(below) = map.get_mut(part) {
            walk(below, change);
        }
    }
    let properties = map.get_mut("properties").and_then(Value::as_object_mut);
    for property in properties.into_iter().flat_map(Map::values_mut) {
        walk(property, change);
    }
}

/// Says in OpenAPI's own words what structural schemas leave to their extensions.
fn complete(schema: &mut Value) {
    walk(schema, &mut |map| {
        let is = |map: &Map<String, Value>, name: &str| map.get(name) == Some(&Value::Bool(true));
        if is(map, "x-kubernetes-int-or-string") {
            map.entry("anyOf")
                .or_insert_with(|| json!([{"type": "integer"}, {"type": "string"}]));
        }
        if is(map, "x-kubernetes-embedded-resource") {
            let properties = map.entry("properties").or_insert_with(|| json!({}));
            if let Some(properties) = properties.as_object_mut() {
                common(properties);
            }
        }
    });
}

/// Adds what kubectl wants to know to compute a strategic merge patch; it follows from the type of a list.
fn patch_strategies(schema: &mut Value) {
    walk(schema, &mut |map| {
        let list = map.get("x-kubernetes-list-type").and_then(Value::as_str);
        if matches!(list, Some("map" | "set")) {
            map.insert("x-kubernetes-patch-strategy".into(), "merge".into());
        }
        let key = map
            .get("x-kubernetes-list-map-keys")
            .and_then(|keys| keys.get(0))
            .cloned();
        if let Some(key) = key {
            map.insert("x-kubernetes-patch-merge-key".into(), key);
        }
    });
}
