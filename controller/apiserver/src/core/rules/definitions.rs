//! CustomResourceDefinitions: what `registry::definition::resource` does not check while compiling them.

use serde_json::Value;

use super::{keep, text};
use crate::names;
use crate::registry::definition;
use crate::schema::{FieldError, child};

/// Most fields that selectors may name.
const MAX_SELECTABLE: i64 = 8;
/// Groups of the Kubernetes project need this annotation.
const APPROVAL: &str = "api-approved.kubernetes.io";

pub(super) fn create(object: &mut Value) {
    definition::default_spec(object);
    // The names are settled with the write: they depend on other definitions.
    object["status"] = serde_json::json!({});
    definition::note_stored(object);
}

pub(super) fn update(object: &mut Value, old: &Value) {
    keep(object, old, "status");
    definition::default_spec(object);
    if old["metadata"]["deletionTimestamp"].is_null() {
        definition::note_stored(object);
    }
}

pub(super) fn validate(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let spec = &object["spec"];
    let mut errors = Vec::new();
    group(text(spec, "group"), &mut errors);
    versions(spec, &mut errors);
    kinds(&spec["names"], &mut errors);
    if let Some(old) = old {
        immutable(object, old, &mut errors);
    }
    stored_versions(object, &mut errors);
    approval(object, old, &mut errors);
    if spec["preserveUnknownFields"] == true {
        let why =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(FieldError::invalid("spec.preserveUnknownFields", true, why));
    }
    errors
}

fn group(group: &str, errors: &mut Vec<FieldError>) {
    let problems = names::subdomain_problems(group);
    if group.is_empty() {
        // Reported as missing elsewhere.
    } else if !problems.is_empty() {
        errors.push(FieldError::invalid("spec.group", group, problems.join(",")));
    } else if !group.contains('.') {
        let why = "should be a domain with at least one dot";
        errors.push(FieldError::invalid("spec.group", group, why));
    }
}

fn kinds(names: &Value, errors: &mut Vec<FieldError>) {
    let mut label = |field: String, value: &Value, mixed_case: bool| {
        let name = value.as_str().unwrap_or_default();
        let lower = if mixed_case {
            name.to_lowercase()
        } else {
            name.to_owned()
        };
        let problems = names::dns1035_label_problems(&lower).join(",");
        if !name.is_empty() && !problems.is_empty() {
            let words = if mixed_case {
                "may have mixed case, but should otherwise match: "
            } else {
                ""
            };
            errors.push(FieldError::invalid(field, name, format!("{words}{problems}")));
        }
    };
    label("spec.names.plural".into(), &names["plural"], false);
    label("spec.names.singular".into(), &names["singular"], false);
    label("spec.names.kind".into(), &names["kind"], true);
    label("spec.names.listKind".into(), &names["listKind"], true);
    for list in ["shortNames", "categories"] {
        for (i, name) in names[list].as_array().into_iter().flatten().enumerate() {
            label(format!("spec.names.{list}[{i}]"), name, false);
        }
    }
    let kind = text(names, "kind");
    if !kind.is_empty() && names["listKind"] == kind {
        let why = "kind and listKind may not be the same";
        errors.push(FieldError::invalid("spec.names.listKind", kind, why));
    }
}

fn versions(spec: &Value, errors: &mut Vec<FieldError>) {
    let mut seen: Vec<&str> = Vec::new();
    let mut unique = true;
    for (i, version) in spec["versions"].as_array().into_iter().flatten().enumerate() {
        let path = format!("spec.versions[{i}]");
        let name = text(version, "name");
        unique &= !seen.contains(&name);
        seen.push(name);
        let problems = names::dns1035_label_problems(name);
        if !problems.is_empty() {
            errors.push(FieldError::invalid(child(&path, "name"), name, problems.join(",")));
        }
        deprecation(version, &child(&path, "deprecationWarning"), errors);
    }
    for (place, version) in places(spec, "subresources") {
        scale(&version["subresources"]["scale"], &place, errors);
    }
    for (place, version) in places(spec, "selectableFields") {
        selectable(version, &place, errors);
    }
    if !unique {
        let why = "must contain unique version names";
        errors.push(FieldError::invalid("spec.versions", spec["versions"].clone(), why));
    }
}

/// Where a field of the versions stands: what all versions share is named by its place in older APIs.
fn places<'s>(spec: &'s Value, field: &str) -> Vec<(String, &'s Value)> {
    let versions: Vec<&Value> = spec["versions"].as_array().into_iter().flatten().collect();
    match versions.as_slice() {
        [first, rest @ ..] if rest.iter().all(|other| other[field] == first[field]) => {
            vec![(format!("spec.{field}"), *first)]
        }
        all => all
            .iter()
            .enumerate()
            .map(|(i, version)| (format!("spec.versions[{i}].{field}"), *version))
            .collect(),
    }
}

fn deprecation(version: &Value, place: &str, errors: &mut Vec<FieldError>) {
    let Some(warning) = version["deprecationWarning"].as_str() else {
        return;
    };
    let mut wrong = |why: &str| errors.push(FieldError::invalid(place, warning, why));
    if version["deprecated"] != true {
        wrong("can only be set for deprecated versions");
        return;
    }
    if warning.len() > 256 {
        wrong("must be <= 256 characters long");
    }
    if warning.is_empty() {
        wrong("must not be an empty string");
    }
    if let Some(at) = warning.find(char::is_control) {
        wrong(&format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {at}"
        ));
    }
}

