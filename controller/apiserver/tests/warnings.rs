//! What the server says in its log.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};
use tower::ServiceExt as _;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};
use vmlet_apiserver::{ApiServer, Config};

/// Keeps the warnings of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, "{field}={value:?} ");
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().expect("whole").push(line.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

async fn post(api: &ApiServer, path: &str, body: Value) -> u16 {
    let request = Request::post(path).header("content-type", "application/json");
    let request = request.body(Body::from(body.to_string())).expect("a request");
    api.service().oneshot(request).await.expect("answers").status().as_u16()
}

#[tokio::test]
async fn an_object_that_is_refused_is_not_told_to_be_stored_without_managed_fields() {
    let log = Log::default();
    let _said = tracing::subscriber::set_default(log.clone());
    let dir = tempfile::tempdir().expect("a directory");
    let api = ApiServer::open(Config::new(dir.path())).await.expect("opened");
    let set = json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}});
    let spec = json!({"type": "object", "properties": {"set": set}});
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.log.example.org"},
        "spec": {
            "group": "log.example.org", "scope": "Cluster", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}],
        },
    });
    let code = post(
        &api,
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        definition,
    )
    .await;
    assert_eq!(code, 201);
    let thing = json!({
        "apiVersion": "log.example.org/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": {"set": "no list"},
    });
    assert_eq!(post(&api, "/apis/log.example.org/v1/things", thing).await, 422);
    let said = log.0.lock().expect("whole").clone();
    assert!(said.is_empty(), "{said:?}");
    api.close().await;
}
