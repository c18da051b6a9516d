//! Label and field selectors.
//!
//! ```text
//! let labels = LabelSelector::parse("app=demo,tier notin (a,b),!legacy")?;  labels.matches(metadata.labels)
//! let fields = FieldSelector::parse("metadata.name=x,spec.nodeName!=n1")?;
//! for field in fields.fields() { if !supported(field) { return 400 unsupported_field(field) } }
//! fields.matches(|path| value_of(path))
//! ```
//! Errors are the texts of apimachinery's parsers, for a 400 BadRequest.

mod fields;
mod labels;

pub use fields::{FieldSelector, field_value};
pub use labels::LabelSelector;

/// A selector that cannot be read; the text is the message of the 400 Status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

/// The message of the 400 for a field that cannot be selected on.
pub fn unsupported_field(field: &str) -> String {
    format!("field label not supported: {field}")
}

#[cfg(test)]
mod tests;
