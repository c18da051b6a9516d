//! Events: two APIs, one storage.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::text;
use crate::names;
use crate::schema::{FieldError, go_json};

const CORE: &str = "v1";
const EVENTS: &str = "events.k8s.io/v1";

/// The names that differ: in core/v1 and in events.k8s.io/v1.
const NAMES: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(object: &mut Value, from: &str, to: &str, pairs: impl Iterator<Item = (&'static str, &'static str)>) {
    if object["apiVersion"] != from {
        return;
    }
    let Some(map) = object.as_object_mut() else { return };
    for (old, new) in pairs {
        if let Some(value) = map.remove(old) {
            map.insert(new.to_owned(), value);
        }
    }
    map.insert("apiVersion".into(), to.into());
}

/// Turns an event of events.k8s.io/v1 into core/v1, the stored form; one in that form is only completed.
pub fn event_to_core(object: &mut Value) {
    rename(
        object,
        EVENTS,
        CORE,
        NAMES.into_iter().map(|(core, events)| (events, core)),
    );
    complete(object);
}

/// Turns a stored event into events.k8s.io/v1.
pub fn event_to_events(object: &mut Value) {
    rename(object, CORE, EVENTS, NAMES.into_iter());
    let Some(map) = object.as_object_mut() else { return };
    // Fields that this form leaves out when they are empty.
    for name in ["reportingController", "reportingInstance"] {
        if map.get(name).is_some_and(|v| v == "") {
            map.remove(name);
        }
    }
    fill(map, "regarding", json!({}));
}

fn fill(map: &mut Map<String, Value>, name: &str, value: Value) {
    map.entry(name).or_insert(value);
}

/// Adds the fields that the real server always shows in core/v1.
pub(super) fn complete(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    fill(map, "involvedObject", json!({}));
    fill(map, "source", json!({}));
    for name in ["firstTimestamp", "lastTimestamp", "eventTime"] {
        fill(map, name, Value::Null);
    }
    for name in ["reportingComponent", "reportingInstance"] {
        fill(map, name, "".into());
    }
}

fn as_core(object: &Value) -> Cow<'_, Value> {
    if object["apiVersion"] != EVENTS {
        return Cow::Borrowed(object);
    }
    let mut object = object.clone();
    event_to_core(&mut object);
    Cow::Owned(object)
}

/// Checks an event in either form; `strict` for requests to events.k8s.io. Fields go by their core names, as
/// in the real server.
pub(super) fn validate(object: &Value, old: Option<&Value>, strict: bool) -> Vec<FieldError> {
    let event = as_core(object);
    let mut errors = Vec::new();
    basics(&event, strict, &mut errors);
    match old.map(as_core) {
        _ if !strict => {}
        None => created(&event, &mut errors),
        Some(old) => updated(&event, &old, &mut errors),
    }
    errors
}

fn basics(event: &Value, strict: bool, errors: &mut Vec<FieldError>) {
    let namespace = text(&event["metadata"], "namespace");
    let about = text(&event["involvedObject"], "namespace");
    let elsewhere = if event["eventTime"].is_null() {
        if about.is_empty() {
            !namespace.is_empty() && namespace != "default"
        } else {
            namespace != about
        }
    } else {
        about.is_empty() && namespace != "default" && namespace != "kube-system"
    };
    if elsewhere {
        let why = "does not match event.namespace";
        errors.push(FieldError::invalid("involvedObject.namespace", about, why));
    }
    if !event["eventTime"].is_null() {
        reporting(event, strict, errors);
    }
    for problem in names::subdomain_problems(namespace) {
        errors.push(FieldError::invalid("namespace", namespace, problem));
    }
}

