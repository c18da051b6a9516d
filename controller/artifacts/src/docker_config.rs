//! Docker configuration files (`config.json`, `.dockerconfigjson`, the older `.dockercfg`): which
//! credentials they hold for which registries.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::types::Credential;

/// Largest configuration file that is read, in bytes (as large as a Secret can be).
pub const MAX_BYTES: usize = 1 << 20;

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
}

/// The credentials of a configuration file. Entries without a user name (those that a credential helper
/// serves) are left out.
///
/// # Errors
/// When the file is too large, is no JSON object, or an `auth` is not base64 of `user:password`. The
/// message never quotes the file.
pub fn parse(bytes: &[u8]) -> Result<Vec<Credential>, String> {
    if bytes.len() > MAX_BYTES {
        return Err(format!("it is larger than {MAX_BYTES} bytes"));
    }
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|_| "it is not JSON".to_owned())?;
    let auths = if value.get("auths").is_some() {
        serde_json::from_value::<Config>(value)
            .map_err(|_| "\"auths\" is not a map of credentials".to_owned())?
            .auths
    } else if value.is_object() {
        // Old style: the map itself. A new-style file without credentials has other keys, which are no entries.
        serde_json::from_value(value).unwrap_or_default()
    } else {
        return Err("it is not a JSON object".to_owned());
    };
    let mut credentials = Vec::new();
    for (key, entry) in auths {
        let registry = registry(&key);
        let (username, password) = if entry.auth.is_empty() {
            (entry.username, entry.password)
        } else {
            let decoded = STANDARD
                .decode(entry.auth.trim())
                .map_err(|_| format!("the auth for {registry} is not base64"))?;
            let text = String::from_utf8(decoded).map_err(|_| format!("the auth for {registry} is not text"))?;
            let (user, password) = text
                .split_once(':')
                .ok_or_else(|| format!("the auth for {registry} is not user:password"))?;
            (user.to_owned(), password.trim_end_matches('\0').to_owned())
        };
        if !username.is_empty() {
            credentials.push(Credential {
                registry,
                username,
                password,
            });
        }
    }
    Ok(credentials)
}

/// Host (and port) of a key, which may be a URL: `https://index.docker.io/v1/` is Docker Hub.
fn registry(key: &str) -> String {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or(rest);
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        host => host.to_owned(),
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
