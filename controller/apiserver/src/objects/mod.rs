//! What requests do to objects: one file per verb. The shape of every write is
//! decode → prune and default → merge → validate → own fields → store, all against one version of the object;
//! a write that lost a race is decided again from the newer version.

mod create;
pub mod delete;
mod metadata;
mod normalize;
pub mod read;
mod update;

use std::sync::Arc;

use axum::body::Body;
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Inner;
use crate::http::accept::{Accept, Shape};
use crate::http::answer::{Answer, Content, page_not_found};
use crate::http::path::Place;
use crate::http::query::Query;
use crate::registry::{Core, Resource, Version};
use crate::status::{Failure, Subject};
use crate::storage::{Key, Stored};
use crate::table::{self, Include};
use crate::{core, watch};

pub(crate) use metadata::may_go;

/// How often a write that lost a race is decided again before the client has to.
const RACES: usize = 8;

/// A request for objects of one resource, in one of its versions.
pub(crate) struct Call {
    pub server: Arc<Inner>,
    pub resource: Arc<Resource>,
    /// Index into the resource's versions.
    pub version: usize,
    pub place: Place,
    pub query: Query,
    pub accept: Accept,
    /// `Content-Type` of the body, without parameters.
    pub content_type: String,
    /// Who writes, unless the request says `fieldManager`.
    pub user_agent: String,
    pub now: Timestamp,
}

/// Timestamps of object metadata: RFC 3339 in whole seconds.
pub(crate) fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl Call {
    pub fn version(&self) -> &Version {
        &self.resource.versions[self.version]
    }

    pub fn api_version(&self) -> String {
        self.resource.api_version(self.version())
    }

    /// The object as most refusals name it: by its plural.
    pub fn subject<'a>(&'a self, name: &'a str) -> Subject<'a> {
        Subject {
            group: &self.resource.group,
            kind: &self.resource.plural,
            name,
        }
    }

    /// The object as refusals of its content name it: by its kind.
    pub fn kind_subject<'a>(&'a self, name: &'a str) -> Subject<'a> {
        Subject {
            group: &self.resource.group,
            kind: &self.resource.kind,
            name,
        }
    }

    pub fn key(&self, name: &str) -> Key {
        Key {
            resource: self.resource.storage.clone(),
            namespace: self.place.namespace.clone(),
            name: name.to_owned(),
        }
    }

    /// The field manager of a write that is not an apply.
    pub fn manager(&self) -> String {
        let manager = match self.query.get("fieldManager") {
            Some(manager) => manager.to_owned(),
            None => self.user_agent.split('/').next().unwrap_or_default().to_owned(),
        };
        if manager.is_empty() { "unknown".into() } else { manager }
    }

    /// Whether the status is written apart from the rest.
    pub fn has_status(&self) -> bool {
        self.version().status
    }

    pub async fn load(&self, name: &str) -> Result<Stored, Failure> {
        match self.server.store.get(&self.key(name)).await? {
            Some(stored) => Ok(stored),
            None => Err(Failure::not_found(&self.subject(name))),
        }
    }

    /// From the stored form to the version of the request.
    pub fn served(&self, mut object: Value) -> Value {
        serve(&self.resource, self.version(), &mut object);
        object
    }

    /// From the version of the request to the stored form.
    pub fn stored(&self, object: &mut Value) {
        if self.resource.core == Some(Core::Event) {
            core::event_to_core(object);
        }
        object["apiVersion"] = self.resource.stored_as.clone().into();
    }

    /// When an object goes by itself, in seconds since the epoch.
    pub fn expires(&self) -> Option<i64> {
        matches!(self.resource.core, Some(Core::Event | Core::CoreEvent)).then(|| self.now.as_second() + EVENT_TTL)
    }

    /// One object in the shape that was asked for.
    pub fn answer(&self, code: u16, object: Value, warnings: Vec<String>) -> Result<Answer, Failure> {
        let body = match self.accept.shape {
            Shape::Whole | Shape::Discovery(_) => object,
            Shape::Metadata => table::partial(&object),
            Shape::Table => {
                let meta = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                self.table(&[object], meta, true)?
            }
        };
        Ok(Answer {
            code,
            body: Content::Value(body),
            warnings,
        })
    }

    pub fn table(&self, objects: &[Value], list_metadata: Value, headers: bool) -> Result<Value, Failure> {
        // A watch lives long; ages are of the moment of each row.
        let now = Timestamp::now();
        let asked = self.query.get("includeObject").unwrap_or_default();
        let include = Include::parse(asked)
            .ok_or_else(|| Failure::bad_request(format!("unrecognized includeObject value: {asked:?}")))?;
        let version = self.version();
        Ok(table::table(
            &self.resource,
            version,
            objects,
            include,
            list_metadata,
            now,
            headers,
        ))
    }
}

