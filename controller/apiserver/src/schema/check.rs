//! Validation of values, in the words and order of kube-openapi's validator.
//!
//! Two things about its errors are kept on purpose because clients see them: messages name the path
//! below the validated part only (`phase in body ...` for a status), and a failed `anyOf`/`oneOf`
//! reports the alternative that came nearest.

use serde_json::{Map, Value};

use super::{
    error::{ErrorKind, FieldError, go_float},
    formats,
    node::{Additional, ListType, Node},
};

/// Validates `value`, which stands at `prefix` in its object. With `old`, what did not change is not reported.
pub(super) fn check(node: &Node, prefix: &str, value: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut outcome = Outcome::default();
    let checker = Checker { prefix };
    checker.value(node, "", value, old, &mut outcome);
    outcome.errors
}

/// Errors, and how many checks passed through here: the measure of the "nearest" alternative.
#[derive(Default)]
struct Outcome {
    errors: Vec<FieldError>,
    matched: u32,
}

impl Outcome {
    fn merge(&mut self, other: Outcome) {
        self.errors.extend(other.errors);
        self.matched += other.matched;
    }
}

struct Checker<'a> {
    prefix: &'a str,
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn whole(value: &Value) -> bool {
    value.as_f64().is_some_and(|f| f.fract() == 0.0)
}

