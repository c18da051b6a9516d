//! From a CustomResourceDefinition to a served resource.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Resource, Scale, Version};
use crate::schema::{FieldError, Schema};

/// The finalizer that keeps a definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Kubernetes' order of versions: v2 > v1 > v1beta2 > v1beta1 > v1alpha1 > anything else.
pub fn priority(version: &str) -> (u8, u32, u32) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: u32 = rest[..digits].parse().ok()?;
        match &rest[digits..] {
            "" => Some((3, major, 0)),
            suffix => {
                let (stage, minor) = match (suffix.strip_prefix("beta"), suffix.strip_prefix("alpha")) {
                    (Some(minor), _) => (2, minor),
                    (_, Some(minor)) => (1, minor),
                    _ => return None,
                };
                Some((stage, major, minor.parse().ok()?))
            }
        }
    };
    parse().unwrap_or((0, 0, 0))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

pub(super) fn texts(value: &Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

/// Fills in what the API fills in: singular, list kind, conversion.
pub fn default_spec(definition: &mut Value) {
    let Some(spec) = definition["spec"].as_object_mut() else {
        return;
    };
    spec.entry("conversion").or_insert_with(|| json!({"strategy": "None"}));
    let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) else {
        return;
    };
    let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    names.entry("singular").or_insert_with(|| kind.to_lowercase().into());
    names.entry("listKind").or_insert_with(|| format!("{kind}List").into());
}

/// Checks a definition and compiles its schemas.
pub fn resource(definition: &Value) -> Result<Resource, Vec<FieldError>> {
    let spec = &definition["spec"];
    let names = &spec["names"];
    let mut errors = Vec::new();
    let (group, plural, kind) = (text(&spec["group"]), text(&names["plural"]), text(&names["kind"]));
    for (field, value) in [
        ("spec.group", &group),
        ("spec.names.plural", &plural),
        ("spec.names.kind", &kind),
    ] {
        if value.is_empty() {
            errors.push(FieldError::required(field, ""));
        }
    }
    let name = text(&definition["metadata"]["name"]);
    if errors.is_empty() && name != format!("{plural}.{group}") {
        let wanted = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid("metadata.name", name, wanted));
    }
    if super::builtin().iter().any(|r| r.group == group) {
        errors.push(FieldError::forbidden("spec.group", "this group is built in"));
    }
    let namespaced = match spec["scope"].as_str().filter(|scope| !scope.is_empty()) {
        Some("Namespaced") => true,
        Some("Cluster") => false,
        Some(other) => {
            errors.push(FieldError::not_supported(
                "spec.scope",
                other,
                &["Cluster", "Namespaced"],
            ));
            true
        }
        None => {
            errors.push(FieldError::required("spec.scope", ""));
            true
        }
    };
    if spec["conversion"]["strategy"].as_str().is_some_and(|s| s != "None") {
        let why = "this server converts between versions only by changing apiVersion";
        errors.push(FieldError::forbidden("spec.conversion.strategy", why));
    }
    let (mut versions, mut stored) = (Vec::new(), Vec::new());
    let sources: Vec<&Value> = spec["versions"].as_array().into_iter().flatten().collect();
    // What all versions share is named by its place in older APIs.
    let shared = sources.windows(2).all(|pair| pair[0]["schema"] == pair[1]["schema"]);
    for (index, source) in sources.into_iter().enumerate() {
        let path = format!("spec.versions[{index}].schema.openAPIV3Schema");
        let place = if shared {
            "spec.validation.openAPIV3Schema"
        } else {
            path.as_str()
        };
        match version(source, &path, place) {
            Ok(version) => {
                if source["storage"] == true {
                    stored.push(version.name.clone());
                }
                if source["served"] == true {
                    versions.push(version);
                }
            }
            Err(more) => {
                let new: Vec<FieldError> = more.into_iter().filter(|e| !errors.contains(e)).collect();
                errors.extend(new);
            }
        }
    }
    errors.extend(columns(spec));
    if stored.len() != 1 && errors.is_empty() {
        let why = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", spec["versions"].clone(), why));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    versions.sort_by_key(|v| std::cmp::Reverse(priority(&v.name)));
    // Names may change, and then those count that were accepted.
    let accepted = &definition["status"]["acceptedNames"];
    let names = if accepted["kind"] == kind { accepted } else { names };
    Ok(Resource {
        storage: Arc::from(format!("{group}/{plural}")),
        stored_as: format!("{group}/{}", stored[0]),
        singular: text(&names["singular"]),
        list_kind: text(&names["listKind"]),
        short_names: texts(&names["shortNames"]),
        categories: texts(&names["categories"]),
        origin: (
            text(&definition["metadata"]["uid"]),
            text(&definition["metadata"]["resourceVersion"]),
        ),
        terminating: !definition["metadata"]["deletionTimestamp"].is_null(),
        contested: super::naming::contested(definition),
        core: None,
        group,
        plural,
        kind,
        namespaced,
        versions,
    })
}

