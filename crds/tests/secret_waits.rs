//! A secret that is created is noticed at once, by a watch of its metadata alone.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response};
use http_body_util::StreamBody;
use kube::Client;
use kube::client::Body;
use serde_json::json;
use tokio::sync::{broadcast, mpsc};
use vmlet_crds::{SecretWaits, SeenSecret};

/// An API with at most one secret, whose watches hear what a test says.
#[derive(Clone)]
struct Api {
    version: Arc<Mutex<Option<String>>>,
    events: broadcast::Sender<String>,
    asked: mpsc::UnboundedSender<String>,
}

impl Api {
    fn new() -> (Api, mpsc::UnboundedReceiver<String>) {
        let (asked, log) = mpsc::unbounded_channel();
        let events = broadcast::Sender::new(8);
        let version = Arc::default();
        (Api { version, events, asked }, log)
    }

    fn secret(version: &str) -> serde_json::Value {
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {"name": "keys", "namespace": "ns", "uid": "u", "resourceVersion": version}})
    }

    fn client(&self) -> Client {
        let api = self.clone();
        Client::new(
            tower::service_fn(move |request: Request<Body>| {
                let api = api.clone();
                async move { Ok::<_, Infallible>(api.answer(&request)) }
            }),
            "ns",
        )
    }

    fn answer(&self, request: &Request<Body>) -> Response<StreamBody<futures::stream::BoxStream<'static, Frame>>> {
        let uri = request.uri().to_string();
        let accept = request
            .headers()
            .get("accept")
            .and_then(|v| v.to_str().ok())
            .unwrap_or("");
        assert!(accept.contains("PartialObjectMetadata"), "only metadata: {accept}");
        assert!(uri.contains("fieldSelector=metadata.name%3Dkeys"), "only one: {uri}");
        let frame = |text: String| Ok(http_body::Frame::data(Bytes::from(text + "\n")));
        let body = if uri.contains("watch=true") {
            let events = self.events.subscribe();
            futures::stream::unfold(
                events,
                |mut events| async move { Some((events.recv().await.ok()?, events)) },
            )
            .map(frame)
            .boxed()
        } else {
            let version = self.version.lock().expect("unpoisoned").clone();
            let items: Vec<_> = version.iter().map(|v| Api::secret(v)).collect();
            let list = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
                "metadata": {"resourceVersion": "1"}, "items": items});
            futures::stream::iter([frame(list.to_string())]).boxed()
        };
        let _ = self.asked.send(uri);
        Response::new(StreamBody::new(body))
    }

    fn tell(&self, what: &str, version: &str) {
        let event = json!({"type": what, "object": Api::secret(version)});
        let _ = self.events.send(event.to_string());
    }
}

type Frame = Result<http_body::Frame<Bytes>, Infallible>;

fn seen(version: Option<&str>) -> SeenSecret {
    SeenSecret {
        namespace: "ns".into(),
        name: "keys".into(),
        version: version.map(str::to_owned),
    }
}

async fn woken(wakes: &mut mpsc::Receiver<String>) -> String {
    let woken = tokio::time::timeout(Duration::from_secs(30), wakes.recv());
    woken.await.expect("woken in time").expect("the sender lives")
}

async fn watched(log: &mut mpsc::UnboundedReceiver<String>) {
    let watched = async { while !log.recv().await.expect("the API lives").contains("watch=true") {} };
    tokio::time::timeout(Duration::from_secs(30), watched)
        .await
        .expect("it watches");
}

#[tokio::test]
async fn whoever_waits_for_a_secret_is_woken_when_it_is_created() {
    let (api, mut log) = Api::new();
    let (wake, mut wakes) = mpsc::channel(8);
    let waits = SecretWaits::new(api.client(), wake);
    waits.wait("vm", seen(None));
    waits.wait("vm", seen(None));
    watched(&mut log).await;
    api.tell("ADDED", "2");
    assert_eq!(woken(&mut wakes).await, "vm");
    assert!(log.try_recv().is_err(), "waiting twice is one watch");
}

#[tokio::test]
async fn a_secret_that_was_made_in_between_wakes_and_one_that_is_as_it_was_does_not() {
    let (api, mut log) = Api::new();
    let (wake, mut wakes) = mpsc::channel(8);
    let waits = SecretWaits::new(api.client(), wake);
    *api.version.lock().expect("unpoisoned") = Some("2".into());
    waits.wait("early", seen(None));
    assert_eq!(woken(&mut wakes).await, "early");
    waits.wait("late", seen(Some("2")));
    watched(&mut log).await;
    api.tell("MODIFIED", "2");
    api.tell("MODIFIED", "3");
    assert_eq!(woken(&mut wakes).await, "late");
    *api.version.lock().expect("unpoisoned") = None;
    waits.wait("later", seen(Some("3")));
    assert_eq!(woken(&mut wakes).await, "later", "it was deleted in between");
}

#[tokio::test]
async fn whoever_is_held_up_no_more_is_not_woken_and_watches_nothing() {
    let (api, mut log) = Api::new();
    let (wake, mut wakes) = mpsc::channel(8);
    let waits = SecretWaits::new(api.client(), wake);
    waits.wait("vm", seen(None));
    watched(&mut log).await;
    waits.forget("vm");
    let gone = async {
        while api.events.receiver_count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone)
        .await
        .expect("the watch ends");
    waits.wait(
        "vm",
        SeenSecret {
            name: "a,metadata.name=b".into(),
            ..seen(None)
        },
    );
    api.tell("ADDED", "2");
    assert!(wakes.try_recv().is_err());
    assert!(log.try_recv().is_err(), "no secret has such a name");
}
