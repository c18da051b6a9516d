//! Rules for names, labels and annotations, after `k8s.io/apimachinery/pkg/util/validation`.

use serde_json::Value;

use crate::schema::FieldError;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const NAME_PART: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const QUALIFIED: &str = "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
/// All annotations of an object together may have this many bytes.
const ANNOTATION_BYTES: usize = 256 * 1024;

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn dns_label(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    edge(text.bytes().next())
        && edge(text.bytes().last())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// What keeps `name` from being a DNS-1123 subdomain: the rule for names of most kinds.
pub fn subdomain_problems(name: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if name.len() > 253 {
        problems.push(too_long(253));
    }
    if !name.split('.').all(dns_label) {
        problems.push(SUBDOMAIN.to_owned());
    }
    problems
}

/// What keeps `name` from being a DNS-1123 label: the rule for namespaces.
pub fn label_problems(name: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if name.len() > 63 {
        problems.push(too_long(63));
    }
    if !dns_label(name) {
        problems.push(LABEL.to_owned());
    }
    problems
}

/// What keeps `name` from being a DNS-1035 label: a DNS-1123 label that begins with a letter.
pub fn dns1035_label_problems(name: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if name.len() > 63 {
        problems.push("must be no more than 63 characters".to_owned());
    }
    if !dns_label(name) || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        problems.push(LABEL_1035.to_owned());
    }
    problems
}

fn name_part(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    edge(text.bytes().next())
        && edge(text.bytes().last())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// What keeps `key` from naming a label, annotation or finalizer.
pub fn qualified_name_problems(key: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let name = match key.split('/').collect::<Vec<_>>().as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                problems.push("prefix part must be non-empty".to_owned());
            } else {
                problems.extend(subdomain_problems(prefix).iter().map(|p| format!("prefix part {p}")));
            }
            *name
        }
        _ => return vec![QUALIFIED.to_owned()],
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        problems.push(format!("name part {}", too_long(63)));
    }
    if !name_part(name) {
        problems.push(NAME_PART.to_owned());
    }
    problems
}

/// What keeps `value` from being a label's value.
pub fn label_value_problems(value: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if value.len() > 63 {
        problems.push(too_long(63));
    }
    if !value.is_empty() && !name_part(value) {
        problems.push(LABEL_VALUE.to_owned());
    }
    problems
}

/// Checks name, generateName, labels and annotations of an object's metadata.
///
/// `name_problems` is the kind's rule: [`subdomain_problems`], for namespaces [`label_problems`].
/// Call it after a generated name is in place.
pub fn metadata_errors(object: &Value, name_problems: fn(&str) -> Vec<String>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let meta = &object["metadata"];
    let text = |field: &str| meta[field].as_str().unwrap_or_default();
    let prefix = text("generateName");
    if !prefix.is_empty() {
        // A trailing dash is fine because something follows it.
        let probe = match prefix.strip_suffix('-') {
            Some(stem) => format!("{stem}a"),
            None => prefix.to_owned(),
        };
        for problem in name_problems(&probe) {
            errors.push(FieldError::invalid("metadata.generateName", prefix, problem));
        }
    }
    let name = text("name");
    if name.is_empty() {
        errors.push(FieldError::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else {
        for problem in name_problems(name) {
            errors.push(FieldError::invalid("metadata.name", name, problem));
        }
    }
    if let Some(labels) = meta["labels"].as_object() {
        for (key, value) in labels {
            for problem in qualified_name_problems(key) {
                errors.push(FieldError::invalid("metadata.labels", key.as_str(), problem));
            }
            match value.as_str() {
                Some(value) => {
                    for problem in label_value_problems(value) {
                        errors.push(FieldError::invalid("metadata.labels", value, problem));
                    }
                }
                None => errors.push(FieldError::invalid(
                    "metadata.labels",
                    value.clone(),
                    "must be a string",
                )),
            }
        }
    }
    if let Some(annotations) = meta["annotations"].as_object() {
        let mut bytes = 0;
        for (key, value) in annotations {
            for problem in qualified_name_problems(&key.to_lowercase()) {
                errors.push(FieldError::invalid("metadata.annotations", key.as_str(), problem));
            }
            match value.as_str() {
                Some(value) => bytes += key.len() + value.len(),
                None => errors.push(FieldError::invalid(
                    "metadata.annotations",
                    value.clone(),
                    "must be a string",
                )),
            }
        }
        if bytes > ANNOTATION_BYTES {
            errors.push(FieldError::too_long("metadata.annotations", ANNOTATION_BYTES as i64));
        }
    }
    errors
}

/// The warnings that the real server adds for finalizers without a domain.
pub fn finalizer_warnings(added: &[String]) -> Vec<String> {
    const STANDARD: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];
    let mut warnings = Vec::new();
    for name in added {
        for problem in qualified_name_problems(name) {
            warnings.push(format!("metadata.finalizers: \"{name}\": {problem}"));
        }
        if !name.contains('/') && !STANDARD.contains(&name.as_str()) {
            let path = if name.contains('.') {
                " including a path (/)"
            } else {
                ""
            };
            warnings.push(format!(
                "metadata.finalizers: \"{name}\": prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer writers"
            ));
        }
    }
    warnings
}
