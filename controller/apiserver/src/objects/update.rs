//! PUT and the four kinds of PATCH, of objects and of their status.

use axum::body::Body;
use bytes::Bytes;
use serde_json::Value;

use super::normalize::{check_manager, decode, normalize, options_invalid, validate};
use super::{Call, RACES, create, metadata, read, rfc3339};
use crate::http::answer::Answer;
use crate::http::body;
use crate::managed_fields::{self, ApplyError, Writer};
use crate::patch::{self, PatchError};
use crate::registry::Core;
use crate::schema::FieldError;
use crate::status::{Cause, Failure};
use crate::storage::{Change, WriteError};
use crate::{Inner, core, ownership};

const CUSTOM_PATCHES: &str = "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
const CORE_PATCHES: &str = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";

/// How a new object comes from the live one.
enum Write {
    /// The body is the new object.
    Replace(Value, Vec<String>),
    Merge(Value),
    Json(Value),
    Strategic(Value),
    Apply {
        config: Value,
        force: bool,
    },
}

pub async fn put(call: &Call, name: &str, body: Body) -> Result<Answer, Failure> {
    check_manager(call)?;
    let mut decoded = decode(call, &body::read(body).await?)?;
    metadata::check_name(metadata::map(&mut decoded.value)?, name)?;
    let version = decoded.value["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or_default();
    if version.is_empty() && needs_version(call) {
        // An absent object is missed first.
        call.load(name).await?;
        let error = FieldError::invalid("metadata.resourceVersion", 0, "must be specified for an update");
        return Err(Failure::invalid(&call.subject(name), &[Cause::from(error)]));
    }
    run(call, name, &Write::Replace(decoded.value, decoded.duplicates)).await
}

/// Core kinds may be replaced blindly, custom resources and definitions may not.
fn needs_version(call: &Call) -> bool {
    matches!(call.resource.core, None | Some(Core::Definition))
}

pub async fn patch(call: &Call, name: &str, body: Body) -> Result<Answer, Failure> {
    let bytes = body::read(body).await?;
    let write = match call.content_type.as_str() {
        "application/merge-patch+json" => Write::Merge(parsed(&bytes)?),
        "application/json-patch+json" => Write::Json(parsed(&bytes)?),
        "application/strategic-merge-patch+json" if !call.resource.is_custom() => Write::Strategic(parsed(&bytes)?),
        "application/apply-patch+yaml" => apply_patch(call, name, &bytes)?,
        _ => {
            let accepted = if call.resource.is_custom() {
                CUSTOM_PATCHES
            } else {
                CORE_PATCHES
            };
            return Err(Failure::unsupported_media_type(accepted));
        }
    };
    check_manager(call)?;
    run(call, name, &write).await
}

fn parsed(bytes: &Bytes) -> Result<Value, Failure> {
    serde_json::from_slice(bytes).map_err(|e| Failure::bad_request(format!("error decoding patch: {e}")))
}

fn apply_patch(call: &Call, name: &str, bytes: &Bytes) -> Result<Write, Failure> {
    if call.query.get("fieldManager").is_none() {
        let error = FieldError::required("fieldManager", "is required for apply patch");
        options_invalid(call, vec![error])?;
    }
    let decoded = body::parse(bytes).map_err(|e| Failure::bad_request(format!("error decoding YAML: {e}")))?;
    let mut config = decoded.value;
    if !config.is_object() {
        return Err(Failure::bad_request("error decoding YAML: the body is not an object"));
    }
    let text = |field: &str| config[field].as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if api_version != call.api_version() || kind != call.resource.kind {
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        return Err(Failure::bad_request(format!(
            "invalid object type: {group}/{version}, Kind={kind}"
        )));
    }
    let metadata = metadata::map(&mut config)?;
    metadata::check_name(metadata, name)?;
    let namespace = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    if call.resource.namespaced && !namespace.is_empty() && namespace != call.place.namespace {
        return Err(Failure::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    // Unknown fields are refused when the configuration is taken apart by the schema.
    if call.query.get("fieldValidation") == Some("Strict") && !decoded.duplicates.is_empty() {
        let said: Vec<String> = decoded
            .duplicates
            .iter()
            .map(|f| format!("duplicate field \"{f}\""))
            .collect();
        return Err(Failure::bad_request(format!(
            "error strict decoding YAML: {}",
            said.join(", ")
        )));
    }
    Ok(Write::Apply {
        config,
        force: call.query.flag("force"),
    })
}

async fn run(call: &Call, name: &str, write: &Write) -> Result<Answer, Failure> {
    for _ in 0..RACES {
        let stored = call.server.store.get(&call.key(name)).await?;
        let Some(stored) = stored else {
            let Write::Apply { config, force } = write else {
                return Err(Failure::not_found(&call.subject(name)));
            };
            if call.place.subresource.is_some() {
                return Err(Failure::not_found(&call.subject(name)));
            }
            match create_by_apply(call, name, config, *force).await {
                // Somebody else was faster: it is an update now.
                Err(failure) if failure.reason == "AlreadyExists" => continue,
                answer => return answer,
            }
        };
        let live = call.served(stored.value()?);
        match once(call, name, write, &live, stored.version).await? {
            Some(answer) => return Ok(answer),
            None => continue,
        }
    }
    Err(Failure::modified(&call.subject(name)))
}

async fn create_by_apply(call: &Call, name: &str, config: &Value, force: bool) -> Result<Answer, Failure> {
    if let Some(uid) = config["metadata"]["uid"].as_str().filter(|uid| !uid.is_empty()) {
        let why = format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
        return Err(Failure::conflict(&call.subject(name), &why));
    }
    let mut object = applied(call, None, config, force)?;
    let metadata = metadata::map(&mut object)?;
    metadata.insert("name".into(), name.into());
    // As in the original, there is no version that an absent object could differ from.
    metadata.remove("resourceVersion");
    let read = normalize(call, &mut object, Vec::new())?;
    let (object, mut warnings) = create::store(call, object, read.errors, |_, _| None).await?;
    warnings.splice(0..0, read.warnings);
    call.answer(201, object, warnings)
}

fn writer<'a>(call: &'a Call, manager: &'a str, api_version: &'a str, now: &'a str) -> Writer<'a> {
    Writer {
        manager,
        api_version,
        subresource: call.place.subresource.as_deref().unwrap_or_default(),
        time: now,
    }
}

fn applied(call: &Call, live: Option<&Value>, config: &Value, force: bool) -> Result<Value, Failure> {
    let (manager, api_version, now) = (call.manager(), call.api_version(), rfc3339(call.now));
    let writer = writer(call, &manager, &api_version, &now);
    managed_fields::apply(&ownership::types(call), live, config, &writer, force).map_err(|error| {
        let message = error.to_string();
        match error {
            ApplyError::Conflicts(conflicts) => {
                let cause = |c: &managed_fields::Conflict| Cause {
                    reason: "FieldManagerConflict",
                    message: c.message(),
                    field: c.field.clone(),
                };
                Failure::apply_conflict(message, &conflicts.iter().map(cause).collect::<Vec<_>>())
            }
            ApplyError::Invalid { code, reason, .. } => Failure::with(code, reason, message),
        }
    })
}

/// One attempt against one version of the live object; `None` when someone else was faster.
async fn once(call: &Call, name: &str, write: &Write, live: &Value, base: u64) -> Result<Option<Answer>, Failure> {
    let subject = call.subject(name);
    let (mut object, duplicates) = match write {
        Write::Replace(body, duplicates) => (body.clone(), duplicates.clone()),
        Write::Merge(merge) => {
            let mut object = live.clone();
            patch::merge(&mut object, merge).map_err(patch_failure)?;
            (object, Vec::new())
        }
        Write::Json(operations) => {
            let mut object = live.clone();
            patch::json(&mut object, operations).map_err(patch_failure)?;
            (object, Vec::new())
        }
        Write::Strategic(merge) => {
            let mut object = live.clone();
            patch::strategic(&mut object, merge, patch::strategy_of).map_err(patch_failure)?;
            (object, Vec::new())
        }
        Write::Apply { config, force } => (applied(call, Some(live), config, *force)?, Vec::new()),
    };
    let read = normalize(call, &mut object, duplicates)?;
    metadata::carry_over(call, name, live, &mut object, matches!(write, Write::Replace(..)))?;
    keep_other_parts(call, live, &mut object);
    if let Some(kind) = call.resource.core
        && call.place.subresource.is_none()
    {
        core::prepare_update(kind, &mut object, live);
    }
    if call.resource.core == Some(Core::Namespace) {
        core::label_namespace(&mut object);
    }
    let now = rfc3339(call.now);
    let mut untracked = None;
    if !matches!(write, Write::Apply { .. }) {
        let (manager, api_version) = (call.manager(), call.api_version());
        let writer = writer(call, &manager, &api_version, &now);
        untracked = managed_fields::track_update(&ownership::types(call), Some(live), &mut object, &writer);
    }
    managed_fields::keep_times(live, &mut object);
    if metadata::has_generation(call)
        && call.place.subresource.as_deref() != Some("status")
        && meant(&object) != meant(live)
    {
        let generation = live["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        object["metadata"]["generation"] = generation.into();
    }
    let mut warnings = validate(call, &object, Some(live), read.errors)?;
    warnings.splice(0..0, read.warnings);
    if object == *live {
        return call.answer(200, object, warnings).map(Some);
    }
    let _turn = match call.resource.core {
        Some(Core::Definition) => Some(call.server.definitions.lock().await),
        _ => None,
    };
    if call.resource.core == Some(Core::Definition) {
        if call.place.subresource.is_none() {
            call.server.settle_names(&mut object).await?;
        }
        Inner::check_definition(&object, name)?;
    }
    if call.query.dry_run()? {
        return call.answer(200, object, warnings).map(Some);
    }
    let mut stored = object;
    call.stored(&mut stored);
    let key = call.key(name);
    let change = if metadata::may_go(&stored) {
        Change::Remove {
            key,
            base,
            object: stored,
        }
    } else {
        Change::Update {
            key,
            base,
            object: stored,
            expires: call.expires(),
        }
    };
    let written = match call.server.store.write(vec![change]).await {
        Ok(written) => written
            .into_iter()
            .next()
            .ok_or_else(|| Failure::internal("nothing was stored"))?,
        Err(WriteError::Changed) => return Ok(None),
        Err(error) => return Err(Failure::of_write(error, &subject)),
    };
    managed_fields::say_untracked(untracked, &written);
    if call.resource.core == Some(Core::Definition) {
        call.server.reload().await?;
    }
    call.answer(200, call.served(written), warnings).map(Some)
}

/// What counts for `generation`: all but metadata and status.
fn meant(object: &Value) -> Vec<(&String, &Value)> {
    let map = object.as_object().into_iter().flatten();
    map.filter(|(key, _)| !matches!(key.as_str(), "metadata" | "status"))
        .collect()
}

/// The main endpoint does not touch the status, the status endpoint nothing else.
fn keep_other_parts(call: &Call, live: &Value, object: &mut Value) {
    let put = |object: &mut Value, field: &str, value: Option<&Value>| {
        let Some(map) = object.as_object_mut() else { return };
        match value {
            Some(value) => map.insert(field.to_owned(), value.clone()),
            None => map.remove(field),
        };
    };
    match call.place.subresource.as_deref() {
        Some("status") => {
            let status = object.get("status").cloned();
            let owners = object["metadata"].get("managedFields").cloned();
            *object = live.clone();
            put(object, "status", status.as_ref());
            put(&mut object["metadata"], "managedFields", owners.as_ref());
        }
        Some("finalize") => {
            let finalizers = object["spec"].get("finalizers").cloned();
            *object = live.clone();
            put(&mut object["spec"], "finalizers", finalizers.as_ref());
        }
        _ if call.has_status() => put(object, "status", live.get("status")),
        _ => {}
    }
}

fn patch_failure(error: PatchError) -> Failure {
    match error {
        PatchError::Unreadable(message) => Failure::bad_request(message),
        PatchError::Rejected => Failure::unprocessable_patch(),
        PatchError::TooLarge(_) => Failure::too_many_operations(error.to_string()),
    }
}

/// PUT or PATCH of the scale subresource: a write of the one field that it stands for.
pub async fn scale(call: &Call, name: &str, body: Body, is_patch: bool) -> Result<Answer, Failure> {
    check_manager(call)?;
    let bytes = body::read(body).await?;
    let scale = call
        .version()
        .scale
        .clone()
        .ok_or_else(|| Failure::internal("no scale"))?;
    for _ in 0..RACES {
        let stored = call.load(name).await?;
        let live = call.served(stored.value()?);
        let mut wanted = read::scale_of(call, &live)?;
        if is_patch {
            match call.content_type.as_str() {
                "application/merge-patch+json" => patch::merge(&mut wanted, &parsed(&bytes)?).map_err(patch_failure)?,
                "application/json-patch+json" => patch::json(&mut wanted, &parsed(&bytes)?).map_err(patch_failure)?,
                _ => {
                    return Err(Failure::unsupported_media_type(
                        "application/json-patch+json, application/merge-patch+json",
                    ));
                }
            }
        } else {
            wanted = decode_scale(&bytes)?;
        }
        let Some(replicas) = wanted["spec"]["replicas"].as_i64().filter(|n| *n >= 0) else {
            let error = FieldError::invalid(
                "spec.replicas",
                wanted["spec"]["replicas"].clone(),
                "should be a non-negative integer",
            );
            return Err(Failure::invalid(&call.kind_subject(name), &[Cause::from(error)]));
        };
        let merge = scale
            .spec
            .split('.')
            .rev()
            .filter(|p| !p.is_empty())
            .fold(Value::from(replicas), |value, part| {
                let mut map = serde_json::Map::new();
                map.insert(part.to_owned(), value);
                Value::Object(map)
            });
        if once(call, name, &Write::Merge(merge), &live, stored.version)
            .await?
            .is_some()
        {
            return read::scale(call, name).await;
        }
    }
    Err(Failure::modified(&call.subject(name)))
}

fn decode_scale(bytes: &Bytes) -> Result<Value, Failure> {
    body::parse(bytes).map(|d| d.value).map_err(Failure::bad_request)
}
