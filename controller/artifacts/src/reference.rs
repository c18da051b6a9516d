//! References to images (`docker.io/library/alpine:3`), digests and platforms.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

/// A content digest, `sha256:…` or `sha512:…` (OCI image specification, descriptor.md).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }
}

/// Something is not written as it must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(String);

impl Digest {
    /// A hasher of this digest's algorithm.
    pub fn hasher(&self) -> Hasher {
        match self.algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Box::new(Sha512::new())),
        }
    }

    /// The SHA-256 digest of some bytes.
    pub fn sha256(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::sha256();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Whether `bytes` are what this digest names.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish() == *self
    }

    /// A name for files: `sha256-<hex>`, nothing but letters, digits and a dash.
    pub fn file_name(&self) -> String {
        format!("{}-{}", self.algorithm.name(), self.hex)
    }

    /// `sha256` or `sha512`.
    pub fn algorithm(&self) -> &'static str {
        self.algorithm.name()
    }

    /// The lower-case hex digits.
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl FromStr for Digest {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Digest, ParseError> {
        let (algorithm, hex) = match text.split_once(':') {
            Some(("sha256", hex)) if hex.len() == 64 => (Algorithm::Sha256, hex),
            Some(("sha512", hex)) if hex.len() == 128 => (Algorithm::Sha512, hex),
            _ => {
                return Err(ParseError(format!(
                    "{text:.160?} is no digest: it must be sha256: and 64 hex digits"
                )));
            }
        };
        if !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ParseError(format!(
                "{text:.160?} is no digest: its hex digits must be lower case"
            )));
        }
        Ok(Digest {
            algorithm,
            hex: hex.to_owned(),
        })
    }
}

/// Computes a [`Digest`].
#[derive(Clone)]
pub enum Hasher {
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-512.
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// A SHA-256 hasher.
    pub fn sha256() -> Hasher {
        Hasher::Sha256(Sha256::new())
    }

    /// Takes bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all bytes taken in.
    pub fn finish(self) -> Digest {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Hasher::Sha256(hasher) => Digest {
                algorithm: Algorithm::Sha256,
                hex: hex(&hasher.finalize()),
            },
            Hasher::Sha512(hasher) => Digest {
                algorithm: Algorithm::Sha512,
                hex: hex(&hasher.finalize()),
            },
        }
    }
}

/// A reference to something in a registry, normalised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Host, with its port if it has one: `docker.io`, `localhost:5000`.
    pub registry: String,
    /// Repository: `library/alpine`.
    pub repository: String,
    /// The tag; without tag and digest it is `latest`.
    pub tag: Option<String>,
    /// The digest; it decides when there is a tag too.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Host to talk to: Docker Hub's API has another name than its references.
    pub fn host(&self) -> &str {
        if self.registry == "docker.io" {
            "registry-1.docker.io"
        } else {
            &self.registry
        }
    }

    /// Whether a login for this scope is one for here: `host[:port]`, with `*` for parts of the name between two dots, and
    /// perhaps the beginning of a repository's name, whole components (containers-auth.json(5), the kubelet's keys).
    pub fn is_for(&self, scope: &str) -> bool {
        let (host, path) = scope.split_once('/').unwrap_or((scope, ""));
        let path = path.trim_end_matches('/');
        let named = || match self.repository.strip_prefix(path) {
            Some(rest) => path.is_empty() || rest.is_empty() || rest.starts_with('/'),
            None => false,
        };
        (host_fits(host, &self.registry) || host_fits(host, self.host())) && named()
    }

    /// What to ask the registry for: the digest, or else the tag.
    pub fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".into(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ParseError;

    /// The grammar of distribution/reference, with docker.io's defaults.
    fn from_str(text: &str) -> Result<Reference, ParseError> {
        let bad = |why: &str| {
            ParseError(format!(
                "{text:.300?} is no image reference: {why}; write it as registry/repository:tag"
            ))
        };
        if text.is_empty() {
            return Err(bad("it is empty"));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse::<Digest>().map_err(|error| bad(&error.0))?)),
            None => (text, None),
        };
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        if let Some(tag) = tag {
            let good =
                |(at, b): (usize, u8)| b.is_ascii_alphanumeric() || b == b'_' || (at > 0 && matches!(b, b'.' | b'-'));
            if tag.is_empty() || tag.len() > 128 || !tag.bytes().enumerate().all(good) {
                return Err(bad("its tag has characters that tags cannot have, or is too long"));
            }
        }
        let (registry, repository) = match name.split_once('/') {
            Some((host, rest))
                if host.contains(['.', ':']) || host == "localhost" || host.bytes().any(|b| b.is_ascii_uppercase()) =>
            {
                (host, rest.to_owned())
            }
            _ => ("docker.io", name.to_owned()),
        };
        if !is_host(registry) {
            return Err(bad("its registry is no host name"));
        }
        let registry = if registry == "index.docker.io" {
            "docker.io"
        } else {
            registry
        };
        let repository = if registry == "docker.io" && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository
        };
        if repository.len() > 255 {
            return Err(bad("its repository is longer than 255 characters"));
        }
        if !repository.split('/').all(is_component) {
            return Err(bad(
                "its repository must be lower-case letters and digits, with single . _ - between them",
            ));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Reference {
            registry: registry.to_ascii_lowercase(),
            repository,
            tag,
            digest,
        })
    }
}

