//! Cases whose answers come from apimachinery 0.36 itself, one a line of `cases.jsonl`.
//!
//! `ask` is a request on `live` (absent on create); `answer` is the object of an apply, the managedFields
//! of an update, or the Status of a refusal. `changed` cases have the schema of [`changed_machine`].

use super::super::{apply, track_update};
use super::*;

const NOW: &str = "2026-11-25T12:00:00Z";

fn answer(schema: &Schema, ask: &Value) -> Value {
    let text = |name: &str| ask[name].as_str().unwrap_or_default();
    let version = format!("vm.example.com/{}", text("version"));
    let types = Types::new(Some(schema.root()), ask["status"] == true);
    let writer = Writer {
        manager: text("manager"),
        api_version: &version,
        subresource: text("subresource"),
        time: NOW,
    };
    if text("op") == "update" {
        let mut object = ask["object"].clone();
        track_update(&types, ask.get("live"), &mut object, &writer);
        return json!({"managedFields": object["metadata"]["managedFields"]});
    }
    match apply(&types, ask.get("live"), &ask["object"], &writer, ask["force"] == true) {
        Ok(object) => json!({"object": object}),
        Err(error) => {
            let message = error.to_string();
            match error {
                ApplyError::Conflicts(conflicts) => {
                    let causes = conflicts
                        .iter()
                        .map(|c| json!({"reason": "FieldManagerConflict", "message": c.message(), "field": c.field}));
                    let causes: Vec<Value> = causes.collect();
                    json!({"error": message, "code": 409, "reason": "Conflict", "causes": causes})
                }
                ApplyError::Invalid { code, reason, .. } => json!({"error": message, "code": code, "reason": reason}),
            }
        }
    }
}

/// Without orders that are a matter of chance in Go.
fn ordered(mut answer: Value) -> Value {
    if let Some(causes) = answer.get_mut("causes").and_then(Value::as_array_mut) {
        causes.sort_by_key(Value::to_string);
    }
    if answer["code"] == 500
        && let Some(text) = answer["error"].as_str()
    {
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        answer["error"] = lines.join("\n").into();
    }
    answer
}

#[test]
fn every_answer_is_that_of_apimachinery() {
    let (schema, changed) = (machine(), changed_machine());
    for (number, line) in include_str!("cases.jsonl").lines().enumerate() {
        let case: Value = serde_json::from_str(line).unwrap();
        let ask = &case["ask"];
        let schema = if ask["changed"] == true { &changed } else { schema };
        let got = ordered(answer(schema, ask));
        assert_eq!(got, ordered(case["answer"].clone()), "line {}", number + 1);
    }
}
