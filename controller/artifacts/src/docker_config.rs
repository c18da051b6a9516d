//! Docker configuration files (`config.json`, `.dockerconfigjson`, the older `.dockercfg`): which
//! credentials they hold for which registries.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::types::{Credential, IDENTITY_TOKEN};

/// Largest configuration file that is read, in bytes (as large as a Secret can be).
pub const MAX_BYTES: usize = 1 << 20;

/// What a configuration file says. It has no `Debug`: it is a secret.
pub struct DockerConfig {
    /// User names with passwords or identity tokens, the most specific scope first.
    pub credentials: Vec<Credential>,
    /// Scopes with the names of credential helpers (`credHelpers`), the most specific first. Not checked.
    pub helpers: Vec<(String, String)>,
    /// The helper for all others (`credsStore`). Not checked.
    pub store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    #[serde(alias = "identityToken")]
    identitytoken: String,
}

/// The credentials of a configuration file. Entries without a user name (those that a credential helper
/// serves) are left out.
///
/// # Errors
/// See [`DockerConfig::read`].
pub fn parse(bytes: &[u8]) -> Result<Vec<Credential>, String> {
    Ok(DockerConfig::read(bytes)?.credentials)
}

/// The credentials of several pull secrets, in order, and the secrets that they are from. `name` says what a secret
/// is called.
///
/// # Errors
/// The first one that is no configuration file, and a message that names it and never quotes it.
pub fn parse_secrets<S>(
    secrets: impl IntoIterator<Item = (S, Vec<u8>)>,
    name: impl Fn(&S) -> &str,
) -> Result<(Vec<Credential>, Vec<S>), (S, String)> {
    let (mut credentials, mut from) = (Vec::new(), Vec::new());
    for (secret, config) in secrets {
        match parse(&config) {
            Ok(parsed) => credentials.extend(parsed),
            Err(error) => {
                let message = format!("pull secret \"{}\" is no docker configuration: {error}", name(&secret));
                return Err((secret, message));
            }
        }
        from.push(secret);
    }
    Ok((credentials, from))
}

impl DockerConfig {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// When the file is too large, is no JSON object, or an `auth` is not base64 of `user:password`. The
    /// message never quotes the file.
    pub fn read(bytes: &[u8]) -> Result<DockerConfig, String> {
        if bytes.len() > MAX_BYTES {
            return Err(format!("it is larger than {MAX_BYTES} bytes"));
        }
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|_| "it is not JSON".to_owned())?;
        let new_style = ["auths", "credHelpers", "credsStore"]
            .iter()
            .any(|key| value.get(key).is_some());
        let config = if new_style {
            serde_json::from_value(value).map_err(|_| {
                "\"auths\" is not a map of credentials, \"credHelpers\" not one of names, or \"credsStore\" no name"
            })?
        } else if value.is_object() {
            // Old style: the map itself. A new-style file without credentials has other keys, which are no entries.
            Config {
                auths: serde_json::from_value(value).unwrap_or_default(),
                ..Config::default()
            }
        } else {
            return Err("it is not a JSON object".to_owned());
        };
        let mut credentials = Vec::new();
        for (key, entry) in config.auths {
            credentials.extend(entry.credential(scope(&key))?);
        }
        credentials.sort_by(|a, b| narrower(&a.registry, &b.registry));
        let mut helpers: Vec<(String, String)> = config
            .helpers
            .into_iter()
            .map(|(key, name)| (scope(&key), name))
            .collect();
        helpers.sort_by(|a, b| narrower(&a.0, &b.0));
        Ok(DockerConfig {
            credentials,
            helpers,
            store: config.store.filter(|name| !name.is_empty()),
        })
    }
}

impl Entry {
    fn credential(self, registry: String) -> Result<Option<Credential>, String> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credential {
                registry,
                username: IDENTITY_TOKEN.to_owned(),
                password: self.identitytoken,
            }));
        }
        let (username, password) = if self.auth.is_empty() {
            (self.username, self.password)
        } else {
            let decoded = STANDARD
                .decode(self.auth.trim())
                .map_err(|_| format!("the auth for {registry} is not base64"))?;
            let text = String::from_utf8(decoded).map_err(|_| format!("the auth for {registry} is not text"))?;
            let (user, password) = text
                .split_once(':')
                .ok_or_else(|| format!("the auth for {registry} is not user:password"))?;
            (user.to_owned(), password.trim_end_matches('\0').to_owned())
        };
        Ok((!username.is_empty()).then_some(Credential {
            registry,
            username,
            password,
        }))
    }
}

/// Which scope comes first: the longer path, then hosts without wildcards, then by name.
fn narrower(a: &str, b: &str) -> Ordering {
    let rank = |scope: &str| {
        let (host, path) = scope.split_once('/').unwrap_or((scope, ""));
        let parts = path.split('/').filter(|part| !part.is_empty()).count();
        (Reverse(parts), host.contains('*'))
    };
    rank(a).cmp(&rank(b)).then_with(|| a.cmp(b))
}

