//! Which proxy leads to a URL: what the configuration says of its host, or else the environment.

use std::fmt;

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;

use super::addresses::is_loopback;

/// What the configuration says about the way to a host.
#[derive(Clone, PartialEq, Eq)]
pub enum Through {
    /// No proxy, whatever the environment says.
    Nothing,
    /// This one.
    Proxy(Url),
}

impl fmt::Debug for Through {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Through::Nothing => f.write_str("none"),
            // It may hold a password.
            Through::Proxy(url) => f.write_str(url.host_str().unwrap_or_default()),
        }
    }
}

/// The proxies of the environment.
#[derive(Clone, Default)]
pub struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    /// `NO_PROXY`: intercepts what is not in it.
    beyond: Option<std::sync::Arc<Matcher>>,
}

impl Proxies {
    /// Reads the variables that curl and Go's programs read, upper case first.
    ///
    /// # Errors
    /// Names a variable that holds no proxy. Its value may hold a password and is not quoted.
    pub fn from_environment(get: impl Fn(&str) -> Option<String>) -> Result<Proxies, String> {
        let get = |name: &str| get(name).or_else(|| get(&name.to_ascii_lowercase()));
        let proxy = |name: &str| match get(name).filter(|value| !value.trim().is_empty()) {
            None => Ok(None),
            Some(value) => match parse_proxy(value.trim()) {
                Ok(Through::Proxy(url)) => Ok(Some(url)),
                Ok(Through::Nothing) => Ok(None),
                Err(why) => Err(format!("environment variable {name}: {why}")),
            },
        };
        let all = proxy("ALL_PROXY")?;
        let beyond = get("NO_PROXY").map(|list| {
            // Whatever it would intercept: only the exceptions count.
            let matcher = Matcher::builder().all("http://proxy.invalid").no(list).build();
            std::sync::Arc::new(matcher)
        });
        Ok(Proxies {
            http: proxy("HTTP_PROXY")?.or_else(|| all.clone()),
            https: proxy("HTTPS_PROXY")?.or(all),
            beyond,
        })
    }

    /// The proxy for a URL. This machine is never behind one.
    pub fn of(&self, url: &Url) -> Option<Url> {
        let proxy = match url.scheme() {
            "http" => self.http.as_ref(),
            _ => self.https.as_ref(),
        }?;
        if is_loopback(url) {
            return None;
        }
        if let Some(beyond) = &self.beyond {
            // Something that is no URI of that crate is not sent around the proxy.
            let target = url.as_str().parse::<http::Uri>().ok()?;
            beyond.intercept(&target)?;
        }
        Some(proxy.clone())
    }

    /// Names of hosts that are proxies.
    pub fn hosts(&self) -> impl Iterator<Item = String> + '_ {
        let both = self.http.iter().chain(&self.https);
        both.filter_map(|url| url.host_str().map(str::to_owned))
    }
}

/// `http://[user:password@]host:port`, `https://...`, or `none`.
///
/// # Errors
/// What is wrong, without the value: it may hold a password.
pub fn parse_proxy(text: &str) -> Result<Through, String> {
    if text == "none" {
        return Ok(Through::Nothing);
    }
    // As curl has it, a proxy without a scheme is one for HTTP.
    let whole = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let url = Url::parse(&whole).ok().filter(Url::has_host);
    let url = url.ok_or("it is no URL such as http://proxy.example.org:3128, nor the word none")?;
    match url.scheme() {
        "http" | "https" => Ok(Through::Proxy(url)),
        // Only the scheme is shown.
        scheme => Err(format!("{scheme} proxies are not spoken to; use one of http or https")),
    }
}

/// Host and port of a proxy, for messages.
pub fn shown(proxy: &Url) -> String {
    let host = proxy.host_str().unwrap_or_default();
    proxy
        .port_or_known_default()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)], url: &str) -> Option<String> {
        let get = |name: &str| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, v)| (*v).to_owned())
        };
        let proxies = Proxies::from_environment(get).expect("proxies");
        proxies.of(&Url::parse(url).expect("a URL")).map(|proxy| shown(&proxy))
    }

    #[test]
    fn the_usual_variables_name_the_proxy_and_its_exceptions() {
        let both = [("HTTP_PROXY", "http://plain:1"), ("https_proxy", "secure.example:2")];
        assert_eq!(of(&both, "http://r.example/").as_deref(), Some("plain:1"));
        assert_eq!(
            of(&both, "https://r.example:8443/").as_deref(),
            Some("secure.example:2")
        );
        let all = [("ALL_PROXY", "http://u:p@all:3"), ("NO_PROXY", "r.example, 10.0.0.0/8")];
        assert_eq!(of(&all, "https://other.example/").as_deref(), Some("all:3"));
        for exempt in ["https://r.example/", "https://a.r.example/", "http://10.1.2.3/"] {
            assert_eq!(of(&all, exempt), None, "{exempt}");
        }
        assert_eq!(of(&[], "https://r.example/"), None);
        assert_eq!(of(&[("HTTPS_PROXY", "")], "https://r.example/"), None);
    }

    #[test]
    fn this_machine_is_never_behind_the_proxy_of_the_environment() {
        let all = [("ALL_PROXY", "http://all:3")];
        for own in ["http://127.0.0.1:5000/", "https://localhost/", "http://[::1]:1/"] {
            assert_eq!(of(&all, own), None, "{own}");
        }
    }

    #[test]
    fn a_proxy_that_is_none_is_refused_without_its_password() {
        for bad in ["http://", "socks5://u:hunter2@p:1", "http://u:hunter2@:80:80"] {
            let get = |name: &str| (name == "HTTPS_PROXY").then(|| bad.to_owned());
            let error = Proxies::from_environment(get).err().expect(bad);
            assert!(error.contains("HTTPS_PROXY") && !error.contains("hunter2"), "{error}");
        }
    }
}
