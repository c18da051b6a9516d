//! `/openapi/v3`: how resources look, for `kubectl explain` and the field validation of kubectl.
//!
//! Documents are made for each request and not kept: they are large and asked for seldom. `/openapi/v2` is
//! there and names no resources.

mod paths;
mod schemas;
pub mod v2;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::core;
use crate::discovery::{group_version, hex, served};
use crate::registry::Registry;
use crate::reviews;

/// Where documents refer to schemas.
const SCHEMAS: &str = "#/components/schemas/";

/// `/openapi/v3`: the documents that there are, with a hash of what they say in their addresses.
pub fn root(registry: &Registry) -> Value {
    let mut paths = Map::new();
    let groups = std::iter::once(String::new()).chain(registry.groups());
    for group in groups {
        for version in registry.versions(&group) {
            let path = prefix(&group, &version);
            let hash = hash(registry, &group, &version);
            let url = format!("/openapi/v3/{path}?hash={hash}");
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

/// A hash that changes with the document of a group and version: also its `ETag`, without the quotes.
///
/// It is of what documents are made of, so that the root needs not make them all.
pub fn hash(registry: &Registry, group: &str, version: &str) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update(text.len().to_le_bytes());
        hash.update(text);
    };
    add(env!("CARGO_PKG_VERSION"));
    add(schemas::SHARED);
    add(group);
    add(version);
    for (resource, _) in served(registry, group, version) {
        add(&resource.plural);
        add(&resource.origin.0);
        add(&resource.origin.1);
        add(core::source(group, &resource.kind));
    }
    for review in reviews::served(group) {
        add(core::source(group, review.kind));
    }
    hex(&hash.finalize())
}

/// `/openapi/v3/api/v1` and `/openapi/v3/apis/GROUP/VERSION`, or none when there is no such version.
///
/// `definitions` are the CustomResourceDefinitions as stored: descriptions are only there.
pub fn document(registry: &Registry, group: &str, version: &str, definitions: &[Value]) -> Option<Value> {
    if !registry.versions(group).iter().any(|v| v == version) {
        return None;
    }
    let mut operations = Map::new();
    let mut schemas = schemas::Schemas::new(group, version);
    for (resource, of_version) in served(registry, group, version) {
        let source = match resource.core {
            Some(_) => core::core_schema(group, &resource.kind),
            None => definition_schema(definitions, group, version, &resource.plural).clone(),
        };
        schemas.add(resource, of_version, source);
        paths::resource(&mut operations, resource, of_version);
    }
    for review in reviews::served(group) {
        schemas.add_review(review);
        paths::review(&mut operations, review);
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "vmlet", "version": env!("CARGO_PKG_VERSION")},
        "paths": operations,
        "components": {"schemas": schemas.finish()},
    }))
}

/// `openAPIV3Schema` of one version of the definition of `plural`; null when there is none.
fn definition_schema<'a>(definitions: &'a [Value], group: &str, version: &str, plural: &str) -> &'a Value {
    let definition = definitions
        .iter()
        .find(|d| d["spec"]["group"] == group && d["spec"]["names"]["plural"] == plural);
    let versions = definition.and_then(|d| d["spec"]["versions"].as_array());
    let version = versions.into_iter().flatten().find(|v| v["name"] == version);
    version.map_or(&Value::Null, |v| &v["schema"]["openAPIV3Schema"])
}

/// `api/v1`, `apis/GROUP/VERSION`.
fn prefix(group: &str, version: &str) -> String {
    let root = if group.is_empty() { "api" } else { "apis" };
    format!("{root}/{}", group_version(group, version))
}

/// The name under which the schema of a kind stands: the reversed group, or the Go package of a built-in kind.
fn schema_name(group: &str, version: &str, kind: &str) -> String {
    match (group, group.strip_suffix(".k8s.io")) {
        ("", _) => format!("io.k8s.api.core.{version}.{kind}"),
        ("apiextensions.k8s.io", _) => {
            format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.{version}.{kind}")
        }
        (_, Some("coordination" | "events" | "authentication" | "authorization")) => {
            let first = group.split('.').next().unwrap_or_default();
            format!("io.k8s.api.{first}.{version}.{kind}")
        }
        _ => {
            let mut parts: Vec<&str> = group.split('.').collect();
            parts.reverse();
            format!("{}.{version}.{kind}", parts.join("."))
        }
    }
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("{SCHEMAS}{name}")})
}

fn meta(name: &str) -> String {
    format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}")
}

#[cfg(test)]
mod tests;
