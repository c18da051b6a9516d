//! What a client of the socket meets, and what a restart keeps.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tower::ServiceExt as _;
use vmlet_apiserver::{ApiServer, Config};

async fn open(dir: &Path) -> ApiServer {
    ApiServer::open(Config::new(dir)).await.expect("opened")
}

/// One request in the process; the answer's code, its Warning headers and its JSON.
async fn ask(api: &ApiServer, method: &str, path: &str, body: Value) -> (StatusCode, Vec<String>, Value) {
    let kind = match method {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    };
    let body = match body {
        Value::Null => Body::empty(),
        body => Body::from(body.to_string()),
    };
    let request = Request::builder().method(method).uri(path).header("content-type", kind);
    let answer = api
        .service()
        .oneshot(request.body(body).expect("a request"))
        .await
        .expect("always answers");
    let (parts, body) = answer.into_parts();
    let warnings = parts.headers.get_all("warning").iter();
    let warnings = warnings.filter_map(|v| v.to_str().ok().map(str::to_owned)).collect();
    let bytes = body.collect().await.expect("a body").to_bytes();
    (
        parts.status,
        warnings,
        serde_json::from_slice(&bytes).unwrap_or_default(),
    )
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}})
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A TLS client that trusts the kubeconfig's authority, and one plain HTTP/1.1 request.
async fn over_tls(kubeconfig: &str, address: std::net::SocketAddr, token: Option<&str>, path: &str) -> String {
    let authority = kubeconfig
        .lines()
        .find_map(|line| line.trim().strip_prefix("certificate-authority-data: "))
        .expect("an authority");
    let pem = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, authority).expect("base64");
    let mut roots = rustls::RootCertStore::empty();
    let certificate = <rustls::pki_types::CertificateDer as rustls::pki_types::pem::PemObject>::from_pem_slice(&pem);
    roots.add(certificate.expect("PEM")).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(address).await.expect("connected");
    let name = rustls::pki_types::ServerName::from(address.ip());
    let mut stream = connector.connect(name, stream).await.expect("a trusted certificate");
    let token = token
        .map(|t| format!("Authorization: Bearer {t}\r\n"))
        .unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{token}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    // A server may close without a TLS farewell.
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

#[tokio::test]
async fn without_the_token_only_health_and_version_are_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let api = open(dir.path()).await;
    let address = api.serve(([127, 0, 0, 1], 0).into()).await.expect("served");
    let path = dir.path().join("kubeconfig");
    api.write_kubeconfig(address, &path).expect("written");
    let kubeconfig = std::fs::read_to_string(&path).expect("read");
    let token = kubeconfig
        .lines()
        .find_map(|line| line.trim().strip_prefix("token: "))
        .expect("a token");
    let secret = token;
    for (path, token, code) in [
        ("/readyz", None, 200),
        ("/version", None, 200),
        ("/api", None, 401),
        (MAPS, None, 401),
        (MAPS, Some("wrong"), 401),
        (MAPS, Some(token), 200),
        ("/openapi/v3", None, 401),
    ] {
        let answer = over_tls(&kubeconfig, address, token, path).await;
        let status = format!("HTTP/1.1 {code}");
        assert!(answer.starts_with(&status), "{path} with {token:?}: {answer}");
        assert!(!answer.contains(secret), "{path}");
    }
    api.close().await;
}

#[tokio::test]
async fn a_kubeconfig_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    let api = open(&dir.path().join("api")).await;
    let path = dir.path().join("kubeconfig");
    api.write_kubeconfig(([127, 0, 0, 1], 6440).into(), &path)
        .expect("written");
    let mode = std::fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let missing = dir.path().join("no/such/place");
    let error = api
        .write_kubeconfig(([127, 0, 0, 1], 6440).into(), &missing)
        .expect_err("no directory");
    assert!(error.to_string().contains("no/such/place"), "{error}");
}