/// What a key is for: a host with its port, and perhaps the beginning of a repository's name. A key may be a URL:
/// `https://index.docker.io/v1/` is Docker Hub, and `/v1/` and `/v2/` are no repositories.
fn scope(key: &str) -> String {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    };
    let path = path.trim_matches('/');
    let path = match path.split_once('/').unwrap_or((path, "")) {
        ("v1" | "v2", rest) => rest,
        _ => path,
    };
    match path {
        "" => host.to_owned(),
        path => format!("{host}/{path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubectl_create_secret_docker_registry_writes_is_read() {
        let auth = STANDARD.encode("me:s:ecret");
        let config = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{auth}"}},"r.example:5000":{{"username":"u","password":"p"}}}}}}"#
        );
        let found = parse(config.as_bytes()).expect("parses");
        assert_eq!(found.len(), 2);
        assert_eq!(
            (
                found[0].registry.as_str(),
                found[0].username.as_str(),
                found[0].password.as_str()
            ),
            ("docker.io", "me", "s:ecret")
        );
        assert_eq!(found[1].registry, "r.example:5000");
    }

    #[test]
    fn an_old_style_file_and_one_without_credentials_are_read() {
        assert_eq!(
            parse(br#"{"r.example":{"username":"u","password":"p"}}"#)
                .expect("parses")
                .len(),
            1
        );
        assert!(parse(br#"{"credsStore":"desktop"}"#).expect("parses").is_empty());
        assert!(parse(br#"{"auths":{"r.example":{}}}"#).expect("parses").is_empty());
    }

    #[test]
    fn keys_have_paths_and_wildcards_and_the_narrowest_comes_first() {
        let login = |user: &str| format!(r#"{{"username":"{user}","password":"p"}}"#);
        let config = format!(
            r#"{{"auths":{{"*.example":{},"r.example":{},"r.example/team":{},"https://r.example/v2/team/app":{}}}}}"#,
            login("any"),
            login("host"),
            login("team"),
            login("app"),
        );
        let found = parse(config.as_bytes()).expect("parses");
        let names: Vec<&str> = found.iter().map(|c| c.username.as_str()).collect();
        assert_eq!(names, ["app", "team", "host", "any"]);
        let for_whom = |reference: &str| {
            let reference: crate::reference::Reference = reference.parse().expect("a reference");
            let fitting = found.iter().filter(|c| reference.is_for(&c.registry));
            fitting.map(|c| c.username.clone()).collect::<Vec<_>>()
        };
        assert_eq!(for_whom("r.example/team/app:1"), ["app", "team", "host", "any"]);
        assert_eq!(for_whom("r.example/team/apple"), ["team", "host", "any"]);
        assert_eq!(for_whom("r.example/teams/app"), ["host", "any"]);
        assert_eq!(for_whom("other.example/team/app"), ["any"]);
        assert!(
            for_whom("r.example:5000/team/app").is_empty(),
            "a port is part of the name"
        );
        assert!(
            for_whom("a.r.example/team/app").is_empty(),
            "a star stands for one part"
        );
    }

    #[test]
    fn an_identity_token_counts_before_a_password() {
        let config = format!(
            r#"{{"auths":{{"r.example":{{"auth":"{}","identitytoken":"secret"}}}}}}"#,
            STANDARD.encode("me:")
        );
        let found = parse(config.as_bytes()).expect("parses");
        assert_eq!(found[0].identity_token(), Some("secret"));
        assert!(!format!("{found:?}").contains("secret"));
    }

    #[test]
    fn helpers_are_read_and_are_no_credentials() {
        let config = br#"{"credHelpers":{"r.example":"ecr-login"},"credsStore":"pass","auths":{"s.example":{}}}"#;
        assert!(parse(config).expect("parses").is_empty());
        let read = DockerConfig::read(config).expect("reads");
        assert_eq!(read.helpers, [("r.example".to_owned(), "ecr-login".to_owned())]);
        assert_eq!(read.store.as_deref(), Some("pass"));
    }

    #[test]
    fn of_several_secrets_the_first_that_is_none_is_named() {
        let good = br#"{"auths":{"r.example":{"username":"u","password":"p"}}}"#.to_vec();
        let files = [("a".to_owned(), good.clone()), ("b".to_owned(), good.clone())];
        let (found, from) = parse_secrets(files, String::as_str).expect("both");
        assert_eq!((found.len(), from.len()), (2, 2));
        let files = [("a".to_owned(), good), ("b".to_owned(), b"hunter2".to_vec())];
        let (secret, message) = parse_secrets(files, String::as_str).expect_err("b");
        assert_eq!(secret, "b");
        assert!(
            message.contains("pull secret \"b\"") && !message.contains("hunter2"),
            "{message}"
        );
    }

    #[test]
    fn a_broken_file_is_refused_without_being_quoted() {
        let bad = format!(
            r#"{{"auths":{{"r.example":{{"auth":"{}"}}}}}}"#,
            STANDARD.encode("hunter2")
        );
        let message = parse(bad.as_bytes()).expect_err("no colon");
        assert!(
            message.contains("r.example") && !message.contains("hunter2"),
            "{message}"
        );
        assert!(parse(b"hunter2").is_err_and(|m| !m.contains("hunter2")));
    }
}
