//! What is expected here was compared with the real server's code, version 1.36.

mod definitions;
mod language;
mod transitions;

use serde_json::{Value, json};

use crate::schema::Schema;

/// What validating says, line by line; `COMPILE` lines when the schema is refused.
fn run(schema: &Value, object: &Value, old: Option<&Value>) -> Vec<String> {
    match Schema::compile(schema, "schema") {
        Ok(schema) => schema.validate(object, old).iter().map(ToString::to_string).collect(),
        Err(errors) => errors.iter().map(|e| format!("COMPILE {e}")).collect(),
    }
}

/// A schema with rules on its `spec`, and the object `{spec}`.
fn spec(rules: Value, properties: Value, spec: Value) -> (Value, Value) {
    let schema = json!({"type": "object", "properties": {"spec": {
        "type": "object", "properties": properties, "x-kubernetes-validations": rules,
    }}});
    (schema, json!({"spec": spec}))
}

/// What is said about one rule and a spec.
fn check(rules: Value, properties: Value, value: Value) -> Vec<String> {
    let (schema, object) = spec(rules, properties, value);
    run(&schema, &object, None)
}
