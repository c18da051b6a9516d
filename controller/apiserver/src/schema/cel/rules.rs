//! Compiling the rules of a schema.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::ast::{Expr, Problem};
use super::check::Checker;
use super::parser::parse;
use super::types::{BOOL, STRING, Type};
use crate::schema::ErrorKind;
use crate::schema::error::{FieldError, child};
use crate::schema::node::{Additional, ListType, Node, RuleSource};

/// The compiled rules of a schema and of what is below it.
#[derive(Debug, Default)]
pub(in crate::schema) struct Rules {
    pub(super) here: Vec<Rule>,
    pub(super) properties: BTreeMap<String, Rules>,
    pub(super) additional: Option<Box<Rules>>,
    pub(super) items: Option<Box<Rules>>,
}

/// One rule, checked.
#[derive(Debug)]
pub(super) struct Rule {
    pub expr: Expr,
    /// Names `oldSelf`: a transition rule.
    pub uses_old: bool,
    pub optional_old: bool,
    /// What errors call the rule: its message, or else its text.
    pub name: String,
    pub message: Option<String>,
    pub message_expr: Option<Expr>,
    pub kind: ErrorKind,
    /// Below the rule's own place; empty for that place itself.
    pub field_path: String,
}

impl Rules {
    /// Compiles the rules of a structural schema that stands at `path`; problems are appended to `errors`.
    pub(in crate::schema) fn compile(root: &Node, path: &str, errors: &mut Vec<FieldError>) -> Rules {
        level(root, true, path, None, errors).unwrap_or_default()
    }

    /// Whether there is no rule at all.
    pub(in crate::schema) fn is_empty(&self) -> bool {
        self.here.is_empty() && self.properties.is_empty() && self.additional.is_none() && self.items.is_none()
    }
}

/// `loose` is the path of the list above whose items have no identity.
fn level(node: &Node, root: bool, path: &str, loose: Option<&str>, errors: &mut Vec<FieldError>) -> Option<Rules> {
    let mut rules = Rules::default();
    if !node.rules.is_empty() {
        match Type::of(node, root) {
            Some(this) => {
                for (i, source) in node.rules.iter().enumerate() {
                    let place = format!("{}[{i}]", child(path, "x-kubernetes-validations"));
                    rules.here.extend(rule(source, node, &this, &place, loose, errors));
                }
            }
            None => errors.push(FieldError::new(
                ErrorKind::Internal,
                child(path, "x-kubernetes-validations"),
                "",
                "internal error: failed to construct type information for x-kubernetes-validations rules: unable to convert structural schema to CEL declarations",
            )),
        }
    }
    for (name, property) in &node.properties {
        let place = format!("{}[{name}]", child(path, "properties"));
        if let Some(below) = level(property, property.embedded, &place, loose, errors) {
            rules.properties.insert(name.clone(), below);
        }
    }
    if let Some(Additional::Schema(other)) = &node.additional {
        let place = child(path, "additionalProperties");
        rules.additional = level(other, other.embedded, &place, loose, errors).map(Box::new);
    }
    if let Some(items) = node.items.as_deref() {
        let keyed = matches!(node.list_type, Some(ListType::Map(_)));
        let loose = if keyed { loose } else { loose.or(Some(path)) };
        rules.items = level(items, items.embedded, &child(path, "items"), loose, errors).map(Box::new);
    }
    (!rules.is_empty()).then_some(rules)
}

fn rule(
    source: &RuleSource,
    node: &Node,
    this: &Type<'_>,
    place: &str,
    loose: Option<&str>,
    errors: &mut Vec<FieldError>,
) -> Option<Rule> {
    let before = errors.len();
    let text = source.rule.trim();
    // An empty rule was reported by the schema's reader.
    if text.is_empty() {
        return None;
    }
    let path = source.field_path.as_deref().unwrap_or_default();
    let field_path = walk(path, node).map(|(normal, _)| normal).unwrap_or_default();
    let (expr, uses_old) = match compile(&source.rule, this, source.optional_old_self, &BOOL) {
        Ok(compiled) => compiled,
        Err(problem) => {
            let detail = match problem {
                Some(problems) => format!("compilation failed: {problems}"),
                None => "cel expression must evaluate to a bool".to_owned(),
            };
            errors.push(refused(source, child(place, "rule"), &detail));
            unused_option(source, false, place, errors);
            return None;
        }
    };
    let mut message_expr = None;
    if let Some(text) = source.message_expression.as_deref().filter(|t| !t.is_empty()) {
        let at = child(place, "messageExpression");
        match compile(text, this, source.optional_old_self, &STRING) {
            Ok((expr, _)) => message_expr = Some(expr),
            Err(Some(problems)) => {
                let detail = format!("messageExpression compilation failed: {problems}");
                errors.push(refused(source, at, &detail));
            }
            Err(None) => errors.push(refused(source, at, "messageExpression must evaluate to a string")),
        }
    }
    if let Some(list) = loose.filter(|_| uses_old) {
        let detail = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {list}");
        errors.push(FieldError::invalid(child(place, "rule"), source.rule.as_str(), detail));
    }
    unused_option(source, uses_old, place, errors);
    if errors.len() > before {
        return None;
    }
    let message = source.message.as_deref().map(str::trim).filter(|m| !m.is_empty());
    Some(Rule {
        expr,
        uses_old,
        optional_old: source.optional_old_self,
        name: message.unwrap_or(text).to_owned(),
        message: message.map(str::to_owned),
        message_expr,
        kind: match source.reason.as_deref() {
            Some("FieldValueForbidden") => ErrorKind::Forbidden,
            Some("FieldValueRequired") => ErrorKind::Required,
            Some("FieldValueDuplicate") => ErrorKind::Duplicate,
            _ => ErrorKind::Invalid,
        },
        field_path,
    })
}

