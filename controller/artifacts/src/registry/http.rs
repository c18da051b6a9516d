//! HTTP under our rules: bounded bodies, redirects that carry no credentials and lead to no forbidden
//! place, time-outs for standing still and not for the whole, and errors in our words.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE,
    RETRY_AFTER,
};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::time::Instant;

use super::addresses::{Forbidden, Lookup, is_loopback, is_never_asked, literal, system};
use super::clients::Clients;
use super::config::Registries;
use super::health::Health;
use super::proxy::shown;
use super::session::Sessions;
use crate::error::{PullError, Reason};
use crate::types::Limits;

const REDIRECTS: usize = 5;
/// Slower than this, over a whole stall time-out, counts as standing still. Bytes per second.
const SLOWEST: u64 = 256;
/// What sets the time that nothing may come for.
const STALL_FLAG: &str = "--stall-timeout";

/// A client with our bounds and the operator's settings, and what it remembers; cheap to clone.
#[derive(Clone)]
pub struct Http(Arc<Shared>);

struct Shared {
    clients: Clients,
    registries: Registries,
    stall: Duration,
    sessions: Sessions,
    health: Health,
}

/// Where a request goes, and on whose word.
#[derive(Clone, Copy)]
pub struct Route<'a> {
    /// The first URL.
    pub url: &'a Url,
    /// A URL of the host that the user named.
    pub named: &'a Url,
    /// Whether plain http may redirect to plain http elsewhere: where a digest stands in the want, and
    /// no credentials are sent.
    pub plain: bool,
}