/// What events with an `eventTime` must say.
fn reporting(event: &Value, strict: bool, errors: &mut Vec<FieldError>) {
    let place = if strict {
        "reportingController"
    } else {
        "reportingComponent"
    };
    let controller = text(event, "reportingComponent");
    if controller.is_empty() {
        errors.push(FieldError::required(place, ""));
    }
    for problem in names::qualified_name_problems(controller) {
        errors.push(FieldError::invalid(place, controller, problem));
    }
    for (field, limit) in [("reportingInstance", 128), ("action", 128), ("reason", 128)] {
        let value = text(event, field);
        if value.is_empty() {
            errors.push(FieldError::required(field, ""));
        }
        at_most(field, value, limit, errors);
    }
    at_most("message", text(event, "message"), 1024, errors);
}

fn at_most(field: &str, value: &str, limit: usize, errors: &mut Vec<FieldError>) {
    if value.len() > limit {
        let why = format!("can have at most {limit} characters");
        errors.push(FieldError::invalid(field, "", why));
    }
}

fn series(event: &Value, errors: &mut Vec<FieldError>) {
    let series = &event["series"];
    if series.is_null() {
        return;
    }
    if series["count"].as_i64().unwrap_or_default() < 2 {
        errors.push(FieldError::invalid("series.count", "", "should be at least 2"));
    }
    if series["lastObservedTime"].is_null() {
        errors.push(FieldError::required("series.lastObservedTime", ""));
    }
}

fn created(event: &Value, errors: &mut Vec<FieldError>) {
    series(event, errors);
    if event["eventTime"].is_null() {
        errors.push(FieldError::required("eventTime", ""));
    }
    let kind = text(event, "type");
    if kind != "Normal" && kind != "Warning" {
        errors.push(FieldError::invalid("type", "", format!("has invalid value: {kind}")));
    }
    let source = &event["source"];
    let set = [
        ("firstTimestamp", !event["firstTimestamp"].is_null()),
        ("lastTimestamp", !event["lastTimestamp"].is_null()),
        ("count", event["count"].as_i64().unwrap_or_default() != 0),
        (
            "source",
            !text(source, "component").is_empty() || !text(source, "host").is_empty(),
        ),
    ];
    for (field, _) in set.into_iter().filter(|(_, set)| *set) {
        errors.push(FieldError::invalid(field, "", "needs to be unset"));
    }
}

fn updated(event: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    if event["series"] != old["series"] {
        series(event, errors);
    }
    let fixed = [
        ("involvedObject", "involvedObject"),
        ("reason", "reason"),
        ("message", "message"),
        ("source", "source"),
        ("firstTimestamp", "firstTimestamp"),
        ("lastTimestamp", "lastTimestamp"),
        ("count", "count"),
        // The real server says it twice.
        ("reason", "reason"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("related", "related"),
        ("reportingComponent", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ];
    for (field, said) in fixed {
        let (new, old) = (&event[field], &old[field]);
        if new != old && !same_moment(new, old) {
            errors.push(FieldError {
                detail: shown(new) + "field is immutable",
                value: (!new.is_object()).then(|| new.clone()),
                ..FieldError::invalid(said, "", "")
            });
        }
    }
}

/// An object reference with the names of Go's structure, as the real server shows it.
fn shown(value: &Value) -> String {
    const FIELDS: [(&str, &str); 7] = [
        ("Kind", "kind"),
        ("Namespace", "namespace"),
        ("Name", "name"),
        ("UID", "uid"),
        ("APIVersion", "apiVersion"),
        ("ResourceVersion", "resourceVersion"),
        ("FieldPath", "fieldPath"),
    ];
    if !value.is_object() {
        return String::new();
    }
    let fields = FIELDS.map(|(shown, name)| format!("\"{shown}\":{}", go_json(&text(value, name).into())));
    format!("{{{}}}: ", fields.join(","))
}

/// Whether two texts are one time, to the microsecond.
fn same_moment(a: &Value, b: &Value) -> bool {
    let moment = |value: &Value| {
        let time: jiff::Timestamp = value.as_str()?.parse().ok()?;
        Some(time.as_microsecond())
    };
    moment(a).is_some_and(|a| moment(b) == Some(a))
}
