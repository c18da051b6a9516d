//! Server-side apply and field ownership: what `metadata.managedFields` says and how it changes.
//!
//! ```text
//! let types = Types::new(Some(schema.root()), version.status);
//! track_update(&types, live, &mut object, &writer);              // create, update, JSON and merge patch
//! let object = apply(&types, live, &config, &writer, force)?;    // apply patch
//! keep_times(live, &mut object);                                 // last, before it is stored
//! ```
//! The order of a write is: decode (prune, defaults; an apply has its defaults afterwards), then one of the first two,
//! then what the kind itself fills in or puts back, then `keep_times`. What is filled in that late has no owner.
//!
//! The rules are those of kube-apiserver 1.36 (`k8s.io/apimachinery/pkg/util/managedfields` over
//! `sigs.k8s.io/structured-merge-diff/v6`). An object is taken apart by its schema: maps are granular unless
//! `x-kubernetes-map-type` is `atomic`, lists are one value unless `x-kubernetes-list-type` is `set` or `map`.
//! Owners at another version of the kind are treated as if the field paths were the same there,
//! which holds for a conversion strategy of `None` (and not quite for events, whose two API groups name fields
//! differently: an entry written through one is not taken apart by a write through the other).

mod apply;
mod builtin;
mod compare;
mod entries;
mod fields_v1;
mod merge;
mod path;
mod reconcile;
mod set;
mod types;
mod update;
mod validate;
mod walk;

use std::fmt;

use serde_json::{Value, json};

use crate::schema::Node;
use set::Set;

/// What objects of a kind look like, as far as merging is concerned.
#[derive(Clone, Debug)]
pub struct Types<'a> {
    root: types::Type<'a>,
    /// What an object is compared with when it is created.
    empty: Value,
    status: bool,
    /// A write to the status subresource changes nothing in `metadata`.
    status_keeps_metadata: bool,
}

impl<'a> Types<'a> {
    /// From the schema of a custom resource; without one, maps are granular and lists one value.
    /// `status`: the kind has a status subresource, so that only that changes `.status`.
    pub fn new(schema: Option<&'a Node>, status: bool) -> Types<'a> {
        Types {
            root: types::Type::root(schema),
            empty: json!({}),
            status,
            status_keeps_metadata: true,
        }
    }

    /// Fields that a write through `subresource` cannot change.
    fn ignored(&self, subresource: &str) -> Set {
        match subresource {
            "" | "finalize" if self.status => Set::of_field(&["status"]),
            "status" if self.status_keeps_metadata => Set::of_field(&["metadata"]).union(&Set::of_field(&["spec"])),
            "status" => Set::of_field(&["spec"]),
            _ => Set::default(),
        }
    }
}

/// Who writes, and how.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// The field manager.
    pub manager: &'a str,
    /// Version in which the object is written, like `vmlet.dev/v1alpha1`.
    pub api_version: &'a str,
    /// Empty, `status`, `scale` or `finalize`.
    pub subresource: &'a str,
    /// Now, in RFC 3339.
    pub time: &'a str,
}

/// A field that another manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The owner as the API server names it: `"curl" using vmlet.dev/v1alpha1`.
    pub manager: String,
    /// Like `.spec.cpus`.
    pub field: String,
}

impl Conflict {
    /// The message of the `FieldManagerConflict` cause.
    pub fn message(&self) -> String {
        format!("conflict with {}", self.manager)
    }
}

/// An apply that was refused; as text, it is the message of the API server's Status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplyError {
    /// 409 `Conflict`, one cause `FieldManagerConflict` for each.
    Conflicts(Vec<Conflict>),
    /// The configuration (or what it is applied to) is no object of this kind.
    Invalid {
        /// HTTP status code.
        code: u16,
        /// Empty for the errors that the API server has no name for.
        reason: &'static str,
        /// For people.
        message: String,
    },
}

impl ApplyError {
    fn bad_request(message: impl Into<String>) -> ApplyError {
        ApplyError::Invalid {
            code: 400,
            reason: "BadRequest",
            message: message.into(),
        }
    }

