//! What a URL path names.

/// A resource path, or one of the few fixed documents.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    /// `/livez`, `/readyz`, `/healthz`.
    Health,
    /// `/version`.
    Version,
    /// `/api`.
    CoreVersions,
    /// `/apis`.
    Groups,
    /// `/apis/G`.
    Group(String),
    /// `/api/v1`, `/apis/G/V`.
    Resources(String, String),
    /// `/openapi/v2`.
    OpenApiV2,
    /// `/openapi/v3`.
    OpenApiRoot,
    /// `/openapi/v3/api/v1`, `/openapi/v3/apis/G/V`.
    OpenApi(String, String),
    /// Objects.
    Objects(Place),
    /// Nothing served.
    Unknown,
}

/// A collection, an object, or a part of an object.
#[derive(Debug, Default, PartialEq, Eq, Clone)]
pub struct Place {
    /// Empty for core.
    pub group: String,
    /// Like `v1`.
    pub version: String,
    /// Plural.
    pub resource: String,
    /// Empty for all namespaces or cluster scope.
    pub namespace: String,
    /// None for a collection.
    pub name: Option<String>,
    /// `status`, `scale`, `finalize`.
    pub subresource: Option<String>,
    /// The old `/watch/` prefix.
    pub watch: bool,
}

/// Reads a path; percent-escapes in segments are decoded.
pub fn parse(path: &str) -> Target {
    let segments: Vec<String> = path.split('/').filter(|s| !s.is_empty()).map(decode).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    match segments.as_slice() {
        ["livez" | "readyz" | "healthz", ..] => Target::Health,
        ["version"] => Target::Version,
        ["api"] => Target::CoreVersions,
        ["apis"] => Target::Groups,
        ["apis", group] => Target::Group((*group).into()),
        ["api", version] => Target::Resources(String::new(), (*version).into()),
        ["apis", group, version] => Target::Resources((*group).into(), (*version).into()),
        ["openapi", "v2"] => Target::OpenApiV2,
        ["openapi", "v3"] => Target::OpenApiRoot,
        ["openapi", "v3", "api", version] => Target::OpenApi(String::new(), (*version).into()),
        ["openapi", "v3", "apis", group, version] => Target::OpenApi((*group).into(), (*version).into()),
        ["api", version, rest @ ..] => objects("", version, rest),
        ["apis", group, version, rest @ ..] => objects(group, version, rest),
        _ => Target::Unknown,
    }
}

fn objects(group: &str, version: &str, rest: &[&str]) -> Target {
    let (watch, rest) = match rest {
        ["watch", rest @ ..] => (true, rest),
        _ => (false, rest),
    };
    let mut place = Place {
        group: group.into(),
        version: version.into(),
        watch,
        ..Place::default()
    };
    let rest = match rest {
        // Parts of a namespace itself.
        ["namespaces", _, "status" | "finalize"] => rest,
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => {
            place.namespace = (*namespace).into();
            rest
        }
        _ => rest,
    };
    match rest {
        [resource] => place.resource = (*resource).into(),
        [resource, name] => (place.resource, place.name) = ((*resource).into(), Some((*name).into())),
        [resource, name, part] => {
            (place.resource, place.name) = ((*resource).into(), Some((*name).into()));
            place.subresource = Some((*part).into());
        }
        _ => return Target::Unknown,
    }
    Target::Objects(place)
}

/// Percent-decoding; a broken escape stays as it is.
pub fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| bytes.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok()))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_and_what_is_in_it_are_told_apart() {
        let place = |path| match parse(path) {
            Target::Objects(place) => place,
            other => panic!("{path}: {other:?}"),
        };
        let namespace = place("/api/v1/namespaces/n");
        assert_eq!(
            (namespace.resource.as_str(), namespace.name.as_deref()),
            ("namespaces", Some("n"))
        );
        let status = place("/api/v1/namespaces/n/status");
        assert_eq!(
            (status.resource.as_str(), status.subresource.as_deref()),
            ("namespaces", Some("status"))
        );
        let secret = place("/api/v1/namespaces/n/secrets/s");
        assert_eq!((secret.namespace.as_str(), secret.name.as_deref()), ("n", Some("s")));
        let custom = place("/apis/g.io/v1/namespaces/n/things/t/status");
        assert_eq!(
            (custom.group.as_str(), custom.subresource.as_deref()),
            ("g.io", Some("status"))
        );
    }
}
