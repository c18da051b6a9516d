//! Running compiled rules over an object.

use serde_json::Value as Json;

use super::eval::{Evaluator, RULE_BUDGET};
use super::rules::{Rule, Rules};
use super::value::{Fault, Value};
use crate::schema::ErrorKind;
use crate::schema::check::correlated;
use crate::schema::error::{FieldError, child};
use crate::schema::node::{Additional, Node};

/// What all rules of one object may cost together, as in the real server.
const OBJECT_BUDGET: u64 = 10_000_000;
/// Longest text of a message expression, in bytes.
const MAX_MESSAGE: usize = 5 * 1024;

impl Rules {
    /// Runs the rules on a valid object; with `old` the transition rules too, and what did not change is not
    /// held against the writer.
    pub(in crate::schema) fn run(&self, root: &Node, object: &Json, old: Option<&Json>, errors: &mut Vec<FieldError>) {
        let mut run = Run {
            errors,
            left: OBJECT_BUDGET,
        };
        let at = Place {
            path: "",
            root: true,
            value: object,
            old,
            same: old,
            parent: None,
        };
        // Running out of budget was reported where it happened.
        let _stopped = run.level(self, root, &at);
    }
}

/// The budget is used up.
struct Stop;

struct Run<'e> {
    errors: &'e mut Vec<FieldError>,
    left: u64,
}

/// A value and what it was before.
struct Place<'a, 'p> {
    path: &'p str,
    root: bool,
    value: &'a Json,
    /// What `oldSelf` is.
    old: Option<&'a Json>,
    /// What the value is compared with to see whether it changed: none where that cannot be told.
    same: Option<&'a Json>,
    /// The nearest value above that can be compared, new and old.
    parent: Option<(&'a Json, &'a Json)>,
}

impl<'a> Place<'a, '_> {
    fn unchanged(&self) -> bool {
        match (self.same, self.parent) {
            (Some(old), _) => old == self.value,
            (None, Some((new, old))) => new == old,
            (None, None) => false,
        }
    }

    /// The place of a value below this one.
    fn below<'p>(
        &self,
        path: &'p str,
        value: &'a Json,
        root: bool,
        old: Option<&'a Json>,
        same: Option<&'a Json>,
    ) -> Place<'a, 'p> {
        Place {
            path,
            root,
            value,
            old: old.filter(|old| !old.is_null()),
            same,
            parent: self.same.map(|old| (self.value, old)).or(self.parent),
        }
    }
}

