//! `format.dns1123Label().validate(text)` and its like.

use crate::names;
use crate::schema::cel::value::{Outcome, Value};
use crate::schema::formats;

/// A format by its name, and what is wrong with a text that should have it.
#[derive(Debug)]
pub(in crate::schema::cel) struct NamedFormat {
    name: &'static str,
    problems: fn(&str) -> Vec<String>,
}

fn unless(valid: bool, problem: &str) -> Vec<String> {
    if valid { Vec::new() } else { vec![problem.to_owned()] }
}

/// What comes before a generated suffix: a trailing dash is fine.
fn masked(text: &str) -> String {
    match text.strip_suffix('-') {
        Some(stem) if !stem.is_empty() => format!("{stem}a"),
        _ => text.to_owned(),
    }
}

static FORMATS: [NamedFormat; 13] = [
    NamedFormat {
        name: "dns1123Label",
        problems: names::label_problems,
    },
    NamedFormat {
        name: "dns1123Subdomain",
        problems: names::subdomain_problems,
    },
    NamedFormat {
        name: "dns1035Label",
        problems: names::dns1035_label_problems,
    },
    NamedFormat {
        name: "qualifiedName",
        problems: names::qualified_name_problems,
    },
    NamedFormat {
        name: "dns1123LabelPrefix",
        problems: |text| names::label_problems(&masked(text)),
    },
    NamedFormat {
        name: "dns1123SubdomainPrefix",
        problems: |text| names::subdomain_problems(&masked(text)),
    },
    NamedFormat {
        name: "dns1035LabelPrefix",
        problems: |text| names::dns1035_label_problems(&masked(text)),
    },
    NamedFormat {
        name: "labelValue",
        problems: names::label_value_problems,
    },
    NamedFormat {
        name: "uri",
        problems: |text| {
            let problem = format!("parse {text:?}: invalid URI for request");
            unless(formats::matches("uri", text), &problem)
        },
    },
    NamedFormat {
        name: "uuid",
        problems: |text| unless(formats::matches("uuid", text), "does not match the UUID format"),
    },
    NamedFormat {
        name: "byte",
        problems: |text| unless(formats::matches("byte", text), "invalid base64"),
    },
    NamedFormat {
        name: "date",
        problems: |text| unless(formats::matches("date", text), "invalid date"),
    },
    NamedFormat {
        name: "datetime",
        problems: |text| unless(formats::matches("datetime", text), "invalid datetime"),
    },
];

fn find(name: &str) -> Option<&'static NamedFormat> {
    FORMATS.iter().find(|format| format.name == name)
}

pub(super) fn call<'a>(name: &str, args: &[Value<'a>]) -> Option<Outcome<'a>> {
    Some(Ok(match (name, args) {
        ("format.named", [Value::String(name)]) => {
            Value::Optional(find(name).map(|format| std::rc::Rc::new(Value::Format(format))))
        }
        ("validate", [Value::Format(format), Value::String(text)]) => {
            let problems = (format.problems)(text);
            if problems.is_empty() {
                Value::Optional(None)
            } else {
                Value::some(Value::list(problems.into_iter().map(Value::text).collect()))
            }
        }
        (name, []) => Value::Format(find(name.strip_prefix("format.")?)?),
        _ => return None,
    }))
}
