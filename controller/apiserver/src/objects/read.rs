//! GET of one object and of lists.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::Call;
use crate::http::accept::Shape;
use crate::http::answer::{Answer, Content};
use crate::selector::{FieldSelector, LabelSelector, SelectorError, field_value, unsupported_field};
use crate::status::Failure;
use crate::storage::{Batch, EventKind, HistoryEvent, ListRequest, Stored};
use crate::table;

pub async fn get(call: &Call, name: &str) -> Result<Answer, Failure> {
    not_in_future(call).await?;
    let stored = call.load(name).await?;
    if call.accept.shape == Shape::Whole && call.api_version() == call.resource.stored_as {
        // Stored as served: the text goes out as it lies in the file.
        return Ok(Answer {
            code: 200,
            body: Content::Json(stored.body),
            warnings: Vec::new(),
        });
    }
    call.answer(200, call.served(stored.value()?), Vec::new())
}

/// A `Scale` made of the paths that the definition names.
pub async fn scale(call: &Call, name: &str) -> Result<Answer, Failure> {
    let object = call.load(name).await?.value()?;
    Ok(Answer::ok(scale_of(call, &object)?))
}

/// The `Scale` of an object.
pub fn scale_of(call: &Call, object: &Value) -> Result<Value, Failure> {
    let scale = call
        .version()
        .scale
        .as_ref()
        .ok_or_else(|| Failure::internal("no scale"))?;
    let number = |path: &str| pointer(object, path).and_then(Value::as_i64);
    let mut answer = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": object["metadata"]["name"], "namespace": object["metadata"]["namespace"],
            "uid": object["metadata"]["uid"], "resourceVersion": object["metadata"]["resourceVersion"],
            "creationTimestamp": object["metadata"]["creationTimestamp"]},
        "spec": {}, "status": {"replicas": number(&scale.status).unwrap_or(0)},
    });
    if let Some(replicas) = number(&scale.spec) {
        answer["spec"]["replicas"] = replicas.into();
    }
    if let Some(selector) = scale.selector.as_deref().and_then(|path| pointer(object, path)) {
        answer["status"]["selector"] = selector.clone();
    }
    Ok(answer)
}

/// Follows a simple JSON path like `.spec.replicas`.
pub fn pointer<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.')
        .filter(|p| !p.is_empty())
        .try_fold(object, |value, part| value.get(part))
}

/// Label and field selectors of a request.
pub struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
    name: Option<String>,
}

impl Selection {
    pub fn of(call: &Call) -> Result<Selection, Failure> {
        let bad = |e: SelectorError| Failure::bad_request(e.0);
        let labels = LabelSelector::parse(call.query.get("labelSelector").unwrap_or_default()).map_err(bad)?;
        let fields = FieldSelector::parse(call.query.get("fieldSelector").unwrap_or_default()).map_err(bad)?;
        let known = |field: &str| {
            field == "metadata.name"
                || (field == "metadata.namespace" && call.resource.namespaced)
                || call.version().selectable.iter().any(|f| f == field)
        };
        if let Some(field) = fields.fields().find(|field| !known(field)) {
            return Err(Failure::bad_request(unsupported_field(field)));
        }
        Ok(Selection {
            labels,
            fields,
            name: None,
        })
    }

    /// Whether a served object is selected.
    pub fn matches(&self, object: &Value) -> bool {
        let named = self
            .name
            .as_deref()
            .is_none_or(|name| object["metadata"]["name"] == name);
        named
            && self.labels.matches(object["metadata"].get("labels"))
            && self.fields.matches(|path| selectable(object, path))
    }

    /// Selects one name, on top of what is selected.
    pub fn only(&mut self, name: &str) {
        self.name = Some(name.to_owned());
    }
}

/// Fields of core kinds have selector names that are not always their paths.
fn selectable(object: &Value, path: &str) -> String {
    if path == "source" {
        let source = &object["source"]["component"];
        let source = source
            .as_str()
            .filter(|s| !s.is_empty())
            .or(object["reportingComponent"].as_str());
        return source.unwrap_or_default().to_owned();
    }
    field_value(object, path)
}

/// The version that the client wants to see at least, waited for as kube-apiserver does.
pub async fn not_in_future(call: &Call) -> Result<Option<u64>, Failure> {
    let Some(text) = call.query.get("resourceVersion") else {
        return Ok(None);
    };
    let asked: u64 = text.parse().map_err(|_| {
        Failure::bad_request(format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })?;
    let mut committed = call.server.store.committed();
    let reached = tokio::time::timeout(PATIENCE, committed.wait_for(|version| *version >= asked)).await;
    match reached {
        Ok(Ok(_)) => Ok(Some(asked)),
        _ => Err(Failure::version_too_large(asked, call.server.store.version())),
    }
}

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);

