//! Label selectors, after `k8s.io/apimachinery/pkg/labels`.

use serde_json::Value;

use super::SelectorError;
use crate::names::{label_value_problems, qualified_name_problems};
use crate::schema::quote;

/// What a requirement asks of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `key=value`, `key==value`, `key in (a,b)`
    In,
    /// `key!=value`, `key notin (a,b)`: also true without the label
    NotIn,
    /// `key`
    Exists,
    /// `!key`
    DoesNotExist,
    /// `key>5`
    GreaterThan,
    /// `key<5`
    LessThan,
}

/// One requirement of a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelRequirement {
    /// The label's name.
    pub key: String,
    /// What is asked of it.
    pub operator: Operator,
    /// What it is compared with.
    pub values: Vec<String>,
}

/// Requirements that must all hold; none selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// The requirements, in the order written.
    pub requirements: Vec<LabelRequirement>,
}

impl LabelSelector {
    /// Reads `a=b,c!=d,e in (f,g),!h`.
    ///
    /// # Errors
    /// The message that the real server gives for the same text.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser {
            tokens: tokens(text),
            at: 0,
        };
        let requirements = parser.requirements().map_err(SelectorError)?;
        Ok(Self { requirements })
    }

    /// Whether `metadata.labels` (or null) fulfils every requirement.
    pub fn matches(&self, labels: Option<&Value>) -> bool {
        self.requirements
            .iter()
            .all(|r| r.matches(labels.and_then(|l| l.get(&r.key)).and_then(Value::as_str)))
    }
}

impl LabelRequirement {
    fn matches(&self, label: Option<&str>) -> bool {
        let listed = |label: &str| self.values.iter().any(|v| v == label);
        let compare = |holds: fn(i64, i64) -> bool| {
            let (Some(label), Some(limit)) = (label, self.values.first()) else {
                return false;
            };
            match (label.parse(), limit.parse()) {
                (Ok(label), Ok(limit)) => holds(label, limit),
                _ => false,
            }
        };
        match self.operator {
            Operator::In => label.is_some_and(listed),
            Operator::NotIn => !label.is_some_and(listed),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::GreaterThan => compare(|label, limit| label > limit),
            Operator::LessThan => compare(|label, limit| label < limit),
        }
    }
}

fn tokens(text: &str) -> Vec<String> {
    const SPECIAL: [char; 7] = ['!', '=', '(', ')', ',', '<', '>'];
    const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches(SPACE);
    while let Some(first) = rest.chars().next() {
        let length = if SPECIAL.contains(&first) {
            match rest.get(..2) {
                Some("==" | "!=") => 2,
                _ => 1,
            }
        } else {
            rest.find(|c: char| SPACE.contains(&c) || SPECIAL.contains(&c))
                .unwrap_or(rest.len())
        };
        tokens.push(rest[..length].to_owned());
        rest = rest[length..].trim_start_matches(SPACE);
    }
    tokens
}

struct Parser {
    tokens: Vec<String>,
    at: usize,
}

fn is_symbol(token: &str) -> bool {
    matches!(token, "!" | "=" | "==" | "!=" | "(" | ")" | "," | "<" | ">")
}

fn is_identifier(token: &str) -> bool {
    !token.is_empty() && !is_symbol(token)
}

impl Parser {
    /// The token at hand; empty at the end, as in the original's messages.
    fn peek(&self) -> &str {
        self.tokens.get(self.at).map_or("", String::as_str)
    }

    fn next(&mut self) -> String {
        let token = self.peek().to_owned();
        self.at += 1;
        token
    }

