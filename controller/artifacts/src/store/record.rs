//! What stands in the store's small files. All are versioned JSON, decoded strictly.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::types::{ArtefactKind, BootFormat, ImageConfig, ImageDisk, Interest, KernelFiles};

/// The version of all record formats. Another one is set aside, never guessed at.
pub const VERSION: u32 = 1;

/// The record's name inside a published directory.
pub const RECORD: &str = "record.json";

/// `record.json` of a published artefact. It is published with the artefact in one rename and
/// never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// What it is.
    pub kind: ArtefactKind,
    /// Its identity; also the directory's name.
    pub id: String,
    /// The digest that it was made from.
    pub digest: String,
    /// The source that it was pulled from, for people.
    pub source: String,
    /// Every file with its size in bytes: a cheap check that a power cut took nothing.
    pub files: Vec<FileRecord>,
    /// What is in it.
    pub content: Content,
}

/// One file of an artefact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileRecord {
    /// A plain name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
}

/// What is in an artefact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Content {
    /// A disk image.
    Image {
        /// The ext4's file name.
        disk: String,
        /// Hash of its content.
        content_hash: String,
        /// How to run it.
        config: ImageConfig,
    },
    /// A kernel.
    Kernel {
        /// The kernel's file name.
        kernel: String,
        /// How it is booted.
        boot_format: BootFormat,
        /// Its release.
        version: String,
        /// File name of the tar of modules.
        modules_tar: Option<String>,
        /// File name of the ext4 of modules.
        modules_disk: Option<String>,
        /// File name of the initrd.
        initrd: Option<String>,
    },
}

impl Content {
    /// The files that the content names.
    pub fn files(&self) -> Vec<&str> {
        match self {
            Content::Image { disk, .. } => vec![disk],
            Content::Kernel {
                kernel,
                modules_tar,
                modules_disk,
                initrd,
                ..
            } => {
                let optional = [modules_tar, modules_disk, initrd].into_iter().flatten();
                std::iter::once(kernel).chain(optional).map(String::as_str).collect()
            }
        }
    }
}

/// `intents/<kind>-<id>.json`: a pull is under way. Written before its first byte, removed after publication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IntentRecord {
    /// [`VERSION`].
    pub version: u32,
    /// What it will be.
    pub kind: ArtefactKind,
    /// Its identity.
    pub id: String,
    /// The digest.
    pub digest: String,
    /// The source, for people.
    pub source: String,
}

/// `access/<kind>-<id>.json`: who has shown that the content may be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessRecord {
    /// [`VERSION`].
    pub version: u32,
    /// See [`Proof`](crate::pulls::identity::Proof).
    pub proofs: BTreeSet<String>,
}

/// `pins/<hash of interest>-<kind>.json`: somebody uses an artefact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PinRecord {
    /// [`VERSION`].
    pub version: u32,
    /// Who.
    pub interest: Interest,
    /// What kind of thing.
    pub kind: ArtefactKind,
    /// Which.
    pub id: String,
    /// The digest that it was made from.
    pub digest: String,
    /// Hash of the source that was asked for.
    pub source: String,
}

/// Why a record was not believed.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// It is not the JSON that it should be.
    #[error("not a record of ours: {0}")]
    Json(#[from] serde_json::Error),
    /// Another version of vmlet wrote it.
    #[error("format version {0}, but this vmlet knows only {VERSION}")]
    Version(u64),
    /// It contradicts its name or the files beside it.
    #[error("{0}")]
    Contradiction(String),
}

/// Encodes a record.
pub fn encode<T: Serialize>(record: &T) -> std::io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(record)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Reads and decodes a record strictly.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    let bytes = super::files::read_small(path)?;
    // The version first: fields that a newer one added are no damage.
    let value: serde_json::Value = serde_json::from_slice(&bytes)?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version != u64::from(VERSION) => Err(RecordError::Version(version)),
        _ => Ok(serde_json::from_slice(&bytes)?),
    }
}

/// A published artefact, as callers get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Artefact {
    /// A disk image.
    Image(Arc<ImageDisk>),
    /// A kernel.
    Kernel(Arc<KernelFiles>),
}

/// What callers get for a record whose files are in `dir` and occupy `allocated` bytes.
pub fn artefact(record: &Record, dir: &Path, allocated: u64) -> Artefact {
    let size = |name: &str| {
        record
            .files
            .iter()
            .find(|f| f.name == name)
            .map(|f| f.size)
            .unwrap_or_default()
    };
    let optional = |name: &Option<String>| name.as_ref().map(|n| dir.join(n));
    match &record.content {
        Content::Image {
            disk,
            content_hash,
            config,
        } => Artefact::Image(Arc::new(ImageDisk {
            id: record.id.clone(),
            digest: record.digest.clone(),
            path: dir.join(disk),
            size_bytes: size(disk),
            allocated_bytes: allocated,
            config: config.clone(),
            content_hash: content_hash.clone(),
        })),
        Content::Kernel {
            kernel,
            boot_format,
            version,
            modules_tar,
            modules_disk,
            initrd,
        } => Artefact::Kernel(Arc::new(KernelFiles {
            id: record.id.clone(),
            digest: record.digest.clone(),
            kernel: dir.join(kernel),
            boot_format: *boot_format,
            version: version.clone(),
            modules_tar: optional(modules_tar),
            modules_disk: optional(modules_disk),
            initrd: optional(initrd),
        })),
    }
}
