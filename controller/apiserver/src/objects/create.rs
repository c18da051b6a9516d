//! POST.

use axum::body::Body;
use serde_json::Value;

use super::normalize::{check_manager, decode, normalize, validate};
use super::{Call, metadata, rfc3339};
use crate::http::answer::Answer;
use crate::http::body;
use crate::managed_fields::{self, Writer};
use crate::registry::Core;
use crate::status::Failure;
use crate::storage::{Change, Key};
use crate::{Inner, core, ownership};

pub async fn create(call: &Call, body: Body) -> Result<Answer, Failure> {
    check_manager(call)?;
    let decoded = decode(call, &body::read(body).await?)?;
    let mut object = decoded.value;
    let read = normalize(call, &mut object, decoded.duplicates)?;
    let manager = call.manager();
    let own = |call: &Call, object: &mut Value| {
        let (api_version, now) = (call.api_version(), rfc3339(call.now));
        let writer = Writer {
            manager: &manager,
            api_version: &api_version,
            subresource: "",
            time: &now,
        };
        managed_fields::track_update(&ownership::types(call), None, object, &writer)
    };
    let (object, mut warnings) = store(call, object, read.errors, own).await?;
    warnings.splice(0..0, read.warnings);
    call.answer(201, object, warnings)
}

/// Stores a new object that has been normalized; `own` writes its managedFields, or returns why not. Returns it as served.
pub async fn store(
    call: &Call,
    mut object: Value,
    errors: Vec<crate::schema::FieldError>,
    own: impl FnOnce(&Call, &mut Value) -> Option<String>,
) -> Result<(Value, Vec<String>), Failure> {
    if call.resource.terminating {
        let message = "create not allowed while custom resource definition is terminating";
        return Err(Failure::method_not_allowed_because(message));
    }
    let dry_run = call.query.dry_run()?;
    metadata::begin(call, &mut object)?;
    if let Some(kind) = call.resource.core {
        core::prepare_create(kind, &mut object);
        if kind == Core::Namespace {
            core::label_namespace(&mut object);
        }
    } else if call.has_status()
        && let Some(map) = object.as_object_mut()
    {
        map.remove("status");
    }
    let untracked = own(call, &mut object);
    let warnings = validate(call, &object, None, errors)?;
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let key = call.key(&name);
    let subject = call.subject(&name);
    if call.resource.core == Some(Core::Definition) {
        let _turn = call.server.definitions.lock().await;
        call.server.settle_names(&mut object).await?;
        Inner::check_definition(&object, &name)?;
        let stored = write(call, key, object, dry_run, &subject).await?;
        if !dry_run {
            managed_fields::say_untracked(untracked, &stored);
            call.server.reload().await?;
        }
        return Ok((stored, warnings));
    }
    let mut stored = object;
    call.stored(&mut stored);
    let stored = write(call, key, stored, dry_run, &subject).await?;
    if !dry_run {
        managed_fields::say_untracked(untracked, &stored);
    }
    Ok((call.served(stored), warnings))
}

async fn write(
    call: &Call,
    key: Key,
    object: Value,
    dry_run: bool,
    subject: &crate::status::Subject<'_>,
) -> Result<Value, Failure> {
    if dry_run {
        if call.resource.namespaced {
            call.server.require_namespace(&key.namespace, subject).await?;
        }
        return match call.server.store.get(&key).await? {
            Some(_) => Err(Failure::already_exists(subject)),
            None => Ok(object),
        };
    }
    let mut changes = Vec::new();
    if call.resource.namespaced {
        changes.push(Change::RequireNamespace(key.namespace.clone()));
    }
    changes.push(Change::Create {
        key,
        object,
        expires: call.expires(),
    });
    let written = call.server.store.write(changes).await;
    let written = written.map_err(|error| Failure::of_write(error, subject))?;
    written
        .into_iter()
        .next()
        .ok_or_else(|| Failure::internal("nothing was stored"))
}
