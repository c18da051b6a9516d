//! DELETE, of one object and of a collection.

use axum::body::Body;
use serde_json::{Value, json};

use super::normalize::delete_options;
use super::read::{self, Selection};
use super::{Call, RACES, metadata, rfc3339};
use crate::Inner;
use crate::http::answer::Answer;
use crate::http::body;
use crate::http::query::Query;
use crate::registry::{Core, Resource, definition};
use crate::schema::FieldError;
use crate::status::{self, Cause, Failure, Subject};
use crate::storage::{Change, Key, WriteError};

/// What happens to dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// `DeleteOptions`, as far as they mean something here.
#[derive(Clone, Debug)]
pub struct Options {
    pub propagation: Propagation,
    pub uid: Option<String>,
    pub version: Option<String>,
    pub dry_run: bool,
}

/// What a deletion came to.
pub enum Deleted {
    /// Gone; the last state.
    Gone(Value),
    /// Finalizers hold it; how it stands now.
    Held(Value),
}

/// The options are those of the body, or if it has none those of the URL.
async fn options(call: &Call, body: Body) -> Result<Options, Failure> {
    let bytes = body::read(body).await?;
    let options = match delete_options(call, &bytes)? {
        Value::Null => of_query(&call.query)?,
        options => options,
    };
    let propagation = check(&options)?;
    let text = |value: &Value| value.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
    Ok(Options {
        propagation,
        uid: text(&options["preconditions"]["uid"]),
        version: text(&options["preconditions"]["resourceVersion"]),
        dry_run: options["dryRun"].as_array().is_some_and(|d| !d.is_empty()),
    })
}

fn of_query(query: &Query) -> Result<Value, Failure> {
    let mut options = json!({});
    if let Some(seconds) = query.integer("gracePeriodSeconds")? {
        options["gracePeriodSeconds"] = seconds.into();
    }
    if query.given("orphanDependents").is_some() {
        options["orphanDependents"] = query.flag("orphanDependents").into();
    }
    if let Some(policy) = query.given("propagationPolicy") {
        options["propagationPolicy"] = policy.into();
    }
    if let Some(dry_run) = query.get("dryRun") {
        options["dryRun"] = json!([dry_run]);
    }
    Ok(options)
}

fn check(options: &Value) -> Result<Propagation, Failure> {
    let mut errors = Vec::new();
    let policy = options["propagationPolicy"].as_str();
    let propagation = match policy {
        None if options["orphanDependents"] == true => Propagation::Orphan,
        Some("Foreground") => Propagation::Foreground,
        Some("Orphan") => Propagation::Orphan,
        _ => Propagation::Background,
    };
    if let Some(policy) = policy {
        if !options["orphanDependents"].is_null() {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid("propagationPolicy", policy, why));
        }
        let supported = ["Foreground", "Background", "Orphan"];
        if !supported.contains(&policy) {
            let supported = [&supported[..], &["nil"]].concat();
            errors.push(FieldError::not_supported("propagationPolicy", policy, &supported));
        }
    }
    let dry_run = options["dryRun"].as_array();
    if dry_run.into_iter().flatten().any(|d| d != "All") {
        errors.push(FieldError::not_supported("dryRun", options["dryRun"].clone(), &["All"]));
    }
    if errors.is_empty() {
        return Ok(propagation);
    }
    let subject = Subject {
        group: "meta.k8s.io",
        kind: "DeleteOptions",
        name: "",
    };
    let causes: Vec<Cause> = errors.into_iter().map(Cause::from).collect();
    Err(Failure::invalid(&subject, &causes))
}

pub async fn one(call: &Call, name: &str, body: Body) -> Result<Answer, Failure> {
    let options = options(call, body).await?;
    let deleted = delete(
        &call.server,
        &call.resource,
        &call.key(name),
        &options,
        &rfc3339(call.now),
    )
    .await?;
    match deleted {
        Deleted::Gone(object) => {
            let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
            Ok(Answer::ok(status::deleted(&call.subject(name), uid)))
        }
        Deleted::Held(object) => call.answer(200, call.served(object), Vec::new()),
    }
}

