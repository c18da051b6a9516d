//! Watches: what happened to the objects of one resource since a version, as lines of JSON.
//!
//! A watch is a cursor into the history. It reads what was committed after its cursor, turns each change into what it means
//! for this selection (an object that leaves it is DELETED, one that enters it is ADDED), and waits for the next commit.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;
use tokio::time::Instant;

use crate::Inner;
use crate::http::accept::Shape;
use crate::http::answer::{Answer, Content};
use crate::objects::read::Selection;
use crate::objects::{Call, read};
use crate::registry::Registry;
use crate::schema::FieldError;
use crate::status::{Failure, Subject};
use crate::storage::{Batch, EventKind, HistoryEvent};
use crate::table;

/// How long a watch lasts that does not say, in seconds; up to twice as long.
const DEFAULT_TIMEOUT: u64 = 1800;
const BOOKMARK_EVERY: Duration = Duration::from_secs(55);

/// Marks the end of the state that a watch began with.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

pub(crate) async fn watch(call: &Call) -> Result<Answer, Failure> {
    let mut selection = Selection::of(call)?;
    if let Some(name) = &call.place.name {
        selection.only(name);
    }
    let bookmarks = call.query.flag("allowWatchBookmarks");
    let initial = initial_events(call, bookmarks)?;
    let text = call.query.get("resourceVersion").unwrap_or_default();
    let asked: u64 = match text {
        "" => 0,
        text => text
            .parse()
            .map_err(|_| Failure::unnamed(format!("strconv.ParseUint: parsing {text:?}: invalid syntax")))?,
    };
    let timeout = call
        .query
        .integer("timeoutSeconds")?
        .and_then(|t| u64::try_from(t).ok())
        .filter(|t| *t > 0)
        .unwrap_or_else(|| {
            DEFAULT_TIMEOUT + u64::from(uuid::Uuid::new_v4().as_fields().1) * DEFAULT_TIMEOUT / u64::from(u16::MAX)
        });
    let mut lines = VecDeque::new();
    let mut headers = true;
    let cursor = if initial == Some(true) || (initial.is_none() && asked == 0) {
        if asked > 0 {
            read::not_in_future(call).await?;
        }
        let listed = read::collect_all(call, &selection).await?;
        for object in listed.items {
            lines.push_back(line(call, "ADDED", object, &mut headers)?);
        }
        // kube-apiserver also ends the state of `resourceVersion=0` with a bookmark, where bookmarks are allowed.
        if initial == Some(true) || (bookmarks && text == "0") {
            lines.push_back(bookmark(call, listed.version, true)?);
        }
        listed.version
    } else {
        asked
    };
    let watch = Watch {
        committed: call.server.store.committed(),
        registry: call.server.registry.subscribe(),
        server: call.server.clone(),
        call: call.for_watch(),
        selection,
        cursor,
        headers,
        lines,
        bookmarks: bookmarks.then(|| Instant::now() + BOOKMARK_EVERY),
        until: Instant::now() + Duration::from_secs(timeout),
        ended: false,
    };
    let stream = stream::unfold(watch, |mut watch| async move {
        let bytes = watch.next().await?;
        Some((Ok::<Bytes, Infallible>(bytes), watch))
    });
    Ok(Answer {
        code: 200,
        body: Content::Stream(Body::from_stream(stream)),
        warnings: Vec::new(),
    })
}

/// `sendInitialEvents`, with the rules about its companions.
fn initial_events(call: &Call, bookmarks: bool) -> Result<Option<bool>, Failure> {
    let matching = call.query.get("resourceVersionMatch");
    let mut errors = Vec::new();
    let initial = call.query.get("sendInitialEvents").map(|v| v != "false");
    match (initial, matching) {
        (None, Some(_)) => errors.push(FieldError::forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        )),
        (Some(_), Some("NotOlderThan")) => {}
        (Some(_), _) => errors.push(FieldError::forbidden(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        )),
        (None, None) => {}
    }
    if initial == Some(true) && !bookmarks {
        errors.push(FieldError::forbidden(
            "sendInitialEvents",
            "sendInitialEvents requires allowWatchBookmarks",
        ));
    }
    if errors.is_empty() {
        return Ok(initial);
    }
    let subject = Subject {
        group: "meta.k8s.io",
        kind: "ListOptions",
        name: "",
    };
    let causes: Vec<_> = errors.into_iter().map(Into::into).collect();
    Err(Failure::invalid(&subject, &causes))
}

struct Watch {
    server: Arc<Inner>,
    call: Call,
    selection: Selection,
    committed: Receiver<u64>,
    registry: Receiver<Arc<Registry>>,
    /// Everything up to this version has been told.
    cursor: u64,
    /// A table's columns are told once.
    headers: bool,
    lines: VecDeque<Bytes>,
    /// When the next one is due; none if the client wants none.
    bookmarks: Option<Instant>,
    until: Instant,
    ended: bool,
}

enum Woke {
    Commit,
    Bookmark,
    End,
}

