//! Answering a registry's challenge: Basic, and Bearer with a token server.

use base64::Engine as _;
use reqwest::Url;
use reqwest::header::HeaderMap;

use super::addresses::is_loopback;
use super::http::{Http, Route, success};
use crate::error::{PullError, Reason};
use crate::reference::Reference;
use crate::types::Credential;

const TOKEN_BYTES: u64 = 1 << 20;

#[derive(serde::Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// The value of `Authorization` that answers `challenges`.
pub async fn authorize(
    http: &Http,
    base: &Url,
    reference: &Reference,
    credential: Option<&Credential>,
    challenges: &[String],
) -> Result<String, PullError> {
    let refused = |why: &str| PullError::new(Reason::Unauthorized, format!("{reference}: {why}"));
    let basic = credential.map(|c| {
        format!(
            "Basic {}",
            base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", c.username, c.password))
        )
    });
    let find = |scheme: &str| {
        challenges.iter().find_map(|c| {
            c.split_once(' ')
                .filter(|(name, _)| name.eq_ignore_ascii_case(scheme))
                .map(|(_, rest)| rest)
        })
    };
    let Some(bearer) = find("bearer") else {
        return match (find("basic"), basic) {
            (Some(_), Some(value)) => Ok(value),
            (Some(_), None) => Err(refused("the registry wants a login; name a pull secret")),
            (None, _) => Err(refused("the registry refuses, and does not say how to log in")),
        };
    };
    let realm = parameter(bearer, "realm").and_then(|realm| Url::parse(&realm).ok());
    let mut realm = realm.ok_or_else(|| refused("the registry names no usable token server"))?;
    let same_host =
        realm.host_str() == base.host_str() && (realm.scheme() == base.scheme() || realm.scheme() == "https");
    if !same_host && (realm.scheme() != "https" || is_loopback(&realm)) {
        return Err(refused("the registry names a token server that is not behind https"));
    }
    if basic.is_some() && !same_host && domain(&realm) != domain(base) {
        return Err(refused(
            "the registry wants its password sent to another domain; refused",
        ));
    }
    realm
        .query_pairs_mut()
        .append_pair("scope", &format!("repository:{}:pull", reference.repository));
    if let Some(service) = parameter(bearer, "service") {
        realm.query_pairs_mut().append_pair("service", &service);
    }
    let name = format!("{} (token)", reference.registry);
    let route = Route {
        url: &realm,
        named: base,
        plain: false,
    };
    let response = http.get(route, &HeaderMap::new(), basic.as_deref(), &name).await?;
    let response = success(response, &name)?;
    let token: Token = serde_json::from_slice(&http.bounded(response, TOKEN_BYTES, &name).await?)
        .map_err(|_| refused("the token server's answer is not understood"))?;
    let token = token
        .token
        .or(token.access_token)
        .filter(|token| !token.is_empty() && !token.contains(['\r', '\n']));
    token
        .map(|token| format!("Bearer {token}"))
        .ok_or_else(|| refused("the token server gave no token"))
}

/// One parameter of a challenge: `name="value"`.
fn parameter(challenge: &str, name: &str) -> Option<String> {
    let start = challenge.find(&format!("{name}=\""))? + name.len() + 2;
    let end = challenge[start..].find('"')?;
    Some(challenge[start..start + end].to_owned())
}

/// The part of a host name that one party owns, near enough: two labels, or three below a short
/// second level such as co.uk. An address is its own.
fn domain(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    if host.parse::<std::net::Ipv4Addr>().is_ok() || host.starts_with('[') {
        return Some(host.to_owned());
    }
    let labels: Vec<&str> = host.split('.').collect();
    let short = labels.len() > 2 && labels[labels.len() - 1].len() == 2 && labels[labels.len() - 2].len() <= 3;
    let keep = if short { 3 } else { 2 };
    Some(labels[labels.len().saturating_sub(keep)..].join("."))
}
