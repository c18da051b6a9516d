use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::patch::{Strategy, strategy_of};
use crate::registry::definition;
use crate::schema::Schema;

fn golden() -> Value {
    serde_json::from_str(include_str!("../../tests/golden/openapi.json")).expect("golden documents")
}

fn recorded_definition() -> Value {
    let mut definition = serde_json::from_str(include_str!("../../tests/golden/definition.json")).expect("definition");
    definition::default_spec(&mut definition);
    definition
}

/// The definitions of this project.
fn own_definitions() -> Vec<Value> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds/yaml");
    let mut definitions = Vec::new();
    for entry in std::fs::read_dir(&dir).expect("the directory of definitions") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a file");
        let mut definition = serde_saphyr::from_str(&text).expect("YAML");
        definition::default_spec(&mut definition);
        definitions.push(definition);
    }
    assert!(definitions.len() >= 4, "{}", dir.display());
    definitions
}

fn registry(definitions: &[Value]) -> Registry {
    let resource = |d| Arc::new(definition::resource(d).expect("a valid definition"));
    Registry::new(definitions.iter().map(resource).collect(), 1)
}

/// Every document of a server with these definitions.
fn documents(definitions: &[Value]) -> BTreeMap<String, Value> {
    let registry = registry(definitions);
    let root = root(&registry);
    let mut documents = BTreeMap::new();
    for path in root["paths"].as_object().expect("paths").keys() {
        let mut parts = path.split('/').skip(1);
        let (first, second) = (parts.next().expect("a part"), parts.next());
        let (group, version) = second.map_or(("", first), |version| (first, version));
        let document = document(&registry, group, version, definitions).expect("a document");
        documents.insert(path.clone(), document);
    }
    documents
}

fn without(value: &Value, keys: &[&str]) -> Value {
    match value {
        Value::Object(map) => {
            // Properties may have such names: only texts and plain values are meant.
            let kept = map
                .iter()
                .filter(|(k, v)| !keys.contains(&k.as_str()) || v.get("type").is_some());
            Value::Object(kept.map(|(k, v)| (k.clone(), without(v, keys))).collect())
        }
        Value::Array(items) => items.iter().map(|v| without(v, keys)).collect(),
        other => other.clone(),
    }
}

fn parameter_names(list: &Value) -> Vec<String> {
    let names = list.as_array().into_iter().flatten().map(|p| &p["name"]);
    names.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// What clients read of the operations of a document.
fn operations(document: &Value) -> Vec<Value> {
    let mut list = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            if method == "parameters" {
                continue;
            }
            let names: BTreeSet<String> = parameter_names(&operation["parameters"])
                .into_iter()
                .chain(parameter_names(&item["parameters"]))
                .collect();
            let answer = operation
                .pointer("/responses/200/content/application~1json/schema/$ref")
                .and_then(Value::as_str)
                .expect("an answer");
            let body = operation.pointer("/requestBody/content").and_then(Value::as_object);
            list.push(json!({
                "path": path,
                "method": method,
                "id": operation["operationId"],
                "action": operation["x-kubernetes-action"],
                "kind": operation["x-kubernetes-group-version-kind"],
                "parameters": names,
                "body": body.map(|b| b.keys().collect::<Vec<_>>()).unwrap_or_default(),
                "answer": answer.trim_start_matches(SCHEMAS),
            }));
        }
    }
    list.sort_by_key(|o| format!("{} {}", o["path"], o["method"]));
    list
}

#[test]
fn the_operations_on_a_custom_resource_are_those_of_the_real_server() {
    let documents = documents(&[recorded_definition()]);
    let mut expected = golden()["operations"].as_array().expect("operations").clone();
    expected.sort_by_key(|o| format!("{} {}", o["path"], o["method"]));
    let ours = operations(&documents["apis/vm.example.com/v1alpha1"]);
    for (ours, theirs) in ours.iter().zip(&expected) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.len(), expected.len());
}

