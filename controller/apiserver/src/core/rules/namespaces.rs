//! Namespaces.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::keep;
use crate::schema::FieldError;
use crate::{conditions, names};

const FINALIZER: &str = "kubernetes";
const LABEL: &str = "kubernetes.io/metadata.name";

pub(super) fn create(object: &mut Value) {
    if !object["spec"].is_object() {
        object["spec"] = json!({});
    }
    let finalizers = &mut object["spec"]["finalizers"];
    match finalizers.as_array_mut() {
        Some(list) if list.iter().any(|f| f == FINALIZER) => {}
        Some(list) => list.push(FINALIZER.into()),
        None => *finalizers = json!([FINALIZER]),
    }
    object["status"] = json!({"phase": "Active"});
    label(object);
}

pub(super) fn update(object: &mut Value, old: &Value) {
    keep(object, old, "spec");
    keep(object, old, "status");
    label(object);
}

pub(super) fn label(object: &mut Value) {
    let name = object["metadata"]["name"].clone();
    if name.is_string() {
        object["metadata"]["labels"][LABEL] = name;
    }
}

/// What is still in a namespace that is being deleted.
#[derive(Debug, Default)]
pub struct Remaining {
    /// Objects by `plural.group`.
    pub resources: BTreeMap<String, usize>,
    /// Objects by the finalizer that holds them.
    pub finalizers: BTreeMap<String, usize>,
    /// Why some could not even be deleted.
    pub failures: Vec<String>,
}

/// Writes the conditions that say how far the deletion is, in the words of kube-controller-manager.
pub fn say_remaining(namespace: &mut Value, remaining: &Remaining, now: &str) {
    let list = |counts: &BTreeMap<String, usize>, word: &str| {
        let each = counts
            .iter()
            .map(|(what, n)| format!("{what} {word} {n} resource instances"));
        each.collect::<Vec<_>>().join(", ")
    };
    let mut failures = remaining.failures.clone();
    failures.sort();
    let resources = format!("Some resources are remaining: {}", list(&remaining.resources, "has"));
    let finalizers = format!(
        "Some content in the namespace has finalizers remaining: {}",
        list(&remaining.finalizers, "in")
    );
    let failed = format!(
        "Failed to delete all resource types, {} remaining: {}",
        failures.len(),
        failures.join(", ")
    );
    type Told<'t> = (&'t str, &'t str);
    // What a condition says when it does not hold, and what, if it does.
    let conditions: [(&str, Told<'_>, Option<Told<'_>>); 5] = [
        (
            "NamespaceDeletionDiscoveryFailure",
            ("ResourcesDiscovered", "All resources successfully discovered"),
            None,
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
            None,
        ),
        (
            "NamespaceDeletionContentFailure",
            (
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
            (!failures.is_empty()).then_some(("ContentDeletionFailed", &failed)),
        ),
        (
            "NamespaceContentRemaining",
            ("ContentRemoved", "All content successfully removed"),
            (!remaining.resources.is_empty()).then_some(("SomeResourcesRemain", &resources)),
        ),
        (
            "NamespaceFinalizersRemaining",
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
            (!remaining.finalizers.is_empty()).then_some(("SomeFinalizersRemain", &finalizers)),
        ),
    ];
    for (kind, fine, wrong) in conditions {
        let (reason, message) = wrong.unwrap_or(fine);
        conditions::set(namespace, kind, wrong.is_some(), reason, message, now);
    }
}

pub(super) fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for finalizer in object["spec"]["finalizers"].as_array().into_iter().flatten() {
        let name = finalizer.as_str().unwrap_or_default();
        for problem in names::qualified_name_problems(name) {
            errors.push(FieldError::invalid("spec.finalizers", name, problem));
        }
        if !name.contains('/') && ![FINALIZER, "orphan", "foregroundDeletion"].contains(&name) {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid("spec.finalizers", name, why));
        }
    }
    errors
}
