//! A Kubernetes API for tests: objects in memory, by path, and a log of what was asked. It knows what the
//! agent and the controller use: get, list, watch, create, replace, JSON patch, merge and apply, delete; of selectors
//! that of a name.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::{self, BoxStream, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Either, Full, StreamBody};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::broadcast;

/// The API. Clones share their state.
#[derive(Clone, Default)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
}

type Events = StreamBody<BoxStream<'static, Result<Frame<bytes::Bytes>, Infallible>>>;

struct State {
    objects: BTreeMap<String, Value>,
    log: Vec<(Method, String, Value)>,
    version: u64,
    answer: Option<(StatusCode, Value)>,
    /// What is gone, for a watch that begins before that.
    gone: Vec<Change>,
    /// No watch can begin before this version.
    oldest: u64,
    changes: broadcast::Sender<Change>,
}

/// A write or a deletion, as a watch tells it. Without a path it is for every watch.
#[derive(Clone, Debug)]
pub struct Change {
    path: String,
    event: Value,
}

impl Change {
    fn new(type_: &str, path: &str, object: Value) -> Change {
        Change {
            path: path.to_owned(),
            event: json!({"type": type_, "object": object}),
        }
    }

    /// What was asked for lies too far back.
    fn expired() -> Change {
        Change::new("ERROR", "", failure(StatusCode::GONE, "Expired", "resourceVersion").1)
    }

    fn version(&self) -> u64 {
        let text = self.event["object"]["metadata"]["resourceVersion"].as_str();
        text.and_then(|text| text.parse().ok()).unwrap_or_default()
    }
}

impl Default for State {
    fn default() -> Self {
        State {
            objects: BTreeMap::new(),
            log: Vec::new(),
            version: 0,
            answer: None,
            gone: Vec::new(),
            oldest: 0,
            changes: broadcast::Sender::new(256),
        }
    }
}

impl FakeApi {
    /// A client that talks to it.
    pub fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                let (parts, body) = request.into_parts();
                let bytes = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
                let kind = parts
                    .headers
                    .get("content-type")
                    .and_then(|v| v.to_str().ok())
                    .unwrap_or("");
                let query = parts.uri.query().unwrap_or_default();
                let (status, body) = if query.contains("watch=true") {
                    (StatusCode::OK, Either::Right(api.watch(parts.uri.path(), query)))
                } else {
                    let (status, mut answer) = api.answer(&parts.method, parts.uri.path(), kind, body);
                    if let (Some(name), Some(items)) = (selected(query), answer["items"].as_array_mut()) {
                        items.retain(|item| item["metadata"]["name"] == name);
                    }
                    (status, Either::Left(Full::new(bytes::Bytes::from(answer.to_string()))))
                };
                let response = Response::builder()
                    .status(status)
                    .header("content-type", "application/json")
                    .body(body)
                    .expect("a response");
                Ok::<_, Infallible>(response)
            }
        });
        Client::new(service, "default")
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on every request gets this answer; None: the true one.
    pub fn always(&self, answer: Option<(StatusCode, Value)>) {
        self.state().answer = answer;
    }

    /// Puts an object there, without a word in the log.
    pub fn put(&self, path: &str, object: impl serde::Serialize) {
        let object = serde_json::to_value(object).expect("JSON");
        self.state().store(path, object);
    }

    /// Takes an object away.
    pub fn remove(&self, path: &str) {
        self.state().remove(path);
    }

    /// Takes an object away while no watch looks: all have to list again.
    pub fn remove_unseen(&self, path: &str) {
        let mut state = self.state();
        state.objects.remove(path);
        state.version += 1;
        state.oldest = state.version;
        let _ = state.changes.send(Change::expired());
    }

    /// An object.
    pub fn get(&self, path: &str) -> Option<Value> {
        self.state().objects.get(path).cloned()
    }

    /// Every write and deletion from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.state().changes.subscribe()
    }

    /// The requests since the last look, as `METHOD path`.
    pub fn requests(&self) -> Vec<String> {
        let log = std::mem::take(&mut self.state().log);
        log.into_iter()
            .map(|(method, path, _)| format!("{method} {path}"))
            .collect()
    }

    /// Reason and note of all events, in order.
    pub fn events(&self) -> Vec<(String, String)> {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let mut events: Vec<_> = self
            .state()
            .objects
            .iter()
            .filter(|(path, _)| path.contains("/events/"))
            .map(|(_, event)| (text(&event["eventTime"]), text(&event["reason"]), text(&event["note"])))
            .collect();
        events.sort();
        events.into_iter().map(|(_, reason, note)| (reason, note)).collect()
    }

    /// What was written to a collection or deleted after the version that the query names, for ever.
    fn watch(&self, collection: &str, query: &str) -> Events {
        let state = self.state();
        let from = query.split('&').find_map(|p| p.strip_prefix("resourceVersion="));
        let from: u64 = from.and_then(|v| v.parse().ok()).unwrap_or_default();
        let (collection, name) = (collection.to_owned(), selected(query).map(str::to_owned));
        let wanted = move |path: &str| {
            let last = path.rsplit_once('/').map_or("", |(_, last)| last);
            is_in(path, &collection) && name.as_deref().is_none_or(|name| name == last)
        };
        let there = state.objects.iter();
        let there = there.map(|(path, object)| Change::new("MODIFIED", path, object.clone()));
        let mut before: Vec<Change> = there.chain(state.gone.iter().cloned()).collect();
        before.retain(|change| wanted(&change.path) && change.version() > from);
        before.sort_by_key(Change::version);
        if from < state.oldest {
            before = vec![Change::expired()];
        }
        let after = stream::unfold(state.changes.subscribe(), move |mut changes| {
            let wanted = wanted.clone();
            async move {
                loop {
                    let change = changes.recv().await.ok()?;
                    if change.path.is_empty() || wanted(&change.path) {
                        return Some((change, changes));
                    }
                }
            }
        });
        let event = |change: Change| Ok(Frame::data(bytes::Bytes::from(format!("{}\n", change.event))));
        StreamBody::new(stream::iter(before).chain(after).map(event).boxed())
    }

    fn answer(&self, method: &Method, path: &str, kind: &str, body: Value) -> (StatusCode, Value) {
        let mut state = self.state();
        state.log.push((method.clone(), path.to_owned(), body.clone()));
        if let Some((code, answer)) = &state.answer {
            return (*code, answer.clone());
        }
        let object = path.strip_suffix("/status").unwrap_or(path).to_owned();
        match *method {
            Method::GET => match state.objects.get(&object) {
                Some(found) => (StatusCode::OK, found.clone()),
                None if is_collection(&object) => (StatusCode::OK, state.list(&object)),
                None => not_found(&object),
            },
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let object = format!("{object}/{name}");
                if state.objects.contains_key(&object) {
                    return failure(StatusCode::CONFLICT, "AlreadyExists", &name);
                }
                (StatusCode::CREATED, state.store(&object, body))
            }
            Method::PUT => match state.objects.get(&object) {
                None => not_found(&object),
                Some(old) if old["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] => {
                    failure(StatusCode::CONFLICT, "Conflict", &object)
                }
                Some(_) => (StatusCode::OK, state.store(&object, body)),
            },
            Method::PATCH if kind.starts_with("application/json-patch") => {
                let Some(mut new) = state.objects.get(&object).cloned() else {
                    return not_found(&object);
                };
                let patch: json_patch::Patch = serde_json::from_value(body).expect("a JSON patch");
                match json_patch::patch(&mut new, &patch) {
                    Ok(()) => (StatusCode::OK, state.store(&object, new)),
                    Err(_) => failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", &object),
                }
            }
            Method::PATCH => {
                let mut new = state.objects.get(&object).cloned().unwrap_or(Value::Null);
                json_patch::merge(&mut new, &body);
                (StatusCode::OK, state.store(&object, new))
            }
            Method::DELETE => match state.remove(&object) {
                Some(old) => (StatusCode::OK, old),
                None => not_found(&object),
            },
            _ => failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", path),
        }
    }
}

