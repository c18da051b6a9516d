//! `/openapi/v2`: a document that names no resources, for clients that look there for what v3 does not have.
//!
//! kubectl asks it, as protobuf, for the kind of a manifest whose group and version have no document in
//! `/openapi/v3`. It is not there either; but a kubectl that cannot ask complains of OpenAPI, and not of the
//! unknown kind. Whoever wants schemas reads v3.

use axum::body::Body;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, VARY};
use http::{Response, StatusCode};
use prost::encoding::{WireType, encode_key, encode_varint, string};
use serde_json::json;

/// What clients ask for, in the older spelling and in that of kube-apiserver's answers.
const PROTOBUF: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
];

const SWAGGER: &str = "2.0";
const TITLE: &str = "vmlet";
const DESCRIPTION: &str = "Resources are described in /openapi/v3 only.";

/// The document in the first form of an `Accept` header that there is, or 406.
pub fn answer(accept: Option<&str>) -> Response<Body> {
    let accept = accept.filter(|a| !a.trim().is_empty()).unwrap_or("*/*");
    let form = accept.split(',').find_map(|entry| {
        match entry.split(';').next().unwrap_or_default().trim() {
            "application/json" | "application/*" | "*/*" => Some(("application/json", as_json())),
            // The answer has the newer spelling, whichever was asked for: kube-apiserver does so too.
            form if PROTOBUF.contains(&form) => Some((PROTOBUF[1], as_protobuf())),
            _ => None,
        }
    });
    let Some((form, bytes)) = form else {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
        return response;
    };
    let mut response = Response::new(Body::from(bytes));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(form));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    response
}

fn as_json() -> Vec<u8> {
    let info = json!({"title": TITLE, "version": env!("CARGO_PKG_VERSION"), "description": DESCRIPTION});
    json!({"swagger": SWAGGER, "info": info, "paths": {}})
        .to_string()
        .into_bytes()
}

/// The same as an `openapi.v2.Document` of gnostic: swagger = 1, info = 2 {title = 1, version = 2,
/// description = 3}, paths = 8.
fn as_protobuf() -> Vec<u8> {
    let text = |number, text: &str, out: &mut Vec<u8>| string::encode(number, &text.to_owned(), out);
    let message = |number, bytes: &[u8], out: &mut Vec<u8>| {
        encode_key(number, WireType::LengthDelimited, out);
        encode_varint(bytes.len() as u64, out);
        out.extend_from_slice(bytes);
    };
    let mut info = Vec::new();
    text(1, TITLE, &mut info);
    text(2, env!("CARGO_PKG_VERSION"), &mut info);
    text(3, DESCRIPTION, &mut info);
    let mut document = Vec::new();
    text(1, SWAGGER, &mut document);
    message(2, &info, &mut document);
    message(8, &[], &mut document);
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(accept: &str) -> (u16, String) {
        let response = answer(Some(accept));
        let form = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
        (response.status().as_u16(), form.unwrap_or_default().to_owned())
    }

    #[test]
    fn both_spellings_of_protobuf_are_served_and_json_to_all_who_name_no_form() {
        for spelling in PROTOBUF {
            assert_eq!(form(spelling), (200, PROTOBUF[1].to_owned()));
        }
        for json in ["", "*/*", "application/json", "application/xml, application/json;q=0.9"] {
            assert_eq!(form(json), (200, "application/json".to_owned()), "{json}");
        }
        assert_eq!(form("text/html").0, 406);
    }

    #[test]
    fn the_protobuf_says_the_same_as_the_json() {
        let version = env!("CARGO_PKG_VERSION");
        let info_length = 6 + TITLE.len() + version.len() + DESCRIPTION.len();
        let mut wanted = b"\x0a\x032.0\x12".to_vec();
        wanted.push(u8::try_from(info_length).expect("short"));
        for (key, text) in [(0x0a, TITLE), (0x12, version), (0x1a, DESCRIPTION)] {
            wanted.extend([key, u8::try_from(text.len()).expect("short")]);
            wanted.extend(text.as_bytes());
        }
        wanted.extend([0x42, 0]);
        assert_eq!(as_protobuf(), wanted);
        let json: serde_json::Value = serde_json::from_slice(&as_json()).expect("JSON");
        assert_eq!(json["swagger"], "2.0");
        assert_eq!(json["info"]["description"], DESCRIPTION);
        assert_eq!(json["paths"], serde_json::json!({}));
    }
}
