//! From a body to an object of the request's kind: types, unknown fields, defaults.

use bytes::Bytes;
use serde_json::Value;

use super::{Call, metadata};
use crate::core;
use crate::http::body::{self, Decoded};
use crate::protobuf;
use crate::schema::FieldError;
use crate::status::{Cause, Failure};

/// What is done about unknown and duplicate fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

fn field_validation(call: &Call) -> Result<FieldValidation, Failure> {
    match call.query.get("fieldValidation") {
        None | Some("Warn") => Ok(FieldValidation::Warn),
        Some("Ignore") => Ok(FieldValidation::Ignore),
        Some("Strict") => Ok(FieldValidation::Strict),
        Some(other) => Err(Failure::bad_request(format!(
            "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
        ))),
    }
}

const BODY_TYPES: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// Parses the body of a create or an update.
pub fn decode(call: &Call, bytes: &Bytes) -> Result<Decoded, Failure> {
    match call.content_type.as_str() {
        "" | "application/json" | "application/yaml" => {}
        "application/vnd.kubernetes.protobuf" => {
            let value = protobuf::decode(bytes)?;
            return Ok(Decoded {
                value,
                duplicates: Vec::new(),
            });
        }
        _ => return Err(Failure::unsupported_media_type(BODY_TYPES)),
    }
    let kind = &call.resource.kind;
    let unrecognized = |why: String| {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).into_owned();
        Failure::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; {why} ({text})"
        ))
    };
    let decoded = body::parse(bytes).map_err(unrecognized)?;
    if !decoded.value.is_object() {
        return Err(unrecognized("json parse error: the body is not an object".into()));
    }
    Ok(decoded)
}

/// What came out of reading an object: warnings for the client, errors for the validation to add to.
#[derive(Default)]
pub struct Read {
    pub warnings: Vec<String>,
    pub errors: Vec<FieldError>,
}

/// Makes `object` one of the request's kind: checks its types, removes what the schema does not know, fills in defaults.
pub fn normalize(call: &Call, object: &mut Value, duplicates: Vec<String>) -> Result<Read, Failure> {
    let mut read = Read::default();
    types(call, object, &mut read)?;
    metadata::map(object)?;
    if let Some(problem) = call.resource.core.and_then(|kind| core::decode_problem(kind, object)) {
        let (kind, version) = (&call.resource.kind, &call.version().name);
        return Err(Failure::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: {problem}"
        )));
    }
    let mut said: Vec<String> = duplicates.iter().map(|f| format!("duplicate field \"{f}\"")).collect();
    if let Some(schema) = &call.version().schema {
        said.extend(schema.prune(object).iter().map(|f| format!("unknown field \"{f}\"")));
        schema.prune_nulls(object);
        schema.apply_defaults(object);
    }
    if said.is_empty() {
        return Ok(read);
    }
    match field_validation(call)? {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => read.warnings = said,
        FieldValidation::Strict => {
            return Err(strict(call, &said));
        }
    }
    Ok(read)
}

/// The refusal of strict field validation.
pub fn strict(call: &Call, said: &[String]) -> Failure {
    let (kind, version) = (&call.resource.kind, &call.version().name);
    Failure::bad_request(format!(
        "{kind} in version \"{version}\" cannot be handled as a {kind}: strict decoding error: {}",
        said.join(", ")
    ))
}

fn types(call: &Call, object: &mut Value, read: &mut Read) -> Result<(), Failure> {
    let resource = &call.resource;
    let wanted = call.api_version();
    let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
    let (kind, api_version) = (text("kind"), text("apiVersion"));
    if resource.is_custom() {
        for (field, value, name) in [("kind", &kind, "Kind"), ("apiVersion", &api_version, "apiVersion")] {
            if value.is_empty() {
                let message = format!("Object '{name}' is missing in '{object}'");
                let message = match field {
                    "kind" => message,
                    _ => format!("the API version in the data () does not match the expected API version ({wanted})"),
                };
                return Err(Failure::bad_request(message));
            }
        }
    }
    if !api_version.is_empty() && api_version != wanted {
        return Err(Failure::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({wanted})"
        )));
    }
    if !kind.is_empty() && kind != resource.kind {
        if !resource.is_custom() {
            return Err(Failure::bad_request(format!(
                "{kind} in version \"{}\" cannot be handled as a {}: converting ({kind}) to ({}): unknown conversion",
                call.version().name,
                resource.kind,
                resource.kind
            )));
        }
        let why = format!("must be {}", resource.kind);
        read.errors.push(FieldError::invalid("kind", kind, why));
    } else {
        object["kind"] = resource.kind.clone().into();
    }
    object["apiVersion"] = wanted.into();
    Ok(())
}

