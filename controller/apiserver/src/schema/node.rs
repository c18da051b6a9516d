//! The schema tree and its parser.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Map, Value};

use super::error::{FieldError, child};

/// How the items of a list are told apart (`x-kubernetes-list-type`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    /// The list is one value.
    #[default]
    Atomic,
    /// Each item is its own identity.
    Set,
    /// The named properties of an item are its identity.
    Map(Vec<String>),
}

/// What `additionalProperties` says.
#[derive(Clone, Debug)]
pub enum Additional {
    /// Any other property is allowed, or none.
    Any(bool),
    /// Every other property follows this schema.
    Schema(Box<Node>),
}

/// A rule of `x-kubernetes-validations`, as written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSource {
    /// The CEL expression that must be true.
    pub rule: String,
    /// What to say when it is not.
    pub message: Option<String>,
    /// A CEL expression that makes the message.
    pub message_expression: Option<String>,
    /// `FieldValueInvalid` and the like.
    pub reason: Option<String>,
    /// The field that the error names, below the rule's own place.
    pub field_path: Option<String>,
    /// Run on create too, with `oldSelf` an optional.
    pub optional_old_self: bool,
}

/// One level of a schema. Names follow OpenAPI v3 and the `x-kubernetes-*` extensions.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "the fields are OpenAPI's own")]
pub struct Node {
    pub kind: String,
    pub nullable: bool,
    pub default: Option<Value>,
    pub described: bool,
    pub int_or_string: bool,
    pub preserve_unknown: bool,
    pub embedded: bool,
    pub list_type: Option<ListType>,
    pub map_atomic: bool,
    pub rules: Vec<RuleSource>,

    pub properties: BTreeMap<String, Node>,
    pub additional: Option<Additional>,
    pub items: Option<Box<Node>>,

    pub format: String,
    pub minimum: Option<f64>,
    pub maximum: Option<f64>,
    pub exclusive_minimum: bool,
    pub exclusive_maximum: bool,
    pub multiple_of: Option<f64>,
    pub min_length: Option<i64>,
    pub max_length: Option<i64>,
    pub pattern: Option<(String, Regex)>,
    pub min_items: Option<i64>,
    pub max_items: Option<i64>,
    pub min_properties: Option<i64>,
    pub max_properties: Option<i64>,
    pub required: Vec<String>,
    pub allowed: Option<Vec<Value>>,
    pub all_of: Vec<Node>,
    pub any_of: Vec<Node>,
    pub one_of: Vec<Node>,
    pub not: Option<Box<Node>>,
}

impl Node {
    /// The schema of property `name`, whether named or one of the additional ones.
    pub fn field(&self, name: &str) -> Option<&Node> {
        match (self.properties.get(name), &self.additional) {
            (Some(node), _) => Some(node),
            (None, Some(Additional::Schema(node))) => Some(node),
            _ => None,
        }
    }

    /// Reads a schema; what cannot be read is reported under `path` and left out.
    pub(super) fn parse(source: &Value, path: &str, errors: &mut Vec<FieldError>) -> Node {
        let Some(map) = source.as_object() else {
            errors.push(FieldError::new(
                super::ErrorKind::TypeInvalid,
                path,
                source.clone(),
                "must be a schema object",
            ));
            return Node::default();
        };
        let mut reader = Reader { map, path, errors };
        for unsupported in [
            "id",
            "$ref",
            "additionalItems",
            "patternProperties",
            "definitions",
            "dependencies",
        ] {
            if map.contains_key(unsupported) {
                reader.forbid(unsupported, &format!("{unsupported} is not supported"));
            }
        }
        if map.get("uniqueItems") == Some(&Value::Bool(true)) {
            reader.forbid(
                "uniqueItems",
                "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            );
        }
        let mut node = Node {
            kind: reader.text("type"),
            nullable: reader.flag("nullable"),
            default: map.get("default").cloned(),
            described: map.contains_key("description") || map.contains_key("title"),
            int_or_string: reader.flag("x-kubernetes-int-or-string"),
            preserve_unknown: reader.flag("x-kubernetes-preserve-unknown-fields"),
            embedded: reader.flag("x-kubernetes-embedded-resource"),
            list_type: reader.list_type(),
            map_atomic: map.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic"),
            format: reader.text("format"),
            minimum: reader.float("minimum"),
            maximum: reader.float("maximum"),
            exclusive_minimum: reader.flag("exclusiveMinimum"),
            exclusive_maximum: reader.flag("exclusiveMaximum"),
            multiple_of: reader.float("multipleOf"),
            min_length: reader.int("minLength"),
            max_length: reader.int("maxLength"),
            min_items: reader.int("minItems"),
            max_items: reader.int("maxItems"),
            min_properties: reader.int("minProperties"),
            max_properties: reader.int("maxProperties"),
            required: reader.texts("required"),
            allowed: map.get("enum").and_then(Value::as_array).cloned(),
            ..Node::default()
        };
        node.pattern = reader.pattern();
        node.rules = reader.rules();
        node.properties = reader.properties();
        node.additional = reader.additional();
        node.items = reader.node("items").map(Box::new);
        node.not = reader.node("not").map(Box::new);
        node.all_of = reader.nodes("allOf");
        node.any_of = reader.nodes("anyOf");
        node.one_of = reader.nodes("oneOf");
        if !node.properties.is_empty() && node.additional.is_some() {
            reader.forbid(
                "additionalProperties",
                "additionalProperties and properties are mutual exclusive",
            );
        }
        node
    }
}

struct Reader<'a> {
    map: &'a Map<String, Value>,
    path: &'a str,
    errors: &'a mut Vec<FieldError>,
}