/// Where a list goes on: the version of its first page, and the last object of this one.
struct Continue {
    version: u64,
    after: (String, String),
}

impl Continue {
    fn parse(token: &str) -> Result<Continue, Failure> {
        let bad = || Failure::bad_request("continue key is not valid: illegal base64 data or content");
        let bytes = BASE64_STANDARD_NO_PAD
            .decode(token.trim_end_matches('='))
            .map_err(|_| bad())?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
        let start = value["start"].as_str().ok_or_else(bad)?.trim_end_matches('\0');
        let (namespace, name) = start.split_once('/').ok_or_else(bad)?;
        Ok(Continue {
            version: value["rv"].as_u64().ok_or_else(bad)?,
            after: (namespace.to_owned(), name.to_owned()),
        })
    }

    fn token(version: u64, last: &Stored) -> String {
        let start = format!("{}/{}\0", last.namespace, last.name);
        BASE64_STANDARD_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": version, "start": start}).to_string())
    }
}

/// Objects of one version of the world.
pub struct Listed {
    /// As served and selected.
    pub items: Vec<Value>,
    pub version: u64,
}

pub async fn list(call: &Call) -> Result<Answer, Failure> {
    let selection = Selection::of(call)?;
    let page = page(call).await?;
    let mut meta = json!({"resourceVersion": page.version.to_string()});
    if call.accept.shape == Shape::Whole {
        meta["continue"] = "".into();
    }
    if let Some((token, remaining)) = &page.next {
        meta["continue"] = token.as_str().into();
        if let Some(remaining) = remaining {
            meta["remainingItemCount"] = (*remaining).into();
        }
    }
    let as_stored = call.accept.shape == Shape::Whole && call.api_version() == call.resource.stored_as;
    if as_stored && !selects(call) {
        return Ok(Answer {
            code: 200,
            body: Content::Json(joined(call, &meta, &page.items)),
            warnings: Vec::new(),
        });
    }
    let listed = Listed {
        items: select(call, &selection, page.items)?,
        version: page.version,
    };
    let body = match call.accept.shape {
        Shape::Table => call.table(&listed.items, meta, true)?,
        Shape::Metadata => json!({
            "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": meta,
            "items": listed.items.iter().map(table::partial).collect::<Vec<_>>(),
        }),
        Shape::Whole | Shape::Discovery(_) => {
            let mut list = json!({"kind": call.resource.list_kind, "apiVersion": call.api_version(), "metadata": meta});
            list["items"] = Value::Array(listed.items);
            list
        }
    };
    Ok(Answer::ok(body))
}

fn selects(call: &Call) -> bool {
    call.query.get("labelSelector").is_some() || call.query.get("fieldSelector").is_some()
}

/// A list of objects that are served as they are stored: their texts, side by side.
fn joined(call: &Call, meta: &Value, items: &[Stored]) -> Bytes {
    let size: usize = items.iter().map(|s| s.body.len() + 1).sum();
    let (kind, version) = (
        Value::from(call.resource.list_kind.as_str()),
        Value::from(call.api_version()),
    );
    let head = format!(r#"{{"kind":{kind},"apiVersion":{version},"metadata":{meta},"items":["#);
    let mut text = Vec::with_capacity(head.len() + size + 2);
    text.extend_from_slice(head.as_bytes());
    for (index, stored) in items.iter().enumerate() {
        if index > 0 {
            text.push(b',');
        }
        text.extend_from_slice(&stored.body);
    }
    text.extend_from_slice(b"]}");
    text.into()
}

/// One page of what lies in the store.
struct Page {
    items: Vec<Stored>,
    version: u64,
    next: Option<(String, Option<u64>)>,
}

/// Reads a page (all without `limit`) of what the call asks for.
pub async fn collect(call: &Call, selection: &Selection) -> Result<Listed, Failure> {
    let page = page(call).await?;
    Ok(Listed {
        items: select(call, selection, page.items)?,
        version: page.version,
    })
}

async fn page(call: &Call) -> Result<Page, Failure> {
    // A negative limit is none.
    let limit = call
        .query
        .integer("limit")?
        .map_or(0, |l| u64::try_from(l).unwrap_or(0));
    let matching = call.query.get("resourceVersionMatch");
    let asked = not_in_future(call).await?;
    if matching.is_some() && asked.is_none() && call.query.get("sendInitialEvents").is_none() {
        return Err(Failure::bad_request(
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        ));
    }
    if let Some(other) = matching.filter(|m| !matches!(*m, "Exact" | "NotOlderThan")) {
        return Err(Failure::bad_request(format!(
            "resourceVersionMatch: Unsupported value: {other:?}"
        )));
    }
    let position = call.query.get("continue").map(Continue::parse).transpose()?;
    if let Some(position) = &position
        && position.version < call.server.store.floor().await?
    {
        return Err(Failure::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.",
        ));
    }
    let exact = (matching == Some("Exact")).then_some(asked).flatten();
    if exact == Some(0) {
        return Err(Failure::bad_request(
            "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
        ));
    }
    let request = ListRequest {
        resource: call.resource.storage.clone(),
        namespace: (!call.place.namespace.is_empty()).then(|| call.place.namespace.clone()),
        after: position.as_ref().map(|p| p.after.clone()),
        limit: if exact.is_some() {
            0
        } else {
            usize::try_from(limit).unwrap_or(usize::MAX >> 1)
        },
    };
    let limited = request.limit != 0;
    let mut page = call.server.store.list(request.clone()).await?;
    if let Some(exact) = exact {
        let events = changes_between(call, exact, page.version).await?;
        page.items = without(events, page.items, exact)?;
        page.version = exact;
    } else if let Some(Continue { version, after }) = position {
        // All pages are of the version of the first one.
        let mut events = changes_between(call, version, page.version).await?;
        if !events.is_empty() {
            let all = ListRequest {
                after: None,
                limit: 0,
                ..request.clone()
            };
            let all = call.server.store.list(all).await?;
            events = changes_between(call, version, all.version).await?;
            page.items = without(events, all.items, version)?;
            page.items
                .retain(|s| (s.namespace.as_str(), s.name.as_str()) > (after.0.as_str(), after.1.as_str()));
            let wanted = if limited { request.limit } else { page.items.len() };
            page.remaining = page.items.len().saturating_sub(wanted) as u64;
            page.items.truncate(wanted);
        }
        page.version = version;
    }
    let version = page.version;
    let next = match page.items.last() {
        Some(last) if limited && page.remaining > 0 => Some((
            Continue::token(version, last),
            (!selects(call)).then_some(page.remaining),
        )),
        _ => None,
    };
    Ok(Page {
        items: page.items,
        version,
        next,
    })
}

