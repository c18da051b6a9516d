//! The JSON paths of printer columns: one action of `k8s.io/client-go/util/jsonpath`, without its braces.
//!
//! Fields, indices, slices, unions, wildcards, recursive descent and filters are there; `range` is not, because a
//! column has one action only.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value;

/// Paths come from definitions: deeper nesting of filters and unions than this is refused.
const MAX_DEPTH: usize = 8;

/// Recursive descents and unions multiply what they find: a path that finds more than this is an error.
const MAX_VALUES: usize = 10_000;

/// A parsed path.
#[derive(Debug, PartialEq)]
pub struct Path(Vec<Step>);

#[derive(Debug, PartialEq)]
enum Step {
    Field(String),
    /// Start, end and step of a slice.
    Slice(Option<i64>, End, Option<i64>),
    Wildcard,
    Recursive,
    Union(Vec<Path>),
    /// Items for which the path finds something.
    Exists(Path),
    /// Items for which the comparison holds.
    Filter(Path, String, Path),
    Literal(Value),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// `[1:]`
    Open,
    /// `[1:3]`
    At(i64),
    /// `[1]`: one behind the start.
    Next,
}

/// The values on which a step works.
type Values<'a> = Vec<Cow<'a, Value>>;

impl Path {
    /// Reads a path like `.status.conditions[?(@.type=="Ready")].status`.
    pub fn parse(text: &str) -> Result<Path, String> {
        Path::nested(text, 0)
    }

    fn nested(text: &str, depth: usize) -> Result<Path, String> {
        if depth > MAX_DEPTH {
            return Err("too deeply nested".to_owned());
        }
        let mut parser = Parser { text, at: 0, depth };
        let mut steps = Vec::new();
        while parser.step(&mut steps)? {}
        Ok(Path(steps))
    }

    /// What the path names in `value`; an error where a step does not fit what it finds.
    pub fn find<'a>(&'a self, value: &'a Value) -> Result<Values<'a>, String> {
        self.walk(vec![Cow::Borrowed(value)])
    }

    fn walk<'a>(&'a self, mut values: Values<'a>) -> Result<Values<'a>, String> {
        for step in &self.0 {
            values = step.apply(values)?;
        }
        Ok(values)
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Reads one step; false at the end.
    fn step(&mut self, steps: &mut Vec<Step>) -> Result<bool, String> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else {
            return Ok(false);
        };
        if rest.starts_with("[?(") {
            steps.push(self.filter()?);
            return Ok(true);
        }
        if rest.starts_with("..") {
            if steps.last() == Some(&Step::Recursive) {
                return Err("invalid multiple recursive descent".to_owned());
            }
            self.at += 2;
            steps.push(Step::Recursive);
            if self.rest().starts_with(|c: char| c == '_' || c.is_alphanumeric()) {
                steps.push(self.field());
            }
            return Ok(true);
        }
        match first {
            // The object itself.
            ' ' | '@' | '$' => self.at += 1,
            '[' => self.array(steps)?,
            '"' | '\'' => steps.push(Step::Literal(self.quoted(first)?.into())),
            '.' => {
                self.at += 1;
                steps.push(self.field());
            }
            '+' | '-' => steps.push(self.number()?),
            c if c.is_ascii_digit() => steps.push(self.number()?),
            c if c == '_' || c.is_alphanumeric() => steps.push(self.word()?),
            c => return Err(format!("unrecognized character in action: {c:?}")),
        }
        Ok(true)
    }

    /// Text up to a character that ends names, escaped ones aside; the escapes are removed.
    fn name(&mut self) -> String {
        let mut name = String::new();
        let mut escaped = false;
        for c in self.rest().chars() {
            let ends = matches!(
                c,
                ' ' | '\t' | '\r' | '\n' | '.' | ',' | '[' | ']' | '$' | '@' | '{' | '}'
            );
            if ends && !escaped {
                break;
            }
            self.at += c.len_utf8();
            escaped = c == '\\' && !escaped;
            if c != '\\' {
                name.push(c);
            }
        }
        name
    }

    fn field(&mut self) -> Step {
        match self.name() {
            name if name == "*" => Step::Wildcard,
            name => Step::Field(name),
        }
    }

    fn word(&mut self) -> Result<Step, String> {
        match self.name().as_str() {
            "true" => Ok(Step::Literal(true.into())),
            "false" => Ok(Step::Literal(false.into())),
            other => Err(format!("unrecognized identifier {other}")),
        }
    }

