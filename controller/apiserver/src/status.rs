//! `Status`: how every refusal looks, with the codes, reasons and words of kube-apiserver.

use serde_json::{Map, Value, json};

use crate::protobuf::DecodeError;
use crate::storage::{StoreError, WriteError};

/// One entry of `details.causes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// `FieldValueInvalid`, `FieldValueRequired`, ...
    pub reason: &'static str,
    /// Without the field.
    pub message: String,
    /// Path of the field, like `spec.cpus`.
    pub field: String,
}

/// A request that was refused.
#[derive(Clone, Debug, Default)]
pub struct Failure {
    /// HTTP status code.
    pub code: u16,
    /// CamelCase; empty where kube-apiserver gives none.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    details: Option<Value>,
}

/// Group, resource or kind, and name, as `details` carries them.
pub struct Subject<'a> {
    /// API group, empty for core.
    pub group: &'a str,
    /// Plural resource name or kind, whichever kube-apiserver says in this place.
    pub kind: &'a str,
    /// Object name.
    pub name: &'a str,
}

impl Subject<'_> {
    fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.kind.to_owned()
        } else {
            format!("{}.{}", self.kind, self.group)
        }
    }

    fn details(&self) -> Map<String, Value> {
        let mut details = Map::new();
        for (key, value) in [("name", self.name), ("group", self.group), ("kind", self.kind)] {
            if !value.is_empty() {
                details.insert(key.into(), value.into());
            }
        }
        details
    }
}

fn causes(causes: &[Cause]) -> Value {
    causes
        .iter()
        .map(|c| json!({"reason": c.reason, "message": c.message, "field": c.field}))
        .collect()
}

impl Failure {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Failure {
        Failure {
            code,
            reason,
            message: message.into(),
            details: None,
        }
    }

    /// A refusal whose code, reason and words come from elsewhere.
    pub fn with(code: u16, reason: &'static str, message: String) -> Failure {
        Failure::new(code, reason, message)
    }

