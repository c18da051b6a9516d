//! Whole objects inside of objects (`x-kubernetes-embedded-resource`): their type is required, their metadata is judged.

use serde_json::{Value, json};

use super::{
    error::{FieldError, child},
    node::Node,
};
use crate::names;

/// Reports what is wrong with the type and the metadata of embedded objects. An update is judged like a new object.
pub(super) fn check(node: &Node, path: &str, value: &Value, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(map) => {
            if node.embedded {
                object(path, value, errors);
            }
            for (name, value) in map {
                if let Some(field) = node.properties.get(name) {
                    check(field, &child(path, name), value, errors);
                } else if let Some(field) = node.field(name) {
                    check(field, &format!("{path}[{name}]"), value, errors);
                }
            }
        }
        Value::Array(items) => {
            if let Some(item_node) = node.items.as_deref() {
                for (i, item) in items.iter().enumerate() {
                    check(item_node, &format!("{path}[{i}]"), item, errors);
                }
            }
        }
        _ => {}
    }
}

fn object(path: &str, value: &Value, errors: &mut Vec<FieldError>) {
    for field in ["apiVersion", "kind"] {
        let place = child(path, field);
        match &value[field] {
            Value::Null => errors.push(FieldError::required(place, "")),
            Value::String(text) => {
                let why = match field {
                    _ if text.is_empty() => Some("must not be empty".to_owned()),
                    "kind" => kind_problem(text),
                    _ => api_version_problem(text),
                };
                errors.extend(why.map(|why| FieldError::invalid(place, text.as_str(), why)));
            }
            other => errors.push(FieldError::invalid(place, other.clone(), "must be a string")),
        }
    }
    if !value["metadata"].is_object() {
        return;
    }
    let mut probe = json!({"metadata": value["metadata"]});
    if probe["metadata"]["name"].as_str().unwrap_or_default().is_empty() {
        // It need not have one.
        probe["metadata"]["name"] = "fakename".into();
    }
    for mut error in names::metadata_errors(&probe, path_segment_problems) {
        error.field = child(path, &error.field);
        errors.push(error);
    }
}

fn api_version_problem(text: &str) -> Option<String> {
    (text.matches('/').count() > 1).then(|| format!("unexpected GroupVersion string: {text}"))
}

fn kind_problem(text: &str) -> Option<String> {
    let problems = names::dns1035_label_problems(&text.to_lowercase());
    let words = "may have mixed case, but should otherwise match: ";
    (!problems.is_empty()).then(|| format!("{words}{}", problems.join(",")))
}

/// Any name that can stand in a URL.
fn path_segment_problems(name: &str) -> Vec<String> {
    if name == "." || name == ".." {
        return vec![format!("may not be '{name}'")];
    }
    let wrong = ["/", "%"].into_iter().filter(|c| name.contains(*c));
    wrong.map(|c| format!("may not contain '{c}'")).collect()
}

#[cfg(test)]
mod tests {
    use crate::schema::Schema;
    use serde_json::{Value, json};

    #[test]
    fn an_embedded_object_needs_a_type_and_metadata_that_an_object_could_have() {
        let embedded = json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true});
        let spec = json!({"type": "object", "properties": {
            "one": embedded, "list": {"type": "array", "items": embedded},
            "map": {"type": "object", "additionalProperties": embedded},
        }});
        let source = json!({"type": "object", "properties": {"spec": spec}});
        let schema = Schema::compile(&source, "").expect("a structural schema");
        let said = |spec: Value| {
            let object = json!({"apiVersion": "g.io/v1", "kind": "T", "metadata": {"name": "t"}, "spec": spec});
            let errors = schema.validate(&object, None);
            // Also when it was as wrong before.
            assert_eq!(errors, schema.validate(&object, Some(&object)));
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        for (spec, errors) in [
            (
                json!({"one": {"apiVersion": "v1", "kind": "a", "metadata": {"name": "Bad Name"}}}),
                &[][..],
            ),
            (
                json!({"one": {}}),
                &["spec.one.apiVersion: Required value", "spec.one.kind: Required value"],
            ),
            (
                json!({"list": [{"kind": "A"}]}),
                &["spec.list[0].apiVersion: Required value"],
            ),
            (
                json!({"map": {"k": {"apiVersion": "v1"}}}),
                &["spec.map[k].kind: Required value"],
            ),
            (
                json!({"one": {"apiVersion": "", "kind": "A"}}),
                &["spec.one.apiVersion: Invalid value: \"\": must not be empty"],
            ),
            (
                json!({"one": {"apiVersion": "a/b/c", "kind": "A"}}),
                &["spec.one.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c"],
            ),
            (
                json!({"one": {"apiVersion": "v1", "kind": "A", "metadata": {"name": "a/b"}}}),
                &["spec.one.metadata.name: Invalid value: \"a/b\": may not contain '/'"],
            ),
        ] {
            assert_eq!(said(spec.clone()), errors, "{spec}");
        }
        let errors = said(json!({"one": {"apiVersion": "v1", "kind": "A b", "metadata": {"labels": {"a b": "c"}}}}));
        assert!(
            errors[0].starts_with("spec.one.kind: Invalid value: \"A b\": may have mixed case, but"),
            "{errors:?}"
        );
        assert!(
            errors[1].starts_with("spec.one.metadata.labels: Invalid value: \"a b\": name part must"),
            "{errors:?}"
        );
    }
}