pub async fn collection(call: &Call, body: Body) -> Result<Answer, Failure> {
    let options = options(call, body).await?;
    let listed = read::collect(call, &Selection::of(call)?).await?;
    let mut items = Vec::with_capacity(listed.items.len());
    for object in listed.items {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = Key {
            resource: call.resource.storage.clone(),
            namespace: text("namespace"),
            name: text("name"),
        };
        match delete(&call.server, &call.resource, &key, &options, &rfc3339(call.now)).await {
            Ok(_) => items.push(object),
            Err(failure) if failure.code == 404 => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(Answer::ok(json!({
        "kind": call.resource.list_kind, "apiVersion": call.api_version(), "items": items,
        "metadata": {"resourceVersion": call.server.store.version().to_string(), "continue": ""},
    })))
}

/// Deletes one object: at once, or as soon as its finalizers allow.
pub async fn delete(
    server: &Inner,
    resource: &Resource,
    key: &Key,
    options: &Options,
    now: &str,
) -> Result<Deleted, Failure> {
    let subject = Subject {
        group: &resource.group,
        kind: &resource.plural,
        name: &key.name,
    };
    let definition = resource.core == Some(Core::Definition);
    for _ in 0..RACES {
        let Some(stored) = server.store.get(key).await? else {
            return Err(Failure::not_found(&subject));
        };
        let live = stored.value()?;
        preconditions(resource, &live, options, &key.name)?;
        if resource.core == Some(Core::Namespace) && IMMORTAL.contains(&key.name.as_str()) {
            return Err(Failure::forbidden(&subject, "this namespace may not be deleted", &[]));
        }
        let mut object = live.clone();
        mark(resource, &mut object, options, now)?;
        let gone = metadata::may_go(&object);
        if options.dry_run {
            return Ok(if gone {
                Deleted::Gone(object)
            } else {
                Deleted::Held(object)
            });
        }
        if object == live {
            return Ok(Deleted::Held(live));
        }
        let base = stored.version;
        let change = if gone {
            // The last state, as it was: only the version is new.
            Change::Remove {
                key: key.clone(),
                base,
                object: live,
            }
        } else {
            Change::Update {
                key: key.clone(),
                base,
                object,
                expires: None,
            }
        };
        let _turn = if definition {
            Some(server.definitions.lock().await)
        } else {
            None
        };
        match server.store.write(vec![change]).await {
            Ok(written) => {
                if definition {
                    server.reload().await?;
                }
                let object = written.into_iter().next().unwrap_or_default();
                return Ok(if gone {
                    Deleted::Gone(object)
                } else {
                    Deleted::Held(object)
                });
            }
            Err(WriteError::Changed) => continue,
            Err(error) => return Err(Failure::of_write(error, &subject)),
        }
    }
    Err(Failure::modified(&subject))
}

/// Namespaces that everything else relies on.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

fn preconditions(resource: &Resource, live: &Value, options: &Options, name: &str) -> Result<(), Failure> {
    let subject = Subject {
        group: &resource.group,
        kind: &resource.kind,
        name,
    };
    let differs = |wanted: &Option<String>, field: &str| {
        let is = live["metadata"][field].as_str().unwrap_or_default().to_owned();
        wanted.clone().filter(|wanted| *wanted != is).map(|wanted| (wanted, is))
    };
    if let Some((wanted, is)) = differs(&options.uid, "uid") {
        let why = format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({is}). The object might have been deleted and then recreated"
        );
        return Err(Failure::conflict(&subject, &why));
    }
    if let Some((wanted, is)) = differs(&options.version, "resourceVersion") {
        let why = format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({is}). The object might have been modified"
        );
        return Err(Failure::conflict(&subject, &why));
    }
    Ok(())
}

/// Sets the deletion timestamp and the finalizers that the propagation asks for.
fn mark(resource: &Resource, object: &mut Value, options: &Options, now: &str) -> Result<(), Failure> {
    let metadata = metadata::map(object)?;
    let mut finalizers: Vec<Value> = metadata
        .get("finalizers")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let foreground = Value::from("foregroundDeletion");
    let orphan = Value::from("orphan");
    let wanted = match options.propagation {
        Propagation::Background => None,
        Propagation::Foreground => Some(&foreground),
        Propagation::Orphan => Some(&orphan),
    };
    finalizers.retain(|f| (f != &foreground && f != &orphan) || Some(f) == wanted);
    if let Some(wanted) = wanted
        && !finalizers.contains(wanted)
    {
        finalizers.push(wanted.clone());
    }
    let first = metadata.get("deletionTimestamp").is_none_or(Value::is_null);
    if first && resource.core == Some(Core::Definition) && !finalizers.iter().any(|f| f == definition::CLEANUP) {
        finalizers.push(definition::CLEANUP.into());
    }
    match finalizers.is_empty() {
        true => metadata.remove("finalizers"),
        false => metadata.insert("finalizers".into(), finalizers.into()),
    };
    if first {
        metadata.insert("deletionTimestamp".into(), now.into());
        if resource.core != Some(Core::Namespace) {
            metadata.insert("deletionGracePeriodSeconds".into(), 0.into());
        }
        if let Some(generation) = metadata.get("generation").and_then(Value::as_i64) {
            metadata.insert("generation".into(), (generation + 1).into());
        }
        match resource.core {
            Some(Core::Namespace) => object["status"]["phase"] = "Terminating".into(),
            Some(Core::Definition) => definition::terminating(object, now),
            _ => {}
        }
    }
    Ok(())
}