    fn internal(message: String) -> ApplyError {
        ApplyError::Invalid {
            code: 500,
            reason: "",
            message,
        }
    }
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApplyError::Invalid { message, .. } => f.write_str(message),
            ApplyError::Conflicts(conflicts) => match conflicts.as_slice() {
                [one] => write!(f, "Apply failed with 1 conflict: {}: {}", one.message(), one.field),
                many => {
                    write!(f, "Apply failed with {} conflicts: ", many.len())?;
                    for (i, conflict) in many.iter().enumerate() {
                        if i == 0 || many[i - 1].manager != conflict.manager {
                            let line = if i == 0 { "" } else { "\n" };
                            write!(f, "{line}conflicts with {}:", conflict.manager)?;
                        }
                        write!(f, "\n- {}", conflict.field)?;
                    }
                    Ok(())
                }
            },
        }
    }
}

impl std::error::Error for ApplyError {}

/// Puts into `object` the managedFields that it has after a create, update, JSON or merge patch.
///
/// `object` is what is about to be stored, with the managedFields that the client sent: an empty list or one empty
/// entry starts afresh, entries that can be understood are taken, otherwise those of `live` go on.
/// `live` is none on create. Both have been pruned to the schema.
///
/// Returns why the object has no managedFields now, if it should have some: it is most likely refused, too, and
/// [`say_untracked`] is for when it was stored.
pub fn track_update(
    types: &Types<'_>,
    live: Option<&Value>,
    object: &mut Value,
    writer: &Writer<'_>,
) -> Option<String> {
    let of_live = || {
        let entries = live.and_then(entries::read).unwrap_or_default();
        entries::decode(entries).unwrap_or_default()
    };
    let mut owners = match entries::read(object) {
        // A subresource cannot change the owners.
        _ if !writer.subresource.is_empty() => of_live(),
        None => of_live(),
        Some(sent) if entries::is_reset(&sent) => entries::Owners::new(),
        Some(sent) => match entries::decode(sent) {
            Ok(owners) => owners,
            Err(_) => of_live(),
        },
    };
    entries::remove(object);
    // Tracking starts with an object or with the first apply, not in between.
    if owners.is_empty() && live.is_some() {
        return None;
    }
    let mut before = live.unwrap_or(&types.empty).clone();
    entries::remove(&mut before);
    match update::update(types, &before, object, &mut owners, writer) {
        Ok(()) => {
            entries::write(object, &owners);
            None
        }
        Err(error) => Some(error.to_string()),
    }
}

/// Says that an object was stored without managedFields, if it was.
pub fn say_untracked(untracked: Option<String>, object: &Value) {
    if let Some(why) = untracked {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let kind = object["kind"].as_str().unwrap_or_default();
        tracing::warn!(kind, name, why, "an object is stored without managedFields");
    }
}

/// Applies `config` to `live` (none: it is created): what `config` has is merged, what the manager applied before and
/// nobody owns any more is removed. The result has its managedFields and no defaults yet.
///
/// `config` is as the client sent it. When nothing changes, the result is `live`, except that the manager
/// may have become an owner.
///
/// # Errors
/// Conflicts with other owners unless `force`, and configurations that do not fit the schema.
pub fn apply(
    types: &Types<'_>,
    live: Option<&Value>,
    config: &Value,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, ApplyError> {
    apply::apply(types, live, config, writer, force)
}

/// Puts the times of `live`'s managedFields back when they are all that differs, so that a write that
/// changes nothing is none.
pub fn keep_times(live: &Value, object: &mut Value) {
    const LIST: &str = "/metadata/managedFields";
    let untimed = |object: &Value| {
        let mut object = object.clone();
        let list = object.pointer_mut(LIST).and_then(Value::as_array_mut);
        for entry in list.into_iter().flatten().filter_map(Value::as_object_mut) {
            entry.remove("time");
        }
        object
    };
    if live.pointer(LIST) == object.pointer(LIST) || untimed(live) != untimed(object) {
        return;
    }
    if let (Some(old), Some(new)) = (live.pointer(LIST), object.pointer_mut(LIST)) {
        *new = old.clone();
    }
}

#[cfg(test)]
mod tests;
