//! Who owns what after a change that was not applied.

use jiff::Timestamp;
use serde_json::Value;

use super::compare::{Comparison, compare};
use super::entries::{Operation, Owned, Owner, Owners};
use super::path::Element;
use super::reconcile::reconcile;
use super::set::Set;
use super::types::Type;
use super::validate::{named, validate};
use super::{Types, Writer};

/// Most owners by update; more are folded into [`ANCIENT`].
const MAX_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

/// Owners whose fields the writer changed, and which.
pub(crate) type Conflicts = Vec<(Owner, Vec<Vec<Element>>)>;

/// Takes changed and removed fields from all owners but `except`, and forgets those left with nothing.
///
/// # Errors
/// The owners of changed fields, unless `force`.
pub(crate) fn take(
    owners: &mut Owners,
    except: Option<&Owner>,
    changes: &Comparison,
    force: bool,
) -> Result<(), Conflicts> {
    let changed = changes.set();
    let mut conflicts = Conflicts::new();
    for (owner, owned) in owners.iter_mut().filter(|(owner, _)| Some(*owner) != except) {
        let lost = owned.set.intersection(&changed);
        if !force && !lost.is_empty() {
            conflicts.push((owner.clone(), lost.paths()));
            continue;
        }
        owned.set = owned.set.difference(&lost).difference(&changes.removed);
    }
    if !conflicts.is_empty() {
        return Err(conflicts);
    }
    owners.retain(|_, owned| !owned.set.is_empty());
    Ok(())
}

/// Fits all sets to the schema.
pub(crate) fn reconcile_all(owners: &mut Owners, kind: Type<'_>) {
    for owned in owners.values_mut() {
        owned.set = reconcile(&owned.set, kind);
    }
}

/// Fields that nobody owns.
pub(crate) fn strip(set: &Set) -> Set {
    let mut never = Set::of_field(&["apiVersion"]);
    never.insert(&[Element::field("kind")]);
    never.insert(&[Element::field("metadata")]);
    for name in [
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "clusterName",
        "generation",
        "managedFields",
        "resourceVersion",
    ] {
        never.insert(&[Element::field("metadata"), Element::field(name)]);
    }
    set.difference(&never)
}

/// Gives the writer what changed between `live` and `object`, both without their managedFields.
///
/// # Errors
/// Why an object does not fit the schema.
pub(crate) fn update(
    types: &Types<'_>,
    live: &Value,
    object: &Value,
    owners: &mut Owners,
    writer: &Writer<'_>,
) -> Result<(), String> {
    for (which, value) in [("new", object), ("live", live)] {
        validate(value, types.root, true).map_err(|e| {
            let name = named(value, writer);
            format!("failed to convert {which} object ({name}) to smd typed: {e}")
        })?;
    }
    reconcile_all(owners, types.root);
    let ignored = types.ignored(writer.subresource);
    let changes = compare(live, object, types.root).without(&ignored);
    let set = strip(&changes.set());
    // With force there are no conflicts.
    let _ = take(owners, None, &changes, true);
    if !set.is_empty() {
        let time = writer.time.parse::<Timestamp>().ok();
        let owner = Owner::of(writer, Operation::Update);
        let owned = owners.entry(owner).or_insert_with(|| Owned {
            set: Set::default(),
            api_version: writer.api_version.to_owned(),
            time,
        });
        owned.set = owned.set.union(&set);
        owned.time = time;
    }
    cap(owners);
    Ok(())
}

/// Folds the oldest updaters of each version into one until there are few enough.
fn cap(owners: &mut Owners) {
    let mut updaters: Vec<Owner> = owners
        .keys()
        .filter(|owner| owner.operation == Operation::Update)
        .cloned()
        .collect();
    let mut count = updaters.len();
    if count <= MAX_UPDATERS {
        return;
    }
    updaters.sort_by_key(|owner| owners.get(owner).and_then(|o| o.time).map_or(0, Timestamp::as_second));
    let mut first_of: Vec<(String, Owner)> = Vec::new();
    for owner in updaters {
        if count <= MAX_UPDATERS {
            break;
        }
        let Some(owned) = owners.get(&owner).cloned() else {
            continue;
        };
        let Some((version, first)) = first_of.iter().find(|(version, _)| *version == owned.api_version) else {
            first_of.push((owned.api_version, owner));
            continue;
        };
        let bucket = Owner::new(ANCIENT, Operation::Update, version, "");
        if !owners.contains_key(&bucket)
            && let Some(oldest) = owners.remove(first)
        {
            owners.insert(bucket.clone(), oldest);
        }
        if let Some(ancient) = owners.get_mut(&bucket) {
            ancient.set = ancient.set.union(&owned.set);
            ancient.time = owned.time;
        }
        if owner != bucket {
            owners.remove(&owner);
        }
        count -= 1;
    }
}
