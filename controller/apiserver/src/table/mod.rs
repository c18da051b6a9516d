//! The Table form of objects (`meta.k8s.io/v1`), which `kubectl get` prints.
//!
//! Columns of custom resources are the `additionalPrinterColumns` of their definition, those of built-in kinds are
//! the printers of kube-apiserver 1.36 (`k8s.io/kubernetes/pkg/printers/internalversion`).

mod columns;
mod duration;
mod jsonpath;
mod printers;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::registry::{Resource, Version};

pub use columns::check as check_columns;

/// What a row carries besides its cells (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// The object's metadata, as a `PartialObjectMetadata`.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

impl Include {
    /// Reads the query parameter; `None` when it is no known value.
    pub fn parse(text: &str) -> Option<Include> {
        match text {
            "" | "Metadata" => Some(Include::Metadata),
            "None" => Some(Include::None),
            "Object" => Some(Include::Object),
            _ => None,
        }
    }
}

/// Makes the Table of `objects`, which are in the form of `version`.
///
/// `list_metadata` is the metadata of the list, or of the Table of one object: `{"resourceVersion": ...}`.
/// Ages are counted up to `now`. Without `headers` the columns are not described, as in all events of a watch but
/// the first.
pub fn table(
    resource: &Resource,
    version: &Version,
    objects: &[Value],
    include: Include,
    list_metadata: Value,
    now: Timestamp,
    headers: bool,
) -> Value {
    let rows: Vec<Value>;
    let definitions: Vec<Value>;
    match resource.core {
        Some(core) => {
            definitions = printers::headers(core);
            rows = objects
                .iter()
                .map(|object| row(printers::cells(core, object, now), object, include))
                .collect();
        }
        None => {
            let columns = columns::Column::all(&version.columns);
            definitions = columns::headers(&columns);
            rows = objects
                .iter()
                .map(|object| row(columns::cells(&columns, object, now), object, include))
                .collect();
        }
    }
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list_metadata,
        "columnDefinitions": if headers { Value::Array(definitions) } else { Value::Null },
        "rows": rows,
    })
}

fn row(cells: Vec<Value>, object: &Value, include: Include) -> Value {
    let object = match include {
        Include::None => Value::Null,
        Include::Metadata => partial(object),
        Include::Object => object.clone(),
    };
    json!({"cells": cells, "object": object})
}

/// The metadata of an object alone, as `PartialObjectMetadata`.
pub fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// One entry of `columnDefinitions`.
fn header(name: &str, kind: &str, format: &str, description: &str, priority: i64) -> Value {
    let mut header = Map::new();
    header.insert("name".into(), name.into());
    header.insert("type".into(), kind.into());
    header.insert("format".into(), format.into());
    header.insert("description".into(), description.into());
    header.insert("priority".into(), priority.into());
    Value::Object(header)
}

fn name_header(priority: i64) -> Value {
    header("Name", "string", "name", "Name of the object.", priority)
}

/// The age of an object: how long ago it was created.
const AGE: &str = "How long ago the object was created.";

/// How long ago `time` was, for people; `unknown` when there is none.
fn since(time: &Value, now: Timestamp) -> String {
    match time.as_str() {
        None | Some("") => "<unknown>".to_owned(),
        Some(text) => match text.parse::<Timestamp>() {
            Ok(time) => duration::human(now.duration_since(time)),
            Err(_) => "<invalid>".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests;
