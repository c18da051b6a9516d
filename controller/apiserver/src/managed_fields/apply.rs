//! Server-side apply.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::compare::compare;
use super::entries::{self, Operation, Owned, Owner, Owners};
use super::merge::merge;
use super::path::{same, show};
use super::set::Set;
use super::types::Type;
use super::update::{Conflicts, reconcile_all, strip, take, update};
use super::validate::{named, validate};
use super::walk::{field_set, remove, with_named_fields};
use super::{ApplyError, Conflict, Types, Writer};
use crate::schema::go_json;

/// Owner of what was there before anybody's fields were tracked.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// The manager for which the annotation of client-side apply is heeded and kept up to date.
const KUBECTL: &str = "kubectl";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Most bytes of all annotations of an object.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// See [`super::apply`].
pub(crate) fn apply(
    types: &Types<'_>,
    live: Option<&Value>,
    config: &Value,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, ApplyError> {
    let (live, mut owners) = match live {
        None => (json!({}), Owners::new()),
        Some(live) => {
            let owners = entries::decode(entries::read(live).unwrap_or_default())
                .map_err(|e| ApplyError::internal(format!("failed to decode managed fields: {e}")))?;
            let mut live = live.clone();
            entries::remove(&mut live);
            (live, owners)
        }
    };
    if owners.is_empty() {
        let before = Writer {
            manager: BEFORE_FIRST_APPLY,
            ..*writer
        };
        update(types, &types.empty, &live, &mut owners, &before)
            .map_err(|e| ApplyError::internal(format!("failed to create manager for existing fields: {e}")))?;
    }
    check(types, &live, config, writer)?;
    let attempt = Attempt {
        types,
        live: &live,
        config,
        writer,
    };
    let result = match attempt.run(owners.clone(), force) {
        Err(conflicts) if writer.manager == KUBECTL => attempt.forgive(conflicts, owners),
        result => result,
    };
    let (mut object, owners) = result.map_err(conflict_error)?;
    entries::write(&mut object, &owners);
    if writer.manager == KUBECTL {
        refresh_last_applied(&mut object, config);
    }
    Ok(object)
}

fn check(types: &Types<'_>, live: &Value, config: &Value, writer: &Writer<'_>) -> Result<(), ApplyError> {
    if entries::read(config).is_some() {
        return Err(ApplyError::bad_request("metadata.managedFields must be nil"));
    }
    validate(config, types.root, false).map_err(|e| {
        ApplyError::internal(format!(
            "failed to create typed patch object ({}): {e}",
            named(config, writer)
        ))
    })?;
    validate(live, types.root, true).map_err(|e| {
        ApplyError::internal(format!(
            "failed to create typed live object ({}): {e}",
            named(live, writer)
        ))
    })
}

struct Attempt<'a> {
    types: &'a Types<'a>,
    live: &'a Value,
    config: &'a Value,
    writer: &'a Writer<'a>,
}