/// Reads a version whose schema stands at `path`, and goes by `place` in errors.
fn version(source: &Value, path: &str, place: &str) -> Result<Version, Vec<FieldError>> {
    let raw = &source["schema"]["openAPIV3Schema"];
    if raw.is_null() {
        return Err(vec![FieldError::required(path, "schemas are required")]);
    }
    let schema = Schema::compile(raw, place)?;
    let sub = &source["subresources"];
    let scale = sub["scale"].as_object().map(|scale| Scale {
        spec: scale.get("specReplicasPath").map(text).unwrap_or_default(),
        status: scale.get("statusReplicasPath").map(text).unwrap_or_default(),
        selector: scale.get("labelSelectorPath").map(text),
    });
    let selectable = source["selectableFields"].as_array().into_iter().flatten();
    Ok(Version {
        name: text(&source["name"]),
        status: sub["status"].is_object(),
        scale,
        selectable: selectable
            .map(|f| text(&f["jsonPath"]).trim_start_matches('.').to_owned())
            .collect(),
        columns: source["additionalPrinterColumns"]
            .as_array()
            .cloned()
            .unwrap_or_default(),
        schema: Some(Arc::new(schema)),
        deprecation: (source["deprecated"] == true).then(|| {
            source["deprecationWarning"]
                .as_str()
                .map_or_else(|| "this version is deprecated".to_owned(), str::to_owned)
        }),
    })
}

/// Notes a new storage version in the status.
pub fn note_stored(definition: &mut Value) {
    let versions = definition["spec"]["versions"].as_array();
    let stored = versions.into_iter().flatten().find(|v| v["storage"] == true);
    let stored = stored.map(|v| text(&v["name"])).unwrap_or_default();
    let mut all = texts(&definition["status"]["storedVersions"]);
    if !all.contains(&stored) {
        all.push(stored);
    }
    definition["status"]["storedVersions"] = all.into();
}

/// Adds the condition that says "being deleted".
pub fn terminating(definition: &mut Value, now: &str) {
    let condition = json!({
        "type": "Terminating", "status": "True", "lastTransitionTime": now,
        "reason": "InstanceDeletionPending", "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
    });
    if let Some(conditions) = definition["status"]["conditions"].as_array_mut() {
        conditions.push(condition);
    } else {
        definition["status"]["conditions"] = json!([condition]);
    }
}

/// What is wrong with the printer columns of all versions.
fn columns(spec: &Value) -> Vec<FieldError> {
    let versions = spec["versions"].as_array().into_iter().flatten();
    let columns: Vec<&Value> = versions.map(|v| &v["additionalPrinterColumns"]).collect();
    match columns.as_slice() {
        // As with schemas: what all versions share is named by its place in older APIs.
        [first, rest @ ..] if rest.iter().all(|other| other == first) => {
            crate::table::check_columns(first, "spec.additionalPrinterColumns")
        }
        all => {
            let path = |index| format!("spec.versions[{index}].additionalPrinterColumns");
            let each = all.iter().enumerate();
            each.flat_map(|(index, columns)| crate::table::check_columns(columns, &path(index)))
                .collect()
        }
    }
}
