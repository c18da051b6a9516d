//! In which form the client wants its answer.

use crate::status::Failure;

/// Encoding of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
}

/// Shape of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The object.
    Whole,
    /// `as=Table`
    Table,
    /// `as=PartialObjectMetadata`, `as=PartialObjectMetadataList`
    Metadata,
    /// `as=APIGroupDiscoveryList`, with its version (`v2`, `v2beta1`).
    Discovery(&'static str),
}

/// What was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    /// Encoding.
    pub format: Format,
    /// Shape.
    pub shape: Shape,
}

/// Takes the first entry that can be served. Protobuf is never served: its clients list JSON next.
pub fn negotiate(header: Option<&str>) -> Result<Accept, Failure> {
    let header = header.unwrap_or("*/*");
    header.split(',').find_map(entry).ok_or_else(|| {
        Failure::not_acceptable("application/json, application/yaml, application/vnd.kubernetes.protobuf")
    })
}

fn entry(entry: &str) -> Option<Accept> {
    let mut parts = entry.split(';').map(str::trim);
    let format = match parts.next()? {
        "application/json" | "*/*" | "application/*" | "" => Format::Json,
        "application/yaml" => Format::Yaml,
        _ => return None,
    };
    let (mut kind, mut group, mut version) = ("", "", "");
    for (key, value) in parts.filter_map(|p| p.split_once('=')) {
        match key {
            "as" => kind = value,
            "g" => group = value,
            "v" => version = value,
            _ => {}
        }
    }
    let shape = match (kind, group, version) {
        ("", ..) => Shape::Whole,
        ("Table", "meta.k8s.io", "v1") => Shape::Table,
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => Shape::Metadata,
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => Shape::Discovery("v2"),
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2beta1") => Shape::Discovery("v2beta1"),
        _ => return None,
    };
    Some(Accept { format, shape })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_can_be_served_is_taken() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(negotiate(Some(kubectl)).map(|a| a.shape).ok(), Some(Shape::Table));
        let typed = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(negotiate(Some(typed)).map(|a| a.shape).ok(), Some(Shape::Whole));
        assert_eq!(negotiate(Some("text/html")).map_err(|f| f.code).err(), Some(406));
    }
}