impl Watch {
    /// The next line; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.ended || Instant::now() >= self.until {
                return None;
            }
            // Seen before it is read: what comes in between wakes us once more.
            let newest = *self.committed.borrow_and_update();
            if newest > self.cursor {
                if let Err(failure) = self.read().await {
                    self.ended = true;
                    return Some(error(&failure));
                }
                continue;
            }
            match self.wait().await {
                Woke::Commit => {}
                Woke::Bookmark => match bookmark(&self.call, self.cursor, false) {
                    Ok(line) => return Some(line),
                    Err(_) => self.ended = true,
                },
                Woke::End => return None,
            }
        }
    }

    async fn wait(&mut self) -> Woke {
        let bookmark = self.bookmarks.filter(|at| *at < self.until);
        let deadline = bookmark.unwrap_or(self.until);
        tokio::select! {
            changed = self.committed.changed() => if changed.is_err() { Woke::End } else { Woke::Commit },
            _ = self.server.shutdown.cancelled() => Woke::End,
            changed = self.registry.changed() => {
                if changed.is_err() || !self.still_served() { Woke::End } else { Woke::Commit }
            }
            () = tokio::time::sleep_until(deadline) => {
                if bookmark.is_some() {
                    self.bookmarks = Some(Instant::now() + BOOKMARK_EVERY);
                    Woke::Bookmark
                } else {
                    Woke::End
                }
            }
        }
    }

    /// A watch ends with the definition of its kind, or when the schema changes.
    fn still_served(&mut self) -> bool {
        let registry = self.registry.borrow_and_update().clone();
        let resource = &self.call.resource;
        registry
            .find(&resource.group, &self.call.version().name, &resource.plural)
            .is_some_and(|(now, _)| now.origin.0 == resource.origin.0)
    }

    /// Turns what was committed since the cursor into lines.
    async fn read(&mut self) -> Result<(), Failure> {
        let namespace = (!self.call.place.namespace.is_empty()).then(|| self.call.place.namespace.clone());
        let storage = self.call.resource.storage.clone();
        match self.server.store.changes(self.cursor, Some(storage), namespace).await? {
            Batch::TooOld => {
                let floor = self.server.store.floor().await?;
                Err(Failure::expired(format!(
                    "too old resource version: {} ({floor})",
                    self.cursor
                )))
            }
            Batch::Changes { events, upto } => {
                for event in events {
                    self.tell(&event)?;
                }
                self.cursor = upto;
                Ok(())
            }
        }
    }

    fn tell(&mut self, event: &HistoryEvent) -> Result<(), Failure> {
        let parse = |bytes: &Bytes| serde_json::from_slice::<Value>(bytes).map_err(Failure::internal);
        let object = self.call.served(parse(&event.body)?);
        let before = match &event.previous {
            Some(previous) => Some(self.call.served(parse(previous)?)),
            None => None,
        };
        let was = before.as_ref().is_some_and(|b| self.selection.matches(b));
        let is = event.kind != EventKind::Deleted && self.selection.matches(&object);
        let (kind, object) = match (was, is) {
            (false, false) => return Ok(()),
            (false, true) => ("ADDED", object),
            (true, true) => ("MODIFIED", object),
            (true, false) if event.kind == EventKind::Deleted => ("DELETED", object),
            (true, false) => {
                // It left the selection: the client gets it as it knew it, with the new version.
                let mut left = before.unwrap_or_default();
                left["metadata"]["resourceVersion"] = event.version.to_string().into();
                ("DELETED", left)
            }
        };
        self.lines.push_back(line(&self.call, kind, object, &mut self.headers)?);
        Ok(())
    }
}

fn text(kind: &str, object: &Value) -> Bytes {
    let mut line = json!({"type": kind, "object": object}).to_string();
    line.push('\n');
    line.into()
}

fn line(call: &Call, kind: &str, object: Value, headers: &mut bool) -> Result<Bytes, Failure> {
    let object = match call.accept.shape {
        Shape::Whole | Shape::Discovery(_) => object,
        Shape::Metadata => table::partial(&object),
        Shape::Table => {
            let meta = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            let table = call.table(&[object], meta, *headers)?;
            *headers = false;
            table
        }
    };
    Ok(text(kind, &object))
}

fn bookmark(call: &Call, version: u64, initial: bool) -> Result<Bytes, Failure> {
    let mut metadata = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
    if initial {
        metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
    }
    let object = match call.accept.shape {
        Shape::Metadata => {
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
        }
        Shape::Table => {
            let object = json!({"kind": call.resource.kind, "apiVersion": call.api_version(), "metadata": metadata});
            call.table(&[object], json!({"resourceVersion": version.to_string()}), false)?
        }
        _ => json!({"kind": call.resource.kind, "apiVersion": call.api_version(), "metadata": metadata}),
    };
    Ok(text("BOOKMARK", &object))
}

fn error(failure: &Failure) -> Bytes {
    text("ERROR", &failure.object())
}
