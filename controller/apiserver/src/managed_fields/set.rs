//! Sets of fields: who owns what.

use std::collections::BTreeMap;

use super::path::Element;

/// A set of field paths, as a tree. That a field is a member says nothing about those below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set(pub(crate) BTreeMap<Element, Branch>);

/// A field and those below it; never neither member nor with anything below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Branch {
    pub(crate) member: bool,
    pub(crate) below: Set,
}

impl Branch {
    fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

impl Set {
    /// The set of one path of field names.
    pub(crate) fn of_field(path: &[&str]) -> Set {
        let path: Vec<Element> = path.iter().map(|name| Element::field(name)).collect();
        let mut set = Set::default();
        set.insert(&path);
        set
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds one field; the whole object (an empty path) is never owned.
    pub(crate) fn insert(&mut self, path: &[Element]) {
        if let Some((first, rest)) = path.split_first() {
            let branch = self.0.entry(first.clone()).or_default();
            match rest {
                [] => branch.member = true,
                _ => branch.below.insert(rest),
            }
        }
    }

    /// Puts `branch` at `element` unless it is empty.
    pub(crate) fn put(&mut self, element: Element, branch: Branch) {
        if !branch.is_empty() {
            self.0.insert(element, branch);
        }
    }

    /// Whether the field itself, not only something below it, is a member.
    pub(crate) fn has(&self, element: &Element) -> bool {
        self.0.get(element).is_some_and(|branch| branch.member)
    }

    /// Whether the field at a path is a member.
    pub(crate) fn has_path(&self, path: &[Element]) -> bool {
        match path {
            [] => false,
            [last] => self.has(last),
            [first, rest @ ..] => self.below(first).is_some_and(|set| set.has_path(rest)),
        }
    }

    /// What is owned below a field, if anything.
    pub(crate) fn below(&self, element: &Element) -> Option<&Set> {
        self.0.get(element).map(|b| &b.below).filter(|set| !set.is_empty())
    }

    /// Fields of either set.
    pub(crate) fn union(&self, other: &Set) -> Set {
        let mut out = self.clone();
        out.extend(other);
        out
    }

    fn extend(&mut self, other: &Set) {
        for (element, theirs) in &other.0 {
            let ours = self.0.entry(element.clone()).or_default();
            ours.member |= theirs.member;
            ours.below.extend(&theirs.below);
        }
    }

    /// Fields of both sets.
    pub(crate) fn intersection(&self, other: &Set) -> Set {
        let mut out = Set::default();
        for (element, ours) in &self.0 {
            if let Some(theirs) = other.0.get(element) {
                let member = ours.member && theirs.member;
                let below = ours.below.intersection(&theirs.below);
                out.put(element.clone(), Branch { member, below });
            }
        }
        out
    }

    /// Fields of this set that are not in the other one.
    pub(crate) fn difference(&self, other: &Set) -> Set {
        self.without(other, false)
    }

    /// Fields of this set that are neither in the other one nor below one of its fields.
    pub(crate) fn difference_with_children(&self, other: &Set) -> Set {
        self.without(other, true)
    }

    fn without(&self, other: &Set, children: bool) -> Set {
        let mut out = Set::default();
        for (element, ours) in &self.0 {
            let branch = match other.0.get(element) {
                None => ours.clone(),
                Some(theirs) if children && theirs.member => continue,
                Some(theirs) => Branch {
                    member: ours.member && !theirs.member,
                    below: ours.below.without(&theirs.below, children),
                },
            };
            out.put(element.clone(), branch);
        }
        out
    }

    /// All member paths: those of a level before those below it.
    pub(crate) fn paths(&self) -> Vec<Vec<Element>> {
        let mut out = Vec::new();
        self.walk(&mut Vec::new(), &mut out);
        out
    }

    fn walk(&self, prefix: &mut Vec<Element>, out: &mut Vec<Vec<Element>>) {
        for (element, _) in self.0.iter().filter(|(_, branch)| branch.member) {
            prefix.push(element.clone());
            out.push(prefix.clone());
            prefix.pop();
        }
        for (element, branch) in &self.0 {
            prefix.push(element.clone());
            branch.below.walk(prefix, out);
            prefix.pop();
        }
    }
}
