//! The built-in kinds: what they look like, and what they do beyond that.

mod rules;

use serde_json::Value;

pub use rules::{
    Remaining, decode_problem, event_to_core, event_to_events, label_namespace, name_problems, prepare_create,
    prepare_update, say_remaining, validate,
};

macro_rules! schemas {
    ($($group:literal $kind:literal $file:literal)*) => {
        /// The text of the structural schema of a built-in kind.
        pub fn source(group: &str, kind: &str) -> &'static str {
            match (group, kind) {
                $(($group, $kind) => include_str!(concat!("schemas/", $file)),)*
                _ => "null",
            }
        }
    };
}

schemas! {
    "" "Namespace" "namespace.yaml"
    "" "Secret" "secret.yaml"
    "" "ConfigMap" "configmap.yaml"
    "" "ServiceAccount" "serviceaccount.yaml"
    "" "Node" "node.yaml"
    "" "Event" "event.yaml"
    "events.k8s.io" "Event" "event_events.yaml"
    "coordination.k8s.io" "Lease" "lease.yaml"
    "apiextensions.k8s.io" "CustomResourceDefinition" "customresourcedefinition.yaml"
    "authentication.k8s.io" "SelfSubjectReview" "selfsubjectreview.yaml"
    "authorization.k8s.io" "SelfSubjectAccessReview" "selfsubjectaccessreview.yaml"
    "authorization.k8s.io" "SelfSubjectRulesReview" "selfsubjectrulesreview.yaml"
}

/// The structural schema of a built-in kind, with descriptions; it is read anew at each call and not kept.
///
/// Fields that every object has (`apiVersion`, `kind`, `metadata`) are only named. A kind that is not built in has
/// the schema `null`.
pub fn core_schema(group: &str, kind: &str) -> Value {
    // The files are part of the program and tested: one that cannot be read is no schema.
    serde_saphyr::from_str(source(group, kind)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{registry, reviews, schema::Schema};

    #[test]
    fn every_built_in_kind_has_a_structural_schema() {
        let resources = registry::builtin();
        let stored = resources.iter().map(|r| (r.group.as_str(), r.kind.as_str()));
        for (group, kind) in stored.chain(reviews::REVIEWS.iter().map(|r| (r.group, r.kind))) {
            let schema = core_schema(group, kind);
            let name = format!("{kind} of {group:?}");
            assert!(schema.is_object(), "{name}");
            let errors = Schema::compile(&schema, "").err().unwrap_or_default();
            assert!(errors.is_empty(), "{name}: {errors:?}");
            assert_described(&schema, &name);
        }
    }

    fn assert_described(schema: &Value, path: &str) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            assert!(property["description"].is_string(), "{path} has no description");
            assert_described(property, &path);
            assert_described(&property["items"], &path);
        }
    }
}
