//! Secrets and config maps.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::text;
use crate::schema::FieldError;

/// All values together.
const MAX_BYTES: usize = 1024 * 1024;
const KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const IMMUTABLE: &str = "field is immutable when `immutable` is set";

/// Says where a value is not base64, in the words of Go's decoder.
pub(super) fn base64_problem(object: &Value, field: &str) -> Option<String> {
    let values = object[field].as_object()?.values().filter_map(Value::as_str);
    values.into_iter().find_map(|value| {
        // Go skips line breaks.
        let stripped = value.replace(['\n', '\r'], "");
        let error = STANDARD.decode(&stripped).err()?;
        let place = match error {
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => stripped.len(),
        };
        Some(format!("illegal base64 data at input byte {place}"))
    })
}

/// Moves `stringData` into `data` and sets the default type.
pub(super) fn secret(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    if let Some(Value::Object(plain)) = map.remove("stringData")
        && !plain.is_empty()
    {
        let data = map.entry("data").or_insert_with(|| json!({}));
        if data.is_null() {
            *data = json!({});
        }
        for (key, value) in plain {
            if let (Some(data), Some(value)) = (data.as_object_mut(), value.as_str()) {
                data.insert(key, STANDARD.encode(value).into());
            }
        }
    }
    if map.get("type").and_then(Value::as_str).unwrap_or_default().is_empty() {
        map.insert("type".into(), "Opaque".into());
    }
}

fn key_problems(key: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if key.len() > 253 {
        problems.push("must be no more than 253 characters".to_owned());
    }
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
        problems.push(KEY.to_owned());
    }
    match key {
        "." => problems.push("must not be '.'".to_owned()),
        ".." => problems.push("must not be '..'".to_owned()),
        _ if key.starts_with("..") => problems.push("must not start with '..'".to_owned()),
        _ => {}
    }
    problems
}

fn check_keys(object: &Value, field: &str, errors: &mut Vec<FieldError>) {
    for key in object[field].as_object().into_iter().flat_map(Map::keys) {
        for problem in key_problems(key) {
            errors.push(FieldError::invalid(format!("{field}[{key}]"), key.as_str(), problem));
        }
    }
}

fn check_immutable(object: &Value, old: &Value, fields: &[&'static str], errors: &mut Vec<FieldError>) {
    if old["immutable"] != true {
        return;
    }
    if object["immutable"] != true {
        errors.push(FieldError::forbidden("immutable", IMMUTABLE));
    }
    let empty = |value: &Value| value.as_object().is_none_or(Map::is_empty);
    for field in fields {
        let (new, old) = (&object[*field], &old[*field]);
        if new != old && !(empty(new) && empty(old)) {
            errors.push(FieldError::forbidden(*field, IMMUTABLE));
        }
    }
}

/// Bytes of all values, decoded where they are base64.
fn size(object: &Value, field: &str, encoded: bool) -> usize {
    let values = object[field].as_object().into_iter().flat_map(Map::values);
    values
        .filter_map(Value::as_str)
        .map(|v| {
            if encoded {
                STANDARD.decode(v).map_or(0, |bytes| bytes.len())
            } else {
                v.len()
            }
        })
        .sum()
}

pub(super) fn validate_secret(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(old) = old {
        if object["type"] != old["type"] {
            errors.push(FieldError::invalid(
                "type",
                object["type"].clone(),
                "field is immutable",
            ));
        }
        check_immutable(object, old, &["data"], &mut errors);
    }
    check_keys(object, "data", &mut errors);
    if size(object, "data", true) > MAX_BYTES {
        errors.push(FieldError::too_long("data", MAX_BYTES as i64));
    }
    contents(object, &mut errors);
    errors
}

/// The keys that a secret of its type must have.
fn contents(object: &Value, errors: &mut Vec<FieldError>) {
    let value = |key: &str| object["data"].get(key).and_then(Value::as_str);
    let missing = |key: &str| FieldError::required(format!("data[{key}]"), "");
    match text(object, "type") {
        "kubernetes.io/service-account-token" => {
            let account = "kubernetes.io/service-account.name";
            if text(&object["metadata"]["annotations"], account).is_empty() {
                errors.push(FieldError::required(format!("metadata.annotations[{account}]"), ""));
            }
        }
        "kubernetes.io/dockercfg" => errors.extend(json_key(object, ".dockercfg")),
        "kubernetes.io/dockerconfigjson" => errors.extend(json_key(object, ".dockerconfigjson")),
        "kubernetes.io/basic-auth" if value("username").is_none() && value("password").is_none() => {
            errors.extend([missing("username"), missing("password")]);
        }
        "kubernetes.io/ssh-auth" if value("ssh-privatekey").is_none_or(str::is_empty) => {
            errors.push(missing("ssh-privatekey"));
        }
        "kubernetes.io/tls" => {
            let keys = ["tls.crt", "tls.key"].into_iter();
            errors.extend(keys.filter(|key| value(key).is_none()).map(missing));
        }
        _ => {}
    }
}

fn json_key(object: &Value, key: &str) -> Option<FieldError> {
    let place = format!("data[{key}]");
    let Some(value) = object["data"].get(key).and_then(Value::as_str) else {
        return Some(FieldError::required(place, ""));
    };
    let bytes = STANDARD.decode(value).unwrap_or_default();
    // The parser's words could quote the secret: only where it stopped is said.
    let error = serde_json::from_slice::<Map<String, Value>>(&bytes).err()?;
    let detail = if bytes.is_empty() {
        "unexpected end of JSON input".to_owned()
    } else {
        format!("not a JSON object: line {}, column {}", error.line(), error.column())
    };
    Some(FieldError::invalid(place, "<secret contents redacted>", detail))
}

pub(super) fn validate_config_map(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(old) = old {
        check_immutable(object, old, &["data", "binaryData"], &mut errors);
    }
    check_keys(object, "data", &mut errors);
    for key in object["data"].as_object().into_iter().flat_map(Map::keys) {
        if object["binaryData"].get(key).is_some() {
            let why = "duplicate of key present in binaryData";
            errors.push(FieldError::invalid(format!("data[{key}]"), key.as_str(), why));
        }
    }
    check_keys(object, "binaryData", &mut errors);
    if size(object, "data", false) + size(object, "binaryData", true) > MAX_BYTES {
        // How the real server prints the path of the object as a whole.
        errors.push(FieldError::too_long("[]", MAX_BYTES as i64));
    }
    errors
}
