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

/// Whether this is an integer that JSON can carry, but for what divisions lose.
fn nearly_whole(number: f64) -> bool {
    const EPSILON: f64 = 1e-9;
    const MOST: f64 = 9_007_199_254_740_991.0;
    let whole = number.trunc();
    number.abs() <= MOST
        && (number == whole || (whole != 0.0 && (number - whole).abs() / (number.abs() + whole.abs()) < EPSILON))
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
        if let Some(factor) = node.multiple_of {
            self.multiple(node, path, value, factor, out);
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

    /// As the real server divides: an integer by the integer part of the factor, unless its type says that the factor is wrong.
    fn multiple(&self, node: &Node, path: &str, value: &Value, factor: f64, out: &mut Outcome) {
        let integer = node.kind == "integer";
        let (least, most) = match node.format.as_str() {
            "int32" => (i32::MIN as f64, i32::MAX as f64),
            _ => (i64::MIN as f64, i64::MAX as f64),
        };
        let fits = !integer || (factor.fract() == 0.0 && (least..=most).contains(&factor));
        if !fits {
            let format = match node.format.as_str() {
                "" => "(default format)".to_owned(),
                format => format!("with format {format}"),
            };
            self.compose(
                out,
                format!("MultipleOf value must be of type integer {format} in {path}"),
            );
        }
        let (shown, positive, multiple) = match value.as_i64().filter(|_| fits) {
            Some(number) => {
                // Go's conversion on amd64: what does not fit is the least.
                let factor = if factor.abs() < i64::MAX as f64 {
                    factor as i64
                } else {
                    i64::MIN
                };
                let multiple = factor > 0 && number % factor == 0;
                (Value::from(factor), factor > 0, multiple)
            }
            None => {
                let number = value.as_f64().unwrap_or_default();
                let times = if factor < 1.0 {
                    1.0 / factor * number
                } else {
                    number / factor
                };
                (Value::from(factor), factor > 0.0, nearly_whole(times))
            }
        };
        let shown_text = super::go_json(&shown);
        if !positive {
            let message = format!("factor MultipleOf declared for {path} must be positive: {shown_text}");
            out.errors.push(FieldError::invalid(self.field(path), shown, message));
        } else if !multiple {
            let words = format!("should be a multiple of {shown_text}");
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

#[cfg(test)]
mod tests {
    use crate::schema::Schema;
    use serde_json::{Value, json};

    #[test]
    fn multiples_are_judged_with_the_conversions_of_the_real_server() {
        let field = |kind: &str, factor: f64| json!({"type": kind, "multipleOf": factor});
        let source = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "big": field("number", 1e300), "half": field("number", 0.5), "tenth": field("number", 0.1),
            "three": field("number", 3.0), "more": field("number", 2.5), "neg": field("number", -2.0),
            "ihalf": field("integer", 0.5), "ibig": field("integer", 1e300), "ithree": field("integer", 3.0),
        }}}});
        let schema = Schema::compile(&source, "").expect("a structural schema");
        let said = |field: &str, value: Value| {
            let object = json!({"spec": {field: value}});
            let errors: Vec<String> = schema.validate(&object, None).iter().map(ToString::to_string).collect();
            errors.join("; ")
        };
        for (field, value) in [
            ("big", json!(1e300)),
            ("half", json!(1.5)),
            ("tenth", json!(0.3)),
            ("tenth", json!(-0.3)),
            ("three", json!(9)),
            ("three", json!(-9)),
            ("more", json!(4)),
            ("ithree", json!(9_007_199_254_740_993_i64)),
        ] {
            assert_eq!(said(field, value.clone()), "", "{field} {value}");
        }
        let positive = |field: &str, n: &str| {
            format!(
                "spec.{field}: Invalid value: {n}: factor MultipleOf declared for spec.{field} must be positive: {n}"
            )
        };
        let not = |field: &str, value: &str, n: &str| {
            format!("spec.{field}: Invalid value: {value}: spec.{field} in body should be a multiple of {n}")
        };
        let typed = |field: &str| {
            format!(
                "<nil>: Invalid value: \"\": MultipleOf value must be of type integer (default format) in spec.{field}"
            )
        };
        for (field, value, message) in [
            ("big", json!(1), positive("big", "-9223372036854775808")),
            ("big", json!(1.5), not("big", "1.5", "1e+300")),
            ("half", json!(1), positive("half", "0")),
            ("half", json!(1.25), not("half", "1.25", "0.5")),
            ("three", json!(10), not("three", "10", "3")),
            ("three", json!(1e300), not("three", "1e+300", "3")),
            ("more", json!(5), not("more", "5", "2")),
            ("neg", json!(4.5), positive("neg", "-2")),
            ("ihalf", json!(1), typed("ihalf")),
            (
                "ibig",
                json!(1),
                format!("{}; {}", typed("ibig"), not("ibig", "1", "1e+300")),
            ),
            ("ithree", json!(-10), not("ithree", "-10", "3")),
        ] {
            assert_eq!(said(field, value.clone()), message, "{field} {value}");
        }
    }
}
