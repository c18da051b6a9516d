//! Building one disk image into a file, without a store.

use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;
use vmlet_ext4::Size;

use super::patience::Patience;
use super::{LAYOUT, Pipeline, disk, image};
use crate::error::{PullError, Reason};
use crate::pulls::identity::image_id;
use crate::pulls::work::{Progress, WorkContext};
use crate::registry::config::Registries;
use crate::types::{Config, Credential, ImageDisk, Limits, Source, host_platform};

/// What to build, and where to.
#[derive(Clone, Debug)]
pub struct FileBuild {
    /// The image.
    pub reference: String,
    /// The file. One that exists is replaced, but only by a complete one.
    pub output: PathBuf,
    /// Size of the disk in bytes; absent: what the content needs and some room.
    pub size: Option<u64>,
    /// `os/arch[/variant]`; absent: this machine's.
    pub platform: Option<String>,
    /// Credentials to try, in order.
    pub credentials: Vec<Credential>,
    /// The operator's settings of registries.
    pub registries: Registries,
    /// Bounds on what comes from outside.
    pub limits: Limits,
}

/// Pulls an image and makes a disk of it. A registry that asks for time (429, Retry-After) gets two minutes in all.
/// When this returns `Ok` the file and its name are durable. On an error, or when the future is dropped, there is no new file and nothing else is
/// left next to it.
///
/// # Errors
/// Those of pulling, of building, and of the output's directory.
pub async fn build_image_file(build: FileBuild, progress: Progress) -> Result<ImageDisk, PullError> {
    let FileBuild {
        reference,
        output,
        size,
        platform,
        credentials,
        registries,
        limits,
    } = build;
    let platform = platform.unwrap_or_else(host_platform);
    let source = Source::Oci {
        reference,
        platform: None,
    };
    let local = |error: io::Error| PullError::io(output.display(), &error);
    let scratch = Scratch::next_to(&output).map_err(local)?;
    let config = Config {
        registries,
        limits,
        ..Config::new(scratch.0.clone())
    };
    let pipeline = Pipeline::new(&config)?;
    let cancel = CancellationToken::new();
    let _dropped = cancel.clone().drop_guard();
    let cx = WorkContext::new(cancel, progress, scratch.0.clone(), scratch.0.clone());
    let extent = size.map_or_else(disk::base_size, Size::Fixed);
    let mut patience = Patience::new();
    let (digest, built) = loop {
        let built = pipeline.0.image(&source, None, &platform, &credentials, &cx, extent);
        match built.await {
            Ok(built) => break built,
            // A mirror had wrong content. Each time there is one fewer to be asked for that digest.
            Err(error) if error.reason == Reason::WrongDigest && !error.is_terminal() => {
                tracing::warn!(%error, "once more, from elsewhere");
            }
            Err(error) => {
                let why = error.to_string();
                let pause = patience.wait(error)?;
                tracing::warn!(error = why, seconds = pause.as_secs(), "once more, after a pause");
                cx.progress
                    .set_stage(&format!("waiting {} s, as the registry asks", pause.as_secs()));
                tokio::time::sleep(pause).await;
            }
        }
        // What was downloaded stays.
        let half = scratch.0.join(image::DISK);
        std::fs::remove_file(&half).or_else(absent_is_fine).map_err(local)?;
        cx.progress.set_done(0);
    };
    let made = scratch.0.join(image::DISK);
    let target = output.clone();
    let publish = move || -> io::Result<(u64, u64)> {
        let file = File::open(&made)?;
        file.sync_all()?;
        let metadata = file.metadata()?;
        std::fs::rename(&made, &target)?;
        if let Err(error) = File::open(parent(&target)).and_then(|dir| dir.sync_all()) {
            let _ = std::fs::remove_file(&target);
            return Err(error);
        }
        drop(scratch);
        Ok((metadata.len(), metadata.blocks() * 512))
    };
    let published = tokio::task::spawn_blocking(publish).await;
    let published =
        published.map_err(|error| PullError::new(Reason::Internal, format!("{}: {error}", output.display())))?;
    let (size_bytes, allocated_bytes) = published.map_err(local)?;
    let layout = size.map_or_else(|| LAYOUT.to_owned(), |size| format!("{LAYOUT};size-{size}"));
    Ok(ImageDisk {
        id: image_id(&digest.to_string(), &platform, &layout),
        digest: digest.to_string(),
        path: output,
        size_bytes,
        allocated_bytes,
        config: built.config,
        content_hash: built.content_hash,
    })
}

fn absent_is_fine(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A private directory that goes when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn next_to(output: &Path) -> io::Result<Scratch> {
        let Some(name) = output.file_name() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no name of a file"));
        };
        if output.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{:016x}.partial", rand::random::<u64>()));
        let dir = parent(output).join(hidden);
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Scratch(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(dir = %self.0.display(), %error, "a temporary directory stays behind");
        }
    }
}
