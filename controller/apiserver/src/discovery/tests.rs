use std::sync::Arc;

use super::*;
use crate::registry::definition;

fn golden(name: &str) -> Value {
    let all: Value = serde_json::from_str(include_str!("../../tests/golden/discovery.json")).expect("golden documents");
    assert!(!all[name].is_null(), "{name}");
    all[name].clone()
}

fn registry() -> Registry {
    let mut definition = serde_json::from_str(include_str!("../../tests/golden/definition.json")).expect("definition");
    definition::default_spec(&mut definition);
    let resource = definition::resource(&definition).expect("a valid definition");
    Registry::new(vec![Arc::new(resource)], 7)
}

#[test]
fn aggregated_discovery_is_that_of_the_real_server() {
    assert_eq!(aggregated(&registry(), true, "v2"), golden("aggregated api"));
    assert_eq!(aggregated(&registry(), false, "v2"), golden("aggregated apis"));
    let older = aggregated(&registry(), true, "v2beta1");
    assert_eq!(older["apiVersion"], "apidiscovery.k8s.io/v2beta1");
}

#[test]
fn the_older_documents_are_those_of_the_real_server() {
    let registry = registry();
    assert_eq!(core_versions("127.0.0.1:16443"), golden("versions"));
    assert_eq!(groups(&registry), golden("groups"));
    assert_eq!(group(&registry, "vm.example.com"), Some(golden("group")));
    let custom = resources(&registry, "vm.example.com", "v1alpha1");
    assert_eq!(custom, Some(golden("resources")));
    assert_eq!(resources(&registry, "", "v1"), Some(golden("core resources")));
}

#[test]
fn reviews_are_discovered() {
    let list = resources(&registry(), "authorization.k8s.io", "v1").expect("a group");
    assert_eq!(list["resources"][0]["name"], "selfsubjectaccessreviews");
    assert_eq!(list["resources"][0]["verbs"], json!(["create"]));
}

#[test]
fn what_is_not_served_is_not_described() {
    let registry = registry();
    assert_eq!(group(&registry, "nope.io"), None);
    assert_eq!(group(&registry, ""), None);
    assert_eq!(resources(&registry, "vm.example.com", "v2"), None);
    assert_eq!(resources(&registry, "", "v2"), None);
}

#[test]
fn the_version_is_one_that_clients_can_read() {
    let version = version();
    let text = version["gitVersion"].as_str().expect("a version");
    assert!(text.starts_with("v1.36.2-vmlet."), "{text}");
    assert_eq!((&version["major"], &version["minor"]), (&json!("1"), &json!("36")));
}

#[test]
fn the_etag_follows_the_content() {
    assert_eq!(etag(b"a"), etag(b"a"));
    assert_ne!(etag(b"a"), etag(b"b"));
    assert!(etag(b"a").starts_with('"') && etag(b"a").ends_with('"'));
}
