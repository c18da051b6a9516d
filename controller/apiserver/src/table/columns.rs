//! Columns of custom resources.

use jiff::Timestamp;
use serde_json::{Number, Value, json};

use super::{AGE, header, jsonpath, name_header, since};
use crate::schema::{FieldError, go_json};

/// A column as its definition describes it.
pub struct Column {
    name: String,
    kind: String,
    format: String,
    description: String,
    priority: i64,
    /// None when the path cannot be read; such cells are empty.
    path: Option<jsonpath::Path>,
}

const TYPES: &str = "boolean,date,integer,number,string";
const FORMATS: &str = "byte,date,date-time,double,float,int32,int64,password";

/// What kube-apiserver refuses in `additionalPrinterColumns`, which stand at `path`.
///
/// A JSON path that begins well and cannot be read is accepted, as there: its cells are empty.
pub fn check(definitions: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, definition) in definitions.as_array().into_iter().flatten().enumerate() {
        let at = |name: &str| format!("{path}[{index}].{name}");
        let text = |key: &str| definition[key].as_str().unwrap_or_default();
        let one_of = |list: &str| format!("must be one of {list}");
        let is_in = |list: &str, text: &str| list.split(',').any(|known| known == text);
        if text("name").is_empty() {
            errors.push(FieldError::required(at("name"), ""));
        }
        match text("type") {
            "" => errors.push(FieldError::required(at("type"), one_of(TYPES))),
            kind if !is_in(TYPES, kind) => errors.push(FieldError::invalid(at("type"), kind, one_of(TYPES))),
            _ => {}
        }
        let format = text("format");
        if !format.is_empty() && !is_in(FORMATS, format) {
            errors.push(FieldError::invalid(at("format"), format, one_of(FORMATS)));
        }
        // So it is spelled there.
        let at = at("JSONPath");
        match text("jsonPath") {
            "" => errors.push(FieldError::required(at, "")),
            path if !path.starts_with('.') => {
                let words = "must be a simple json path starting with .";
                errors.push(FieldError::invalid(at, path, words));
            }
            _ => {}
        }
    }
    errors
}

impl Column {
    /// Reads `additionalPrinterColumns`; without any there is the age.
    pub fn all(definitions: &[Value]) -> Vec<Column> {
        if definitions.is_empty() {
            let age = json!({
                "name": "Age", "type": "date", "description": AGE, "jsonPath": ".metadata.creationTimestamp",
            });
            return vec![Column::read(&age)];
        }
        definitions.iter().map(Column::read).collect()
    }

    fn read(definition: &Value) -> Column {
        let text = |key: &str| definition[key].as_str().unwrap_or_default().to_owned();
        let path = text("jsonPath");
        let mut description = text("description");
        if description.is_empty() {
            description = format!("Custom resource definition column (in JSONPath format): {path}");
        }
        Column {
            name: text("name"),
            kind: text("type"),
            format: text("format"),
            description,
            priority: definition["priority"].as_i64().unwrap_or_default(),
            path: jsonpath::Path::parse(&path).ok(),
        }
    }

    fn cell(&self, object: &Value, now: Timestamp) -> Value {
        // Paths are simple: of several results only the first is shown.
        let found = self.path.as_ref().and_then(|path| path.find(object).ok());
        let Some(value) = found.as_ref().and_then(|found| found.first()) else {
            return Value::Null;
        };
        match (self.kind.as_str(), value.as_ref()) {
            ("string", value) => print(value).into(),
            ("integer", Value::Number(number)) => integer(number),
            ("number", Value::Number(number)) => number.as_f64().map_or(Value::Null, Value::from),
            ("boolean", Value::Bool(flag)) => (*flag).into(),
            ("date", Value::String(text)) if text == "null" => "<unknown>".into(),
            ("date", Value::String(_)) => since(value, now).into(),
            _ => Value::Null,
        }
    }
}

fn integer(number: &Number) -> Value {
    match (number.as_i64(), number.as_f64()) {
        (Some(whole), _) => whole.into(),
        // As Go converts: towards zero.
        (None, Some(float)) => (float as i64).into(),
        (None, None) => Value::Null,
    }
}

/// A value as Go prints it.
fn print(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<no value>".to_owned(),
        other => go_json(other),
    }
}

/// `columnDefinitions`: the name and these.
pub fn headers(columns: &[Column]) -> Vec<Value> {
    let column = |c: &Column| header(&c.name, &c.kind, &c.format, &c.description, c.priority);
    std::iter::once(name_header(0))
        .chain(columns.iter().map(column))
        .collect()
}

/// The cells of one object.
pub fn cells(columns: &[Column], object: &Value, now: Timestamp) -> Vec<Value> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    std::iter::once(name.into())
        .chain(columns.iter().map(|c| c.cell(object, now)))
        .collect()
}