/// Events live for an hour, as in kube-apiserver.
const EVENT_TTL: i64 = 3600;

/// Puts a stored object into a served version.
pub(crate) fn serve(resource: &Resource, version: &Version, object: &mut Value) {
    if resource.core == Some(Core::Event) {
        core::event_to_events(object);
    }
    object["apiVersion"] = resource.api_version(version).into();
    object["kind"] = resource.kind.clone().into();
}

/// Does what a request asks for.
pub(crate) async fn handle(call: Call, method: &Method, body: Body) -> Result<Answer, Failure> {
    let resource = &call.resource;
    // `/namespaces/N/things` of a kind without namespaces is no path, nor is a namespaced object without one.
    if !resource.namespaced && !call.place.namespace.is_empty() {
        return Ok(page_not_found());
    }
    let everywhere = resource.namespaced && call.place.namespace.is_empty();
    if everywhere && call.place.name.is_some() && !call.place.watch {
        return Ok(page_not_found());
    }
    let mut answer = match (call.place.name.clone(), call.place.subresource.as_deref(), method) {
        (None, None, &Method::GET) if call.place.watch || call.query.flag("watch") => watch::watch(&call).await,
        (None, None, &Method::GET) => read::list(&call).await,
        (None, None, &Method::POST) if !everywhere => create::create(&call, body).await,
        (None, None, &Method::DELETE) if resource.verbs().contains(&"deletecollection") => {
            delete::collection(&call, body).await
        }
        (Some(_), None, &Method::GET) if call.place.watch || call.query.flag("watch") => watch::watch(&call).await,
        (Some(name), None, &Method::GET) => read::get(&call, &name).await,
        (Some(name), None, &Method::PUT) => update::put(&call, &name, body).await,
        (Some(name), None, &Method::PATCH) => update::patch(&call, &name, body).await,
        (Some(name), None, &Method::DELETE) => delete::one(&call, &name, body).await,
        (Some(name), Some("status"), method) if call.has_status() => match *method {
            Method::GET => read::get(&call, &name).await,
            Method::PUT => update::put(&call, &name, body).await,
            Method::PATCH => update::patch(&call, &name, body).await,
            _ => Err(not_allowed(&call, method)),
        },
        (Some(name), Some("finalize"), &Method::PUT) if resource.core == Some(Core::Namespace) => {
            update::put(&call, &name, body).await
        }
        (Some(name), Some("scale"), method) if call.version().scale.is_some() => match *method {
            Method::GET => read::scale(&call, &name).await,
            Method::PUT => update::scale(&call, &name, body, false).await,
            Method::PATCH => update::scale(&call, &name, body, true).await,
            _ => Err(not_allowed(&call, method)),
        },
        (Some(_), Some(_), _) => return Ok(page_not_found()),
        (_, _, method) => Err(not_allowed(&call, method)),
    }?;
    if let Some(text) = &call.version().deprecation {
        answer.warnings.insert(0, text.clone());
    }
    Ok(answer)
}

fn not_allowed(call: &Call, method: &Method) -> Failure {
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "deletecollection",
        _ => "get",
    };
    Failure::method_not_allowed(&call.subject(""), verb)
}

impl Call {
    /// What a watch keeps of its request.
    pub fn for_watch(&self) -> Call {
        Call {
            server: self.server.clone(),
            resource: self.resource.clone(),
            version: self.version,
            place: self.place.clone(),
            query: self.query.clone(),
            accept: self.accept,
            content_type: String::new(),
            user_agent: String::new(),
            now: self.now,
        }
    }
}
