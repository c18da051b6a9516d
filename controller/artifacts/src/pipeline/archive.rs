//! OCI and docker archives: tars that hold the files of an image, not those of a root file system.
//!
//! An archive has to be read in its own order of importance (index, manifest, layers), so it lies in
//! one private file, and this is the list of where in it things are.

use std::collections::HashMap;

use serde::Deserialize;

use super::failure;
use super::local::{Section, small};
use crate::error::{PullError, Reason};
use crate::layers::member::{MemberKind, Members};
use crate::layers::path::normalise;
use crate::layers::show;
use crate::types::Limits;

/// More files than any image needs: a blob for each layer, and some for each of many images.
const MOST_FILES: usize = 20_000;
const MOST_LINKS: usize = 8;
const DOCKER_MANIFEST: &[u8] = b"manifest.json";

/// Where the files of an archive are.
#[derive(Debug)]
pub struct Archive {
    bytes: Section,
    files: HashMap<Vec<u8>, Place>,
}

#[derive(Debug)]
enum Place {
    At(u64, u64),
    /// Older docker archives name a layer that two images share by a link.
    Link(Vec<u8>),
}

/// What kind of archive it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// An OCI image layout. Newer docker archives are that as well.
    Oci,
    /// What `docker save` writes.
    Docker,
}

/// The one image of a docker archive.
#[derive(Debug)]
pub struct DockerImage {
    /// Its configuration.
    pub config: Vec<u8>,
    /// Its layers, the lowest first, with their names.
    pub layers: Vec<(String, Section)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    layers: Vec<String>,
    repo_tags: Option<Vec<String>>,
}

impl Archive {
    /// Lists the files of an uncompressed tar.
    ///
    /// # Errors
    /// A broken tar, or one with too many files.
    pub fn list(name: &str, bytes: Section, limits: &Limits) -> Result<Archive, PullError> {
        let broken = |error| failure::layer(name, error);
        let mut files = HashMap::new();
        let mut members = Members::new(bytes.reader());
        while let Some(member) = members.next().map_err(broken)? {
            let path = normalise(&member.name, limits.path_bytes).map_err(broken)?;
            let place = match member.kind {
                MemberKind::File { size } if members.is_plain() => Place::At(members.position(), size),
                MemberKind::Symlink(target) => Place::Link(beside(&path, &target)),
                MemberKind::HardLink(target) => Place::Link(normalise(&target, limits.path_bytes).map_err(broken)?),
                _ => continue,
            };
            files.insert(path, place);
            if files.len() > MOST_FILES {
                let why = format!("{name}: the archive has more than {MOST_FILES} files");
                return Err(PullError::new(Reason::TooLarge, why));
            }
        }
        Ok(Archive { bytes, files })
    }

    /// What kind of archive it is; `None`: it is none.
    pub fn flavour(&self) -> Option<Flavour> {
        let has = |name: &[u8]| self.file(name).is_some();
        if has(b"oci-layout") && has(b"index.json") {
            Some(Flavour::Oci)
        } else if has(DOCKER_MANIFEST) {
            Some(Flavour::Docker)
        } else {
            None
        }
    }

    /// All of it.
    pub fn bytes(&self) -> &Section {
        &self.bytes
    }

    /// A file of it.
    pub fn file(&self, name: &[u8]) -> Option<Section> {
        let mut place = self.files.get(name)?;
        for _ in 0..MOST_LINKS {
            match place {
                Place::At(start, length) => return Some(self.bytes.part(*start, *length)),
                Place::Link(target) => place = self.files.get(target)?,
            }
        }
        None
    }

    /// The image of a docker archive (docker image specification v1.2, "Combined Image JSON + Filesystem
    /// Changeset Format").
    ///
    /// # Errors
    /// No image, several, or parts of it missing.
    pub fn docker_image(&self, name: &str, limits: &Limits) -> Result<DockerImage, PullError> {
        let broken = |why: String| PullError::new(Reason::Malformed, format!("{name}: {why}"));
        let part = |file: &str| {
            let found = normalise(file.as_bytes(), limits.path_bytes)
                .ok()
                .and_then(|path| self.file(&path));
            found.ok_or_else(|| {
                broken(format!(
                    "its manifest names {}, which is not in it",
                    show(file.as_bytes())
                ))
            })
        };
        let manifest = small(name, &part("manifest.json")?, limits.manifest_bytes)?;
        let entries: Vec<DockerEntry> = serde_json::from_slice(&manifest)
            .map_err(|error| broken(format!("its manifest.json is broken: {error}")))?;
        let [entry] = &entries[..] else {
            let tags = entries.iter().flat_map(|entry| entry.repo_tags.iter().flatten());
            let tags: Vec<&str> = tags.map(String::as_str).take(20).collect();
            return Err(broken(format!(
                "the archive holds {} images ({}); it must hold one",
                entries.len(),
                tags.join(", ")
            )));
        };
        if entry.layers.len() > limits.layers {
            let (many, most) = (entry.layers.len(), limits.layers);
            let why = format!("{name}: the image has {many} layers, more than {most}");
            return Err(PullError::new(Reason::TooLarge, why));
        }
        let layers = entry.layers.iter().map(|layer| Ok((layer.clone(), part(layer)?)));
        Ok(DockerImage {
            config: small(name, &part(&entry.config)?, limits.manifest_bytes)?,
            layers: layers.collect::<Result<_, PullError>>()?,
        })
    }
}

/// Whether an archive may begin with this member: what the known tools write, and nothing that a root
/// file system has.
pub fn may_begin_with(path: &[u8]) -> bool {
    let first = path.split(|&b| b == b'/').next().unwrap_or_default();
    if matches!(
        first,
        b"blobs" | b"oci-layout" | b"index.json" | b"manifest.json" | b"repositories" | b"config.json"
    ) {
        return true;
    }
    let stem = first.strip_prefix(b"sha256:").unwrap_or(first);
    let stem = stem.split(|&b| b == b'.').next().unwrap_or_default();
    stem.len() >= 32 && stem.iter().all(u8::is_ascii_hexdigit)
}

/// The path that a link at `path` means; what leads out of the archive means nothing.
fn beside(path: &[u8], target: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = path.split(|&b| b == b'/').collect();
    parts.pop();
    for part in target.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_told_from_root_file_systems_by_their_first_name() {
        let hex = "5f".repeat(32);
        for name in [
            "blobs/sha256",
            "oci-layout",
            "manifest.json",
            &hex,
            &format!("{hex}/layer.tar"),
            &format!("{hex}.json"),
            &format!("sha256:{hex}"),
            &format!("{hex}.tar.gz"),
        ] {
            assert!(may_begin_with(name.as_bytes()), "{name}");
        }
        for name in ["bin", "etc/passwd", "boot/vmlinuz", "usr", "deadbeef", ".dockerenv"] {
            assert!(!may_begin_with(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn links_of_an_archive_stay_in_it() {
        assert_eq!(beside(b"a/layer.tar", b"../b/layer.tar"), b"b/layer.tar");
        assert_eq!(beside(b"a/layer.tar", b"../../../etc/passwd"), b"etc/passwd");
        assert_eq!(beside(b"x", b"y"), b"y");
    }
}
