//! Identities: of disks and kernels, of sources, and of proofs of access.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::work::KernelPaths;
use crate::reference::{Digest, Reference};
use crate::types::{Credential, Source};

/// SHA-256 over length-prefixed parts, in hex: no two different lists give the same text.
pub fn hash(parts: &[&str]) -> String {
    hash_keyed(&[], parts)
}

fn hash_keyed(key: &[u8], parts: &[&str]) -> String {
    let mut sha = Sha256::new();
    sha.update((key.len() as u64).to_le_bytes());
    sha.update(key);
    for part in parts {
        sha.update((part.len() as u64).to_le_bytes());
        sha.update(part.as_bytes());
    }
    sha.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The disk identity: everything that decides about a disk's bytes.
pub fn image_id(digest: &str, platform: &str, layout: &str) -> String {
    hash(&["image", digest, platform, layout])
}

/// The identity of an unpacked kernel.
pub fn kernel_id(digest: &str, platform: &str, paths: &KernelPaths, layout: &str) -> String {
    let path = |p: &Option<String>| p.as_ref().map(|p| format!("={p}")).unwrap_or_default();
    let (kernel, initrd, modules) = (path(&paths.kernel), path(&paths.initrd), path(&paths.modules));
    hash(&["kernel", digest, platform, &kernel, &initrd, &modules, layout])
}

/// The identity of what an asker named, without its credentials.
pub fn source_id(source: &Source, platform: &str) -> String {
    match source {
        Source::Oci { reference, .. } => hash(&["oci", reference, platform]),
        Source::Http { url, sha256 } => hash(&["http", url, sha256, platform]),
        Source::Path { path } => hash(&["path", path, platform]),
    }
}

/// The host that a source talks to: a pause that it asks for holds for all pulls from it.
pub fn registry_of(source: &Source) -> Option<String> {
    let host = match source {
        Source::Path { .. } => return None,
        Source::Http { url, .. } => {
            let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
            let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
            authority.rsplit_once('@').map_or(authority, |(_, host)| host)
        }
        // What is no reference has no registry; its resolve says so.
        Source::Oci { reference, .. } => return Some(reference.parse::<Reference>().ok()?.registry),
    };
    Some(host.to_ascii_lowercase())
}

/// What shows that an asker may have a content: a form of access with which the content was
/// fetched or resolved once. A private image in the store is not for everybody on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof(pub String);

/// The proof that is good for every asker: whoever has no credentials could get it.
pub const ANYBODY: &str = "anybody";

impl Proof {
    /// The proof that a successful pull with these credentials from this source gives.
    ///
    /// `key` is the store's own secret: the hashes on disk cannot be tried against word lists
    /// elsewhere. Only credentials for the source's registry count: no others are ever sent to it.
    pub fn of(source: &Source, credentials: &[Credential], key: &[u8]) -> Proof {
        if let Source::Path { path } = source {
            return Proof(format!("path:{}", hash(&[path])));
        }
        // Nothing is sent to a web server but the URL, and its sha256 stands in the want. What is no reference
        // is never asked for.
        let reference = match source {
            Source::Oci { reference, .. } => reference.parse::<Reference>().ok(),
            Source::Http { .. } | Source::Path { .. } => None,
        };
        let sent = |c: &&Credential| reference.as_ref().is_some_and(|r| r.is_for(&c.registry));
        let mut sent = credentials.iter().filter(sent).peekable();
        if sent.peek().is_none() {
            return Proof(ANYBODY.to_string());
        }
        let fields = sent.flat_map(|c| [c.registry.as_str(), &c.username, &c.password]);
        Proof(format!("credentials:{}", hash_keyed(key, &fields.collect::<Vec<_>>())))
    }
}

/// What stands beside the proofs of a content for each registry that has given all of it. Only such a one is believed
/// when it says who may have it: another could say yes to everything. None: the source has no registry.
pub fn given_by(source: &Source) -> Option<String> {
    matches!(source, Source::Oci { .. })
        .then(|| registry_of(source))
        .flatten()
        .map(|host| format!("from:{host}"))
}

/// Whether a digest from outside is one that can be checked.
pub fn is_digest(digest: &str) -> bool {
    digest.parse::<Digest>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(password: &str) -> Credential {
        Credential {
            registry: "r.example".into(),
            username: "u".into(),
            password: password.into(),
        }
    }

    #[test]
    fn neighbouring_parts_do_not_run_into_each_other() {
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
        assert_ne!(hash(&["a", ""]), hash(&["a"]));
    }

    #[test]
    fn another_layout_platform_or_digest_is_another_disk() {
        let base = image_id("d", "linux/amd64", "1");
        for other in [
            image_id("e", "linux/amd64", "1"),
            image_id("d", "linux/arm64", "1"),
            image_id("d", "linux/amd64", "2"),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn proofs_tell_passwords_apart_and_show_none() {
        let source = Source::Oci {
            reference: "r.example/i".into(),
            platform: None,
        };
        let one = Proof::of(&source, &[credential("one")], b"key");
        assert_ne!(one, Proof::of(&source, &[credential("two")], b"key"));
        assert_ne!(one, Proof::of(&source, &[credential("one")], b"other key"));
        assert_eq!(Proof::of(&source, &[], b"key").0, ANYBODY);
        assert!(!one.0.contains("one"));
        let elsewhere = Credential {
            registry: "other.example".into(),
            ..credential("one")
        };
        assert_eq!(
            Proof::of(&source, std::slice::from_ref(&elsewhere), b"key").0,
            ANYBODY,
            "a login for another registry is never sent, so it proves nothing"
        );
        assert_eq!(Proof::of(&source, &[elsewhere, credential("one")], b"key"), one);
    }

    #[test]
    fn the_registry_of_a_source_is_its_host() {
        let oci = |reference: &str| {
            registry_of(&Source::Oci {
                reference: reference.into(),
                platform: None,
            })
        };
        assert_eq!(oci("debian:12").as_deref(), Some("docker.io"));
        assert_eq!(oci("library/debian").as_deref(), Some("docker.io"));
        assert_eq!(oci("LOCALHOST:5000/a/b:1").as_deref(), Some("localhost:5000"));
        assert_eq!(oci("index.docker.io/library/debian").as_deref(), Some("docker.io"));
        assert_eq!(oci("Not A Reference"), None);
        let http = Source::Http {
            url: "https://user@Host.example:8443/x?y@z".into(),
            sha256: String::new(),
        };
        assert_eq!(registry_of(&http).as_deref(), Some("host.example:8443"));
        assert_eq!(registry_of(&Source::Path { path: "a".into() }), None);
    }

    #[test]
    fn only_digests_pass_for_digests() {
        assert!(is_digest(&format!("sha256:{}", "a0".repeat(32))));
        for bad in ["", "sha256:", "sha256:zz", "latest", "md5:00"] {
            assert!(!is_digest(bad), "{bad}");
        }
        assert!(!is_digest(&format!("sha256:{}", "A0".repeat(32))));
        assert!(!is_digest(&format!("sha256:{}/", "a0".repeat(31))));
    }
}