impl Checker<'_> {
    fn field(&self, path: &str) -> String {
        match (self.prefix, path.trim_start_matches('.')) {
            ("", "") => "<nil>".to_owned(),
            ("", path) => path.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, path) => format!("{prefix}.{path}"),
        }
    }

    fn fail(&self, out: &mut Outcome, kind: ErrorKind, path: &str, value: impl Into<Value>, words: &str) {
        let message = format!("{path} in body {words}");
        out.errors.push(FieldError::new(kind, self.field(path), value, message));
    }

    /// An error of the schema as a whole, which the real server reports without a field.
    fn compose(&self, out: &mut Outcome, message: String) {
        let field = if self.prefix.is_empty() { "<nil>" } else { self.prefix };
        out.errors.push(FieldError::invalid(field, "", message));
    }

    fn value(&self, node: &Node, path: &str, value: &Value, old: Option<&Value>, out: &mut Outcome) {
        if old.is_some_and(|old| old == value) {
            out.matched += 1;
            return;
        }
        self.kind(node, path, value, out);
        if value.is_null() {
            self.allowed(node, path, value, out);
            return;
        }
        self.junctors(node, path, value, out);
        match value {
            Value::String(text) => {
                self.text(node, path, text, out);
                if !formats::matches(&node.format, text) {
                    let words = format!("must be of type {}: {}", node.format, super::quote(text));
                    self.fail(out, ErrorKind::TypeInvalid, path, text.as_str(), &words);
                }
            }
            Value::Number(_) => self.number(node, path, value, out),
            Value::Array(items) => self.items(node, path, items, old, out),
            _ => {}
        }
        self.allowed(node, path, value, out);
        if let Value::Object(map) = value {
            self.fields(node, path, map, old, out);
        }
    }

    fn kind(&self, node: &Node, path: &str, value: &Value, out: &mut Outcome) {
        let want = if node.int_or_string {
            "integer,string"
        } else {
            node.kind.as_str()
        };
        if want.is_empty() {
            return;
        }
        let is = kind_of(value);
        let fits = if value.is_null() {
            node.nullable
        } else {
            want.split(',').any(|want| {
                want == is
                    || (want == "integer" && is == "number" && whole(value))
                    || (want == "number" && is == "integer")
            })
        };
        if fits {
            out.matched += 1;
        } else {
            let words = format!("must be of type {want}: \"{is}\"");
            self.fail(out, ErrorKind::TypeInvalid, path, is, &words);
        }
    }

    fn allowed(&self, node: &Node, path: &str, value: &Value, out: &mut Outcome) {
        let Some(allowed) = &node.allowed else { return };
        if !value.is_null() && allowed.iter().any(|a| same(a, value)) {
            out.matched += 1;
            return;
        }
        let names: Vec<String> = allowed
            .iter()
            .map(|a| a.as_str().map_or_else(|| super::go_json(a), str::to_owned))
            .collect();
        out.errors
            .push(FieldError::not_supported(self.field(path), value.clone(), &names));
    }

    fn text(&self, node: &Node, path: &str, text: &str, out: &mut Outcome) {
        let length = text.chars().count() as i64;
        if let Some(max) = node.max_length.filter(|max| length > *max) {
            out.errors.push(FieldError::too_long(self.field(path), max));
        } else if let Some(min) = node.min_length.filter(|min| length < *min) {
            let words = format!("should be at least {min} chars long");
            self.fail(out, ErrorKind::Invalid, path, text, &words);
        } else if let Some((source, _)) = node.pattern.as_ref().filter(|(_, p)| !p.is_match(text)) {
            let words = format!("should match '{source}'");
            self.fail(out, ErrorKind::Invalid, path, text, &words);
        } else {
            out.matched += 1;
        }
    }

    fn number(&self, node: &Node, path: &str, value: &Value, out: &mut Outcome) {
        let Some(number) = value.as_f64() else { return };
        let mut words = Vec::new();
        let range = match node.format.as_str() {
            "int32" if node.kind == "integer" => number < i32::MIN.into() || number > i32::MAX.into(),
            "int64" if node.kind == "integer" => value.as_i64().is_none() && !whole(value),
            _ => false,
        };
        if range {
            self.compose(
                out,
                format!(
                    "Checked value must be of type integer with format {} in {path}",
                    node.format
                ),
            );
        }
        if let Some(factor) = node.multiple_of
            && (factor <= 0.0 || (number / factor).fract().abs() > 1e-9)
        {
            words.push(format!("should be a multiple of {}", go_float(factor)));
        }
        if let Some(min) = node.minimum {
            let limit = go_float(min);
            if node.exclusive_minimum && number <= min {
                words.push(format!("should be greater than {limit}"));
            } else if !node.exclusive_minimum && number < min {
                words.push(format!("should be greater than or equal to {limit}"));
            }
        }
        if let Some(max) = node.maximum {
            let limit = go_float(max);
            if node.exclusive_maximum && number >= max {
                words.push(format!("should be less than {limit}"));
            } else if !node.exclusive_maximum && number > max {
                words.push(format!("should be less than or equal to {limit}"));
            }
        }
        if words.is_empty() {
            out.matched += 1;
        }
        for words in words {
            self.fail(out, ErrorKind::Invalid, path, value.clone(), &words);
        }
    }

    fn items(&self, node: &Node, path: &str, items: &[Value], old: Option<&Value>, out: &mut Outcome) {
        if let Some(item_node) = node.items.as_deref() {
            for (i, item) in items.iter().enumerate() {
                let old = correlated(node, item, old);
                self.value(item_node, &format!("{path}[{i}]"), item, old, out);
            }
        }
        let size = items.len() as i64;
        if let Some(min) = node.min_items.filter(|min| size < *min) {
            let words = format!("should have at least {min} items");
            self.fail(out, ErrorKind::Invalid, path, size, &words);
        }
        if let Some(max) = node.max_items.filter(|max| size > *max) {
            out.errors.push(FieldError::too_many(self.field(path), size, max));
        }
        out.matched += 1;
    }

    fn fields(&self, node: &Node, path: &str, map: &Map<String, Value>, old: Option<&Value>, out: &mut Outcome) {
        let size = map.len() as i64;
        if let Some(min) = node.min_properties.filter(|min| size < *min) {
            let words = format!("should have at least {min} properties");
            self.fail(out, ErrorKind::Invalid, path, size, &words);
        }
        if let Some(max) = node.max_properties.filter(|max| size > *max) {
            out.errors.push(FieldError::too_many(self.field(path), size, max));
        }
        let old = old.filter(|_| !node.map_atomic);
        if let Some(Additional::Schema(other)) = &node.additional {
            let mut names: Vec<&String> = map.keys().collect();
            names.sort();
            for name in names {
                if !node.properties.contains_key(name) {
                    let old = old.and_then(|o| o.get(name));
                    self.value(other, &format!("{path}.{name}"), &map[name], old, out);
                }
            }
        }
        for (name, property) in &node.properties {
            if let Some(value) = map.get(name) {
                let place = super::child(path, name);
                self.value(property, &place, value, old.and_then(|o| o.get(name)), out);
            }
        }
        for name in &node.required {
            if !map.contains_key(name) {
                let place = format!("{path}.{name}");
                out.errors.push(FieldError::required(self.field(&place), ""));
            }
        }
        out.matched += 1;
    }

    fn junctors(&self, node: &Node, path: &str, value: &Value, out: &mut Outcome) {
        let run = |node: &Node| {
            let mut outcome = Outcome::default();
            self.value(node, path, value, None, &mut outcome);
            outcome
        };
        if !node.any_of.is_empty() {
            match nearest(node.any_of.iter().map(run)) {
                (1.., first) => out.merge(first),
                (_, best) => {
                    self.compose(out, format!("\"{path}\" must validate at least one schema (anyOf)"));
                    out.merge(best);
                }
            }
        }
        if !node.one_of.is_empty() {
            match nearest(node.one_of.iter().map(run)) {
                (1, first) => out.merge(first),
                (0, best) => {
                    self.compose(
                        out,
                        format!("\"{path}\" must validate one and only one schema (oneOf). Found none valid"),
                    );
                    out.merge(best);
                }
                (n, _) => self.compose(
                    out,
                    format!("\"{path}\" must validate one and only one schema (oneOf). Found {n} valid alternatives"),
                ),
            }
        }
        let mut valid = 0;
        for schema in &node.all_of {
            let outcome = run(schema);
            valid += usize::from(outcome.errors.is_empty());
            out.merge(outcome);
        }
        if valid != node.all_of.len() {
            let none = if valid == 0 { ". None validated" } else { "" };
            self.compose(out, format!("\"{path}\" must validate all the schemas (allOf){none}"));
        }
        if let Some(not) = node.not.as_deref()
            && run(not).errors.is_empty()
        {
            self.compose(out, format!("\"{path}\" must not validate the schema (not)"));
        }
    }
}

/// How many alternatives were valid, and the first valid or else the best of them.
fn nearest(outcomes: impl Iterator<Item = Outcome>) -> (usize, Outcome) {
    let mut valid = 0;
    let mut best: Option<Outcome> = None;
    for outcome in outcomes {
        if outcome.errors.is_empty() {
            valid += 1;
            if valid == 1 {
                best = Some(outcome);
            }
        } else if valid == 0 && best.as_ref().is_none_or(|b| outcome.matched > b.matched) {
            best = Some(outcome);
        }
    }
    (valid, best.unwrap_or_default())
}

/// The item of the old list that is the same one as `item`: only keyed lists can tell.
pub(super) fn correlated<'a>(node: &Node, item: &Value, old: Option<&'a Value>) -> Option<&'a Value> {
    let Some(ListType::Map(keys)) = &node.list_type else {
        return None;
    };
    old?.as_array()?
        .iter()
        .find(|other| keys.iter().all(|key| other.get(key) == item.get(key)))
}

/// Equality in which 1 and 1.0 are the same number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        _ => a == b,
    }
}
