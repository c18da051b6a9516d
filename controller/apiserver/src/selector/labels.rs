//! Label selectors, after `k8s.io/apimachinery/pkg/labels`.

use serde_json::Value;

use super::SelectorError;
use crate::names::{label_value_problems, qualified_name_problems};

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
        let requirements = parser
            .requirements()
            .map_err(|e| SelectorError(format!("unable to parse requirement: {e}")))?;
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
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if SPECIAL.contains(&first) {
            match rest.get(..2) {
                Some("==" | "!=") => 2,
                _ => 1,
            }
        } else {
            rest.find(|c: char| c.is_whitespace() || SPECIAL.contains(&c))
                .unwrap_or(rest.len())
        };
        tokens.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
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
                "!" => found.push(self.requirement()?),
                token if !is_symbol(token) => found.push(self.requirement()?),
                token => {
                    return Err(format!("found '{token}', expected: !, identifier, or 'end of string'"));
                }
            }
            match self.next().as_str() {
                "" => return Ok(found),
                "," => {
                    let token = self.peek();
                    if token.is_empty() || (is_symbol(token) && token != "!") {
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
        if key.is_empty() || is_symbol(&key) {
            return Err(format!("found '{key}', expected: identifier"));
        }
        if let Some(problem) = qualified_name_problems(&key).first() {
            return Err(format!("key: Invalid value: {}: {problem}", crate::schema::quote(&key)));
        }
        let plain = |operator| LabelRequirement {
            key: key.clone(),
            operator,
            values: Vec::new(),
        };
        if absent {
            return Ok(plain(Operator::DoesNotExist));
        }
        if matches!(self.peek(), "" | ",") {
            return Ok(plain(Operator::Exists));
        }
        let (operator, list) = match self.next().as_str() {
            "=" | "==" => (Operator::In, false),
            "!=" => (Operator::NotIn, false),
            "in" => (Operator::In, true),
            "notin" => (Operator::NotIn, true),
            ">" => (Operator::GreaterThan, false),
            "<" => (Operator::LessThan, false),
            other => {
                return Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt"));
            }
        };
        let values = if list { self.list()? } else { vec![self.exact()?] };
        for (i, value) in values.iter().enumerate() {
            let number = matches!(operator, Operator::GreaterThan | Operator::LessThan);
            if number && value.parse::<i64>().is_err() {
                return Err(format!(
                    "values[{i}]: Invalid value: {}: for 'Gt', 'Lt' operators, the value must be an integer",
                    crate::schema::quote(value)
                ));
            }
            if let Some(problem) = label_value_problems(value).first() {
                return Err(format!(
                    "values[{i}][{key}]: Invalid value: {}: {problem}",
                    crate::schema::quote(value)
                ));
            }
        }
        Ok(LabelRequirement { key, operator, values })
    }

    fn exact(&mut self) -> Result<String, String> {
        match self.peek() {
            "" | "," => Ok(String::new()),
            token if is_symbol(token) => Err(format!("found '{token}', expected: identifier")),
            _ => Ok(self.next()),
        }
    }

    fn list(&mut self) -> Result<Vec<String>, String> {
        let open = self.next();
        if open != "(" {
            return Err(format!("found '{open}' expected: '('"));
        }
        let mut values = Vec::new();
        loop {
            match self.next().as_str() {
                "," => values.push(String::new()),
                ")" => {
                    values.push(String::new());
                    return Ok(values);
                }
                token if token.is_empty() || is_symbol(token) => {
                    return Err(format!("found '{token}', expected: ',', ')' or identifier"));
                }
                token => {
                    values.push(token.to_owned());
                    match self.next().as_str() {
                        "," => {}
                        ")" => return Ok(values),
                        other => return Err(format!("found '{other}', expected: ',' or ')'")),
                    }
                }
            }
        }
    }
}