impl Reader<'_> {
    fn forbid(&mut self, key: &str, detail: &str) {
        self.errors.push(FieldError::forbidden(child(self.path, key), detail));
    }

    fn wrong(&mut self, key: &str, want: &str) {
        let value = self.map.get(key).cloned().unwrap_or_default();
        self.errors.push(FieldError::new(
            super::ErrorKind::TypeInvalid,
            child(self.path, key),
            value,
            format!("must be {want}"),
        ));
    }

    fn read<T>(&mut self, key: &str, want: &str, take: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let value = self.map.get(key).filter(|v| !v.is_null())?;
        let taken = take(value);
        if taken.is_none() {
            self.wrong(key, want);
        }
        taken
    }

    fn text(&mut self, key: &str) -> String {
        self.optional_text(key).unwrap_or_default()
    }

    fn optional_text(&mut self, key: &str) -> Option<String> {
        self.read(key, "a string", |v| v.as_str().map(str::to_owned))
    }

    fn flag(&mut self, key: &str) -> bool {
        self.read(key, "a boolean", Value::as_bool).unwrap_or(false)
    }

    fn float(&mut self, key: &str) -> Option<f64> {
        self.read(key, "a number", Value::as_f64)
    }

    fn int(&mut self, key: &str) -> Option<i64> {
        self.read(key, "an integer", Value::as_i64)
    }

    fn texts(&mut self, key: &str) -> Vec<String> {
        self.read(key, "a list of strings", |v| {
            v.as_array()?
                .iter()
                .map(|item| item.as_str().map(str::to_owned))
                .collect()
        })
        .unwrap_or_default()
    }

    fn list_type(&mut self) -> Option<ListType> {
        let keys = self.texts("x-kubernetes-list-map-keys");
        let name = self.optional_text("x-kubernetes-list-type");
        let place = child(self.path, "x-kubernetes-list-type");
        let keys_place = child(self.path, "x-kubernetes-list-map-keys");
        match name.as_deref() {
            Some("map") => {
                if keys.is_empty() {
                    self.errors.push(FieldError::required(
                        keys_place,
                        "must not be empty if x-kubernetes-list-type is map",
                    ));
                }
                return Some(ListType::Map(keys));
            }
            None if !keys.is_empty() => self.errors.push(FieldError::required(
                place,
                "must be map if x-kubernetes-list-map-keys is non-empty",
            )),
            Some(other) if !keys.is_empty() => self.errors.push(FieldError::invalid(
                place,
                other,
                "must be map if x-kubernetes-list-map-keys is non-empty",
            )),
            Some("set") => return Some(ListType::Set),
            Some("atomic") => return Some(ListType::Atomic),
            Some(other) => self
                .errors
                .push(FieldError::not_supported(place, other, &["atomic", "set", "map"])),
            None => {}
        }
        None
    }

    fn pattern(&mut self) -> Option<(String, Regex)> {
        let source = self.optional_text("pattern").filter(|p| !p.is_empty())?;
        match Regex::new(&source) {
            Ok(regex) => Some((source, regex)),
            Err(error) => {
                self.errors.push(FieldError::invalid(
                    child(self.path, "pattern"),
                    source,
                    format!("must be a valid regular expression, but isn't: {error}"),
                ));
                None
            }
        }
    }

    fn node(&mut self, key: &str) -> Option<Node> {
        let value = self.map.get(key).filter(|v| !v.is_null())?;
        if key == "items" && value.is_array() {
            self.forbid(key, "items must be a schema object and not an array");
            return None;
        }
        Some(Node::parse(value, &child(self.path, key), self.errors))
    }

    fn nodes(&mut self, key: &str) -> Vec<Node> {
        let Some(list) = self.read(key, "a list of schemas", |v| v.as_array().cloned()) else {
            return Vec::new();
        };
        list.iter()
            .enumerate()
            .map(|(i, v)| Node::parse(v, &format!("{}[{i}]", child(self.path, key)), self.errors))
            .collect()
    }

    fn properties(&mut self) -> BTreeMap<String, Node> {
        let Some(map) = self.read("properties", "a map of schemas", |v| v.as_object().cloned()) else {
            return BTreeMap::new();
        };
        let place = child(self.path, "properties");
        map.iter()
            .map(|(name, v)| (name.clone(), Node::parse(v, &format!("{place}[{name}]"), self.errors)))
            .collect()
    }

    fn additional(&mut self) -> Option<Additional> {
        match self.map.get("additionalProperties")? {
            Value::Null => None,
            Value::Bool(true) => Some(Additional::Any(true)),
            Value::Bool(false) => {
                self.forbid("additionalProperties", "additionalProperties cannot be set to false");
                None
            }
            value => {
                let place = child(self.path, "additionalProperties");
                Some(Additional::Schema(Box::new(Node::parse(value, &place, self.errors))))
            }
        }
    }

    fn rules(&mut self) -> Vec<RuleSource> {
        let list = self
            .read("x-kubernetes-validations", "a list of rules", |v| v.as_array().cloned())
            .unwrap_or_default();
        let mut rules = Vec::with_capacity(list.len());
        for (i, entry) in list.iter().enumerate() {
            let path = format!("{}[{i}]", child(self.path, "x-kubernetes-validations"));
            let Some(map) = entry.as_object() else {
                self.errors
                    .push(FieldError::invalid(path, entry.clone(), "must be a rule object"));
                continue;
            };
            let mut reader = Reader {
                map,
                path: &path,
                errors: self.errors,
            };
            let rule = RuleSource {
                rule: reader.text("rule"),
                message: reader.optional_text("message"),
                message_expression: reader.optional_text("messageExpression"),
                reason: reader.optional_text("reason"),
                field_path: reader.optional_text("fieldPath"),
                optional_old_self: reader.flag("optionalOldSelf"),
            };
            reader.check_rule(&rule);
            rules.push(rule);
        }
        rules
    }

    fn check_rule(&mut self, rule: &RuleSource) {
        const REASONS: [&str; 4] = [
            "FieldValueDuplicate",
            "FieldValueForbidden",
            "FieldValueInvalid",
            "FieldValueRequired",
        ];
        let message = rule.message.as_deref().unwrap_or_default();
        if rule.rule.trim().is_empty() {
            self.errors
                .push(FieldError::required(child(self.path, "rule"), "rule is not specified"));
        }
        if !message.is_empty() && message.trim().is_empty() {
            self.errors.push(FieldError::invalid(
                child(self.path, "message"),
                message,
                "must be non-empty if specified",
            ));
        } else if message.contains(['\n', '\r']) {
            self.errors.push(FieldError::invalid(
                child(self.path, "message"),
                message,
                "must not contain line breaks",
            ));
        } else if message.is_empty() && rule.rule.trim().contains(['\n', '\r']) {
            self.errors.push(FieldError::required(
                child(self.path, "message"),
                "message must be specified if rule contains line breaks",
            ));
        }
        if let Some(reason) = rule.reason.as_deref()
            && !REASONS.contains(&reason)
        {
            self.errors
                .push(FieldError::not_supported(child(self.path, "reason"), reason, &REASONS));
        }
    }
}
