//! What the operator says about registries: mirrors, plain HTTP, own authorities, proxies.
//!
//! The file is a subset of containers-registries.conf(5), version 2, with two keys of our own (`ca`, `proxy`).
//! What is not understood is refused by name: a setting that is silently without effect is worse than none.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::Url;
use serde::Deserialize;
use toml::Spanned;

use super::proxy::{Proxies, Through, parse_proxy};
use crate::authfile::Authfile;
use crate::reference::Reference;

/// Where the file is looked for when none is named.
pub const DEFAULT_PATH: &str = "/etc/vmlet/registries.conf";
/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {message}", file.display(), line.map(|line| format!(", line {line}")).unwrap_or_default())]
pub struct ConfigError {
    file: PathBuf,
    line: Option<usize>,
    message: String,
}

/// Everything that the operator of this machine says about registries. Cheap to clone.
#[derive(Clone, Default)]
pub struct Registries(Arc<Inner>);

#[derive(Clone, Default)]
struct Inner {
    file: PathBuf,
    rules: Vec<Rule>,
    hosts: Vec<(HostName, Line, HostSettings)>,
    proxies: Proxies,
    authfile: Option<Authfile>,
}

type Line = usize;

/// One `[[registry]]`.
#[derive(Clone, Debug)]
struct Rule {
    prefix: Prefix,
    line: Line,
    blocked: bool,
    location: Option<Place>,
    mirrors: Vec<Mirror>,
}

/// Which images a rule is for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Prefix {
    host: HostName,
    path: String,
}

/// A host with its port, or all hosts below a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
enum HostName {
    One(String),
    /// `*.example.com`, kept as `.example.com`.
    Below(String),
}

/// A host and what stands before the rest of a repository's name there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Host with its port, as references write it.
    pub host: String,
    path: String,
}

#[derive(Clone, Debug)]
struct Mirror {
    place: Place,
    pull: Pull,
}

/// What a mirror is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Pull {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

/// How a host is spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct HostSettings {
    plain: Option<bool>,
    ca: Option<PathBuf>,
    proxy: Option<Through>,
}

/// One host to ask for an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Host with its port, as references write it.
    pub host: String,
    /// The repository's name there.
    pub repository: String,
    /// The reference's own host. Only that gets the logins of the one who asks.
    pub own: bool,
    /// Whether it is asked what a tag means.
    pub tags: bool,
    /// Whether it is asked for what a digest names.
    pub digests: bool,
}