impl Attempt<'_> {
    fn run(&self, mut owners: Owners, force: bool) -> Result<(Value, Owners), Conflicts> {
        let root = self.types.root;
        reconcile_all(&mut owners, root);
        let merged = merge(self.live, self.config, root);
        let ignored = self.types.ignored(self.writer.subresource);
        let owner = Owner::of(self.writer, Operation::Apply);
        let last = owners.remove(&owner);
        let time = last.as_ref().and_then(|last| last.time);
        owners.insert(
            owner.clone(),
            Owned {
                set: field_set(self.config, root).difference_with_children(&ignored),
                api_version: self.writer.api_version.to_owned(),
                time,
            },
        );
        let object = match last {
            Some(last) if !last.set.is_empty() => prune(&merged, root, &last.set, &owners),
            _ => merged,
        };
        let changes = compare(self.live, &object, root).without(&ignored);
        take(&mut owners, Some(&owner), &changes, force)?;
        let changed = !same(self.live, &object);
        if let Some(owned) = owners.get_mut(&owner) {
            owned.set = strip(&owned.set);
            if changed {
                owned.time = self.writer.time.parse::<Timestamp>().ok();
            }
        }
        owners.retain(|_, owned| !owned.set.is_empty());
        let object = if changed { object } else { self.live.clone() };
        Ok((object, owners))
    }

    /// Conflicts over what client-side apply had written, and nobody changed since, are none.
    fn forgive(&self, conflicts: Conflicts, owners: Owners) -> Result<(Value, Owners), Conflicts> {
        let Some(allowed) = self.last_applied() else {
            return Err(conflicts);
        };
        let left: Conflicts = conflicts
            .into_iter()
            .map(|(owner, paths)| {
                let left = paths.into_iter().filter(|path| !allowed.has_path(path)).collect();
                (owner, left)
            })
            .filter(|(_, paths): &(_, Vec<_>)| !paths.is_empty())
            .collect();
        if left.is_empty() {
            self.run(owners, true)
        } else {
            Err(left)
        }
    }

    /// Fields of the last client-side apply that still are as they were applied.
    fn last_applied(&self) -> Option<Set> {
        let root = self.types.root;
        let text = self
            .live
            .get("metadata")?
            .get("annotations")?
            .get(LAST_APPLIED)?
            .as_str()?;
        let applied: Value = serde_json::from_str(text).ok()?;
        if applied.get("apiVersion")?.as_str()? != self.writer.api_version {
            return None;
        }
        validate(&applied, root, false).ok()?;
        validate(self.live, root, false).ok()?;
        let changes = compare(&applied, self.live, root);
        let set = field_set(&applied, root);
        Some(set.difference(&changes.set()).difference(&changes.removed))
    }
}

/// Removes from `merged` what the writer applied the last time and neither it nor anybody else owns now.
fn prune(merged: &Value, root: Type<'_>, last: &Set, owners: &Owners) -> Value {
    let named = |set: &Set| with_named_fields(set, root);
    let (all, last) = (named(&field_set(merged, root)), named(last));
    let pruned = remove(merged, root, &last);

    let owned = owners
        .values()
        .fold(Set::default(), |all, owned| all.union(&named(&owned.set)));
    let kept = named(&field_set(&pruned, root)).union(&owned);
    let pruned = remove(merged, root, &all.difference(&kept));

    // What goes along with something removed, but never was the writer's, stays.
    let kept = named(&field_set(&pruned, root));
    remove(merged, root, &all.difference(&kept).intersection(&last))
}

fn conflict_error(conflicts: Conflicts) -> ApplyError {
    let conflicts = conflicts.into_iter().flat_map(|(owner, paths)| {
        let manager = owner.describe();
        paths.into_iter().map(move |path| Conflict {
            manager: manager.clone(),
            field: show(&path),
        })
    });
    ApplyError::Conflicts(conflicts.collect())
}

/// Keeps the annotation of client-side apply in step, so that going back to it loses nothing.
fn refresh_last_applied(object: &mut Value, config: &Value) {
    let Some(annotations) = object
        .get_mut("metadata")
        .and_then(|metadata| metadata.get_mut("annotations"))
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    if annotations
        .get(LAST_APPLIED)
        .and_then(Value::as_str)
        .is_none_or(str::is_empty)
    {
        return;
    }
    let mut config = config.clone();
    if let Some(annotations) = config
        .get_mut("metadata")
        .and_then(|metadata| metadata.get_mut("annotations"))
        .and_then(Value::as_object_mut)
    {
        annotations.remove(LAST_APPLIED);
    }
    annotations.insert(LAST_APPLIED.into(), (go_json(&config) + "\n").into());
    let size: usize = annotations
        .iter()
        .map(|(name, value)| name.len() + value.as_str().map_or(0, str::len))
        .sum();
    if size > MAX_ANNOTATIONS {
        annotations.remove(LAST_APPLIED);
    }
}
