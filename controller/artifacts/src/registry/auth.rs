//! Answering a registry's challenge: Basic, and Bearer with a token server.

use std::time::Duration;

use base64::Engine as _;
use reqwest::Url;
use reqwest::header::HeaderMap;
use tokio::time::Instant;

use super::addresses::is_loopback;
use super::challenge::{self, Challenge};
use super::http::{Http, Route, unencoded};
use super::session::Authorization;
use crate::error::{PullError, Reason};
use crate::reference::Reference;
use crate::types::Credential;

const TOKEN_BYTES: u64 = 1 << 20;
/// Life of a token whose server does not say (distribution specification, token authentication).
const TOKEN_LIFE: u64 = 60;
/// No token is kept for longer.
const LONGEST_LIFE: u64 = 24 * 3600;
/// For so long before its end, a request may be on its way with it.
const MARGIN: u64 = 5;

#[derive(serde::Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<i64>,
}

/// What is to be answered.
pub struct Asked<'a> {
    /// The root of the host.
    pub base: &'a Url,
    /// The repository as it is named there.
    pub place: &'a Reference,
    /// What the user asked for, for messages.
    pub wanted: &'a Reference,
    /// The challenges: the values of the headers.
    pub challenges: &'a [String],
}

/// The value of `Authorization` that answers the challenges.
///
/// # Errors
/// `Unauthorized` where this login is refused or must not be used here; those of the way to the token server.
pub async fn authorize(
    http: &Http,
    asked: &Asked<'_>,
    credential: Option<&Credential>,
) -> Result<Authorization, PullError> {
    let Asked {
        base,
        place,
        wanted,
        challenges,
    } = asked;
    let refused = |why: &str| PullError::new(Reason::Unauthorized, format!("{wanted}: {why}"));
    let identity = credential.and_then(Credential::identity_token);
    let basic = credential.filter(|_| identity.is_none()).map(|c| {
        format!(
            "Basic {}",
            base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", c.username, c.password))
        )
    });
    let challenges: Vec<Challenge> = challenges.iter().flat_map(|header| challenge::parse(header)).collect();
    let find = |scheme: &str| challenges.iter().find(|challenge| challenge.is(scheme));
    let Some(bearer) = find("bearer") else {
        return match (find("basic"), basic) {
            (Some(_), Some(value)) => Ok(Authorization { value, until: None }),
            (Some(_), None) if identity.is_some() => Err(refused(
                "the registry wants a password, and the login is an identity token",
            )),
            (Some(_), None) => Err(refused("the registry wants a login; name a pull secret")),
            (None, _) => Err(refused("the registry refuses, and does not say how to log in")),
        };
    };
    let realm = bearer.parameter("realm").and_then(|realm| Url::parse(realm).ok());
    let mut realm = realm.ok_or_else(|| refused("the registry names no usable token server"))?;
    let same_host =
        realm.host_str() == base.host_str() && (realm.scheme() == base.scheme() || realm.scheme() == "https");
    let open = realm.scheme() == "http" && http.registries().plain(&realm) == Some(true);
    if !same_host && (!(realm.scheme() == "https" || open) || is_loopback(&realm)) {
        return Err(refused("the registry names a token server that is not behind https"));
    }
    if credential.is_some() && !same_host && domain(&realm) != domain(base) {
        return Err(refused(
            "the registry wants its password sent to another domain; refused",
        ));
    }
    let scope = format!("repository:{}:pull", place.repository);
    let service = bearer.parameter("service");
    let name = format!("{} (token)", place.registry);
    let begun = Instant::now();
    let response = if let Some(identity) = identity {
        // OAuth 2, as the distribution specification has it: the identity token is one to refresh with.
        let mut form = reqwest::Url::parse("form:").map_err(|_| refused("no form can be made"))?;
        form.query_pairs_mut()
            .append_pair("grant_type", "refresh_token")
            .append_pair("client_id", "vmlet")
            .append_pair("scope", &scope)
            .append_pair("service", service.unwrap_or_default())
            .append_pair("refresh_token", identity);
        let route = Route {
            url: &realm,
            named: base,
            plain: false,
        };
        http.post(route, form.query().unwrap_or_default(), &name).await?
    } else {
        realm.query_pairs_mut().append_pair("scope", &scope);
        if let Some(service) = service {
            realm.query_pairs_mut().append_pair("service", service);
        }
        let route = Route {
            url: &realm,
            named: base,
            plain: false,
        };
        http.get(route, &HeaderMap::new(), basic.as_deref(), &name).await?
    };
    let response = unencoded(response, &name)?;
    let token: Token = serde_json::from_slice(&http.bounded(response, TOKEN_BYTES, &name).await?)
        .map_err(|_| refused("the token server's answer is not understood"))?;
    let life = token.expires_in.and_then(|life| u64::try_from(life).ok());
    let life = life.filter(|life| *life > 0).unwrap_or(TOKEN_LIFE).min(LONGEST_LIFE);
    let both = [token.token, token.access_token].into_iter().flatten();
    let token = both.into_iter().find(|token| !token.is_empty());
    let token = token.filter(|token| !token.contains(['\r', '\n']));
    let token = token.ok_or_else(|| refused("the token server gave no token"))?;
    Ok(Authorization {
        value: format!("Bearer {token}"),
        until: Some(begun + Duration::from_secs(life.saturating_sub(MARGIN))),
    })
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
