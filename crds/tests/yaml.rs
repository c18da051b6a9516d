//! The checked-in CRDs are the generated ones.

use kube::ResourceExt;

#[test]
fn the_checked_in_yaml_equals_what_the_types_generate() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("yaml");
    let mut expected: Vec<String> = Vec::new();
    for crd in vmlet_crds::all() {
        let file = format!("{}.yaml", crd.name_any());
        let generated = vmlet_crds::to_yaml(&crd).expect("a CRD is YAML");
        if std::env::var_os("VMLET_UPDATE_YAML").is_some() {
            std::fs::write(dir.join(&file), &generated).expect("crds/yaml can be written");
        }
        let checked_in = std::fs::read_to_string(dir.join(&file)).unwrap_or_default();
        assert_eq!(
            checked_in, generated,
            "crds/yaml/{file} is stale: run VMLET_UPDATE_YAML=1 cargo test -p vmlet-crds"
        );
        expected.push(file);
    }
    let mut found: Vec<String> = std::fs::read_dir(&dir)
        .expect("crds/yaml exists")
        .map(|e| e.expect("readable").file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "crds/yaml holds nothing else");
}

#[test]
fn every_field_has_a_description() {
    fn walk(path: &str, schema: &serde_json::Value, missing: &mut Vec<String>) {
        if let Some(props) = schema.get("properties").and_then(|p| p.as_object()) {
            for (name, sub) in props {
                let path = format!("{path}.{name}");
                let known = path.contains(".conditions.") || path.ends_with(".metadata");
                if sub.get("description").is_none() && !known {
                    missing.push(path.clone());
                }
                walk(&path, sub, missing);
            }
        }
        if let Some(items) = schema.get("items") {
            walk(path, items, missing);
        }
    }
    let mut missing = Vec::new();
    for crd in vmlet_crds::all() {
        let value = serde_json::to_value(&crd).expect("a CRD is JSON");
        let schema = &value["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        for part in ["spec", "status"] {
            walk(
                &format!("{}.{part}", crd.spec.names.kind),
                &schema["properties"][part],
                &mut missing,
            );
        }
    }
    assert!(missing.is_empty(), "fields without a description: {missing:#?}");
}