    fn number(&mut self) -> Result<Step, String> {
        let rest = self.rest();
        let behind = |(index, c): (usize, char)| !(c.is_ascii_digit() || c == '.' || (index == 0 && "+-".contains(c)));
        let end = rest
            .char_indices()
            .find(|&pair| behind(pair))
            .map_or(rest.len(), |(i, _)| i);
        self.at += end;
        let text = &rest[..end];
        let value = text.parse::<i64>().map(Value::from);
        value
            .or_else(|_| text.parse::<f64>().map(Value::from))
            .map(Step::Literal)
            .map_err(|_| format!("cannot parse number {text}"))
    }

    fn quoted(&mut self, quote: char) -> Result<String, String> {
        let mut text = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((index, c)) = chars.next() {
            match c {
                '\\' => match chars.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, c)) => text.push(c),
                    None => break,
                },
                c if c == quote => {
                    self.at += index + 1;
                    return Ok(text);
                }
                c => text.push(c),
            }
        }
        Err("unterminated quoted string".to_owned())
    }

    fn array(&mut self, steps: &mut Vec<Step>) -> Result<(), String> {
        let rest = self.rest();
        let end = rest.find(']').ok_or("unterminated array")?;
        self.at += end + 1;
        let inner = &rest[1..end];
        if inner.contains(',') {
            let parts = inner.split(',').map(|part| format!("[{}]", part.trim_matches(' ')));
            let paths: Result<Vec<Path>, String> = parts.map(|p| Path::nested(&p, self.depth + 1)).collect();
            steps.push(Step::Union(paths?));
            return Ok(());
        }
        let key = inner.strip_prefix('\'').and_then(|k| k.strip_suffix('\''));
        if let Some(key) = key.filter(|k| !k.contains('\'')) {
            steps.extend(Path::nested(&format!(".{key}"), self.depth + 1)?.0);
            return Ok(());
        }
        steps.push(slice(if inner == "*" { ":" } else { inner })?);
        Ok(())
    }

    fn filter(&mut self) -> Result<Step, String> {
        let rest = &self.rest()["[?(".len()..];
        let mut quote = None;
        let mut escaped = false;
        let mut end = None;
        for (index, c) in rest.char_indices() {
            match (c, quote) {
                (')', None) => {
                    end = Some(index);
                    break;
                }
                ('"' | '\'', None) => quote = Some(c),
                (c, Some(open)) if c == open && !escaped => quote = None,
                _ => {}
            }
            escaped = c == '\\' && !escaped;
        }
        let end = end.ok_or("unterminated filter")?;
        if !rest[end..].starts_with(")]") {
            return Err("unclosed array expect ]".to_owned());
        }
        self.at += "[?(".len() + end + ")]".len();
        let inner = &rest[..end];
        let is_operator = |c: char| "!<>=".contains(c);
        let Some(start) = inner.find(is_operator).filter(|start| *start > 0) else {
            return Ok(Step::Exists(Path::nested(inner, self.depth + 1)?));
        };
        let length = inner[start..]
            .find(|c| !is_operator(c))
            .ok_or("a filter compares with nothing")?;
        let (left, operator, right) = (&inner[..start], &inner[start..start + length], &inner[start + length..]);
        if !["==", "!=", "<", "<=", ">", ">="].contains(&operator) {
            return Err(format!("unrecognized filter operator {operator}"));
        }
        Ok(Step::Filter(
            Path::nested(left, self.depth + 1)?,
            operator.to_owned(),
            Path::nested(right, self.depth + 1)?,
        ))
    }
}

/// Reads `1`, `1:3`, `:-1`, `::2`.
fn slice(text: &str) -> Result<Step, String> {
    let mut parts = text.split(':');
    let mut number = || match parts.next() {
        None => Ok(None),
        Some("") => Ok(Some(None)),
        Some(part) => match part.parse::<i64>() {
            Ok(number) if !part.starts_with('+') => Ok(Some(Some(number))),
            _ => Err(format!("invalid array index {text}")),
        },
    };
    let (start, end, step) = (number()?.flatten(), number()?, number()?.flatten());
    if parts.next().is_some() {
        return Err(format!("invalid array index {text}"));
    }
    let end = match end {
        None => End::Next,
        Some(None) => End::Open,
        Some(Some(end)) => End::At(end),
    };
    Ok(Step::Slice(start, end, step))
}

