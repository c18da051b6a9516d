//! Which of its names a definition gets: those that no other of its group has. As kube-apiserver's naming controller, but decided
//! with the write of the definition, and again when another one goes.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::definition::texts;
use crate::conditions;

/// Whether the definition is served. Once it is, it stays so, by the names that it got.
pub fn established(definition: &Value) -> bool {
    holds(definition, "Established")
}

/// Whether the definition wants names that it did not get.
pub fn contested(definition: &Value) -> bool {
    !holds(definition, "NamesAccepted")
}

fn holds(definition: &Value, kind: &str) -> bool {
    conditions::find(definition, kind).is_some_and(|c| c["status"] == "True")
}

/// Writes `status.acceptedNames` and the conditions that follow from it. `others` are the other definitions.
pub fn settle(definition: &mut Value, others: &[Value], now: &str) {
    let (resources, kinds) = taken(&definition["spec"]["group"], others);
    let wanted = definition["spec"]["names"].clone();
    let before = definition["status"]["acceptedNames"].clone();
    let mut names = before.as_object().cloned().unwrap_or_default();
    let mut conflict = None;
    // The last conflict is the one that is told.
    let one = |field: &str, taken: &BTreeSet<String>, names: &mut Map<String, Value>| {
        let name = wanted[field].as_str().unwrap_or_default();
        if before[field] != name && taken.contains(name) {
            return Some(in_use(name));
        }
        put(names, field, &wanted[field]);
        None
    };
    for (field, taken, reason) in [
        ("plural", &resources, "PluralConflict"),
        ("singular", &resources, "SingularConflict"),
        ("shortNames", &resources, "ShortNamesConflict"),
        ("kind", &kinds, "KindConflict"),
        ("listKind", &kinds, "ListKindConflict"),
    ] {
        let why = match field {
            "shortNames" => short_names(&wanted, &before, taken, &mut names),
            _ => one(field, taken, &mut names),
        };
        if let Some(why) = why {
            conflict = Some((reason, why));
        }
    }
    put(&mut names, "categories", &wanted["categories"]);
    // These two are always there.
    for field in ["plural", "kind"] {
        names.entry(field).or_insert_with(|| "".into());
    }
    definition["status"]["acceptedNames"] = Value::Object(names);
    let accepted = conflict.is_none();
    let (reason, message) = conflict.unwrap_or(("NoConflicts", "no conflicts found".to_owned()));
    conditions::set(definition, "NamesAccepted", accepted, reason, &message, now);
    if established(definition) {
        return;
    }
    match accepted {
        true => conditions::set(
            definition,
            "Established",
            true,
            "InitialNamesAccepted",
            "the initial names have been accepted",
            now,
        ),
        false => conditions::set(
            definition,
            "Established",
            false,
            "NotAccepted",
            "not all names are accepted",
            now,
        ),
    }
}

fn in_use(name: &str) -> String {
    format!("{name:?} is already in use")
}

fn put(names: &mut Map<String, Value>, field: &str, value: &Value) {
    match value.is_null() {
        true => names.remove(field),
        false => names.insert(field.to_owned(), value.clone()),
    };
}

/// All of them or none.
fn short_names(
    wanted: &Value,
    before: &Value,
    taken: &BTreeSet<String>,
    names: &mut Map<String, Value>,
) -> Option<String> {
    let before = texts(&before["shortNames"]);
    let wrong: Vec<String> = texts(&wanted["shortNames"])
        .iter()
        .filter(|name| !before.contains(name) && taken.contains(*name))
        .map(|name| in_use(name))
        .collect();
    match wrong.as_slice() {
        [] => {
            put(names, "shortNames", &wanted["shortNames"]);
            None
        }
        [one] => Some(one.clone()),
        all => Some(format!("[{}]", all.join(", "))),
    }
}