    fn requirements(&mut self) -> Result<Vec<LabelRequirement>, String> {
        let mut found = Vec::new();
        loop {
            match self.peek() {
                "" => return Ok(found),
                token if token == "!" || is_identifier(token) => {
                    let requirement = self.requirement();
                    found.push(requirement.map_err(|e| format!("unable to parse requirement: {e}"))?);
                }
                token => return Err(format!("found '{token}', expected: !, identifier, or 'end of string'")),
            }
            match self.next().as_str() {
                "" => return Ok(found),
                "," => {
                    let token = self.peek();
                    if token != "!" && !is_identifier(token) {
                        return Err(format!("found '{token}', expected: identifier after ','"));
                    }
                }
                token => return Err(format!("found '{token}', expected: ',' or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<LabelRequirement, String> {
        let absent = self.peek() == "!";
        if absent {
            self.at += 1;
        }
        let key = self.next();
        if !is_identifier(&key) {
            return Err(format!("found '{key}', expected: identifier"));
        }
        let problems = qualified_name_problems(&key).join("; ");
        if !problems.is_empty() {
            let problems = problems.replace("a qualified name must", "a valid label key must");
            // The original says where in an object the selector is, and here it is in none.
            return Err(format!("<nil>: Invalid value: {}: {problems}", quote(&key)));
        }
        if absent || matches!(self.peek(), "" | ",") {
            let operator = if absent {
                Operator::DoesNotExist
            } else {
                Operator::Exists
            };
            return Ok(LabelRequirement {
                key,
                operator,
                values: Vec::new(),
            });
        }
        let (operator, list) = match self.next().as_str() {
            "=" | "==" => (Operator::In, false),
            "!=" => (Operator::NotIn, false),
            "in" => (Operator::In, true),
            "notin" => (Operator::NotIn, true),
            ">" => (Operator::GreaterThan, false),
            "<" => (Operator::LessThan, false),
            other => return Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        let mut values = if list { self.list()? } else { vec![self.exact()?] };
        values.sort();
        values.dedup();
        check_values(&key, operator, &values)?;
        Ok(LabelRequirement { key, operator, values })
    }

    fn exact(&mut self) -> Result<String, String> {
        match self.peek() {
            "" | "," => Ok(String::new()),
            token if is_symbol(token) => Err(format!("found '{token}', expected: identifier")),
            _ => Ok(self.next()),
        }
    }

    /// `(a,b)`; empty values are values.
    fn list(&mut self) -> Result<Vec<String>, String> {
        let open = self.next();
        if open != "(" {
            return Err(format!("found '{open}' expected: '('"));
        }
        match self.peek() {
            ")" => {
                self.at += 1;
                return Ok(vec![String::new()]);
            }
            token if token != "," && !is_identifier(token) => {
                return Err(format!("found '{token}', expected: ',', ')' or identifier"));
            }
            _ => {}
        }
        let mut values = Vec::new();
        loop {
            match self.next().as_str() {
                "," => {
                    let empty = values.is_empty() || matches!(self.peek(), ")" | ",");
                    if empty {
                        values.push(String::new());
                    }
                    if self.peek() == ")" {
                        self.at += 1;
                        return Ok(values);
                    }
                }
                token if is_identifier(token) => {
                    values.push(token.to_owned());
                    match self.peek() {
                        "," => {}
                        ")" => {
                            self.at += 1;
                            return Ok(values);
                        }
                        other => return Err(format!("found '{other}', expected: ',' or ')'")),
                    }
                }
                other => return Err(format!("found '{other}', expected: ',', or identifier")),
            }
        }
    }
}

fn check_values(key: &str, operator: Operator, values: &[String]) -> Result<(), String> {
    let mut problems = Vec::new();
    let is_number = matches!(operator, Operator::GreaterThan | Operator::LessThan);
    for (i, value) in values.iter().enumerate() {
        if is_number && value.parse::<i64>().is_err() {
            problems.push(format!(
                "values[{i}]: Invalid value: {}: for 'Gt', 'Lt' operators, the value must be an integer",
                quote(value)
            ));
        }
    }
    for (i, value) in values.iter().enumerate() {
        let problem = label_value_problems(value).join("; ");
        if !problem.is_empty() {
            problems.push(format!(
                "values[{i}][{key}]: Invalid value: {}: {problem}",
                quote(value)
            ));
        }
    }
    match problems.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}
