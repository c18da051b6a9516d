//! What holds for all objects.

use proptest::prelude::*;

use super::super::fields_v1::{decode, encode};
use super::super::path::Element;
use super::super::set::Set;
use super::super::types::Type;
use super::super::walk::field_set;
use super::super::{apply, keep_times, track_update};
use super::*;

const FIRST: &str = "2026-11-25T12:00:00Z";
const LATER: &str = "2026-11-25T12:00:01Z";

fn element() -> impl Strategy<Value = Element> {
    let scalar = prop_oneof![
        "[a-z<&\"\\\\é.:]{0,4}".prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(|half| Value::from(f64::from(half) / 2.0)),
    ];
    prop_oneof![
        "[a-z./:\"]{0,5}".prop_map(|name| Element::field(&name)),
        proptest::collection::btree_map("[a-z]{1,3}", scalar.clone(), 1..3)
            .prop_map(|keys| Element::Key(keys.into_iter().collect())),
        scalar.prop_map(Element::Value),
        (0..9i64).prop_map(Element::Index),
    ]
}

fn set() -> impl Strategy<Value = Set> {
    let path = proptest::collection::vec(element(), 1..5);
    proptest::collection::vec(path, 0..12).prop_map(|paths| {
        let mut set = Set::default();
        paths.iter().for_each(|path| set.insert(path));
        set
    })
}

fn letters() -> impl Strategy<Value = Value> {
    proptest::collection::btree_map("[a-c]", "[x-z]", 0..3).prop_map(|map| json!(map))
}

/// A valid spec, without repeated items. An empty list is owned by nobody, so that none is in it.
fn spec() -> impl Strategy<Value = Value> {
    let disks = proptest::collection::btree_map("[a-c]", (0..3u8, letters()), 1..3).prop_map(|disks| {
        let disk = |(name, (size, options)): (String, (u8, Value))| json!({"name": name, "size": size.to_string(), "options": options});
        Value::Array(disks.into_iter().map(disk).collect())
    });
    let groups = proptest::collection::btree_set("[a-d]", 1..3).prop_map(|groups| json!(groups));
    let fields = (
        proptest::option::of((1..4u8).prop_map(Value::from)),
        proptest::option::of(disks),
        proptest::option::of(groups),
        proptest::option::of(letters()),
        proptest::option::of(letters()),
        proptest::option::of(letters().prop_map(|map| json!(map.as_object().map(|m| m.len())))),
    );
    fields.prop_map(|(cpus, disks, groups, labels, extra, memory)| {
        let names = ["cpus", "disks", "groups", "labels", "extra", "memory"];
        let values = [cpus, disks, groups, labels, extra, memory];
        let present = names
            .into_iter()
            .zip(values)
            .filter_map(|(n, v)| Some((n.to_owned(), v?)));
        Value::Object(present.collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_set_is_read_as_it_was_written(set in set()) {
        prop_assert_eq!(decode(&encode(&set)).unwrap(), set);
    }

    #[test]
    fn sets_obey_the_laws_of_sets(a in set(), b in set()) {
        prop_assert_eq!(a.union(&b), b.union(&a));
        prop_assert_eq!(a.intersection(&b), b.intersection(&a));
        prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a.clone());
        prop_assert!(a.difference(&b).intersection(&b).is_empty());
        prop_assert!(a.paths().iter().all(|path| a.has_path(path)));
    }

    #[test]
    fn an_apply_twice_is_an_apply_once(before in spec(), config in spec()) {
        let schema = machine();
        let types = Types::new(Some(schema.root()), true);
        let mut live = vm(before);
        track_update(&types, None, &mut live, &by("creator", FIRST));
        let once = apply(&types, Some(&live), &vm(config.clone()), &by("me", FIRST), true).unwrap();
        let mut twice = apply(&types, Some(&once), &vm(config), &by("me", LATER), false).unwrap();
        keep_times(&once, &mut twice);
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn appliers_of_different_fields_never_conflict(mine in spec(), theirs in spec()) {
        let schema = machine();
        let types = Types::new(Some(schema.root()), true);
        let theirs = json!({"mixed": theirs, "image": "x"});
        let live = apply(&types, None, &vm(mine.clone()), &by("me", FIRST), false).unwrap();
        let both = apply(&types, Some(&live), &vm(theirs.clone()), &by("them", FIRST), false).unwrap();
        let again = apply(&types, Some(&both), &vm(mine.clone()), &by("me", LATER), false).unwrap();
        prop_assert_eq!(&again["spec"]["image"], "x");
        for (name, value) in mine.as_object().unwrap() {
            prop_assert_eq!(&again["spec"][name], value);
        }
    }

    #[test]
    fn what_its_only_owner_no_longer_applies_is_gone(first in spec(), second in spec()) {
        let schema = machine();
        let types = Types::new(Some(schema.root()), true);
        let live = apply(&types, None, &vm(first), &by("me", FIRST), false).unwrap();
        let object = apply(&types, Some(&live), &vm(second.clone()), &by("me", LATER), false).unwrap();
        prop_assert_eq!(field_set(&object["spec"], Type::Deduced), field_set(&second, Type::Deduced));
    }

    #[test]
    fn an_update_leaves_each_changed_field_one_owner(before in spec(), after in spec()) {
        let schema = machine();
        let types = Types::new(Some(schema.root()), true);
        let live = apply(&types, None, &vm(before.clone()), &by("me", FIRST), false).unwrap();
        let mut object = live.clone();
        object["spec"] = after.clone();
        track_update(&types, Some(&live), &mut object, &by("editor", LATER));
        let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        let sets: Vec<Set> = entries.iter().map(|entry| decode(&entry["fieldsV1"]).unwrap()).collect();
        for (i, a) in sets.iter().enumerate() {
            for b in &sets[i + 1..] {
                prop_assert!(a.intersection(b).is_empty(), "{:?} and {:?}", a, b);
            }
        }
        if before == after {
            prop_assert_eq!(&object, &live);
        }
    }
}
