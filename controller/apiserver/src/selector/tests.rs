#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};

use super::*;

fn label_error(text: &str) -> String {
    LabelSelector::parse(text).unwrap_err().to_string()
}

fn field_error(text: &str) -> String {
    FieldSelector::parse(text).unwrap_err().to_string()
}

#[test]
fn labels_are_selected_as_the_requirements_say() {
    let labels = json!({"app": "demo", "tier": "2", "empty": "", "a.b/c": "x", "in": "1"});
    for (text, matches) in [
        ("", true),
        ("  ", true),
        ("app", true),
        ("!app", false),
        ("! app", false),
        ("other", false),
        ("!other", true),
        ("app=demo", true),
        ("app == demo", true),
        ("app=", false),
        ("app!=", true),
        ("empty=", true),
        ("empty", true),
        ("app!=demo", false),
        ("other!=demo", true),
        ("app in (a,demo)", true),
        ("app in (a, b)", false),
        ("app notin (a)", true),
        ("other notin (a)", true),
        ("other in ()", false),
        ("empty in ()", true),
        ("empty in (a,)", true),
        ("empty in (,a)", true),
        ("app in (a,,demo)", true),
        ("tier>1", true),
        ("tier>2", false),
        ("tier<10", true),
        ("app>1", false),
        ("other<1", false),
        ("a.b/c=x,app=demo,tier notin (1)", true),
        ("a.b/c=x,app=other", false),
        ("in in (1)", true),
        ("\tapp\n=\rdemo ", true),
    ] {
        let selector = LabelSelector::parse(text).unwrap();
        assert_eq!(selector.matches(Some(&labels)), matches, "{text}");
    }
    assert!(!LabelSelector::parse("a").unwrap().matches(None));
    assert!(LabelSelector::parse("a!=b,!a").unwrap().matches(Some(&Value::Null)));
}

#[test]
fn label_selectors_are_refused_in_apimachinerys_words() {
    for (text, error) in [
        ("=a", "found '=', expected: !, identifier, or 'end of string'"),
        (",a", "found ',', expected: !, identifier, or 'end of string'"),
        ("a,", "found '', expected: identifier after ','"),
        ("a,,b", "found ',', expected: identifier after ','"),
        ("a=b c", "found 'c', expected: ',' or 'end of string'"),
        ("!", "unable to parse requirement: found '', expected: identifier"),
        ("!=a", "found '!=', expected: !, identifier, or 'end of string'"),
        (
            "a b",
            "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
        ),
        ("a=!", "unable to parse requirement: found '!', expected: identifier"),
        ("a in b", "unable to parse requirement: found 'b' expected: '('"),
        (
            "a in (=)",
            "unable to parse requirement: found '=', expected: ',', ')' or identifier",
        ),
        (
            "a in (b c)",
            "unable to parse requirement: found 'c', expected: ',' or ')'",
        ),
        (
            "a in (b,=",
            "unable to parse requirement: found '=', expected: ',', or identifier",
        ),
        (
            "a>x",
            "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
        ),
        (
            "/a",
            "unable to parse requirement: <nil>: Invalid value: \"/a\": prefix part must be non-empty",
        ),
    ] {
        assert_eq!(label_error(text), error, "{text}");
    }
    let error = label_error("a/b/c");
    assert!(error.starts_with("unable to parse requirement: <nil>: Invalid value: \"a/b/c\": a valid label key must"));
    let error = label_error("a>-5");
    assert!(error.starts_with("unable to parse requirement: values[0][a]: Invalid value: \"-5\": a valid label must"));
    let error = label_error("a<-x");
    assert!(
        error.starts_with("unable to parse requirement: [values[0]: Invalid value: \"-x\": for 'Gt', 'Lt' operators")
    );
}

#[test]
fn fields_are_selected_as_the_requirements_say() {
    let object = json!({"metadata": {"name": "x"}, "spec": {"nodeName": "a,b", "on": true, "n": 3}});
    for (text, matches) in [
        ("", true),
        ("metadata.name=x", true),
        ("metadata.name==x", true),
        ("metadata.name!=x", false),
        ("metadata.name=x,spec.nodeName=a\\,b", true),
        ("spec.on=true,spec.n=3", true),
        ("spec.other=", true),
        ("spec.other!=", false),
        (",,metadata.name=x,", true),
    ] {
        let selector = FieldSelector::parse(text).unwrap();
        assert_eq!(selector.matches(|field| field_value(&object, field)), matches, "{text}");
    }
    let selector = FieldSelector::parse("b!=1,a=2").unwrap();
    assert_eq!(selector.fields().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn field_selectors_are_refused_in_apimachinerys_words() {
    assert_eq!(field_error("a"), "invalid selector: 'a'; can't understand 'a'");
    assert_eq!(
        field_error("z,b=1,y"),
        "invalid selector: 'z,b=1,y'; can't understand 'y'"
    );
    assert_eq!(
        field_error("a=b=c"),
        "invalid field selector: unescaped character in value: 61"
    );
    assert_eq!(
        field_error("a=\\x"),
        "invalid field selector: invalid escape sequence: \\x"
    );
    assert_eq!(
        field_error("a=\\"),
        "invalid field selector: invalid escape sequence: \\"
    );
}
