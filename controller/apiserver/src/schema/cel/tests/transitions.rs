use serde_json::{Value, json};

use super::{check, run, spec};

fn text() -> Value {
    json!({"type": "string"})
}

fn update(rules: Value, properties: Value, old: Value, new: Value) -> Vec<String> {
    let (schema, object) = spec(rules, properties, new);
    run(&schema, &object, Some(&json!({"spec": old})))
}

#[test]
fn transition_rules_run_on_updates_of_what_was_there() {
    let rules = || json!([{"rule": "self.a == oldSelf.a", "message": "fixed"}]);
    assert!(check(rules(), json!({"a": text()}), json!({"a": "x"})).is_empty());
    let said = update(rules(), json!({"a": text()}), json!({"a": "y"}), json!({"a": "x"}));
    assert_eq!(said, ["spec: Invalid value: fixed"]);
    let (schema, object) = spec(rules(), json!({"a": text()}), json!({"a": "x"}));
    assert!(run(&schema, &object, Some(&json!({}))).is_empty());
}

#[test]
fn an_optional_old_self_is_there_on_creation_too() {
    let rules =
        json!([{"rule": "oldSelf.hasValue() || self.a == 'first'", "optionalOldSelf": true, "message": "first"}]);
    let said = check(rules.clone(), json!({"a": text()}), json!({"a": "x"}));
    assert_eq!(said, ["spec: Invalid value: first"]);
    assert!(update(rules, json!({"a": text()}), json!({"a": "y"}), json!({"a": "x"})).is_empty());
}

#[test]
fn items_of_keyed_lists_are_compared_with_their_former_selves() {
    let list = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
        "items": {"type": "object", "required": ["k"], "properties": {"k": text(),
            "v": {"type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf", "message": "shrinks"}]}}}});
    let said = update(
        json!([]),
        json!({"l": list}),
        json!({"l": [{"k": "a", "v": 4}, {"k": "b", "v": 2}]}),
        json!({"l": [{"k": "b", "v": 1}, {"k": "a", "v": 5}, {"k": "new", "v": 0}]}),
    );
    assert_eq!(said, ["spec.l[0].v: Invalid value: 1: shrinks"]);
}