#[tokio::test]
async fn objects_versions_and_credentials_outlive_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let api = open(dir.path()).await;
    let (code, _, first) = ask(&api, "POST", MAPS, config_map("kept")).await;
    assert_eq!(code, 201, "{first}");
    api.close().await;
    drop(api);
    let api = open(dir.path()).await;
    let (code, _, again) = ask(&api, "GET", &format!("{MAPS}/kept"), Value::Null).await;
    assert_eq!((code.as_u16(), &again), (200, &first));
    let (_, _, second) = ask(&api, "POST", MAPS, config_map("later")).await;
    let version = |object: &Value| {
        object["metadata"]["resourceVersion"]
            .as_str()
            .and_then(|v| v.parse::<u64>().ok())
    };
    assert!(version(&second) > version(&first), "{first} {second}");
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let api = open(dir.path()).await;
    let mut large = config_map("large");
    large["data"]["a"] = "x".repeat(3 << 20).into();
    let (code, _, status) = ask(&api, "POST", MAPS, large).await;
    assert_eq!(
        (code.as_u16(), &status["reason"]),
        (413, &json!("RequestEntityTooLarge")),
        "{status}"
    );
}

#[tokio::test]
async fn unknown_fields_are_warned_about_and_dropped() {
    let dir = tempfile::tempdir().expect("a directory");
    let api = open(dir.path()).await;
    let mut map = config_map("typo");
    map["dato"] = json!({"c": "d"});
    let (code, warnings, object) = ask(&api, "POST", MAPS, map.clone()).await;
    assert_eq!((code.as_u16(), &object["dato"]), (201, &Value::Null));
    assert_eq!(warnings, [r#"299 - "unknown field \"dato\"""#]);
    map["metadata"]["name"] = "strict".into();
    let (code, _, status) = ask(&api, "POST", &format!("{MAPS}?fieldValidation=Strict"), map).await;
    assert_eq!(code, 400);
    let message = status["message"].as_str().unwrap_or_default();
    assert!(
        message.ends_with("strict decoding error: unknown field \"dato\""),
        "{message}"
    );
}

#[tokio::test]
async fn a_watch_ends_when_the_server_closes() {
    let dir = tempfile::tempdir().expect("a directory");
    let api = open(dir.path()).await;
    let request = Request::get(format!("{MAPS}?watch=true"))
        .body(Body::empty())
        .expect("a request");
    let mut watch = api.service().oneshot(request).await.expect("answers").into_body();
    ask(&api, "POST", MAPS, config_map("seen")).await;
    let line = watch
        .frame()
        .await
        .expect("a line")
        .expect("no error")
        .into_data()
        .expect("data");
    let event: Value = serde_json::from_slice(&line).expect("JSON");
    assert_eq!(
        (&event["type"], &event["object"]["metadata"]["name"]),
        (&json!("ADDED"), &json!("seen"))
    );
    api.close().await;
    let end = tokio::time::timeout(Duration::from_secs(10), watch.frame())
        .await
        .expect("in time");
    assert!(end.is_none());
}

#[tokio::test]
async fn what_cannot_be_read_is_a_status_not_a_hang() {
    let dir = tempfile::tempdir().expect("a directory");
    let api = open(dir.path()).await;
    for (method, path, body, code) in [
        ("POST", MAPS, json!([1, 2]), 400),
        ("POST", MAPS, json!({"kind": "ConfigMap"}), 422),
        ("POST", MAPS, json!({"metadata": "x"}), 400),
        ("POST", "/api/v1/namespaces/absent/configmaps", config_map("a"), 404),
        ("POST", "/api/v1/configmaps", config_map("a"), 405),
        ("PATCH", &format!("{MAPS}/absent"), json!({}), 404),
        ("GET", &format!("{MAPS}?limit=x"), Value::Null, 400),
        ("GET", &format!("{MAPS}?fieldSelector=a.b=c"), Value::Null, 400),
        ("GET", "/apis/nothing.example/v1/things", Value::Null, 404),
        ("DELETE", "/api/v1/namespaces/kube-system", Value::Null, 403),
        ("GET", "/", Value::Null, 404),
    ] {
        let (is, _, status) = ask(&api, method, path, body).await;
        assert_eq!(is.as_u16(), code, "{method} {path}: {status}");
    }
}

fn definition(plural: &str, kind: &str) -> Value {
    let schema = json!({"openAPIV3Schema": {"type": "object"}});
    let versions = json!([{"name": "v1", "served": true, "storage": true, "schema": schema}]);
    let names = json!({"plural": plural, "kind": kind, "singular": plural.trim_end_matches('s')});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.names.example.org")},
        "spec": {"group": "names.example.org", "scope": "Cluster", "names": names, "versions": versions},
    })
}