/// Everything that a watch begins with.
pub async fn collect_all(call: &Call, selection: &Selection) -> Result<Listed, Failure> {
    let request = ListRequest {
        resource: call.resource.storage.clone(),
        namespace: (!call.place.namespace.is_empty()).then(|| call.place.namespace.clone()),
        after: None,
        limit: 0,
    };
    let page = call.server.store.list(request).await?;
    let items = select(call, selection, page.items)?;
    Ok(Listed {
        items,
        version: page.version,
    })
}

fn select(call: &Call, selection: &Selection, stored: Vec<Stored>) -> Result<Vec<Value>, Failure> {
    let mut items = Vec::with_capacity(stored.len());
    for stored in stored {
        let object = call.served(stored.value()?);
        if selection.matches(&object) {
            items.push(object);
        }
    }
    Ok(items)
}

/// What happened after version `exact`, up to `from`.
async fn changes_between(call: &Call, exact: u64, mut from: u64) -> Result<Vec<Arc<HistoryEvent>>, Failure> {
    let namespace = (!call.place.namespace.is_empty()).then(|| call.place.namespace.clone());
    let mut events = Vec::new();
    let mut after = exact;
    while after < from {
        let batch = call
            .server
            .store
            .changes(after, Some(call.resource.storage.clone()), namespace.clone())
            .await?;
        let Batch::Changes { events: more, upto } = batch else {
            return Err(Failure::expired(
                "The resourceVersion for the provided list is too old.",
            ));
        };
        events.extend(more.into_iter().filter(|e| e.version <= from));
        after = upto;
        from = from.min(upto.max(from));
    }
    Ok(events)
}

/// Objects as they were at version `exact`, before these changes.
fn without(events: Vec<Arc<HistoryEvent>>, items: Vec<Stored>, exact: u64) -> Result<Vec<Stored>, Failure> {
    let mut by_name: std::collections::BTreeMap<(String, String), Stored> = items
        .into_iter()
        .map(|s| ((s.namespace.clone(), s.name.clone()), s))
        .collect();
    for event in events.into_iter().rev() {
        let key = (event.namespace.clone(), event.name.clone());
        match (&event.previous, event.kind) {
            (Some(previous), EventKind::Modified | EventKind::Deleted) => {
                let object: Value = serde_json::from_slice(previous).map_err(Failure::internal)?;
                let version = object["metadata"]["resourceVersion"]
                    .as_str()
                    .and_then(|v| v.parse().ok());
                let stored = Stored {
                    namespace: key.0.clone(),
                    name: key.1.clone(),
                    version: version.unwrap_or(exact),
                    body: previous.clone(),
                };
                by_name.insert(key, stored);
            }
            _ => {
                by_name.remove(&key);
            }
        }
    }
    Ok(by_name.into_values().collect())
}