/// The values in a value, in order.
fn inside(value: Cow<'_, Value>) -> Values<'_> {
    match value {
        Cow::Borrowed(Value::Array(items)) => items.iter().map(Cow::Borrowed).collect(),
        Cow::Borrowed(Value::Object(map)) => map.values().map(Cow::Borrowed).collect(),
        // Literals, which have nothing inside.
        _ => Vec::new(),
    }
}

impl Step {
    fn apply<'a>(&'a self, values: Values<'a>) -> Result<Values<'a>, String> {
        let mut found = Vec::new();
        match self {
            Step::Literal(value) => found.extend(values.iter().map(|_| Cow::Borrowed(value))),
            Step::Field(name) => {
                for value in values {
                    if let Cow::Borrowed(Value::Object(map)) = value {
                        found.extend(map.get(name).map(Cow::Borrowed));
                    }
                }
            }
            Step::Wildcard => {
                for value in values {
                    found.extend(inside(value));
                    bounded(&found)?;
                }
            }
            Step::Recursive => {
                for value in values {
                    descend(value, &mut found)?;
                }
            }
            Step::Union(paths) => {
                for path in paths {
                    found.extend(path.walk(values.clone())?);
                    bounded(&found)?;
                }
            }
            Step::Slice(start, end, step) => {
                for value in values {
                    if !value.is_null() {
                        found.extend(cut(value, *start, *end, *step)?);
                        bounded(&found)?;
                    }
                }
            }
            Step::Exists(path) => {
                for item in items(values)? {
                    if path.walk(vec![item.clone()]).is_ok_and(|v| !v.is_empty()) {
                        found.push(item);
                    }
                }
            }
            Step::Filter(left, operator, right) => {
                for item in items(values)? {
                    let (left, right) = (left.walk(vec![item.clone()])?, right.walk(vec![item.clone()])?);
                    match (left.as_slice(), right.as_slice()) {
                        ([], _) | (_, []) => {}
                        ([left], [right]) => {
                            if compare(left, operator, right)? {
                                found.push(item);
                            }
                        }
                        _ => return Err("can only compare one element at a time".to_owned()),
                    }
                }
            }
        }
        Ok(found)
    }
}

fn items(values: Values<'_>) -> Result<Values<'_>, String> {
    let mut all = Vec::new();
    for value in values {
        if !value.is_array() {
            return Err("not a list, cannot be filtered".to_owned());
        }
        all.extend(inside(value));
        bounded(&all)?;
    }
    Ok(all)
}

fn bounded(found: &Values<'_>) -> Result<(), String> {
    match found.len() {
        0..=MAX_VALUES => Ok(()),
        _ => Err(format!("more than {MAX_VALUES} values")),
    }
}

fn descend<'a>(value: Cow<'a, Value>, found: &mut Values<'a>) -> Result<(), String> {
    let inner = inside(value.clone());
    if !inner.is_empty() {
        found.push(value);
        bounded(found)?;
        for value in inner {
            descend(value, found)?;
        }
    }
    Ok(())
}

fn cut(value: Cow<'_, Value>, start: Option<i64>, end: End, step: Option<i64>) -> Result<Values<'_>, String> {
    if !value.is_array() {
        return Err("not a list".to_owned());
    }
    let items = inside(value);
    let length = i64::try_from(items.len()).map_err(|e| e.to_string())?;
    let from_end = |at: i64| if at < 0 { at.saturating_add(length) } else { at };
    let first = from_end(start.unwrap_or(0));
    let last = match end {
        End::Open => length,
        End::At(at) => from_end(at),
        End::Next => first.saturating_add(1),
    };
    if first == last {
        return Ok(Vec::new());
    }
    if first < 0 || first >= length || last < 0 || last > length || first > last {
        return Err(format!("array index out of bounds: index {first}, length {length}"));
    }
    let step = match step {
        Some(step) if step <= 0 => return Err("step must be > 0".to_owned()),
        step => usize::try_from(step.unwrap_or(1)).map_err(|e| e.to_string())?,
    };
    let bounds = usize::try_from(first).unwrap_or_default()..usize::try_from(last).unwrap_or_default();
    Ok(items[bounds].iter().step_by(step).cloned().collect())
}

fn compare(left: &Value, operator: &str, right: &Value) -> Result<bool, String> {
    let incompatible = || "incompatible types for comparison".to_owned();
    let order = match (left, right) {
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Number(a), Value::Number(b)) if a.is_f64() == b.is_f64() => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => a.as_f64().partial_cmp(&b.as_f64()).ok_or_else(incompatible)?,
        },
        (Value::Bool(a), Value::Bool(b)) if matches!(operator, "==" | "!=") => a.cmp(b),
        _ => return Err(incompatible()),
    };
    Ok(match operator {
        "==" => order == Ordering::Equal,
        "!=" => order != Ordering::Equal,
        "<" => order == Ordering::Less,
        "<=" => order != Ordering::Greater,
        ">" => order == Ordering::Greater,
        _ => order != Ordering::Less,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn find(path: &str) -> Result<Vec<Value>, String> {
        let object = json!({
            "name": "n",
            "on": true,
            "none": null,
            "annotations": {"a.b/c": "x"},
            "list": [{"k": "a", "n": 1}, {"k": "b", "n": 2, "more": {"k": "deep"}}, {"k": "c)'\"", "n": 3}],
        });
        let path = Path::parse(path)?;
        let values = path.find(&object)?;
        Ok(values.into_iter().map(Cow::into_owned).collect())
    }

    #[test]
    fn paths_find_what_they_find_in_kubernetes() {
        let cases = [
            (".name", json!(["n"])),
            ("$.name", json!(["n"])),
            (".missing.more", json!([])),
            (".none", json!([null])),
            (".none.more", json!([])),
            (".name.more", json!([])),
            (".list[0].k", json!(["a"])),
            (".list[].k", json!(["a"])),
            (".list[-1].n", json!([3])),
            (".list[*].k", json!(["a", "b", "c)'\""])),
            (".list[1:].n", json!([2, 3])),
            (".list[:2].n", json!([1, 2])),
            (".list[::2].n", json!([1, 3])),
            (".list[0:-1].n", json!([1, 2])),
            (".list[0,2].n", json!([1, 3])),
            (".list[1]['k','n']", json!(["b", 2])),
            (".list[1].more.*", json!(["deep"])),
            ("..k", json!(["a", "b", "deep", "c)'\""])),
            (".annotations.a\\.b/c", json!(["x"])),
            (".annotations['a\\.b/c']", json!(["x"])),
            (".list[?(@.k==\"b\")].n", json!([2])),
            (".list[?(@.k == 'b')].n", json!([2])),
            (".list[?(@.k=='c)\\'\"')].n", json!([3])),
            (".list[?(@.n>=2)].k", json!(["b", "c)'\""])),
            (".list[?(@.n!=2)].n", json!([1, 3])),
            (".list[?(@.more)].k", json!(["b"])),
            (".list[?(@.more.k==\"deep\")].k", json!(["b"])),
        ];
        for (path, expected) in cases {
            assert_eq!(find(path).map(Value::from), Ok(expected), "{path}");
        }
    }

    #[test]
    fn a_step_that_does_not_fit_is_an_error() {
        for path in [
            ".list[9]",
            ".name[0]",
            ".name[?(@.x)]",
            ".none[?(@.x)]",
            ".list[?(@.k>1)]",
            ".list[?(@.n==1.5)]",
        ] {
            assert!(find(path).is_err(), "{path}");
        }
        assert_eq!(find(".none[0]"), Ok(vec![]));
    }

    #[test]
    fn a_path_that_cannot_be_read_is_an_error() {
        for path in [
            ".a[",
            ".a[x]",
            ".a[1:2:3:4]",
            ".a[?(@.b==1)",
            ".a[?(@.b==)]",
            ".a[?(@.b=~'x')]",
            "....a",
            "range .a",
            ".a{",
            "\"open",
            "-",
        ] {
            assert!(Path::parse(path).is_err(), "{path}");
        }
        let deep = format!("{}{}", ".a[?(@.b[?(@.c".repeat(20), ")])]".repeat(20));
        assert!(Path::parse(&deep).is_err());
    }
    #[test]
    fn a_path_cannot_multiply_what_it_finds_without_end() {
        let mut object = json!([1]);
        for _ in 0..100 {
            object = json!([object]);
        }
        let doubled = "[0,0]".repeat(40);
        for path in ["...*...*...*...*...*", doubled.as_str()] {
            let path = Path::parse(path).expect("a path");
            assert!(path.find(&object).is_err());
        }
    }
}