/// The names of a group that are someone's: of resources, and of kinds.
fn taken(group: &Value, others: &[Value]) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut resources, mut kinds) = (BTreeSet::new(), BTreeSet::new());
    for other in others.iter().filter(|o| o["spec"]["group"] == *group) {
        let names = &other["status"]["acceptedNames"];
        let text = |field: &str| names[field].as_str().map(str::to_owned);
        resources.extend(["plural", "singular"].into_iter().filter_map(text));
        resources.extend(texts(&names["shortNames"]));
        kinds.extend(["kind", "listKind"].into_iter().filter_map(text));
    }
    // What was not accepted stands as an empty name.
    resources.remove("");
    kinds.remove("");
    (resources, kinds)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definition(plural: &str, singular: &str, kind: &str, list_kind: &str, short: &[&str]) -> Value {
        json!({"spec": {"group": "g.io", "names": {"plural": plural, "singular": singular, "kind": kind, "listKind": list_kind, "shortNames": short}}})
    }

    fn told(definition: &Value, kind: &str) -> String {
        let c = conditions::find(definition, kind).cloned().unwrap_or_default();
        let text = |field: &str| c[field].as_str().unwrap_or_default().to_owned();
        format!("{} {}: {}", text("status"), text("reason"), text("message"))
    }

    #[test]
    fn a_name_that_another_definition_of_the_group_has_is_not_accepted_and_the_rest_is() {
        let mut first = definition("things", "thing", "Thing", "ThingList", &["th", "t"]);
        settle(&mut first, &[], "then");
        assert!(established(&first) && !contested(&first));
        assert_eq!(first["status"]["acceptedNames"], first["spec"]["names"]);
        for (mut second, missing, why) in [
            (
                definition("as", "thing", "A", "AList", &[]),
                "singular",
                r#"SingularConflict: "thing" is already in use"#,
            ),
            (
                definition("as", "a", "Thing", "AList", &[]),
                "kind",
                r#"KindConflict: "Thing" is already in use"#,
            ),
            (
                definition("as", "a", "A", "ThingList", &[]),
                "listKind",
                r#"ListKindConflict: "ThingList" is already in use"#,
            ),
            // A short name takes from resources whatever sort of name it is.
            (
                definition("as", "a", "A", "AList", &["x", "things", "t"]),
                "shortNames",
                r#"ShortNamesConflict: ["things" is already in use, "t" is already in use]"#,
            ),
        ] {
            settle(&mut second, std::slice::from_ref(&first), "then");
            assert_eq!(told(&second, "NamesAccepted"), format!("False {why}"));
            assert_eq!(
                told(&second, "Established"),
                "False NotAccepted: not all names are accepted"
            );
            let mut names = second["spec"]["names"].clone();
            match missing {
                "kind" => names[missing] = "".into(),
                _ => names.as_object_mut().map_or((), |n| drop(n.remove(missing))),
            }
            assert_eq!(second["status"]["acceptedNames"], names, "{why}");
            // Alone, it gets all.
            settle(&mut second, &[], "later");
            assert!(established(&second) && !contested(&second));
            assert_eq!(
                conditions::find(&second, "Established").map(|c| &c["lastTransitionTime"]),
                Some(&json!("later"))
            );
        }
        let mut elsewhere = first.clone();
        elsewhere["spec"]["group"] = "h.io".into();
        elsewhere["status"] = json!({});
        settle(&mut elsewhere, std::slice::from_ref(&first), "then");
        assert!(established(&elsewhere), "another group has names of its own");
    }

    #[test]
    fn what_is_served_stays_served_by_the_names_that_it_got() {
        let mut first = definition("things", "thing", "Thing", "ThingList", &["t"]);
        settle(&mut first, &[], "then");
        let mut second = definition("as", "a", "A", "AList", &["s"]);
        settle(&mut second, std::slice::from_ref(&first), "then");
        second["spec"]["names"]["shortNames"] = json!(["s", "t"]);
        settle(&mut second, std::slice::from_ref(&first), "later");
        assert!(established(&second) && contested(&second));
        assert_eq!(second["status"]["acceptedNames"]["shortNames"], json!(["s"]));
        assert_eq!(
            conditions::find(&second, "Established").map(|c| &c["lastTransitionTime"]),
            Some(&json!("then"))
        );
    }
}