impl State {
    fn store(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("00000000-0000-4000-8000-{:012}", self.version));
        }
        let meta = &object["metadata"];
        let held = meta["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        let deleted = !meta["deletionTimestamp"].is_null() && !held;
        self.objects.insert(path.to_owned(), object.clone());
        if deleted {
            self.remove(path);
        } else {
            // Nobody may be watching.
            let _ = self.changes.send(Change::new("MODIFIED", path, object.clone()));
        }
        object
    }

    fn remove(&mut self, path: &str) -> Option<Value> {
        let mut object = self.objects.remove(path)?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let change = Change::new("DELETED", path, object.clone());
        self.gone.push(change.clone());
        let _ = self.changes.send(change);
        Some(object)
    }

    fn list(&self, collection: &str) -> Value {
        let items = self.objects.iter().filter(|(path, _)| is_in(path, collection));
        let items: Vec<&Value> = items.map(|(_, object)| object).collect();
        json!({"metadata": {"resourceVersion": self.version.to_string()}, "items": items})
    }
}

/// Whether an object is in a collection, which may be that of all namespaces.
fn is_in(path: &str, collection: &str) -> bool {
    let (group, plural) = collection.rsplit_once('/').unwrap_or_default();
    path.rsplit_once('/').is_some_and(|(parent, _)| {
        parent == collection
            || (parent.starts_with(&format!("{group}/namespaces/")) && parent.ends_with(&format!("/{plural}")))
    })
}

/// The name that a field selector asks for.
fn selected(query: &str) -> Option<&str> {
    let selector = query.split('&').find_map(|p| p.strip_prefix("fieldSelector="))?;
    selector.strip_prefix("metadata.name%3D")
}

/// Whether a path names all objects of a kind: the last word is a plural, not a name.
fn is_collection(path: &str) -> bool {
    let words: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let after_version = if words[0] == "api" { &words[2..] } else { &words[3..] };
    match after_version.first() {
        Some(&"namespaces") => after_version.len() == 3,
        _ => after_version.len() == 1,
    }
}

fn not_found(path: &str) -> (StatusCode, Value) {
    failure(
        StatusCode::NOT_FOUND,
        "NotFound",
        path.rsplit('/').next().unwrap_or_default(),
    )
}

/// A `Status` as the real server sends it.
pub fn failure(code: StatusCode, reason: &str, name: &str) -> (StatusCode, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason,
        "message": format!("\"{name}\": {reason}"), "code": code.as_u16(), "details": {"name": name}});
    (code, status)
}