#[test]
fn the_schemas_of_a_custom_resource_are_those_of_the_real_server() {
    let documents = documents(&[recorded_definition()]);
    let schemas = &documents["apis/vm.example.com/v1alpha1"]["components"]["schemas"];
    let mut kind = schemas["com.example.vm.v1alpha1.VirtualMachine"].clone();
    for name in ["apiVersion", "kind", "metadata"] {
        let property = kind["properties"][name].as_object_mut().expect("a property");
        assert!(property.remove("description").is_some());
    }
    assert_eq!(kind, golden()["kind"]);
    let list = &schemas["com.example.vm.v1alpha1.VirtualMachineList"];
    assert_eq!(without(list, &["description"]), golden()["list"]);
    for (name, schema) in golden()["shared"].as_object().expect("schemas") {
        let mut ours = without(&schemas[name], &["description"]);
        if name.ends_with("DeleteOptions") {
            ours.as_object_mut()
                .map(|o| o.remove("x-kubernetes-group-version-kind"));
        }
        assert_eq!(&ours, schema, "{name}");
    }
}

/// Checks that every property below has a description and every reference a target.
fn check(schema: &Value, path: &str, all: &Value) {
    if let Some(target) = schema["$ref"].as_str() {
        let name = target.strip_prefix(SCHEMAS).expect("a reference within the document");
        assert!(all[name].is_object(), "{path} refers to {name}, which is not there");
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let description = property["description"].as_str().unwrap_or_default();
        assert!(description.len() > 4, "{path} has no description");
        check(property, &path, all);
    }
    for part in ["items", "additionalProperties"] {
        if schema[part].is_object() {
            check(&schema[part], &format!("{path}[{part}]"), all);
        }
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        check(part, path, all);
    }
}

#[test]
fn every_field_of_every_kind_is_described() {
    for (path, document) in documents(&own_definitions()) {
        let schemas = &document["components"]["schemas"];
        for (name, schema) in schemas.as_object().expect("schemas") {
            let description = schema["description"].as_str().unwrap_or_default();
            assert!(!description.is_empty(), "{path}: {name} has no description");
            check(schema, name, schemas);
        }
        for operation in operations(&document) {
            let answer = operation["answer"].as_str().expect("an answer");
            assert!(schemas[answer].is_object(), "{path}: {answer}");
        }
    }
}

#[test]
fn our_own_kinds_keep_their_structural_schemas() {
    let definitions = own_definitions();
    let documents = documents(&definitions);
    for definition in &definitions {
        let spec = &definition["spec"];
        let (group, kind) = (spec["group"].as_str(), spec["names"]["kind"].as_str());
        let (group, kind) = (group.expect("a group"), kind.expect("a kind"));
        for version in spec["versions"].as_array().expect("versions") {
            let name = version["name"].as_str().expect("a name");
            let document = &documents[&format!("apis/{group}/{name}")];
            let schema = &document["components"]["schemas"][schema_name(group, name, kind)];
            let source = &version["schema"]["openAPIV3Schema"];
            assert_eq!(schema["required"], source["required"]);
            for part in ["spec", "status"] {
                let (ours, theirs) = (&schema["properties"][part], &source["properties"][part]);
                assert_eq!(without(ours, &["anyOf"]), without(theirs, &["anyOf"]), "{kind}.{part}");
            }
            let mut plain = schema.clone();
            plain["properties"]["metadata"] = json!({"type": "object"});
            let errors = Schema::compile(&plain, "").err().unwrap_or_default();
            assert!(errors.is_empty(), "{kind}: {errors:?}");
        }
    }
}

#[test]
fn what_extensions_say_is_said_in_plain_openapi_too() {
    let mut definition = recorded_definition();
    let schema = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    schema["properties"]["spec"]["properties"]["template"] = json!({
        "type": "object",
        "x-kubernetes-embedded-resource": true,
        "x-kubernetes-preserve-unknown-fields": true,
    });
    let documents = documents(&[definition]);
    let schemas = &documents["apis/vm.example.com/v1alpha1"]["components"]["schemas"];
    let spec = &schemas["com.example.vm.v1alpha1.VirtualMachine"]["properties"]["spec"]["properties"];
    assert_eq!(
        spec["template"]["properties"]["metadata"]["allOf"][0],
        reference(&meta("ObjectMeta"))
    );
    assert_eq!(
        spec["memory"]["anyOf"],
        json!([{"type": "integer"}, {"type": "string"}])
    );
}

