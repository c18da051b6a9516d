//! Columns of the built-in kinds.

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, header, name_header, since};
use crate::registry::Core;

/// `columnDefinitions` of a kind.
pub fn headers(core: Core) -> Vec<Value> {
    let text = |name: &str, description: &str| header(name, "string", "", description, 0);
    let wide = |name: &str, description: &str| header(name, "string", "", description, 1);
    let age = || text("Age", AGE);
    match core {
        Core::Namespace => vec![name_header(0), text("Status", "The status of the namespace"), age()],
        Core::Secret => vec![
            name_header(0),
            text("Type", "What the secret holds."),
            text("Data", "Number of values."),
            age(),
        ],
        Core::ConfigMap => vec![name_header(0), text("Data", "Number of values."), age()],
        Core::ServiceAccount => vec![name_header(0), age()],
        Core::Lease => vec![name_header(0), text("Holder", "Who holds the lease."), age()],
        Core::Definition => vec![
            name_header(0),
            header("Created At", "date", "", "When the object was created.", 0),
        ],
        Core::Node => vec![
            name_header(0),
            text("Status", "The status of the node"),
            text("Roles", "The roles of the node"),
            age(),
            text("Version", "Version of the kubelet."),
            wide("Internal-IP", "Address within the cluster."),
            wide("External-IP", "Address from outside."),
            wide("OS-Image", "Name of the distribution."),
            wide("Kernel-Version", "Version of the kernel."),
            wide("Container-Runtime", "Name and version of the runtime."),
        ],
        Core::CoreEvent | Core::Event => vec![
            text("Last Seen", "When the event was last seen."),
            text("Type", "Normal or Warning."),
            text("Reason", "Why it happened, in one word."),
            text("Object", "The object that the event is about."),
            wide("Subobject", "The part of the object that is meant."),
            wide("Source", "The program that told it."),
            text("Message", "What happened."),
            wide("First Seen", "When the event was first seen."),
            wide("Count", "How often it happened."),
            name_header(1),
        ],
    }
}

/// The cells of one object.
pub fn cells(core: Core, object: &Value, now: Timestamp) -> Vec<Value> {
    let name = || object["metadata"]["name"].clone();
    let age = || Value::from(since(&object["metadata"]["creationTimestamp"], now));
    match core {
        Core::Namespace => vec![name(), text(&object["status"]["phase"]), age()],
        Core::Secret => vec![name(), text(&object["type"]), size(&object["data"]).into(), age()],
        Core::ConfigMap => {
            let values = size(&object["data"]) + size(&object["binaryData"]);
            vec![name(), values.into(), age()]
        }
        Core::ServiceAccount => vec![name(), age()],
        Core::Lease => vec![name(), text(&object["spec"]["holderIdentity"]), age()],
        // The one kind that is shown with a time in place of an age.
        Core::Definition => vec![name(), object["metadata"]["creationTimestamp"].clone()],
        Core::Node => node(object, now),
        Core::CoreEvent | Core::Event => event(object, now),
    }
}

fn text(value: &Value) -> Value {
    value.as_str().unwrap_or_default().into()
}

fn size(map: &Value) -> usize {
    map.as_object().map_or(0, serde_json::Map::len)
}

/// The first of these that is there and not empty.
fn first<'a>(values: &[&'a Value]) -> &'a str {
    let mut texts = values.iter().filter_map(|v| v.as_str());
    texts.find(|t| !t.is_empty()).unwrap_or_default()
}

/// An event of either API group.
fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let either = |core: &str, newer: &str| match &object[core] {
        Value::Null => &object[newer],
        value => value,
    };
    let is_set = |time: &Value| time.as_str().is_some_and(|t| !t.is_empty());
    let first_time = either("firstTimestamp", "deprecatedFirstTimestamp");
    let first_seen = if is_set(first_time) {
        since(first_time, now)
    } else {
        since(&object["eventTime"], now)
    };
    let last_time = either("lastTimestamp", "deprecatedLastTimestamp");
    let mut last_seen = if is_set(last_time) {
        since(last_time, now)
    } else {
        first_seen.clone()
    };
    let mut count = either("count", "deprecatedCount").as_i64().unwrap_or_default();
    let series = &object["series"];
    if series.is_object() {
        last_seen = since(&series["lastObservedTime"], now);
        count = series["count"].as_i64().unwrap_or_default();
    } else if count == 0 {
        count = 1;
    }
    let about = either("involvedObject", "regarding");
    let kind = about["kind"].as_str().unwrap_or_default().to_lowercase();
    let target = match about["name"].as_str() {
        None | Some("") => kind,
        Some(name) => format!("{kind}/{name}"),
    };
    let source = either("source", "deprecatedSource");
    let component = first(&[
        &source["component"],
        either("reportingComponent", "reportingController"),
    ]);
    let instance = first(&[&source["host"], &object["reportingInstance"]]);
    let told_by = match instance {
        "" => component.to_owned(),
        _ => format!("{component}, {instance}"),
    };
    let message = either("message", "note").as_str().unwrap_or_default().trim();
    vec![
        last_seen.into(),
        text(&object["type"]),
        text(&object["reason"]),
        target.into(),
        text(&about["fieldPath"]),
        told_by.into(),
        message.into(),
        first_seen.into(),
        count.into(),
        object["metadata"]["name"].clone(),
    ]
}

fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let (meta, status) = (&object["metadata"], &object["status"]);
    let conditions = status["conditions"].as_array();
    let ready = conditions.into_iter().flatten().find(|c| c["type"] == "Ready");
    let mut state = match ready {
        None => "Unknown".to_owned(),
        Some(condition) if condition["status"] == "True" => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
    };
    if object["spec"]["unschedulable"] == true {
        state.push_str(",SchedulingDisabled");
    }
    let labels = meta["labels"].as_object().into_iter().flatten();
    let mut roles: Vec<&str> = labels
        .filter_map(|(key, value)| match key.as_str() {
            "kubernetes.io/role" => value.as_str(),
            key => key.strip_prefix("node-role.kubernetes.io/"),
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let roles = if roles.is_empty() {
        "<none>".to_owned()
    } else {
        roles.join(",")
    };
    let address = |kind: &str| {
        let addresses = status["addresses"].as_array();
        let found = addresses.into_iter().flatten().find(|a| a["type"] == kind);
        found.map_or_else(|| "<none>".into(), |a| text(&a["address"]))
    };
    let info = &status["nodeInfo"];
    let known = |key: &str| match first(&[&info[key]]) {
        "" => "<unknown>".to_owned(),
        text => text.to_owned(),
    };
    let mut kernel = known("kernelVersion");
    let architecture = first(&[&info["architecture"]]);
    if !architecture.is_empty() {
        kernel.push_str(&format!(" ({architecture})"));
    }
    vec![
        meta["name"].clone(),
        state.into(),
        roles.into(),
        since(&meta["creationTimestamp"], now).into(),
        text(&info["kubeletVersion"]),
        address("InternalIP"),
        address("ExternalIP"),
        known("osImage").into(),
        kernel.into(),
        known("containerRuntimeVersion").into(),
    ]
}
