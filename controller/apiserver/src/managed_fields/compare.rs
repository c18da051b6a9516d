//! What changed between two objects.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::path::{Element, same};
use super::set::Set;
use super::types::{Atom, Form, Items, ListOf, MapType, Type};
use super::walk::item_element;

/// Fields that one object has and the other does not, or has otherwise.
#[derive(Clone, Debug, Default)]
pub(crate) struct Comparison {
    pub(crate) removed: Set,
    pub(crate) modified: Set,
    pub(crate) added: Set,
}

impl Comparison {
    /// Without the fields of `ignored` and all below them.
    pub(crate) fn without(&self, ignored: &Set) -> Comparison {
        Comparison {
            removed: self.removed.difference_with_children(ignored),
            modified: self.modified.difference_with_children(ignored),
            added: self.added.difference_with_children(ignored),
        }
    }

    /// Everything that the new object has and the old one has not.
    pub(crate) fn set(&self) -> Set {
        self.modified.union(&self.added)
    }
}

/// Compares two valid objects.
pub(crate) fn compare(old: &Value, new: &Value, kind: Type<'_>) -> Comparison {
    let mut walker = Walker::default();
    walker.place(Some(old), Some(new), kind);
    walker.found
}

#[derive(Default)]
struct Walker {
    path: Vec<Element>,
    found: Comparison,
}

impl Walker {
    fn below(&mut self, element: Element, old: Option<&Value>, new: Option<&Value>, kind: Type<'_>) {
        self.path.push(element);
        self.place(old, new, kind);
        self.path.pop();
    }

    fn place(&mut self, old: Option<&Value>, new: Option<&Value>, kind: Type<'_>) {
        let atom = kind.atom();
        let (before, after) = (atom.narrowed(old), atom.narrowed(new));
        let leaf = match (old, new) {
            (_, None) => self.form(before, old, new),
            (None, _) => self.form(after, old, new),
            _ if before.same_forms(&after) => self.form(after, old, new),
            _ => {
                self.form(before, old, new);
                self.form(after, old, new)
            }
        };
        match (old, new) {
            (None, Some(_)) if !leaf => self.found.added.insert(&self.path),
            (Some(_), None) if !leaf => self.found.removed.insert(&self.path),
            _ => {}
        }
    }

    /// Whether the place was treated as one value.
    fn form(&mut self, atom: Atom<'_>, old: Option<&Value>, new: Option<&Value>) -> bool {
        match atom.form() {
            Form::Scalar(_) => self.leaf(old, new),
            Form::Map(kind) => {
                let (a, b) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
                if kind.atomic || (a.is_none_or(Map::is_empty) && b.is_none_or(Map::is_empty)) {
                    return self.leaf(old, new);
                }
                self.fields(&kind, a, b);
                false
            }
            Form::List(list) => {
                let (a, b) = (items(old), items(new));
                if matches!(list.items, Items::Atomic) || (a.is_empty() && b.is_empty()) {
                    return self.leaf(old, new);
                }
                self.items(&list, a, b);
                false
            }
            Form::Nothing => false,
        }
    }

    fn leaf(&mut self, old: Option<&Value>, new: Option<&Value>) -> bool {
        match (old, new) {
            (None, _) => self.found.added.insert(&self.path),
            (_, None) => self.found.removed.insert(&self.path),
            (Some(old), Some(new)) if !same(old, new) => self.found.modified.insert(&self.path),
            _ => {}
        }
        true
    }

    fn fields(&mut self, kind: &MapType<'_>, old: Option<&Map<String, Value>>, new: Option<&Map<String, Value>>) {
        for (name, value) in old.into_iter().flatten() {
            let other = new.and_then(|new| new.get(name));
            self.below(Element::field(name), Some(value), other, kind.field(name));
        }
        for (name, value) in new.into_iter().flatten() {
            if old.is_none_or(|old| !old.contains_key(name)) {
                self.below(Element::field(name), None, Some(value), kind.field(name));
            }
        }
    }

    fn items(&mut self, list: &ListOf<'_>, old: &[Value], new: &[Value]) {
        let (old, new) = (by_element(list, old), by_element(list, new));
        for (element, before) in &old {
            let after = new.get(element).map_or(&[][..], Vec::as_slice);
            self.item(list, element, before, after);
        }
        for (element, after) in new.iter().filter(|(element, _)| !old.contains_key(element)) {
            self.item(list, element, &[], after);
        }
    }

    /// One item; more than one of the same identity are compared as if they were one value.
    fn item(&mut self, list: &ListOf<'_>, element: &Element, old: &[&Value], new: &[&Value]) {
        let here = |path: &[Element]| [path, std::slice::from_ref(element)].concat();
        match (old.len(), new.len()) {
            (0 | 1, 0 | 1) => self.below(
                element.clone(),
                old.first().copied(),
                new.first().copied(),
                list.element,
            ),
            (0 | 1, _) => {
                if let [old] = old {
                    self.below(element.clone(), Some(old), None, list.element);
                }
                self.found.added.insert(&here(&self.path));
            }
            (_, 0 | 1) => {
                if let [new] = new {
                    self.below(element.clone(), None, Some(new), list.element);
                }
                self.found.removed.insert(&here(&self.path));
            }
            _ => {
                if old.len() != new.len() || old.iter().zip(new).any(|(a, b)| !same(a, b)) {
                    self.found.modified.insert(&here(&self.path));
                }
            }
        }
    }
}

fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Items with an identity.
fn by_element<'a>(list: &ListOf<'_>, items: &'a [Value]) -> BTreeMap<Element, Vec<&'a Value>> {
    let mut groups: BTreeMap<Element, Vec<&Value>> = BTreeMap::new();
    for item in items {
        if let Ok(element) = item_element(list, item) {
            groups.entry(element).or_default().push(item);
        }
    }
    groups
}