fn scale(scale: &Value, place: &str, errors: &mut Vec<FieldError>) {
    if scale.is_null() {
        return;
    }
    let paths: [(&str, bool, &[&str], &str); 3] = [
        (
            "specReplicasPath",
            true,
            &[".spec."],
            "should be a json path under .spec",
        ),
        (
            "statusReplicasPath",
            true,
            &[".status."],
            "should be a json path under .status",
        ),
        (
            "labelSelectorPath",
            false,
            &[".spec.", ".status."],
            "should be a json path under either .spec or .status",
        ),
    ];
    for (field, required, roots, words) in paths {
        let at = format!("{place}.scale.{field}");
        let path = text(scale, field);
        if path.is_empty() {
            if required {
                errors.push(FieldError::required(at, ""));
            }
        } else if !path.starts_with('.') {
            let why = "must be a simple json path starting with .";
            errors.push(FieldError::invalid(at, path, why));
        } else if !roots.iter().any(|root| path.starts_with(root)) {
            errors.push(FieldError::invalid(at, path, words));
        }
    }
}

fn selectable(version: &Value, place: &str, errors: &mut Vec<FieldError>) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, field) in version["selectableFields"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{place}[{i}].jsonPath");
        let path = text(field, "jsonPath");
        if path.is_empty() {
            errors.push(FieldError::required(at, ""));
            continue;
        }
        let kind = match field_type(&version["schema"]["openAPIV3Schema"], path) {
            Ok(kind) => kind,
            Err(why) => {
                errors.push(FieldError::invalid(at, path, format!("is an invalid path: {why}")));
                continue;
            }
        };
        if path.starts_with(".metadata") {
            let why = "must not point to fields in metadata";
            errors.push(FieldError::invalid(at.as_str(), path, why));
        }
        if !["string", "boolean", "integer"].contains(&kind) {
            let why = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            errors.push(FieldError::invalid(at.as_str(), path, why));
        }
        if seen.contains(&path) {
            errors.push(FieldError::duplicate(at, path));
        } else {
            seen.push(path);
        }
    }
    if seen.len() as i64 > MAX_SELECTABLE {
        errors.push(FieldError::too_many(place, seen.len() as i64, MAX_SELECTABLE));
    }
}

/// The type of the field that a path of names leads to.
fn field_type<'s>(schema: &'s Value, path: &str) -> Result<&'s str, String> {
    let mut node = schema;
    let Some(names) = path.strip_prefix('.') else {
        let first = path.split(['.', '[', ']']).next().unwrap_or_default();
        return Err(format!("expected [ or . but got: {first}"));
    };
    for name in names.split('.') {
        if name.contains('[') {
            return Err("array notation is not allowed".to_owned());
        }
        node = node["properties"]
            .get(name)
            .ok_or_else(|| "does not refer to a valid field".to_owned())?;
    }
    Ok(text(node, "type"))
}

fn immutable(object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let fixed = [
        ("/spec/scope", "spec.scope"),
        ("/spec/names/kind", "spec.names.kind"),
        ("/spec/group", "spec.group"),
        ("/spec/names/plural", "spec.names.plural"),
    ];
    for (pointer, field) in fixed {
        let new = object.pointer(pointer);
        if new != old.pointer(pointer) {
            let value = new.cloned().unwrap_or_default();
            errors.push(FieldError::invalid(field, value, "field is immutable"));
        }
    }
}

/// Versions in which objects may be stored stay in the definition.
fn stored_versions(object: &Value, errors: &mut Vec<FieldError>) {
    let versions = object["spec"]["versions"].as_array();
    let defined = |name: &Value| versions.into_iter().flatten().any(|v| v["name"] == *name);
    let stored = object["status"]["storedVersions"].as_array();
    for (i, name) in stored.into_iter().flatten().enumerate() {
        if !defined(name) {
            let shown = name.as_str().unwrap_or_default();
            let why = format!(
                "missing from spec.versions; {shown} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {shown} and removes {shown} from status.storedVersions"
            );
            errors.push(FieldError::invalid(format!("status.storedVersions[{i}]"), shown, why));
        }
    }
}

fn approval(object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let group = text(&object["spec"], "group");
    let protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|root| group == *root || group.ends_with(&format!(".{root}")));
    let value = |object: &Value| text(&object["metadata"]["annotations"], APPROVAL).to_owned();
    let approved = |text: &str| text.starts_with("unapproved") || text.contains("://");
    let now = value(object);
    if !protected || approved(&now) || old.is_some_and(|old| value(old).is_empty() == now.is_empty()) {
        return;
    }
    let place = format!("metadata.annotations[{APPROVAL}]");
    errors.push(if now.is_empty() {
        let why = format!(
            "protected groups must have approval annotation \"{APPROVAL}\", see https://github.com/kubernetes/enhancements/pull/1111"
        );
        FieldError::required(place, why)
    } else {
        let why = format!(
            "protected groups must have approval annotation \"{APPROVAL}\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111"
        );
        FieldError::invalid(place, now, why)
    });
}