impl Run<'_> {
    fn level(&mut self, rules: &Rules, node: &Node, at: &Place<'_, '_>) -> Result<(), Stop> {
        // Nulls are the business of the rules above.
        if at.value.is_null() {
            return Ok(());
        }
        for rule in &rules.here {
            self.rule(rule, node, at)?;
        }
        match at.value {
            Json::Array(items) => {
                let (Some(below), Some(item_node)) = (&rules.items, node.items.as_deref()) else {
                    return Ok(());
                };
                for (i, item) in items.iter().enumerate() {
                    let path = format!("{}[{i}]", at.path);
                    let old = correlated(node, item, at.old);
                    let same = correlated(node, item, at.same);
                    self.level(below, item_node, &at.below(&path, item, item_node.embedded, old, same))?;
                }
            }
            Json::Object(map) => {
                let old = |name: &str| at.old.and_then(|old| old.get(name));
                let same = |name: &str| at.same.filter(|_| !node.map_atomic).and_then(|old| old.get(name));
                if let (Some(below), Some(Additional::Schema(other))) = (&rules.additional, &node.additional) {
                    for (name, value) in map {
                        let path = format!("{}[{name}]", at.path);
                        self.level(
                            below,
                            other,
                            &at.below(&path, value, other.embedded, old(name), same(name)),
                        )?;
                    }
                }
                for (name, below) in &rules.properties {
                    if let (Some(value), Some(field)) = (map.get(name), node.properties.get(name)) {
                        let path = child(at.path, name);
                        self.level(
                            below,
                            field,
                            &at.below(&path, value, field.embedded, old(name), same(name)),
                        )?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn rule(&mut self, rule: &Rule, node: &Node, at: &Place<'_, '_>) -> Result<(), Stop> {
        if rule.uses_old && at.old.is_none() && !rule.optional_old {
            return Ok(());
        }
        let verdict = self.evaluate(&rule.expr, rule, node, at);
        let name = &rule.name;
        let detail = match verdict {
            Ok(Value::Bool(true)) => return Ok(()),
            Ok(_) => None,
            Err(Fault::Budget) => {
                self.report(at, node, &self.out_of_budget(&format!("rule: {name}")));
                return Err(Stop);
            }
            Err(Fault::NoOverload) => Some(format!(
                "'no such overload': call arguments did not match a supported operator, function or macro signature for rule: {name}"
            )),
            Err(Fault::Other(message)) => Some(format!("{message} evaluating rule: {name}")),
        };
        if let Some(detail) = detail {
            self.report(at, node, &detail);
            return Ok(());
        }
        // Broken, but not by this write.
        if !rule.uses_old && at.unchanged() {
            return Ok(());
        }
        let message = self.message(rule, node, at)?;
        let shown = !matches!(node.kind.as_str(), "object" | "array");
        self.errors.push(FieldError {
            kind: rule.kind,
            field: match (at.path, rule.field_path.as_str()) {
                ("", "") => "<nil>".to_owned(),
                (path, "") => path.to_owned(),
                (path, field) => child(path, field),
            },
            value: shown.then(|| at.value.clone()),
            // A duplicate has no detail.
            detail: if rule.kind == ErrorKind::Duplicate {
                String::new()
            } else {
                message
            },
        });
        Ok(())
    }

    fn evaluate<'a>(
        &mut self,
        expr: &super::ast::Expr,
        rule: &Rule,
        node: &'a Node,
        at: &Place<'a, '_>,
    ) -> Result<Value<'a>, Fault> {
        let this = Value::of(at.value, node, at.root)?;
        let old = at.old.map(|old| Value::of(old, node, at.root)).transpose()?;
        let old = if rule.optional_old {
            Some(old.map_or(Value::Optional(None), Value::some))
        } else {
            old
        };
        let budget = self.left.min(RULE_BUDGET);
        let mut evaluator = Evaluator::new(this, old, budget);
        let outcome = evaluator.eval(expr);
        self.left -= budget - evaluator.tools.meter.left();
        outcome
    }

    fn out_of_budget(&self, what: &str) -> String {
        if self.left == 0 {
            return "validation failed due to running out of cost budget, no further validation rules will be run"
                .to_owned();
        }
        let fault = Fault::Budget;
        format!("'{fault}': no further validation rules will be run due to call cost exceeds limit for {what}")
    }

    /// An error about a rule rather than about the value: it shows the type.
    fn report(&mut self, at: &Place<'_, '_>, node: &Node, detail: &str) {
        let field = if at.path.is_empty() { "<nil>" } else { at.path };
        self.errors.push(FieldError::invalid(field, node.kind.as_str(), detail));
    }

    /// What is said about a broken rule: its expression's text if that is fit to be shown.
    fn message(&mut self, rule: &Rule, node: &Node, at: &Place<'_, '_>) -> Result<String, Stop> {
        if let Some(expr) = &rule.message_expr {
            match self.evaluate(expr, rule, node, at) {
                Ok(Value::String(text)) => {
                    let text = text.trim();
                    if !text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n') {
                        return Ok(text.to_owned());
                    }
                }
                Err(Fault::Budget) => {
                    self.report(
                        at,
                        node,
                        &self.out_of_budget(&format!("messageExpression of rule: {}", rule.name)),
                    );
                    return Err(Stop);
                }
                // The plain message will do.
                _ => {}
            }
        }
        Ok(match &rule.message {
            Some(message) => message.clone(),
            None => format!("failed rule: {}", rule.name),
        })
    }
}
