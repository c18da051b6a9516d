//! Field selectors, after `k8s.io/apimachinery/pkg/fields`.

use serde_json::Value;

use super::SelectorError;

/// `field=value` or `field!=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    /// The field's path, such as `metadata.name`.
    pub field: String,
    /// The value it is compared with.
    pub value: String,
    /// True for `!=`.
    pub negated: bool,
}

/// Requirements that must all hold; none selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// The requirements, sorted as written.
    pub requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// Reads `a=b,c!=d`; `\,`, `\=` and `\\` stand for themselves in values.
    ///
    /// # Errors
    /// The message that the real server gives for the same text.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let invalid = |term: &str| SelectorError(format!("invalid selector: '{text}'; can't understand '{term}'"));
        let mut terms = split(text);
        // The original sorts them, and so the first error is that of the first in order.
        terms.sort_unstable();
        let mut requirements = Vec::new();
        for term in terms {
            if term.is_empty() {
                continue;
            }
            let (field, negated, value) = operator(term).ok_or_else(|| invalid(term))?;
            let value = unescape(value).map_err(|e| SelectorError(format!("invalid field selector: {e}")))?;
            requirements.push(FieldRequirement {
                field: field.to_owned(),
                value,
                negated,
            });
        }
        Ok(Self { requirements })
    }

    /// The fields that are selected on; the server refuses those it does not support.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.requirements.iter().map(|r| r.field.as_str())
    }

    /// Whether all requirements hold, given the value of each field (empty for an absent one).
    pub fn matches(&self, value_of: impl Fn(&str) -> String) -> bool {
        self.requirements
            .iter()
            .all(|r| (value_of(&r.field) == r.value) != r.negated)
    }
}

/// The selectable value of a simple path such as `spec.nodeName`; empty when absent or null.
pub fn field_value(object: &Value, path: &str) -> String {
    let mut value = object;
    for name in path.trim_start_matches('.').split('.') {
        match value.get(name) {
            Some(next) => value = next,
            None => return String::new(),
        }
    }
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Splits at commas that are not escaped.
fn split(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == ',' {
            terms.push(&text[start..i]);
            start = i + 1;
        }
    }
    terms.push(&text[start..]);
    terms
}

fn operator(term: &str) -> Option<(&str, bool, &str)> {
    for (i, _) in term.char_indices() {
        let rest = &term[i..];
        for (operator, negated) in [("!=", true), ("==", false), ("=", false)] {
            if let Some(value) = rest.strip_prefix(operator) {
                return Some((&term[..i], negated, value));
            }
        }
    }
    None
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return Err(format!("invalid escape sequence: \\{c}")),
                None => return Err("invalid escape sequence: \\".into()),
            },
            // The original prints the character's number.
            ',' | '=' => return Err(format!("unescaped character in value: {}", u32::from(c))),
            c => out.push(c),
        }
    }
    Ok(out)
}
