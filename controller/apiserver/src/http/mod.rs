//! Requests: paths, parameters, bodies, content negotiation; and which code answers them.

pub mod accept;
pub mod answer;
pub mod body;
pub mod path;
pub mod query;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use http::header::{ACCEPT, CONTENT_TYPE, ETAG, HOST, HeaderMap, HeaderName, IF_NONE_MATCH, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use jiff::Timestamp;
use serde_json::Value;

use self::accept::{Accept, Format, Shape};
use self::answer::{Answer, Content, page_not_found, respond};
use self::path::Target;
use self::query::Query;
use crate::objects::{self, Call};
use crate::reviews::Review;
use crate::status::Failure;
use crate::storage::ListRequest;
use crate::{Inner, discovery, openapi, reviews};

/// The whole API as one service.
pub(crate) fn router(server: Arc<Inner>) -> Router {
    Router::new().fallback(handle).with_state(server)
}

async fn handle(State(server): State<Arc<Inner>>, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let header = |name: HeaderName| text(&parts.headers, name);
    let target = path::parse(parts.uri.path());
    let reads = matches!(parts.method, Method::GET | Method::HEAD);
    if target == Target::OpenApiV2 && reads {
        // Its forms are its own.
        return openapi::v2::answer(header(ACCEPT));
    }
    let accept = match accept::negotiate(header(ACCEPT)) {
        Ok(accept) => accept,
        Err(failure) => return respond(Err(failure), Format::Json),
    };
    let format = accept.format;
    if let Target::Objects(place) = target {
        let result = objects(server, place, accept, &parts, body).await;
        return respond(result, format);
    }
    if !reads {
        return respond(Ok(page_not_found()), format);
    }
    let describes = matches!(target, Target::CoreVersions | Target::Groups);
    let host = header(HOST).unwrap_or_default();
    let answer = document(&server, target, accept, &parts.uri, host).await;
    let etag = match &answer {
        Ok(Answer {
            body: Content::Value(value),
            ..
        }) if describes => Some(discovery::etag(value.to_string().as_bytes())),
        _ => None,
    };
    if etag.is_some() && header(IF_NONE_MATCH) == etag.as_deref() {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    let mut response = respond(answer, format);
    let headers = response.headers_mut();
    if let Some(value) = etag.and_then(|e| e.parse().ok()) {
        headers.insert(ETAG, value);
    }
    if describes
        && let Shape::Discovery(version) = accept.shape
        && let Ok(value) =
            format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList").parse()
    {
        headers.insert(CONTENT_TYPE, value);
    }
    response
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

/// The fixed documents.
async fn document(
    server: &Inner,
    target: Target,
    accept: Accept,
    uri: &http::Uri,
    host: &str,
) -> Result<Answer, Failure> {
    let registry = server.registry.borrow().clone();
    let found = |document: Option<Value>| Ok(document.map_or_else(page_not_found, Answer::ok));
    match target {
        Target::Health => {
            let ready = uri.path().starts_with("/readyz");
            let verbose = uri.query().is_some_and(|q| q.contains("verbose"));
            Ok(health(server, ready, verbose).await)
        }
        Target::Version => Ok(Answer::ok(discovery::version())),
        Target::CoreVersions => Ok(Answer::ok(match accept.shape {
            Shape::Discovery(version) => discovery::aggregated(&registry, true, version),
            _ => discovery::core_versions(host),
        })),
        Target::Groups => Ok(Answer::ok(match accept.shape {
            Shape::Discovery(version) => discovery::aggregated(&registry, false, version),
            _ => discovery::groups(&registry),
        })),
        Target::Group(group) => found(discovery::group(&registry, &group)),
        Target::Resources(group, version) => found(discovery::resources(&registry, &group, &version)),
        Target::OpenApiRoot => Ok(Answer::ok(openapi::root(&registry))),
        Target::OpenApi(group, version) => {
            let definitions = definitions(server, &group).await?;
            found(openapi::document(&registry, &group, &version, &definitions))
        }
        Target::OpenApiV2 | Target::Objects(_) | Target::Unknown => Ok(page_not_found()),
    }
}

/// The stored definitions of a group: their descriptions are in the documents.
async fn definitions(server: &Inner, group: &str) -> Result<Vec<Value>, Failure> {
    let request = ListRequest {
        resource: Arc::from("apiextensions.k8s.io/customresourcedefinitions"),
        namespace: None,
        after: None,
        limit: 0,
    };
    let mut found = Vec::new();
    for stored in server.store.list(request).await?.items {
        let definition = stored.value()?;
        if definition["spec"]["group"] == group {
            found.push(definition);
        }
    }
    Ok(found)
}

/// Only readiness knows a full disk: a restart, which is what failed liveness leads to, would free nothing.
async fn health(server: &Inner, ready: bool, verbose: bool) -> Answer {
    if server.shutdown.is_cancelled() {
        return Answer::text(503, "shutting down\n");
    }
    if ready && let Some(trouble) = server.store.trouble().await {
        return Answer::text(500, &format!("[-]storage failed: {trouble}\nreadyz check failed\n"));
    }
    match verbose {
        true => Answer::text(200, "[+]storage ok\nok\n"),
        false => Answer::text(200, "ok"),
    }
}

async fn objects(
    server: Arc<Inner>,
    place: path::Place,
    accept: Accept,
    parts: &http::request::Parts,
    body: Body,
) -> Result<Answer, Failure> {
    let content_type = text(&parts.headers, CONTENT_TYPE).unwrap_or_default();
    let content_type = content_type.split(';').next().unwrap_or_default().trim().to_owned();
    if let Some(review) = reviews::find(&place.group, &place.version, &place.resource)
        && place.name.is_none()
        && parts.method == Method::POST
    {
        return answer_review(review, &content_type, body).await;
    }
    let registry = server.registry.borrow().clone();
    let Some((resource, version)) = registry.find(&place.group, &place.version, &place.resource) else {
        return Ok(page_not_found());
    };
    if !place.namespace.is_empty()
        && !crate::names::label_problems(&place.namespace).is_empty()
        && parts.method == Method::POST
    {
        let subject = crate::status::Subject {
            group: "",
            kind: "namespaces",
            name: &place.namespace,
        };
        return Err(Failure::not_found(&subject));
    }
    let call = Call {
        server,
        resource,
        version,
        place,
        query: Query::parse(parts.uri.query().unwrap_or_default()),
        accept,
        content_type,
        user_agent: text(&parts.headers, USER_AGENT).unwrap_or_default().to_owned(),
        now: Timestamp::now(),
    };
    objects::handle(call, &parts.method, body).await
}

async fn answer_review(review: &Review, content_type: &str, body: Body) -> Result<Answer, Failure> {
    let bytes = body::read(body).await?;
    let request = match content_type {
        "application/vnd.kubernetes.protobuf" => crate::protobuf::decode(&bytes)?,
        _ => body::parse(&bytes).map_err(Failure::bad_request)?.value,
    };
    Ok(Answer::new(201, review.answer(&request, Timestamp::now())?))
}
