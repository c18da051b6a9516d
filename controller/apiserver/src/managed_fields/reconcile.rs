//! Sets of fields after a change of the schema.

use super::path::Element;
use super::set::Set;
use super::types::{Form, Items, Type};

/// Where the schema made a map or list one value, its owners own it as a whole.
///
/// The other way round nothing is changed: whoever owned the whole goes on to own only that.
pub(crate) fn reconcile(set: &Set, kind: Type<'_>) -> Set {
    let mut walker = Walker::default();
    walker.place(Some(set), kind, false);
    if walker.whole.is_empty() {
        return set.clone();
    }
    set.difference_with_children(&walker.whole).union(&walker.whole)
}

#[derive(Default)]
struct Walker {
    path: Vec<Element>,
    whole: Set,
}

impl Walker {
    fn place(&mut self, set: Option<&Set>, kind: Type<'_>, owned_as_whole: bool) {
        match kind.atom().form() {
            Form::List(list) if matches!(list.items, Items::Atomic) => {
                if !owned_as_whole {
                    self.whole.insert(&self.path);
                }
            }
            Form::List(list) => self.children(set, |_| list.element),
            Form::Map(map) if map.is_free() => {}
            Form::Map(map) if map.atomic => {
                if !owned_as_whole && set.is_some() {
                    self.whole.insert(&self.path);
                }
            }
            Form::Map(map) => self.children(set, |element| match element {
                Element::Field(name) => map.field(name),
                _ => map.element,
            }),
            Form::Scalar(_) | Form::Nothing => {}
        }
    }

    fn children<'t>(&mut self, set: Option<&Set>, kind: impl Fn(&Element) -> Type<'t>) {
        for (element, branch) in set.into_iter().flat_map(|set| &set.0) {
            let below = Some(&branch.below).filter(|set| !set.is_empty());
            self.path.push(element.clone());
            self.place(below, kind(element), below.is_none());
            self.path.pop();
        }
    }
}