#[tokio::test]
async fn a_definition_that_wants_names_of_another_is_not_served_until_that_one_is_gone() {
    const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let dir = tempfile::tempdir().expect("a directory");
    let api = open(dir.path()).await;
    let (code, _, first) = ask(&api, "POST", DEFINITIONS, definition("firsts", "Thing")).await;
    assert_eq!(code, 201, "{first}");
    let (code, _, second) = ask(&api, "POST", DEFINITIONS, definition("seconds", "Thing")).await;
    assert_eq!(code, 201, "{second}");
    let conditions = |object: &Value| {
        let list = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let text =
            |c: &Value| format!("{}={} {}: {}", c["type"], c["status"], c["reason"], c["message"]).replace('"', "");
        list.iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(
        conditions(&second),
        [
            r"NamesAccepted=False ListKindConflict: \ThingList\ is already in use",
            "Established=False NotAccepted: not all names are accepted",
        ]
    );
    assert_eq!(
        second["status"]["acceptedNames"],
        json!({"plural": "seconds", "singular": "second", "kind": ""})
    );
    let served = async |api: &ApiServer| {
        let (_, _, list) = ask(api, "GET", "/apis/names.example.org/v1", Value::Null).await;
        let list = list["resources"].as_array().cloned().unwrap_or_default();
        list.iter()
            .map(|r| r["name"].as_str().unwrap_or_default().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(served(&api).await, ["firsts"]);
    let objects = "/apis/names.example.org/v1/seconds";
    assert_eq!(ask(&api, "GET", objects, Value::Null).await.0, 404);
    api.close().await;
    drop(api);
    let api = open(dir.path()).await;
    assert_eq!(served(&api).await, ["firsts"]);

    let request = Request::get(format!(
        "{DEFINITIONS}?watch=true&fieldSelector=metadata.name=seconds.names.example.org"
    ))
    .body(Body::empty())
    .expect("a request");
    let mut watch = api.service().oneshot(request).await.expect("answers").into_body();
    let (code, _, gone) = ask(
        &api,
        "DELETE",
        &format!("{DEFINITIONS}/firsts.names.example.org"),
        Value::Null,
    )
    .await;
    assert_eq!(code, 200, "{gone}");
    let mut seen = Vec::new();
    while seen
        .last()
        .is_none_or(|line: &String| !line.contains("InitialNamesAccepted"))
    {
        let frame = tokio::time::timeout(Duration::from_secs(30), watch.frame()).await;
        let frame = frame
            .unwrap_or_else(|_| panic!("not accepted: {seen:?}"))
            .expect("a line")
            .expect("no error");
        seen.push(String::from_utf8_lossy(&frame.into_data().expect("data")).into_owned());
    }
    // The collector serves it in the same turn as it stores that, under the lock that a write of a definition takes.
    let (code, _, answer) = ask(
        &api,
        "PATCH",
        &format!("{DEFINITIONS}/seconds.names.example.org"),
        json!({"metadata": {"labels": {"a": "b"}}}),
    )
    .await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(served(&api).await, ["seconds"]);
    assert_eq!(ask(&api, "GET", objects, Value::Null).await.0, 200);
}

#[tokio::test]
async fn options_of_a_deletion_that_cannot_be_meant_are_refused_and_nothing_is_deleted() {
    let dir = tempfile::tempdir().expect("a directory");
    let api = open(dir.path()).await;
    assert_eq!(ask(&api, "POST", MAPS, config_map("kept")).await.0, 201);
    let both =
        "propagationPolicy: Invalid value: \"Orphan\": orphanDependents and deletionPropagation cannot be both set";
    let never = "propagationPolicy: Unsupported value: \"Never\": supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\"";
    let no = "dryRun: Unsupported value: [\"No\"]: supported values: \"All\"";
    let go = "into Go struct field DeleteOptions.";
    for (query, body, code, words) in [
        (
            "gracePeriodSeconds=x",
            Value::Null,
            400,
            "strconv.ParseInt: parsing \"x\": invalid syntax".to_owned(),
        ),
        (
            "gracePeriodSeconds=",
            Value::Null,
            400,
            "strconv.ParseInt: parsing \"\": invalid syntax".to_owned(),
        ),
        (
            "orphanDependents=false&propagationPolicy=Orphan",
            Value::Null,
            422,
            both.to_owned(),
        ),
        (
            "",
            json!({"orphanDependents": true, "propagationPolicy": "Orphan"}),
            422,
            both.to_owned(),
        ),
        ("propagationPolicy=Never", Value::Null, 422, never.to_owned()),
        ("dryRun=No", Value::Null, 422, no.to_owned()),
        ("", json!({"dryRun": ["No"]}), 422, no.to_owned()),
        (
            "",
            json!({"gracePeriodSeconds": "x"}),
            400,
            format!("unmarshal string {go}gracePeriodSeconds of type int64"),
        ),
        (
            "",
            json!({"orphanDependents": 1}),
            400,
            format!("unmarshal number {go}orphanDependents of type bool"),
        ),
    ] {
        for path in [format!("{MAPS}/kept?{query}"), format!("{MAPS}?{query}")] {
            let (is, _, status) = ask(&api, "DELETE", &path, body.clone()).await;
            assert_eq!(is.as_u16(), code, "{path} {body}: {status}");
            let message = status["message"].as_str().unwrap_or_default();
            assert!(message.ends_with(&words), "{path} {body}: {message}");
        }
    }
    // A body is all that counts, if there is one.
    let (code, _, status) = ask(
        &api,
        "DELETE",
        &format!("{MAPS}/kept?propagationPolicy=Never"),
        json!({"dryRun": ["All"]}),
    )
    .await;
    assert_eq!(code, 200, "{status}");
    assert_eq!(ask(&api, "GET", &format!("{MAPS}/kept"), Value::Null).await.0, 200);
}

#[tokio::test]
async fn a_negative_limit_is_none_and_a_limit_that_is_no_number_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let api = open(dir.path()).await;
    for name in ["a", "b"] {
        assert_eq!(ask(&api, "POST", MAPS, config_map(name)).await.0, 201);
    }
    let (code, _, list) = ask(&api, "GET", &format!("{MAPS}?limit=-1"), Value::Null).await;
    assert_eq!(
        (code.as_u16(), list["items"].as_array().map(Vec::len)),
        (200, Some(2)),
        "{list}"
    );
    let (code, _, status) = ask(&api, "GET", &format!("{MAPS}?limit=99999999999999999999"), Value::Null).await;
    assert_eq!(
        (code.as_u16(), &status["message"]),
        (
            400,
            &json!("strconv.ParseInt: parsing \"99999999999999999999\": value out of range")
        )
    );
}

#[tokio::test]
async fn a_namespace_that_cannot_go_says_what_is_left_in_it_and_what_holds_that() {
    let dir = tempfile::tempdir().expect("a directory");
    let api = open(dir.path()).await;
    let named = |name: &str| json!({"metadata": {"name": name, "finalizers": ["test.io/hold"]}});
    let mut space = named("leaving");
    space["metadata"]["finalizers"] = json!([]);
    assert_eq!(ask(&api, "POST", "/api/v1/namespaces", space).await.0, 201);
    let maps = "/api/v1/namespaces/leaving/configmaps";
    for name in ["a", "b"] {
        assert_eq!(ask(&api, "POST", maps, named(name)).await.0, 201);
    }
    let secrets = "/api/v1/namespaces/leaving/secrets";
    assert_eq!(
        ask(&api, "POST", secrets, json!({"metadata": {"name": "free"}}))
            .await
            .0,
        201
    );
    let request = Request::get("/api/v1/namespaces?watch=true&fieldSelector=metadata.name=leaving");
    let request = request.body(Body::empty()).expect("a request");
    let mut watch = api.service().oneshot(request).await.expect("answers").into_body();
    assert_eq!(
        ask(&api, "DELETE", "/api/v1/namespaces/leaving", Value::Null).await.0,
        200
    );
    let mut until = async |words: &str| {
        let mut last = String::new();
        while !last.contains(words) {
            let frame = tokio::time::timeout(Duration::from_secs(30), watch.frame()).await;
            let frame = frame
                .unwrap_or_else(|_| panic!("no {words}: {last}"))
                .expect("a line")
                .expect("no error");
            last = String::from_utf8_lossy(&frame.into_data().expect("data")).into_owned();
        }
        let event: Value = serde_json::from_str(&last).expect("JSON");
        let conditions = event["object"]["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let text =
            |c: &Value| format!("{}={} {}: {}", c["type"], c["status"], c["reason"], c["message"]).replace('"', "");
        conditions.iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(
        until("in 2 resource instances").await,
        [
            "NamespaceDeletionDiscoveryFailure=False ResourcesDiscovered: All resources successfully discovered",
            "NamespaceDeletionGroupVersionParsingFailure=False ParsedGroupVersions: All legacy kube types successfully parsed",
            "NamespaceDeletionContentFailure=False ContentDeleted: All content successfully deleted, may be waiting on finalization",
            "NamespaceContentRemaining=True SomeResourcesRemain: Some resources are remaining: configmaps. has 2 resource instances",
            "NamespaceFinalizersRemaining=True SomeFinalizersRemain: Some content in the namespace has finalizers remaining: test.io/hold in 2 resource instances",
        ]
    );
    let release = json!({"metadata": {"finalizers": null}});
    assert_eq!(ask(&api, "PATCH", &format!("{maps}/a"), release.clone()).await.0, 200);
    let conditions = until("in 1 resource instances").await;
    assert!(
        conditions[3].ends_with("configmaps. has 1 resource instances"),
        "{conditions:?}"
    );
    assert_eq!(ask(&api, "PATCH", &format!("{maps}/b"), release).await.0, 200);
    until("DELETED").await;
}

#[tokio::test]
async fn empty_metadata_is_not_kept_whoever_writes_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let api = open(dir.path()).await;
    let empty = json!({"labels": {}, "annotations": {}, "finalizers": [], "ownerReferences": [], "generateName": ""});
    let mut map = config_map("m");
    map["metadata"] = empty.clone();
    map["metadata"]["name"] = "m".into();
    let path = format!("{MAPS}/m");
    let full = json!({"metadata": {"labels": {"a": "b"}, "annotations": {"a": "b"}, "finalizers": ["a.io/b"]}});
    let few = json!({"metadata": {"labels": {"a": null}, "annotations": {}, "finalizers": []}});
    for (method, path, body) in [
        ("POST", MAPS, map.clone()),
        ("PATCH", path.as_str(), full.clone()),
        (
            "PATCH",
            path.as_str(),
            json!({"metadata": {"labels": {"a": null}, "annotations": {"a": null}, "finalizers": []}}),
        ),
        ("PATCH", path.as_str(), full),
        ("PUT", path.as_str(), map),
        ("PATCH", path.as_str(), few),
    ] {
        let (code, _, object) = ask(&api, method, path, body.clone()).await;
        assert!(code.is_success(), "{method} {body}: {object}");
        let (_, _, stored) = ask(&api, "GET", &format!("{MAPS}/m"), Value::Null).await;
        for object in [&object, &stored] {
            let metadata = object["metadata"].as_object().expect("metadata");
            let kept = empty.as_object().expect("fields").iter();
            let kept: Vec<_> = kept
                .filter(|(field, value)| metadata.get(*field) == Some(*value))
                .collect();
            assert!(kept.is_empty(), "{method} {body}: {object}");
        }
    }
}
