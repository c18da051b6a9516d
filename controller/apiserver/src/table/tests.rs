use super::*;
use crate::registry::{Core, builtin, definition};

fn golden(name: &str) -> Value {
    let all: Value = serde_json::from_str(include_str!("../../tests/golden/tables.json")).expect("golden tables");
    all[name].clone()
}

fn custom() -> Resource {
    let mut definition = serde_json::from_str(include_str!("../../tests/golden/definition.json")).expect("definition");
    definition::default_spec(&mut definition);
    definition::resource(&definition).expect("a valid definition")
}

/// Renders the objects of a recording at its time.
fn render(resource: &Resource, recording: &Value, include: Include, headers: bool) -> Value {
    let objects = recording["objects"].as_array().expect("objects");
    let now = recording["now"].as_str().expect("now").parse().expect("a time");
    let metadata = recording["table"]["metadata"].clone();
    table(
        resource,
        &resource.versions[0],
        objects,
        include,
        metadata,
        now,
        headers,
    )
}

fn without_descriptions(mut table: Value) -> Value {
    for column in table["columnDefinitions"].as_array_mut().expect("columns") {
        let description = column.as_object_mut().and_then(|c| c.remove("description"));
        assert!(description.is_some_and(|d| d != ""), "{column} has no description");
    }
    table
}

#[test]
fn a_custom_resource_has_the_table_of_the_real_server() {
    let recording = golden("virtualmachine");
    let mut expected = recording["table"].clone();
    // The one description of our own wording.
    expected["columnDefinitions"][0]["description"] = "Name of the object.".into();
    assert_eq!(render(&custom(), &recording, Include::Metadata, true), expected);
    let rows = &recording["without objects"]["rows"];
    assert_eq!(&render(&custom(), &recording, Include::None, true)["rows"], rows);
    let whole = render(&custom(), &recording, Include::Object, true);
    assert_eq!(whole["rows"][0]["object"], recording["objects"][0]);
}

#[test]
fn built_in_kinds_have_the_tables_of_the_real_server() {
    for resource in builtin() {
        if matches!(
            resource.core,
            Some(Core::ServiceAccount | Core::CoreEvent | Core::Event)
        ) {
            continue;
        }
        let recording = golden(&resource.singular);
        let table = render(resource, &recording, Include::Metadata, true);
        assert_eq!(without_descriptions(table), recording["table"], "{}", resource.kind);
    }
}

#[test]
fn an_event_looks_the_same_in_both_api_groups() {
    let recording = golden("event");
    let events = builtin();
    for (group, index) in [("", 0), ("events.k8s.io", 1)] {
        let resource = events
            .iter()
            .find(|r| r.kind == "Event" && r.group == group)
            .expect("events");
        let mut one = recording.clone();
        one["objects"] = Value::Array(vec![recording["objects"][index].clone()]);
        let mut expected = recording["table"].clone();
        let mut table = without_descriptions(render(resource, &one, Include::Metadata, true));
        for row in [&mut expected["rows"][0], &mut table["rows"][0]] {
            row.as_object_mut().map(|r| r.remove("object"));
        }
        assert_eq!(table, expected, "{group:?}");
    }
}

#[test]
fn a_table_without_headers_has_null_for_them() {
    let table = render(&custom(), &golden("virtualmachine"), Include::Metadata, false);
    assert_eq!(table["columnDefinitions"], Value::Null);
}

#[test]
fn a_definition_without_columns_shows_the_age() {
    let mut resource = custom();
    resource.versions[0].columns.clear();
    let table = render(&resource, &golden("virtualmachine"), Include::None, true);
    assert_eq!(table["columnDefinitions"][1]["name"], "Age");
    assert_eq!(table["rows"][0]["cells"], json!(["g1", "2s"]));
}

#[test]
fn cells_take_the_type_of_their_column() {
    let object = json!({"metadata": {"name": "x"}, "s": "text", "i": 3, "f": 2.0, "g": 1.5, "b": true,
        "m": {"b": 1, "a": "<"}, "n": null, "t": "2026-11-22T11:28:00Z", "bad": "soon", "empty": ""});
    let cases = [
        (".s", "string", json!("text")),
        (".i", "string", json!("3")),
        (".f", "string", json!("2")),
        (".b", "string", json!("true")),
        (".m", "string", json!("{\"a\":\"\\u003c\",\"b\":1}")),
        (".n", "string", json!("<no value>")),
        (".missing", "string", json!(null)),
        (".i", "integer", json!(3)),
        (".g", "integer", json!(1)),
        (".s", "integer", json!(null)),
        (".i", "number", json!(3.0)),
        (".b", "boolean", json!(true)),
        (".s", "boolean", json!(null)),
        (".t", "date", json!("61s")),
        (".bad", "date", json!("<invalid>")),
        (".empty", "date", json!("<unknown>")),
        (".n", "date", json!(null)),
        (".s[", "string", json!(null)),
    ];
    let now = "2026-11-22T11:29:01Z".parse().expect("a time");
    for (path, kind, cell) in cases {
        let column = json!({"name": "C", "type": kind, "jsonPath": path});
        let columns = columns::Column::all(&[column]);
        assert_eq!(
            columns::cells(&columns, &object, now),
            [json!("x"), cell],
            "{path} as {kind}"
        );
    }
}

#[test]
fn columns_that_cannot_be_shown_are_refused() {
    let columns = json!([
        {"name": "A", "type": "string", "jsonPath": ".a"},
        {"name": "B", "type": "text", "format": "int64", "jsonPath": ".b"},
        {"name": "C", "type": "integer", "format": "long", "jsonPath": "c"},
        {},
    ]);
    let errors = check_columns(&columns, "columns");
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let kinds = "must be one of boolean,date,integer,number,string";
    let formats = "must be one of byte,date,date-time,double,float,int32,int64,password";
    assert_eq!(
        errors,
        [
            format!("columns[1].type: Invalid value: \"text\": {kinds}"),
            format!("columns[2].format: Invalid value: \"long\": {formats}"),
            "columns[2].JSONPath: Invalid value: \"c\": must be a simple json path starting with .".to_owned(),
            "columns[3].name: Required value".to_owned(),
            format!("columns[3].type: Required value: {kinds}"),
            "columns[3].JSONPath: Required value".to_owned(),
        ]
    );
}
