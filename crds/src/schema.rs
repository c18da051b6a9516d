//! Pieces of schema that derive cannot express.

use schemars::{Schema, SchemaGenerator, json_schema};

/// A Kubernetes quantity, written as a string ("512Mi", "2Gi").
pub(crate) fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 32,
        "pattern": r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$",
    })
}

/// A quantity that may be absent.
pub(crate) fn optional_quantity(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = quantity(generator);
    schema.insert("nullable".to_owned(), true.into());
    schema
}

/// Conditions as the API conventions want them: a list keyed by type.
pub(crate) fn conditions(generator: &mut SchemaGenerator) -> Schema {
    let item =
        <k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition as schemars::JsonSchema>::json_schema(generator);
    json_schema!({
        "type": "array",
        "items": item,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "maxItems": 32,
    })
}
