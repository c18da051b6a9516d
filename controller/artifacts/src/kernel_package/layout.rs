//! The artefact as an OCI image layout (image-spec v1.1 `image-layout.md`, `manifest.md`).

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::collect::Kernel;
use super::image::Format;
use crate::store::files;

/// What kind of artefact it is.
pub const ARTIFACT_TYPE: &str = "application/vnd.vmlet.kernel.v1";
/// Its configuration.
pub const CONFIG_TYPE: &str = "application/vnd.vmlet.kernel.config.v1+json";
/// The layer with the image.
pub const IMAGE_TYPE: &str = "application/vnd.vmlet.kernel.image.v1+zstd";
/// The layer with the modules.
pub const MODULES_TYPE: &str = "application/vnd.vmlet.kernel.modules.v1.tar+zstd";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// Made once, fetched often; above this level time grows much faster than size shrinks.
const LEVEL: i32 = 9;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Config<'a> {
    version: &'a str,
    architecture: &'a str,
    boot_format: &'a str,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<&'static str>,
    digest: String,
    size: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: &'static str,
    artifact_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: &'static str,
    manifests: [Descriptor; 1],
}

/// Writes a complete, durable layout to the new directory `at`. Returns the manifest's digest.
pub fn write(at: &Path, kernel: &Kernel, image: &[u8], format: Format) -> io::Result<String> {
    let blobs = at.join("blobs/sha256");
    for dir in [at, &at.join("blobs"), &blobs] {
        fs::create_dir(dir)?;
    }
    let config = Config {
        version: &kernel.version,
        architecture: "amd64",
        boot_format: match format {
            Format::PvhElf => "pvhElf",
            Format::BzImage => "bzImage",
        },
    };
    let config = blob(&blobs, CONFIG_TYPE, |out| out.write_all(&json(&config)?))?;
    let mut layers = vec![blob(&blobs, IMAGE_TYPE, |out| {
        zstd::stream::copy_encode(image, out, LEVEL)
    })?];
    if !kernel.modules.is_empty() {
        layers.push(blob(&blobs, MODULES_TYPE, |out| modules(kernel, out))?);
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST_TYPE,
        artifact_type: ARTIFACT_TYPE,
        config,
        layers,
    };
    let mut manifest = blob(&blobs, MANIFEST_TYPE, |out| out.write_all(&json(&manifest)?))?;
    let digest = manifest.digest.clone();
    manifest.artifact_type = Some(ARTIFACT_TYPE);
    let index = Index {
        schema_version: 2,
        media_type: INDEX_TYPE,
        manifests: [manifest],
    };
    files::write_new(&at.join("index.json"), &json(&index)?, 0o644)?;
    let marker = br#"{"imageLayoutVersion":"1.0.0"}"#;
    files::write_new(&at.join("oci-layout"), marker, 0o644)?;
    for dir in [&blobs, &at.join("blobs"), at] {
        files::sync_dir(dir)?;
    }
    Ok(digest)
}

fn json(value: &impl Serialize) -> io::Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(io::Error::other)
}

/// Writes one blob under the name that its bytes give it.
fn blob(
    blobs: &Path,
    media_type: &'static str,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<Descriptor> {
    let temporary = blobs.join(".new");
    let mut out = Hashing {
        inner: BufWriter::new(File::create_new(&temporary)?),
        hash: Sha256::new(),
        size: 0,
    };
    fill(&mut out)?;
    let file = out.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    let hex: String = out.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    fs::rename(&temporary, blobs.join(&hex))?;
    Ok(Descriptor {
        media_type,
        artifact_type: None,
        digest: format!("sha256:{hex}"),
        size: out.size,
    })
}

fn modules(kernel: &Kernel, out: &mut dyn Write) -> io::Result<()> {
    let mut packed = zstd::stream::write::Encoder::new(out, LEVEL)?;
    tar_of_modules(kernel, &mut packed)?;
    packed.finish()?;
    Ok(())
}

/// Writes the modules as a plain tar: the same bytes for the same modules.
pub fn tar_of_modules(kernel: &Kernel, out: &mut dyn Write) -> io::Result<()> {
    let mut spool = BufReader::new(File::open(&kernel.spool)?);
    let mut tar = tar::Builder::new(out);
    for (path, place) in &kernel.modules {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(place.length);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        spool.seek(SeekFrom::Start(place.offset))?;
        tar.append_data(&mut header, path, (&mut spool).take(place.length))?;
    }
    tar.finish()
}

struct Hashing {
    inner: BufWriter<File>,
    hash: Sha256,
    size: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