fn unused_option(source: &RuleSource, uses_old: bool, place: &str, errors: &mut Vec<FieldError>) {
    if source.optional_old_self && !uses_old {
        let detail = "may not be set if oldSelf is not used in rule";
        errors.push(FieldError::invalid(child(place, "optionalOldSelf"), true, detail));
    }
}

/// Parses and checks an expression; `None` in the error says that its type is not `wanted`.
fn compile(text: &str, this: &Type<'_>, optional_old: bool, wanted: &Type<'_>) -> Result<(Expr, bool), Option<String>> {
    let show = |problem: &Problem| problem.show(text);
    let mut expr = parse(text).map_err(|problem| Some(show(&problem)))?;
    let mut checker = Checker::new(this.clone(), optional_old);
    let found = checker.check(&mut expr);
    if !checker.problems.is_empty() {
        checker.problems.sort_by_key(|problem| problem.at);
        let shown: Vec<String> = checker.problems.iter().map(show).collect();
        return Err(Some(shown.join("\n")));
    }
    // `dyn` will not do, as on the real server.
    if matches!(found, Type::Dyn) || !wanted.takes(&found) {
        return Err(None);
    }
    Ok((expr, checker.uses_old))
}

/// An error that shows the whole rule, in the order of the real server's fields.
fn refused(source: &RuleSource, field: String, detail: &str) -> FieldError {
    let text = |value: &Option<String>| Json::from(value.clone().unwrap_or_default());
    let fields = [
        ("Rule", json!(source.rule)),
        ("Message", text(&source.message)),
        ("MessageExpression", text(&source.message_expression)),
        ("Reason", json!(source.reason)),
        ("FieldPath", text(&source.field_path)),
        ("OptionalOldSelf", json!(source.optional_old_self.then_some(true))),
    ];
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("\"{name}\":{}", crate::schema::go_json(value)))
        .collect();
    FieldError {
        kind: ErrorKind::Invalid,
        field,
        value: None,
        detail: format!("{{{}}}: {detail}", fields.join(",")),
    }
}

/// Checks what else the rules of a schema say: message expressions and field paths.
pub(in crate::schema) fn check_sources(node: &Node, path: &str, errors: &mut Vec<FieldError>) {
    for (i, source) in node.rules.iter().enumerate() {
        let place = format!("{}[{i}]", child(path, "x-kubernetes-validations"));
        let expression = source.message_expression.as_deref().unwrap_or_default();
        if !expression.is_empty() && expression.trim().is_empty() {
            let at = child(&place, "messageExpression");
            errors.push(FieldError::required(
                at,
                "messageExpression must be non-empty if specified",
            ));
        }
        let field = source.field_path.as_deref().unwrap_or_default();
        let problems = [
            (
                !field.is_empty() && field.trim().is_empty(),
                "must be non-empty if specified",
            ),
            (field.contains(['\n', '\r']), "must not contain line breaks"),
            (!field.is_empty() && walk(field, node).is_none(), "must be a valid path"),
        ];
        for (_, words) in problems.into_iter().filter(|(wrong, _)| *wrong) {
            errors.push(FieldError::invalid(child(&place, "fieldPath"), field, words));
        }
    }
    for (name, property) in &node.properties {
        check_sources(property, &format!("{}[{name}]", child(path, "properties")), errors);
    }
    if let Some(Additional::Schema(other)) = &node.additional {
        check_sources(other, &child(path, "additionalProperties"), errors);
    }
    if let Some(items) = node.items.as_deref() {
        check_sources(items, &child(path, "items"), errors);
    }
}

/// Follows a path of `.name` and `['name']` through a schema: its normal form and the schema it leads to.
pub(super) fn walk<'n>(path: &str, node: &'n Node) -> Option<(String, &'n Node)> {
    let (mut normal, mut node, mut rest) = (String::new(), node, path);
    while !rest.is_empty() {
        let name;
        if let Some(quoted) = rest.strip_prefix("['") {
            let mut text = String::new();
            let mut chars = quoted.char_indices();
            let end = loop {
                match chars.next()? {
                    (_, '\\') => text.push(match chars.next()?.1 {
                        c @ ('\'' | '\\') => c,
                        'n' => '\n',
                        't' => '\t',
                        'r' => '\r',
                        _ => return None,
                    }),
                    (at, '\'') => break at,
                    (_, c) => text.push(c),
                }
            };
            rest = quoted[end + 1..].strip_prefix(']')?;
            name = text;
        } else {
            let after = rest.strip_prefix('.')?;
            let end = after.find(['.', '[']).unwrap_or(after.len());
            let (text, left) = after.split_at(end);
            (name, rest) = (text.to_owned(), left);
        }
        if let Some(property) = node.properties.get(&name) {
            normal = child(&normal, &name);
            node = property;
        } else if let Some(Additional::Schema(other)) = &node.additional {
            normal = format!("{normal}[{name}]");
            node = other;
        } else {
            return None;
        }
    }
    (!normal.is_empty()).then_some((normal, node))
}
