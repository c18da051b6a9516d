//! The patch types other than apply.
//!
//! ```text
//! patch::merge(&mut object, &patch);                       // application/merge-patch+json
//! patch::json(&mut object, &patch)?;                       // application/json-patch+json
//! patch::strategic(&mut object, &patch, strategy)?;        // strategic-merge-patch+json, core kinds only
//! ```

mod strategic;

use serde_json::Value;

#[cfg(test)]
pub use strategic::Strategy;
pub use strategic::{strategic, strategy_of};

/// Most operations that one JSON patch may have, as in the real server.
const MAX_OPERATIONS: usize = 10_000;

/// A patch that cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself cannot be read: 400 BadRequest.
    #[error("{0}")]
    Unreadable(String),
    /// The patch does not fit the object (bad path, failed test): 422 Invalid with the generic
    /// message "the server rejected our request due to an error in our request" and empty details.
    #[error("the server rejected our request due to an error in our request")]
    Rejected,
    /// Too many operations: 413 RequestEntityTooLarge.
    #[error("Request entity too large: The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {0}")]
    TooLarge(usize),
}

/// Applies a JSON merge patch (RFC 7386).
///
/// # Errors
/// [`PatchError::Unreadable`] when the patch is not an object.
pub fn merge(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Unreadable(format!(
            "error decoding patch: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            kind_name(patch)
        )));
    }
    json_patch::merge(object, patch);
    Ok(())
}

/// Applies a JSON patch (RFC 6902); the object is untouched on error.
///
/// # Errors
/// See [`PatchError`].
pub fn json(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let operations: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|e| PatchError::Unreadable(format!("error decoding patch: {e}")))?;
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooLarge(operations.len()));
    }
    json_patch::patch(object, &operations).map_err(|_| PatchError::Rejected)
}

fn kind_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
