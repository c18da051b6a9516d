//! An applied configuration merged into the live object.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Map, Value};

use super::path::Element;
use super::types::{Atom, Form, Items, ListOf, MapType, Type};
use super::walk::item_element;

/// Merges valid `config` into valid `live`: nothing is removed, `config` wins, and lists that it
/// changes get its order.
pub(crate) fn merge(live: &Value, config: &Value, kind: Type<'_>) -> Value {
    place(Some(live), Some(config), kind).unwrap_or(Value::Null)
}

fn place(live: Option<&Value>, config: Option<&Value>, kind: Type<'_>) -> Option<Value> {
    let atom = kind.atom();
    match config {
        None => form(atom.narrowed(live), live, config),
        Some(_) => form(atom.narrowed(config), live, config),
    }
}

fn form(atom: Atom<'_>, live: Option<&Value>, config: Option<&Value>) -> Option<Value> {
    let leaf = || config.or(live).cloned();
    match atom.form() {
        Form::Scalar(_) => leaf(),
        Form::Map(kind) => {
            let (a, b) = (live.and_then(Value::as_object), config.and_then(Value::as_object));
            if kind.atomic || (a.is_none_or(Map::is_empty) && b.is_none_or(Map::is_empty)) {
                return leaf();
            }
            Some(Value::Object(fields(&kind, a, b)))
        }
        Form::List(list) => {
            let (a, b) = (items(live), items(config));
            if matches!(list.items, Items::Atomic) || (a.is_empty() && b.is_empty()) {
                return leaf();
            }
            Some(Value::Array(Lists::new(&list, a, b).merge()))
        }
        Form::Nothing => leaf(),
    }
}

fn fields(
    kind: &MapType<'_>,
    live: Option<&Map<String, Value>>,
    config: Option<&Map<String, Value>>,
) -> Map<String, Value> {
    let mut out = Map::new();
    for (name, value) in live.into_iter().flatten() {
        let other = config.and_then(|config| config.get(name));
        if let Some(value) = place(Some(value), other, kind.field(name)) {
            out.insert(name.clone(), value);
        }
    }
    for (name, value) in config.into_iter().flatten() {
        if live.is_none_or(|live| !live.contains_key(name))
            && let Some(value) = place(None, Some(value), kind.field(name))
        {
            out.insert(name.clone(), value);
        }
    }
    out
}

fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Two sets or keyed lists that become one.
struct Lists<'a> {
    list: &'a ListOf<'a>,
    live: Vec<(Element, &'a Value)>,
    config: Vec<(Element, &'a Value)>,
    /// By identity; null where the live list has it more than once.
    live_values: BTreeMap<Element, &'a Value>,
    config_values: BTreeMap<Element, &'a Value>,
}

impl<'a> Lists<'a> {
    fn new(list: &'a ListOf<'a>, live: &'a [Value], config: &'a [Value]) -> Lists<'a> {
        let index = |items: &'a [Value]| -> Vec<(Element, &'a Value)> {
            let identified = items
                .iter()
                .filter_map(|item| Some((item_element(list, item).ok()?, item)));
            identified.collect()
        };
        let (live, config) = (index(live), index(config));
        let mut live_values = BTreeMap::new();
        for (element, item) in &live {
            let value = if live_values.contains_key(element) {
                &Value::Null
            } else {
                *item
            };
            live_values.insert(element.clone(), value);
        }
        Lists {
            list,
            config_values: config.iter().cloned().collect(),
            live_values,
            live,
            config,
        }
    }

    /// Items of the live list stay in their places between those that both lists have; those come
    /// in the order of the configuration.
    fn merge(&self) -> Vec<Value> {
        let mut shared: VecDeque<&Element> = self
            .config
            .iter()
            .map(|(element, _)| element)
            .filter(|element| self.live_values.contains_key(element))
            .collect();
        let mut next = shared.pop_front();
        let mut merged: BTreeMap<&Element, ()> = BTreeMap::new();
        let mut out = Vec::new();
        let (mut l, mut r) = (0, 0);
        while l < self.live.len() || r < self.config.len() {
            if let (Some((left, _)), Some((right, _))) = (self.live.get(l), self.config.get(r)) {
                if left == right {
                    merged.insert(left, ());
                    self.push(left, self.live_values.get(left).copied(), &mut out);
                    l += 1;
                    r += 1;
                    next = shared.pop_front();
                    continue;
                }
                if self.config_values.contains_key(left) && next.is_some_and(|next| next != left) {
                    // Shared, but not the one whose turn it is: it comes where the configuration has it.
                    l += 1;
                    continue;
                }
            }
            if let Some((left, value)) = self.live.get(l) {
                if !self.config_values.contains_key(left) {
                    self.push(left, Some(value), &mut out);
                    l += 1;
                    continue;
                }
                if merged.contains_key(left) {
                    l += 1;
                }
            }
            if let Some((right, _)) = self.config.get(r) {
                merged.insert(right, ());
                self.push(right, self.live_values.get(right).copied(), &mut out);
                r += 1;
                if next == Some(right) {
                    next = shared.pop_front();
                }
            }
        }
        out
    }

    fn push(&self, element: &Element, live: Option<&Value>, out: &mut Vec<Value>) {
        let config = self.config_values.get(element).copied();
        out.extend(place(live, config, self.list.element));
    }
}