    fn about(mut self, subject: &Subject<'_>) -> Failure {
        self.details = Some(Value::Object(subject.details()));
        self
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Failure {
        Failure::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Failure {
        Failure::new(401, "Unauthorized", "Unauthorized")
    }

    /// 404 for an object.
    pub fn not_found(subject: &Subject<'_>) -> Failure {
        Failure::new(
            404,
            "NotFound",
            format!("{} \"{}\" not found", subject.qualified(), subject.name),
        )
        .about(subject)
    }

    /// 405.
    pub fn method_not_allowed(subject: &Subject<'_>, verb: &str) -> Failure {
        let message = format!(
            "{verb} is not supported on resources of kind \"{}\"",
            subject.qualified()
        );
        Failure::new(405, "MethodNotAllowed", message).about(&Subject { name: "", ..*subject })
    }

    /// 405 in words of its own.
    pub fn method_not_allowed_because(message: &str) -> Failure {
        Failure::new(405, "MethodNotAllowed", message)
    }

    /// 413 for a patch of too many operations.
    pub fn too_many_operations(message: String) -> Failure {
        Failure::new(413, "RequestEntityTooLarge", message)
    }

    /// 406.
    pub fn not_acceptable(accepted: &str) -> Failure {
        Failure::new(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {accepted}"),
        )
    }

    /// 409 for a name that is taken.
    pub fn already_exists(subject: &Subject<'_>) -> Failure {
        Failure::new(
            409,
            "AlreadyExists",
            format!("{} \"{}\" already exists", subject.qualified(), subject.name),
        )
        .about(subject)
    }

    /// 409, `why` ends the sentence.
    pub fn conflict(subject: &Subject<'_>, why: &str) -> Failure {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{}\": {why}",
            subject.qualified(),
            subject.name
        );
        Failure::new(409, "Conflict", message).about(subject)
    }

    /// 409 of optimistic concurrency.
    pub fn modified(subject: &Subject<'_>) -> Failure {
        Failure::conflict(
            subject,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 409 of server-side apply; one (manager, path) pair per conflict.
    pub fn apply_conflict(message: String, conflicts: &[Cause]) -> Failure {
        Failure {
            details: Some(json!({"causes": causes(conflicts)})),
            ..Failure::new(409, "Conflict", message)
        }
    }

    /// 410: ask again without a version.
    pub fn expired(message: impl Into<String>) -> Failure {
        Failure::new(410, "Expired", message)
    }

    /// 413.
    pub fn too_large(limit: usize) -> Failure {
        Failure::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {limit}"),
        )
    }

    /// 415.
    pub fn unsupported_media_type(accepted: &str) -> Failure {
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
        Failure::new(415, "UnsupportedMediaType", message)
    }

    /// 422 with one cause per field; the message lists them like kube-apiserver does.
    pub fn invalid(subject: &Subject<'_>, list: &[Cause]) -> Failure {
        let mut said: Vec<String> = Vec::new();
        for cause in list {
            let text = format!("{}: {}", cause.field, cause.message);
            if !said.contains(&text) {
                said.push(text);
            }
        }
        let joined = said.join(", ");
        let joined = if said.len() > 1 { format!("[{joined}]") } else { joined };
        let message = format!("{} \"{}\" is invalid: {joined}", subject.qualified(), subject.name);
        let mut failure = Failure::new(422, "Invalid", message).about(subject);
        if let Some(details) = &mut failure.details {
            details["causes"] = causes(list);
        }
        failure
    }

    /// 422 for a patch that does not fit the object.
    pub fn unprocessable_patch() -> Failure {
        let message = "the server rejected our request due to an error in our request";
        Failure {
            details: Some(json!({})),
            ..Failure::new(422, "Invalid", message)
        }
    }

    /// 403; `why` ends the sentence.
    pub fn forbidden(subject: &Subject<'_>, why: &str, because: &[Cause]) -> Failure {
        let message = format!("{} \"{}\" is forbidden: {why}", subject.qualified(), subject.name);
        let mut failure = Failure::new(403, "Forbidden", message).about(subject);
        if let Some(details) = &mut failure.details
            && !because.is_empty()
        {
            details["causes"] = causes(because);
        }
        failure
    }

    /// 500 without a reason, as kube-apiserver answers to errors that it has no name for.
    pub fn unnamed(message: impl Into<String>) -> Failure {
        Failure::new(500, "", message)
    }

    /// 500.
    pub fn internal(message: impl std::fmt::Display) -> Failure {
        Failure::new(500, "InternalError", format!("Internal error occurred: {message}"))
    }

    /// 504 for a version that does not exist yet.
    pub fn version_too_large(asked: u64, current: u64) -> Failure {
        let cause = json!([{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]);
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        Failure {
            details: Some(json!({"causes": cause, "retryAfterSeconds": 1})),
            ..Failure::new(504, "Timeout", message)
        }
    }

    /// Seconds for a `Retry-After` header.
    pub fn retry_after(&self) -> Option<u64> {
        self.details.as_ref()?["retryAfterSeconds"].as_u64()
    }

    /// The `Status` object.
    pub fn object(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }

    /// What a failed write of `subject` (with its plural as kind) means.
    pub fn of_write(error: WriteError, subject: &Subject<'_>) -> Failure {
        match error {
            WriteError::Exists => Failure::already_exists(subject),
            WriteError::Missing => Failure::not_found(subject),
            WriteError::Changed => Failure::modified(subject),
            WriteError::NamespaceMissing(name) => Failure::not_found(&Subject {
                group: "",
                kind: "namespaces",
                name: &name,
            }),
            WriteError::NamespaceTerminating(name) => {
                let cause = Cause {
                    reason: "NamespaceTerminating",
                    message: format!("namespace {name} is being terminated"),
                    field: "metadata.namespace".into(),
                };
                let why = format!("unable to create new content in namespace {name} because it is being terminated");
                Failure::forbidden(subject, &why, &[cause])
            }
            WriteError::Full(_) => {
                let message = format!("{} \"{}\" cannot be stored: {error}", subject.qualified(), subject.name);
                Failure::new(507, "InsufficientStorage", message).about(subject)
            }
            WriteError::Store(error) => error.into(),
        }
    }
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Malformed(_) => Failure::bad_request(error.to_string()),
            DecodeError::UnknownKind { .. } => Failure::new(415, "UnsupportedMediaType", error.to_string()),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "storage");
        Failure::internal(error)
    }
}

/// `Success` for a deleted object.
pub fn deleted(subject: &Subject<'_>, uid: &str) -> Value {
    let mut details = subject.details();
    details.insert("uid".into(), uid.into());
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

impl From<crate::schema::FieldError> for Cause {
    fn from(error: crate::schema::FieldError) -> Self {
        Cause {
            reason: error.kind.reason(),
            message: error.body(),
            field: error.field,
        }
    }
}