/// Whether a host's name, with its port, is one that a pattern means. A `*` never reaches over a dot.
fn host_fits(pattern: &str, host: &str) -> bool {
    let split = |text: &str| match text.rsplit_once(':') {
        // Not the last group of an IPv6 address.
        Some((name, port)) if !port.contains(']') => (name.to_ascii_lowercase(), port.to_owned()),
        _ => (text.to_ascii_lowercase(), String::new()),
    };
    let ((pattern, wanted), (name, port)) = (split(pattern), split(host));
    let labels = || pattern.split('.').zip(name.split('.'));
    wanted == port && pattern.split('.').count() == name.split('.').count() && labels().all(|(p, n)| label_fits(p, n))
}

fn label_fits(pattern: &str, label: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == label;
    };
    let Some(mut left) = label.strip_prefix(start) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(end)
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, port)) if v6.parse::<std::net::Ipv6Addr>().is_ok() => ("localhost", port.strip_prefix(':')),
        Some(_) => return false,
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.split('.').all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// `[a-z0-9]+` parts, separated by `.`, `_`, `__` or any number of `-`.
fn is_component(component: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().copied().is_some_and(alnum) || !bytes.last().copied().is_some_and(alnum) {
        return false;
    }
    component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

/// `os/architecture[/variant]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v7`, `v8`, …
    pub variant: Option<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if let Some(variant) = &self.variant {
            write!(f, "/{variant}")?;
        }
        Ok(())
    }
}

impl FromStr for Platform {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Platform, ParseError> {
        let parts: Vec<&str> = text.split('/').collect();
        let good =
            |part: &&str| !part.is_empty() && part.len() <= 32 && part.bytes().all(|b| b.is_ascii_alphanumeric());
        match parts[..] {
            [os, architecture] | [os, architecture, _] if parts.iter().all(good) => Ok(Platform {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: parts.get(2).map(|variant| (*variant).to_owned()),
            }),
            _ => Err(ParseError(format!(
                "{text:.100?} is no platform: write it as linux/amd64"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";

    #[test]
    fn short_references_get_docker_hubs_defaults() {
        for (text, whole) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("user/app", "docker.io/user/app:latest"),
            ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("ghcr.io/o/a-b_c.d__e---f", "ghcr.io/o/a-b_c.d__e---f:latest"),
        ] {
            assert_eq!(text.parse::<Reference>().expect(text).to_string(), whole);
        }
        assert_eq!(
            "alpine".parse::<Reference>().expect("good").host(),
            "registry-1.docker.io"
        );
    }

    #[test]
    fn a_digest_decides_and_a_tag_may_stand_beside_it() {
        let both: Reference = format!("r.example/a:1@sha256:{HEX}").parse().expect("good");
        assert_eq!(both.version(), format!("sha256:{HEX}"));
        assert_eq!(both.tag.as_deref(), Some("1"));
        let digest: Reference = format!("r.example/a@sha256:{HEX}").parse().expect("good");
        assert_eq!(digest.tag, None);
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for text in [
            "",
            "Alpine",
            "a/Upper",
            "a:",
            "a:-x",
            "a b",
            "http://r.example/a",
            "a@sha256:12",
            "r.example/",
            "/a",
            "a//b",
            "r.example:0/a",
            "r.example:99999/a",
            "../etc",
            "a..b",
            "a___b",
            "r.example/a@md5:00",
            "a:b:c",
            "-r.example/a",
            "[::x]:1/a",
            "r.example/a?x=1",
            "a\n",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn digests_are_of_known_algorithms_and_checked() {
        let digest: Digest = format!("sha256:{HEX}").parse().expect("good");
        assert!(digest.matches(b"hello world"));
        assert!(!digest.matches(b"hello world!"));
        assert!(format!("sha256:{}", HEX.to_uppercase()).parse::<Digest>().is_err());
        assert!("sha256:../../etc/passwd".parse::<Digest>().is_err());
        let long: Digest = format!("sha512:{}", "0".repeat(128)).parse().expect("good");
        assert!(!long.matches(b""));
    }
}