impl Http {
    /// Sets the clients up.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(limits: &Limits, registries: Registries) -> Result<Http, PullError> {
        Http::with_lookup(limits, registries, system)
    }

    fn with_lookup(limits: &Limits, registries: Registries, lookup: Lookup) -> Result<Http, PullError> {
        Ok(Http(Arc::new(Shared {
            clients: Clients::new(registries.clone(), limits.stall_timeout, lookup)?,
            registries,
            stall: limits.stall_timeout,
            sessions: Sessions::default(),
            health: Health::default(),
        })))
    }

    /// What the operator says.
    pub fn registries(&self) -> &Registries {
        &self.0.registries
    }

    /// What is remembered of logins.
    pub(super) fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    /// What is remembered of hosts.
    pub(super) fn health(&self) -> &Health {
        &self.0.health
    }

    /// Watches that a body keeps coming.
    pub fn pace(&self) -> Pace {
        Pace::new(self.0.stall)
    }

    /// Whether something that speaks HTTP answers there; used to tell plain http from TLS on loopback.
    pub async fn speaks_http(&self, probe: Url) -> bool {
        let Ok(clients) = self.0.clients.with(None) else {
            return false;
        };
        let answer = clients.named.get(probe).send().await;
        // A TLS server answers plain text with 400.
        answer.is_ok_and(|answer| answer.status() != StatusCode::BAD_REQUEST)
    }

    /// GET; see [`Http::send`].
    ///
    /// # Errors
    /// Those of [`Http::send`].
    pub async fn get(
        &self,
        route: Route<'_>,
        headers: &HeaderMap,
        authorization: Option<&str>,
        name: &str,
    ) -> Result<Response, PullError> {
        self.send(&Method::GET, route, headers, authorization, name).await
    }

    /// GET or HEAD that follows redirects under our rules. `authorization` goes to the first origin only.
    ///
    /// # Errors
    /// Transport errors, and places that a redirect must not lead to. Any status is an answer.
    pub async fn send(
        &self,
        method: &Method,
        route: Route<'_>,
        headers: &HeaderMap,
        authorization: Option<&str>,
        name: &str,
    ) -> Result<Response, PullError> {
        self.follow(method, route, headers, authorization, None, name).await
    }

    /// POST of a form; see [`Http::send`].
    ///
    /// # Errors
    /// Those of [`Http::send`].
    pub async fn post(&self, route: Route<'_>, form: &str, name: &str) -> Result<Response, PullError> {
        self.follow(&Method::POST, route, &HeaderMap::new(), None, Some(form), name)
            .await
    }

    async fn follow(
        &self,
        method: &Method,
        route: Route<'_>,
        headers: &HeaderMap,
        authorization: Option<&str>,
        form: Option<&str>,
        name: &str,
    ) -> Result<Response, PullError> {
        let refuse = |why: &str| Err(PullError::new(Reason::BadReference, format!("{name}: {why}")));
        let registries = &self.0.registries;
        let mut url = route.url.clone();
        for _ in 0..=REDIRECTS {
            let named = url.host() == route.named.host();
            if !named && literal(&url).is_some_and(is_never_asked) {
                return refuse("it leads to a link-local or metadata address, which is never asked");
            }
            let clients = self.0.clients.with(registries.ca(&url))?;
            let client = if named || is_loopback(&url) {
                &clients.named
            } else {
                &clients.led
            };
            let mut request = client.request(method.clone(), url.clone()).headers(headers.clone());
            // Digests and sizes are those of the bytes as they are.
            request = request.header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if let Some(value) = authorization
                && url.origin() == route.url.origin()
            {
                let mut value = HeaderValue::from_str(value).map_err(|_| {
                    PullError::new(
                        Reason::Unauthorized,
                        format!("{name}: the login cannot be sent in a header"),
                    )
                })?;
                // Libraries show it in no log then.
                value.set_sensitive(true);
                request = request.header(AUTHORIZATION, value);
            }
            if let Some(form) = form {
                request = request
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form.to_owned());
            }
            let response = match request.send().await {
                Ok(response) => response,
                Err(error) => {
                    let mut error = unreachable(name, error, self.0.stall);
                    if let Some(proxy) = registries.proxy(&url) {
                        error
                            .message
                            .push_str(&format!(" (asked through the proxy {})", shown(&proxy)));
                    }
                    return Err(error);
                }
            };
            let status = response.status();
            if !status.is_redirection() || status == StatusCode::NOT_MODIFIED {
                return Ok(response);
            }
            if form.is_some() {
                return refuse("it redirects a secret");
            }
            let location = response.headers().get(LOCATION).and_then(|v| v.to_str().ok());
            let Some(next) = location.and_then(|to| url.join(to).ok()) else {
                return refuse("it redirects to nowhere");
            };
            let plain = next.scheme() == "http" && url.scheme() == "http";
            let allowed = || route.plain || is_loopback(&next) || registries.plain(&next) == Some(true);
            if !(next.scheme() == "https" || plain && allowed()) {
                return refuse("it redirects away from https");
            }
            if is_loopback(&next) && !is_loopback(route.named) {
                return refuse("it redirects to this machine");
            }
            url = next;
        }
        refuse("it redirects for ever")
    }

    /// Reads a whole body of at most `most` bytes.
    ///
    /// # Errors
    /// Transport errors, a longer body, one that does not come on.
    pub async fn bounded(&self, response: Response, most: u64, name: &str) -> Result<Vec<u8>, PullError> {
        let mut bytes = Vec::new();
        let mut pace = self.pace();
        let mut stream = response.bytes_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| unreachable(name, error, self.0.stall))?;
            if (bytes.len() + chunk.len()) as u64 > most {
                return Err(PullError::new(
                    Reason::TooLarge,
                    format!("{name}: it is larger than {most} bytes"),
                ));
            }
            bytes.extend_from_slice(&chunk);
            pace.came(chunk.len() as u64, name)?;
        }
        Ok(bytes)
    }
}

/// Headers that ask for what follows `from`.
pub fn range(from: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if from > 0
        && let Ok(value) = format!("bytes={from}-").parse()
    {
        headers.insert(RANGE, value);
    }
    headers
}

/// Tells a trickle from a transfer, over however many connections: a server that sends a byte now and then, or one with
/// each answer, never times out otherwise.
pub struct Pace {
    window: Duration,
    since: Instant,
    bytes: u64,
}

impl Pace {
    /// Measures over windows of `window`.
    pub fn new(window: Duration) -> Pace {
        Pace {
            window,
            since: Instant::now(),
            bytes: 0,
        }
    }

    /// Fewer bytes than this, over a whole window, count as none.
    pub fn least(&self) -> u64 {
        self.window.as_secs().saturating_mul(SLOWEST)
    }

    /// Some bytes came, or (0) a connection ended.
    ///
    /// # Errors
    /// Over the last window they were too few. The next one begins.
    pub fn came(&mut self, bytes: u64, name: &str) -> Result<(), PullError> {
        self.bytes += bytes;
        let elapsed = self.since.elapsed();
        if elapsed < self.window {
            return Ok(());
        }
        let (bytes, seconds) = (self.bytes, elapsed.as_secs());
        *self = Pace::new(self.window);
        if bytes < seconds.saturating_mul(SLOWEST) {
            let why = format!("{name}: only {bytes} bytes came in {seconds} s ({STALL_FLAG})");
            return Err(PullError::new(Reason::Stalled, why));
        }
        Ok(())
    }
}

