//! Whether an object fits its types, with the API server's words where it does not.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::Writer;
use super::path::Element;
use super::types::{Form, Items, ListOf, MapType, Scalar, Type};
use super::walk::item_element;
use crate::schema::go_number;

/// Checks an object; `repeats` allows items of sets and keyed lists to be there more than once.
///
/// # Errors
/// What is wrong and where, all of it in one text.
pub(crate) fn validate(value: &Value, kind: Type<'_>, repeats: bool) -> Result<(), String> {
    let mut walker = Walker {
        path: Vec::new(),
        repeats,
        errors: Vec::new(),
    };
    walker.place(value, kind);
    match walker.errors.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("errors:\n  {}", many.join("\n  "))),
    }
}

/// How errors name an object.
pub(crate) fn named(object: &Value, writer: &Writer<'_>) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    let (namespace, name) = (text(&metadata["namespace"]), text(&metadata["name"]));
    let core = if writer.api_version.contains('/') { "" } else { "/" };
    format!(
        "{namespace}/{name}; {core}{}, Kind={}",
        writer.api_version,
        text(&object["kind"])
    )
}

struct Walker {
    path: Vec<Element>,
    repeats: bool,
    errors: Vec<String>,
}

impl Walker {
    fn error(&mut self, text: impl std::fmt::Display) {
        let path = super::path::show(&self.path);
        self.errors.push(if path.is_empty() {
            text.to_string()
        } else {
            format!("{path}: {text}")
        });
    }

    fn below(&mut self, element: Element, value: &Value, kind: Type<'_>) {
        self.path.push(element);
        self.place(value, kind);
        self.path.pop();
    }

    fn place(&mut self, value: &Value, kind: Type<'_>) {
        match kind.form(value) {
            Form::Map(kind) => match value {
                Value::Null => {}
                Value::Object(map) => self.fields(&kind, map),
                other => self.error(format_args!("expected map, got &{{{}}}", plain(other))),
            },
            Form::List(list) => match value {
                Value::Null => {}
                Value::Array(items) => self.items(&list, items),
                other => self.error(format_args!("expected list, got &{{{}}}", plain(other))),
            },
            Form::Scalar(scalar) => self.scalar(scalar, value),
            Form::Nothing => self.error("schema error: invalid atom: inlined"),
        }
    }

    fn scalar(&mut self, scalar: Scalar, value: &Value) {
        match (scalar, value) {
            (_, Value::Null)
            | (Scalar::Numeric, Value::Number(_))
            | (Scalar::Text, Value::String(_))
            | (Scalar::Boolean, Value::Bool(_))
            | (Scalar::Any, Value::Number(_) | Value::String(_) | Value::Bool(_)) => {}
            (Scalar::Numeric, other) => {
                self.error(format_args!("expected numeric (int or float), got {}", go_type(other)));
            }
            (Scalar::Text, other) => self.error(format_args!(
                "expected string, got &value.valueUnstructured{{Value:{}}}",
                detailed(other)
            )),
            (Scalar::Boolean, other) => self.error(format_args!("expected boolean, got &{{{}}}", plain(other))),
            (Scalar::Any, other) => self.error(format_args!("expected any scalar, got &{{{}}}", plain(other))),
        }
    }

    fn fields(&mut self, kind: &MapType<'_>, map: &Map<String, Value>) {
        for (name, value) in map {
            match (kind.named(name), kind.element) {
                (None, Type::Nothing) => {
                    self.path.push(Element::field(name));
                    self.error("field not declared in schema");
                    self.path.pop();
                    return;
                }
                (named, element) => self.below(Element::field(name), value, named.unwrap_or(element)),
            }
        }
    }

    fn items(&mut self, list: &ListOf<'_>, items: &[Value]) {
        let mut seen = BTreeSet::new();
        for (index, item) in items.iter().enumerate() {
            let element = if matches!(list.items, Items::Atomic) {
                Element::Index(i64::try_from(index).unwrap_or(i64::MAX))
            } else {
                match item_element(list, item) {
                    Err(error) => return self.error(format_args!("element {index}: {error}")),
                    Ok(element) => {
                        if !seen.insert(element.clone()) && !self.repeats {
                            self.error(format_args!("duplicate entries for key {element}"));
                        }
                        element
                    }
                }
            };
            self.below(element, item, list.element);
        }
    }
}

/// The Go type that holds a value.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// A value as Go's `%v` prints it.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Number(number) => go_number(number),
        Value::Bool(flag) => flag.to_string(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(plain).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(map) => {
            let fields: Vec<String> = map.iter().map(|(name, v)| format!("{name}:{}", plain(v))).collect();
            format!("map[{}]", fields.join(" "))
        }
    }
}

/// A value as Go's `%#v` prints it.
fn detailed(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".into(),
        Value::String(text) => crate::schema::quote(text),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(detailed).collect();
            format!("[]interface {{}}{{{}}}", items.join(", "))
        }
        Value::Object(map) => {
            let quote = crate::schema::quote;
            let fields: Vec<String> = map
                .iter()
                .map(|(name, v)| format!("{}:{}", quote(name), detailed(v)))
                .collect();
            format!("map[string]interface {{}}{{{}}}", fields.join(", "))
        }
        other => plain(other),
    }
}