impl Registries {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// A file that cannot be read, keys and values that are not understood, contradictions.
    pub fn read(path: &Path) -> Result<Registries, ConfigError> {
        let fail = |message: String| ConfigError {
            file: path.to_owned(),
            line: None,
            message,
        };
        let length = std::fs::metadata(path).map_err(|error| fail(error.to_string()))?.len();
        if length > MAX_BYTES {
            return Err(fail(format!("it is larger than {MAX_BYTES} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
        let registries = Registries::parse(path, &text)?;
        for (host, line, settings) in &registries.0.hosts {
            if let Some(ca) = &settings.ca
                && let Err(why) = super::clients::read_ca(ca)
            {
                return Err(ConfigError {
                    line: Some(*line),
                    ..fail(format!("ca of {host}: {why}"))
                });
            }
        }
        Ok(registries)
    }

    /// Reads the text of a configuration file; what it names is looked for relative to `path`, and not yet opened.
    ///
    /// # Errors
    /// Keys and values that are not understood, contradictions.
    pub fn parse(path: &Path, text: &str) -> Result<Registries, ConfigError> {
        Reader { path, text }.read()
    }

    /// With the proxies that environment variables name: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`, upper
    /// or lower case. `get` looks a variable up.
    ///
    /// # Errors
    /// The name of a variable that holds no proxy, and what is wrong with it.
    pub fn with_environment(mut self, get: impl Fn(&str) -> Option<String>) -> Result<Registries, String> {
        Arc::make_mut(&mut self.0).proxies = Proxies::from_environment(get)?;
        Ok(self)
    }

    /// With the operator's own logins.
    pub fn with_authfile(mut self, authfile: Authfile) -> Registries {
        Arc::make_mut(&mut self.0).authfile = Some(authfile);
        self
    }

    /// The operator's own logins.
    pub(crate) fn authfile(&self) -> Option<&Authfile> {
        self.0.authfile.as_ref()
    }

    /// The hosts to ask for an image, in order.
    ///
    /// # Errors
    /// Why it is not to be pulled at all.
    pub(crate) fn targets(&self, reference: &Reference) -> Result<Vec<Target>, String> {
        let own = |host: &str| host == reference.registry || host == reference.host();
        let rule = self
            .0
            .rules
            .iter()
            .filter(|rule| rule.prefix.fits(reference))
            .max_by_key(|rule| rule.prefix.rank());
        let mut targets = Vec::new();
        let itself = Target {
            host: reference.registry.clone(),
            repository: reference.repository.clone(),
            own: true,
            tags: true,
            digests: true,
        };
        let Some(rule) = rule else { return Ok(vec![itself]) };
        if rule.blocked {
            let file = self.0.file.display();
            return Err(format!("{file}, line {}, blocks it", rule.line));
        }
        let there = |place: &Place| Target {
            host: place.host.clone(),
            repository: place.repository(&rule.prefix, reference),
            own: own(&place.host),
            tags: true,
            digests: true,
        };
        for mirror in &rule.mirrors {
            targets.push(Target {
                tags: mirror.pull != Pull::DigestOnly,
                digests: mirror.pull != Pull::TagOnly,
                ..there(&mirror.place)
            });
        }
        targets.push(rule.location.as_ref().map_or(itself, there));
        Ok(targets)
    }

    /// Whether plain HTTP is spoken with the host of a URL; `None` where nothing is said.
    pub(crate) fn plain(&self, url: &Url) -> Option<bool> {
        self.said(url, |settings| settings.plain)
    }

    /// The file with the authorities of the host of a URL, beside those of the system.
    pub(crate) fn ca(&self, url: &Url) -> Option<&Path> {
        self.said(url, |settings| settings.ca.as_deref())
    }

    /// The proxy that leads to a URL.
    pub(crate) fn proxy(&self, url: &Url) -> Option<Url> {
        match self.said(url, |settings| settings.proxy.as_ref()) {
            Some(Through::Nothing) => None,
            Some(Through::Proxy(proxy)) => Some(proxy.clone()),
            None => self.0.proxies.of(url),
        }
    }

    /// Names of hosts that are proxies.
    pub(crate) fn proxy_hosts(&self) -> Vec<String> {
        let named = self
            .0
            .hosts
            .iter()
            .filter_map(|(_, _, settings)| match &settings.proxy {
                Some(Through::Proxy(url)) => url.host_str().map(str::to_owned),
                _ => None,
            });
        named.chain(self.0.proxies.hosts()).collect()
    }

    /// What is said about the host of a URL: about itself, or else about all below a domain.
    fn said<'a, T>(&'a self, url: &Url, what: impl Fn(&'a HostSettings) -> Option<T>) -> Option<T> {
        let host = authority(url)?;
        let fits = |name: &HostName| name.fits(&host);
        let exact = |name: &HostName| matches!(name, HostName::One(_));
        let hosts = || self.0.hosts.iter().filter(|(name, ..)| fits(name));
        let first = hosts()
            .filter(|(name, ..)| exact(name))
            .find_map(|(.., said)| what(said));
        first.or_else(|| hosts().find_map(|(.., said)| what(said)))
    }
}

impl fmt::Debug for Registries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registries")
            .field("file", &self.0.file)
            .field("rules", &self.0.rules.len())
            .finish_non_exhaustive()
    }
}

/// Host and port of a URL as references write them; Docker Hub by the name of its references.
fn authority(url: &Url) -> Option<String> {
    let host = match url.host_str()? {
        "registry-1.docker.io" => "docker.io",
        host => host,
    };
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

impl Prefix {
    fn fits(&self, reference: &Reference) -> bool {
        self.host.fits(&reference.registry) && below(&self.path, &reference.repository).is_some()
    }

    /// The longer, the more it says.
    fn rank(&self) -> (bool, usize, usize) {
        let (exact, length) = match &self.host {
            HostName::One(host) => (true, host.len()),
            HostName::Below(domain) => (false, domain.len()),
        };
        (exact, length, self.path.len())
    }
}

impl HostName {
    fn fits(&self, host: &str) -> bool {
        match self {
            HostName::One(name) => {
                let bare = |host: &str| host.strip_suffix(":443").unwrap_or(host).to_owned();
                name == host || bare(name) == bare(host)
            }
            HostName::Below(domain) => {
                let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
                name.ends_with(domain.as_str())
            }
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostName::One(host) => f.write_str(host),
            HostName::Below(domain) => write!(f, "*{domain}"),
        }
    }
}

impl Place {
    /// The name here of a repository that a rule with this prefix is for: the place stands instead of the prefix.
    fn repository(&self, prefix: &Prefix, reference: &Reference) -> String {
        let rest = below(&prefix.path, &reference.repository).unwrap_or_default();
        match (self.path.as_str(), rest) {
            ("", rest) => rest.to_owned(),
            (path, "") => path.to_owned(),
            (path, rest) => format!("{path}/{rest}"),
        }
    }
}

/// What follows a path in a repository's name; whole components only.
fn below<'a>(path: &str, repository: &'a str) -> Option<&'a str> {
    if path.is_empty() {
        return Some(repository);
    }
    let rest = repository.strip_prefix(path)?;
    match rest.strip_prefix('/') {
        Some(rest) => Some(rest),
        None => rest.is_empty().then_some(""),
    }
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    #[serde(default)]
    registry: Vec<Spanned<RegistryText>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RegistryText {
    prefix: Option<Spanned<String>>,
    location: Option<Spanned<String>>,
    insecure: Option<bool>,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    ca: Option<Spanned<String>>,
    proxy: Option<Spanned<String>>,
    #[serde(default)]
    mirror: Vec<Spanned<MirrorText>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct MirrorText {
    location: Spanned<String>,
    insecure: Option<bool>,
    pull_from_mirror: Option<Pull>,
    ca: Option<Spanned<String>>,
    proxy: Option<Spanned<String>>,
}

/// What is to be done about keys that others know.
fn remedy(key: &str) -> &'static str {
    match key {
        "unqualified-search-registries" | "short-name-mode" | "aliases" => {
            "names without a host are docker.io's here; remove it"
        }
        "credential-helpers" | "additional-layer-store-auth-helper" => {
            "logins and their helpers stand in the file of --authfile; remove it"
        }
        "skip_verify" | "tls-verify" | "tls_verify" => {
            "certificates are always checked; name the authority's file with ca = \"...\""
        }
        "registries" | "server" | "host" => "write one [[registry]] for each; see docs/registries.md",
        _ => "correct or remove it; docs/registries.md has the keys",
    }
}

/// Turns a file's text into settings.
struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Reader<'_> {
    fn fail(&self, span: Option<Range<usize>>, message: impl Into<String>) -> ConfigError {
        ConfigError {
            file: self.path.to_owned(),
            line: span.map(|span| self.line(&span)),
            message: message.into(),
        }
    }

    fn line(&self, span: &Range<usize>) -> Line {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        before.matches('\n').count() + 1
    }

    fn read(&self) -> Result<Registries, ConfigError> {
        let text: FileText = toml::from_str(self.text).map_err(|error| {
            let message = error.message();
            let key = message
                .strip_prefix("unknown field `")
                .and_then(|rest| rest.split('`').next());
            let message = match key {
                Some(key) => format!("the key {key} is not known: {}", remedy(key)),
                None => message.to_owned(),
            };
            self.fail(error.span(), message)
        })?;
        let mut inner = Inner {
            file: self.path.to_owned(),
            ..Inner::default()
        };
        for entry in text.registry {
            let line = self.line(&entry.span());
            let span = entry.span();
            let registry = entry.into_inner();
            let location = registry.location.as_ref().map(|at| self.place(at)).transpose()?;
            let prefix = match (&registry.prefix, &location) {
                (Some(prefix), _) => self.prefix(prefix)?,
                (None, Some(place)) => Prefix {
                    host: HostName::One(place.host.clone()),
                    path: place.path.clone(),
                },
                (None, None) => {
                    let why = "this [[registry]] says not which one: give it prefix or location, as in \
                        location = \"registry.example.org\"";
                    return Err(self.fail(Some(span), why));
                }
            };
            if let (HostName::Below(_), Some(location)) = (&prefix.host, &registry.location) {
                let why = "location: many hosts cannot be found at one place; leave it out, or name them one by one";
                return Err(self.fail(Some(location.span()), why));
            }
            let clash = inner.rules.iter().find(|rule| rule.prefix == prefix);
            if let Some(other) = clash {
                let why = format!("the same registry stands in line {} already; join the two", other.line);
                return Err(self.fail(Some(span), why));
            }
            let host = location
                .as_ref()
                .map_or_else(|| prefix.host.clone(), |at| HostName::One(at.host.clone()));
            let settings = self.settings(registry.insecure, registry.ca.as_ref(), registry.proxy.as_ref())?;
            self.say(&mut inner, host, &span, settings)?;
            let mut mirrors = Vec::with_capacity(registry.mirror.len());
            for entry in registry.mirror {
                let span = entry.span();
                let mirror = entry.into_inner();
                let place = self.place(&mirror.location)?;
                let settings = self.settings(mirror.insecure, mirror.ca.as_ref(), mirror.proxy.as_ref())?;
                self.say(&mut inner, HostName::One(place.host.clone()), &span, settings)?;
                let pull = mirror.pull_from_mirror.unwrap_or(if registry.mirror_by_digest_only {
                    Pull::DigestOnly
                } else {
                    Pull::All
                });
                mirrors.push(Mirror { place, pull });
            }
            inner.rules.push(Rule {
                prefix,
                line,
                blocked: registry.blocked,
                location,
                mirrors,
            });
        }
        Ok(Registries(Arc::new(inner)))
    }

    /// Adds what is said about a host; two entries may say the same about one, but nothing else.
    fn say(
        &self,
        inner: &mut Inner,
        host: HostName,
        span: &Range<usize>,
        settings: HostSettings,
    ) -> Result<(), ConfigError> {
        if settings == HostSettings::default() {
            return Ok(());
        }
        if let Some((name, line, _)) = inner
            .hosts
            .iter()
            .find(|(name, _, said)| *name == host && *said != settings)
        {
            let why = format!("{name} is spoken to in another way here (insecure, ca, proxy) than in line {line}");
            return Err(self.fail(Some(span.clone()), format!("{why}; say the same in both")));
        }
        inner.hosts.push((host, self.line(span), settings));
        Ok(())
    }

    fn settings(
        &self,
        insecure: Option<bool>,
        ca: Option<&Spanned<String>>,
        proxy: Option<&Spanned<String>>,
    ) -> Result<HostSettings, ConfigError> {
        if let (Some(true), Some(ca)) = (insecure, ca) {
            let why = "ca has no effect beside insecure = true, which means plain HTTP; remove one of them";
            return Err(self.fail(Some(ca.span()), why));
        }
        let proxy = proxy.map(|proxy| {
            // The value may hold a password: it is not quoted.
            parse_proxy(proxy.get_ref()).map_err(|why| self.fail(Some(proxy.span()), format!("proxy: {why}")))
        });
        Ok(HostSettings {
            plain: insecure,
            ca: ca.map(|ca| self.path.parent().unwrap_or(Path::new("")).join(ca.get_ref())),
            proxy: proxy.transpose()?,
        })
    }

    fn place(&self, text: &Spanned<String>) -> Result<Place, ConfigError> {
        let value = text.get_ref();
        let fail = |why: &str| {
            let example = "write it as host[:port][/path], such as mirror.example.org:5000/hub";
            self.fail(Some(text.span()), format!("location {value:?} {why}; {example}"))
        };
        if value.contains("://") {
            return Err(fail("is a URL (plain HTTP is said by insecure = true)"));
        }
        let (host, path) = value.split_once('/').unwrap_or((value, ""));
        // With something behind it, it must be the beginning of a reference.
        let whole = [host, path, "x"].into_iter().filter(|part| !part.is_empty());
        let whole = whole.collect::<Vec<_>>().join("/");
        let parsed = whole.parse::<Reference>().ok();
        let parsed = parsed.filter(|parsed| parsed.registry == docker(host) && !value.ends_with('/'));
        match parsed {
            Some(parsed) if parsed.digest.is_none() => Ok(Place {
                host: parsed.registry,
                path: path.to_owned(),
            }),
            _ => Err(fail("is no place of images")),
        }
    }

    fn prefix(&self, text: &Spanned<String>) -> Result<Prefix, ConfigError> {
        let value = text.get_ref();
        let Some(domain) = value.strip_prefix('*') else {
            let Place { host, path } = self.place(text).map_err(|error| ConfigError {
                message: error.message.replacen("location", "prefix", 1),
                ..error
            })?;
            return Ok(Prefix {
                host: HostName::One(host),
                path,
            });
        };
        let sound = domain.len() > 2
            && domain.starts_with('.')
            && !domain.contains("..")
            && domain
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
        if !sound {
            let why = format!("prefix {value:?}: a wildcard stands for whole hosts, as in *.example.org");
            return Err(self.fail(Some(text.span()), why));
        }
        Ok(Prefix {
            host: HostName::Below(domain.to_ascii_lowercase()),
            path: String::new(),
        })
    }
}

/// The name that references have for a host.
fn docker(host: &str) -> String {
    match host {
        "index.docker.io" => "docker.io".to_owned(),
        host => host.to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests;