/// Turns an answer that is no success into the error that it means.
pub fn success(response: Response, name: &str) -> Result<Response, PullError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let reason = match status.as_u16() {
        401 | 403 => Reason::Unauthorized,
        404 | 410 => Reason::NotFound,
        429 => Reason::RateLimited,
        408 | 500..=599 => Reason::Unavailable,
        _ => Reason::UnsupportedFormat,
    };
    let hint = match reason {
        Reason::Unauthorized => "; check the pull secret and that it may read this repository",
        Reason::NotFound => "; check the name and the tag, and whether it needs a login",
        Reason::Unavailable => "; see the log of that server, or of the proxy before it",
        _ => "",
    };
    let message = format!("{name}: the server answered {status}{hint}");
    let header = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok());
    let after = header.and_then(|value| retry_after(value, SystemTime::now()));
    Err(match after {
        Some(after) if reason.is_transient() => PullError::retry_after(reason, message, after),
        _ => PullError::new(reason, message),
    })
}

/// The same, and refuses bytes that are encoded for the way: they would be of another size and digest.
pub fn unencoded(response: Response, name: &str) -> Result<Response, PullError> {
    let response = success(response, name)?;
    let encodings = response.headers().get_all(CONTENT_ENCODING).iter();
    let encodings: Vec<_> = encodings
        .map(|value| String::from_utf8_lossy(value.as_bytes()))
        .collect();
    let encodings = encodings.join(", ");
    if encodings.trim().is_empty() || encodings.eq_ignore_ascii_case("identity") {
        return Ok(response);
    }
    let why = format!(
        "{name}: the server sends it with Content-Encoding {encodings:.100}, although it was asked for without one; \
         see the configuration of that server, or of the proxy before it"
    );
    Err(PullError::new(Reason::UnsupportedFormat, why))
}

/// `Retry-After` (RFC 9110, 10.2.3): seconds or an HTTP date, as a time from now. The keyed pulls bound it.
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// What to look at when a server does not answer.
const REACH: &str = "; check that the server runs and can be reached from here (name, port, proxy, firewall)";

/// A transport error in our words. `stall` is how long nothing may come. The URL is left out: it may hold a signature.
pub fn unreachable(name: &str, error: reqwest::Error, stall: Duration) -> PullError {
    let error = error.without_url();
    if error.is_timeout() && !error.is_connect() {
        let why = format!("{name}: no data for {} s ({STALL_FLAG})", stall.as_secs_f64());
        return PullError::new(Reason::Stalled, why);
    }
    let mut reason = Reason::Unavailable;
    let mut causes = vec![error.to_string()];
    let mut certificate = None;
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        if inner.is::<Forbidden>() {
            reason = Reason::BadReference;
        }
        causes.push(inner.to_string());
        certificate = certificate.or_else(|| about_certificate(inner));
        cause = inner.source();
    }
    // Of a failed connection the libraries' own words say nothing; its first cause does.
    let mut message = match causes.last() {
        Some(first) if error.is_connect() => format!("{name}: no connection: {first}"),
        _ => format!("{name}: {}", causes.join(": ")),
    };
    if reason == Reason::Unavailable {
        message.push_str(certificate.unwrap_or(REACH));
    }
    PullError::new(reason, message)
}

/// What to do about a certificate that is not trusted, if that is the cause.
fn about_certificate(cause: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    use rustls::CertificateError as C;
    let tls = match cause.downcast_ref::<std::io::Error>() {
        // What an I/O error wraps is not among its causes.
        Some(error) => return about_certificate(error.get_ref()?),
        None => cause.downcast_ref::<rustls::Error>()?,
    };
    let why = match tls {
        rustls::Error::InvalidCertificate(why) => why,
        // Of this machine's authorities: it says itself what to do.
        rustls::Error::General(_) => return Some(""),
        _ => return None,
    };
    Some(match why {
        C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. } => {
            "; check this machine's clock, and then the certificate of that server"
        }
        C::NotValidForName | C::NotValidForNameContext { .. } => {
            "; its certificate is for another name: check the name, or the certificate of that server"
        }
        _ => "; if its authority is your own, name it with ca in the registry configuration",
    })
}

#[cfg(test)]
mod tests;