#[test]
fn old_self_is_refused_where_items_have_no_identity() {
    let list = json!({"type": "array", "items": {"type": "string",
        "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "m"}]}});
    assert_eq!(
        check(json!([]), json!({"l": list}), json!({})),
        [
            "COMPILE schema.properties[spec].properties[l].items.x-kubernetes-validations[0].rule: Invalid value: \"self == oldSelf\": oldSelf cannot be used on the uncorrelatable portion of the schema within schema.properties[spec].properties[l]"
        ]
    );
}

#[test]
fn values_of_maps_have_their_own_rules() {
    let map = json!({"type": "object", "additionalProperties": {"type": "integer",
        "x-kubernetes-validations": [{"rule": "self > 2", "message": "small"}, {"rule": "self >= oldSelf", "message": "shrinks"}]}});
    let said = update(
        json!([]),
        json!({"m": map}),
        json!({"m": {"b": 9}}),
        json!({"m": {"a.b": 1, "b": 5}}),
    );
    assert_eq!(
        said,
        [
            "spec.m[a.b]: Invalid value: 1: small",
            "spec.m[b]: Invalid value: 5: shrinks"
        ]
    );
}

#[test]
fn what_did_not_change_is_not_held_against_the_writer() {
    let item = json!({"type": "string", "x-kubernetes-validations": [{"rule": "self == 'good'", "message": "bad"}]});
    let properties = json!({"a": item, "b": text(), "l": {"type": "array", "items": item}});
    let old = json!({"a": "old", "b": "1", "l": ["x", "y"]});
    let broken = json!([{"rule": "self.a == 'good'", "message": "whole"}]);
    // The field and the list are the same; the spec is not.
    let said = update(
        broken.clone(),
        properties.clone(),
        old.clone(),
        json!({"a": "old", "b": "2", "l": ["x", "y"]}),
    );
    assert_eq!(said, ["spec: Invalid value: whole"]);
    // An item of a changed list without identity is new.
    let said = update(
        broken.clone(),
        properties.clone(),
        old.clone(),
        json!({"a": "good", "b": "1", "l": ["y", "good"]}),
    );
    assert_eq!(said, ["spec.l[0]: Invalid value: \"y\": bad"]);
    assert!(update(broken, properties, old.clone(), old).is_empty());
}

#[test]
fn transition_rules_hold_even_when_nothing_changed() {
    let rules = json!([{"rule": "self.a != oldSelf.a", "message": "must change"}]);
    let said = update(rules, json!({"a": text()}), json!({"a": "x"}), json!({"a": "x"}));
    assert_eq!(said, ["spec: Invalid value: must change"]);
}

#[test]
fn the_reason_makes_the_kind_of_the_error() {
    let cases = [
        ("FieldValueInvalid", "spec.a: Invalid value: m"),
        ("FieldValueRequired", "spec.a: Required value: m"),
        ("FieldValueForbidden", "spec.a: Forbidden: m"),
        ("FieldValueDuplicate", "spec.a: Duplicate value"),
    ];
    for (reason, wanted) in cases {
        let rules = json!([{"rule": "false", "message": " m ", "reason": reason, "fieldPath": ".a"}]);
        assert_eq!(check(rules, json!({"a": text()}), json!({"a": "x"})), [wanted]);
    }
}

#[test]
fn scalars_are_shown_and_a_rule_without_message_shows_itself() {
    let number = json!({"type": "integer", "x-kubernetes-validations": [{"rule": " self > 5 "}]});
    assert_eq!(
        check(json!([]), json!({"n": number}), json!({"n": 3})),
        ["spec.n: Invalid value: 3: failed rule: self > 5"]
    );
}

#[test]
fn a_message_expression_wins_when_it_makes_a_line_of_text() {
    let said = |expression: &str| {
        let rules = json!([{"rule": "false", "message": "plain", "messageExpression": expression}]);
        check(rules, json!({"a": text()}), json!({"a": "x"})).join("; ")
    };
    assert_eq!(said("' a is ' + self.a + ' '"), "spec: Invalid value: a is x");
    for unfit in ["''", "'a\\nb'", "[self.a][1]"] {
        assert_eq!(said(unfit), "spec: Invalid value: plain", "{unfit}");
    }
    assert!(said("1").contains("messageExpression must evaluate to a string"));
    assert!(said("self.b").contains("messageExpression compilation failed: ERROR: <input>:1:5: undefined field 'b'"));
}

#[test]
fn field_paths_lead_to_fields() {
    let said = |path: &str| {
        let rules = json!([{"rule": "false", "message": "m", "fieldPath": path}]);
        let map = json!({"type": "object", "additionalProperties": text()});
        let object = json!({"type": "object", "properties": {"a": text()}});
        check(rules, json!({"m": map, "o": object}), json!({})).join("; ")
    };
    assert_eq!(said(".o.a"), "spec.o.a: Invalid value: m");
    assert_eq!(said(".m['x.y']"), "spec.m[x.y]: Invalid value: m");
    for wrong in [".b", "o", ".o.", ".o[0]", "x"] {
        assert!(said(wrong).contains("must be a valid path"), "{wrong}: {}", said(wrong));
    }
}

#[test]
fn rules_are_left_out_only_after_errors_that_block_them() {
    let rules = json!([{"rule": "self.n > 1", "message": "rule"}]);
    let properties =
        json!({"n": {"type": "integer", "maximum": 5, "enum": [0, 1, 9]}, "s": {"type": "string", "maxLength": 2}});
    let unchecked = "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
    let blocked = [json!({"n": "x"}), json!({"n": 3}), json!({"n": 0, "s": "long"})];
    for value in blocked {
        let said = check(rules.clone(), properties.clone(), value.clone());
        assert_eq!(said.last().map(String::as_str), Some(unchecked), "{value}");
        assert!(
            !said
                .iter()
                .any(|line| line.contains("rule") && !line.starts_with("<nil>")),
            "{said:?}"
        );
    }
    let rules = json!([{"rule": "self.n > 100", "message": "rule"}]);
    assert_eq!(
        check(rules, json!({"n": {"type": "integer", "maximum": 5}}), json!({"n": 9})),
        [
            "spec.n: Invalid value: 9: spec.n in body should be less than or equal to 5",
            "spec: Invalid value: rule",
        ]
    );
}

#[test]
fn nulls_are_left_to_the_rules_above() {
    let field = json!({"type": "string", "nullable": true, "x-kubernetes-validations": [{"rule": "false"}]});
    assert!(check(json!([]), json!({"a": field}), json!({"a": null})).is_empty());
}
