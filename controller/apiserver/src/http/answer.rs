//! From values to responses.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WARNING};
use http::{Response, StatusCode};
use serde_json::Value;

use super::accept::Format;
use crate::status::Failure;

/// What a request came to.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status code.
    pub code: u16,
    /// The body.
    pub body: Content,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}

/// The body of an answer.
#[derive(Debug)]
pub enum Content {
    /// To be written in the format that was agreed on.
    Value(Value),
    /// JSON text as it is stored.
    Json(Bytes),
    /// `text/plain`.
    Text(String),
    /// A watch.
    Stream(Body),
}

impl Answer {
    /// A value with a code.
    pub fn new(code: u16, value: Value) -> Answer {
        Answer {
            code,
            body: Content::Value(value),
            warnings: Vec::new(),
        }
    }

    /// 200 with a value.
    pub fn ok(value: Value) -> Answer {
        Answer::new(200, value)
    }

    /// `text/plain`.
    pub fn text(code: u16, text: &str) -> Answer {
        Answer {
            code,
            body: Content::Text(text.to_owned()),
            warnings: Vec::new(),
        }
    }
}

/// kube-apiserver's answer to paths that it does not know.
pub fn page_not_found() -> Answer {
    Answer::text(404, "404 page not found\n")
}

/// Writes an answer.
pub fn respond(result: Result<Answer, Failure>, format: Format) -> Response<Body> {
    let (answer, retry_after) = match result {
        Ok(answer) => (answer, None),
        Err(failure) => {
            let retry = failure.retry_after().map(Duration::from_secs);
            (Answer::new(failure.code, failure.object()), retry)
        }
    };
    let (kind, body) = match answer.body {
        Content::Text(text) => ("text/plain; charset=utf-8", Body::from(text)),
        Content::Stream(body) => ("application/json", body),
        Content::Json(bytes) if format == Format::Json => ("application/json", Body::from(bytes)),
        Content::Json(bytes) => match serde_json::from_slice::<Value>(&bytes) {
            Ok(value) => yaml(&value),
            Err(_) => ("application/json", Body::from(bytes)),
        },
        Content::Value(value) if format == Format::Json => ("application/json", Body::from(value.to_string())),
        Content::Value(value) => yaml(&value),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(answer.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    for warning in answer.warnings {
        if let Ok(value) = HeaderValue::from_str(&format!("299 - {}", quoted(&warning))) {
            headers.append(WARNING, value);
        }
    }
    if let Some(after) = retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs()));
    }
    response
}

fn yaml(value: &Value) -> (&'static str, Body) {
    match serde_saphyr::to_string(value) {
        Ok(text) => ("application/yaml", Body::from(text)),
        Err(_) => ("application/json", Body::from(value.to_string())),
    }
}

/// A quoted-string of RFC 7230; what cannot stand in a header becomes `?`.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            _ => out.push('?'),
        }
    }
    out.push('"');
    out
}