#[test]
fn kubectl_finds_field_validation_for_every_stored_kind() {
    let definitions = own_definitions();
    let documents = documents(&definitions);
    for resource in registry(&definitions).all() {
        for version in &resource.versions {
            let document = &documents[&prefix(&resource.group, &version.name)];
            let patch = operations(document).into_iter().find(|o| {
                o["method"] == "patch" && o["kind"]["kind"] == resource.kind.as_str() && o["action"] == "patch"
            });
            let patch = patch.unwrap_or_else(|| panic!("{} cannot be patched", resource.kind));
            let parameters = patch["parameters"].as_array().expect("parameters");
            assert!(parameters.contains(&"fieldValidation".into()), "{}", resource.kind);
        }
    }
}

#[test]
fn strategic_patches_are_described_where_they_are_offered() {
    let documents = documents(&[]);
    let core = &documents["api/v1"]["components"]["schemas"];
    let conditions = &core["io.k8s.api.core.v1.Namespace"]["properties"]["status"]["properties"]["conditions"];
    assert_eq!(conditions["x-kubernetes-patch-strategy"], "merge");
    assert_eq!(conditions["x-kubernetes-patch-merge-key"], "type");
    let offered = |path: &str| {
        let list = operations(&documents[path]);
        let mut bodies = list
            .iter()
            .filter(|o| o["method"] == "patch")
            .map(|o| o["body"].to_string());
        bodies.any(|body| body.contains("strategic"))
    };
    assert!(offered("api/v1") && offered("apis/coordination.k8s.io/v1"));
    assert!(!offered("apis/apiextensions.k8s.io/v1"));
}

/// The lists below that are merged, by their paths, with the key of their items.
fn merged_lists(schema: &Value, path: &str, all: &Value, found: &mut BTreeMap<String, Value>) {
    if let Some(target) = schema["allOf"][0]["$ref"].as_str() {
        return merged_lists(&all[target.trim_start_matches(SCHEMAS)], path, all, found);
    }
    if schema["x-kubernetes-patch-strategy"] == "merge" {
        found.insert(path.to_owned(), schema["x-kubernetes-patch-merge-key"].clone());
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        merged_lists(property, &path, all, found);
    }
}

#[test]
fn what_documents_say_of_strategic_patches_is_how_they_are_applied() {
    let documents = documents(&[]);
    let schemas = &documents["api/v1"]["components"]["schemas"];
    let mut found = BTreeMap::new();
    for (name, schema) in schemas.as_object().expect("schemas") {
        if name.starts_with("io.k8s.api.core.v1.") && !name.ends_with("List") {
            merged_lists(schema, "", schemas, &mut found);
        }
    }
    assert!(found.len() >= 5, "{found:?}");
    for (path, key) in found {
        match strategy_of(&path) {
            Strategy::ByKey(ours) => assert_eq!(key, ours, "{path}"),
            Strategy::Union => assert_eq!(key, Value::Null, "{path}"),
            Strategy::Replace => panic!("{path} is replaced"),
        }
    }
}

#[test]
fn the_address_of_a_document_changes_with_its_definition_alone() {
    let url = |registry: &Registry, path: &str| root(registry)["paths"][path]["serverRelativeURL"].clone();
    let mut definition = recorded_definition();
    let before = registry(&[definition.clone()]);
    definition["metadata"]["resourceVersion"] = "2".into();
    let after = registry(&[definition]);
    let custom = "apis/vm.example.com/v1alpha1";
    assert_ne!(url(&before, custom), url(&after, custom));
    assert_eq!(url(&before, "api/v1"), url(&after, "api/v1"));
    let text = url(&before, custom).as_str().unwrap_or_default().to_owned();
    assert!(
        text.starts_with("/openapi/v3/apis/vm.example.com/v1alpha1?hash="),
        "{text}"
    );
}

#[test]
fn a_group_or_version_that_is_not_served_has_no_document() {
    let registry = registry(&[]);
    assert_eq!(document(&registry, "vm.example.com", "v1alpha1", &[]), None);
    assert_eq!(document(&registry, "", "v2", &[]), None);
}
