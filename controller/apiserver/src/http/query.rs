//! Query parameters.

use super::path::decode;
use crate::status::Failure;

/// Parameters in the order of the URL; kube-rs sends a leading `&`, which means nothing.
#[derive(Debug, Default, Clone)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads what stands behind the `?`.
    pub fn parse(text: &str) -> Query {
        let pair = |part: &str| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(&key.replace('+', " ")), decode(&value.replace('+', " ")))
        };
        Query(text.split('&').filter(|p| !p.is_empty()).map(pair).collect())
    }

    /// First value of a parameter, unless empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(k, v)| k == key && !v.is_empty())
            .map(|(_, v)| v.as_str())
    }

    /// A flag: `true`, `1` or there without a value.
    pub fn flag(&self, key: &str) -> bool {
        self.0
            .iter()
            .any(|(k, v)| k == key && !matches!(v.as_str(), "false" | "0"))
    }

    /// A number.
    pub fn number(&self, key: &str) -> Result<Option<u64>, Failure> {
        let wrong = |value: &str| Failure::bad_request(format!("{key}: Invalid value: {value:?}: must be a number"));
        self.get(key).map(|v| v.parse().map_err(|_| wrong(v))).transpose()
    }

    /// `dryRun`; only `All` exists.
    pub fn dry_run(&self) -> Result<bool, Failure> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(Failure::bad_request(format!(
                "dryRun: Unsupported value: {other:?}: supported values: \"All\""
            ))),
        }
    }
}