/// The last word on an object before it is stored.
pub fn validate(
    call: &Call,
    object: &Value,
    live: Option<&Value>,
    mut errors: Vec<FieldError>,
) -> Result<Vec<String>, Failure> {
    errors.extend(metadata::errors(call, object, live));
    if let Some(schema) = &call.version().schema {
        match (live, call.place.subresource.as_deref()) {
            (Some(live), Some("status")) => errors.extend(schema.validate_status(object, live)),
            _ => errors.extend(schema.validate(object, live)),
        }
    }
    if let Some(kind) = call.resource.core {
        errors.extend(core::validate(kind, object, live));
    }
    if errors.is_empty() {
        return Ok(metadata::warnings(object, live));
    }
    let mut seen = Vec::new();
    for error in errors {
        let cause = Cause::from(error);
        if !seen.contains(&cause) {
            seen.push(cause);
        }
    }
    let kind = object["kind"].as_str().unwrap_or(&call.resource.kind).to_owned();
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let subject = crate::status::Subject {
        group: &call.resource.group,
        kind: &kind,
        name,
    };
    Err(Failure::invalid(&subject, &seen))
}

/// Refuses field managers that cannot be recorded.
pub fn check_manager(call: &Call) -> Result<(), Failure> {
    let Some(manager) = call.query.get("fieldManager") else {
        return Ok(());
    };
    let mut errors = Vec::new();
    if manager.len() > 128 {
        errors.push(FieldError::too_long("fieldManager", 128));
    }
    if manager.chars().any(|c| c.is_control()) {
        errors.push(FieldError::invalid(
            "fieldManager",
            manager,
            "should only contain printable characters",
        ));
    }
    options_invalid(call, errors)
}

/// A 422 about the options of the request, not about an object.
pub fn options_invalid(call: &Call, errors: Vec<FieldError>) -> Result<(), Failure> {
    if errors.is_empty() {
        return Ok(());
    }
    let kind = match call.content_type.as_str() {
        t if t.ends_with("patch+json") || t.contains("apply-patch") => "PatchOptions",
        _ => "CreateOptions",
    };
    let subject = crate::status::Subject {
        group: "meta.k8s.io",
        kind,
        name: "",
    };
    let causes: Vec<Cause> = errors.into_iter().map(Cause::from).collect();
    Err(Failure::invalid(&subject, &causes))
}

/// Reads the body of a DELETE; most have none.
pub fn delete_options(call: &Call, bytes: &Bytes) -> Result<Value, Failure> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    let options = match call.content_type.as_str() {
        "application/vnd.kubernetes.protobuf" => protobuf::decode(bytes)?,
        _ => body::parse(bytes).map_err(Failure::bad_request)?.value,
    };
    match options["kind"].as_str() {
        None | Some("DeleteOptions") => {}
        Some(other) => {
            return Err(Failure::bad_request(format!(
                "expected DeleteOptions in the body, found {other}"
            )));
        }
    }
    for (field, wanted, fits) in [
        ("gracePeriodSeconds", "int64", options["gracePeriodSeconds"].is_i64()),
        ("orphanDependents", "bool", options["orphanDependents"].is_boolean()),
        (
            "propagationPolicy",
            "v1.DeletionPropagation",
            options["propagationPolicy"].is_string(),
        ),
        (
            "preconditions",
            "v1.Preconditions",
            options["preconditions"].is_object(),
        ),
        ("dryRun", "[]string", options["dryRun"].is_array()),
    ] {
        let is = match &options[field] {
            Value::Null => continue,
            _ if fits => continue,
            Value::Bool(_) => "bool".to_owned(),
            Value::Number(number) if number.is_f64() => format!("number {number}"),
            Value::Number(_) => "number".to_owned(),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        };
        return Err(Failure::bad_request(format!(
            "json: cannot unmarshal {is} into Go struct field DeleteOptions.{field} of type {wanted}"
        )));
    }
    Ok(options)
}
