//! Building one disk image into a file, without a store.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;
use vmlet_ext4::Size;

use super::patience::Patience;
use super::{LAYOUT, Pipeline, disk, image};
use crate::error::{PullError, Reason};
use crate::pulls::identity::image_id;
use crate::pulls::work::{Progress, WorkContext};
use crate::registry::config::Registries;
use crate::scratch::{Scratch, parent, publish};
use crate::types::{Config, Credential, ImageDisk, Limits, Source, host_platform};

/// What to build, and where to.
#[derive(Clone, Debug)]
pub struct FileBuild {
    /// The image.
    pub reference: String,
    /// The file.
    pub output: PathBuf,
    /// Replace one that exists, by a complete one.
    pub replace: bool,
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
/// When this returns `Ok` the file and its name are durable. On an error there is no new file and nothing else is left next to it; what a killed process
/// leaves there is removed by the next one for the same file.
///
/// # Errors
/// Those of pulling, of building, and of the output's directory; `Cancelled` after `cancel`.
pub async fn build_image_file(
    build: FileBuild,
    progress: Progress,
    cancel: CancellationToken,
) -> Result<ImageDisk, PullError> {
    let FileBuild {
        reference,
        output,
        replace,
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
    if output.is_dir() {
        return Err(local(io::ErrorKind::IsADirectory.into()));
    }
    let scratch = Scratch::next_to(&output).map_err(local)?;
    let config = Config {
        registries,
        limits,
        ..Config::new(scratch.path().to_path_buf())
    };
    let pipeline = Pipeline::new(&config)?;
    // The caller's own says that it was cancelled, and not that this has ended.
    let cancel = cancel.child_token();
    let _dropped = cancel.clone().drop_guard();
    let dir = scratch.path().to_path_buf();
    let cx = WorkContext::new(cancel, progress, dir.clone(), dir);
    let extent = size.map_or_else(disk::base_size, Size::Fixed);
    let mut patience = Patience::new();
    let result = loop {
        let built = pipeline.0.image(&source, None, &platform, &credentials, &cx, extent);
        let built = tokio::select! {
            built = built => built,
            () = cx.cancel.cancelled() => Err(PullError::cancelled()),
        };
        match built {
            Ok(built) => break Ok(built),
            // A mirror had wrong content. Each time there is one fewer to be asked for that digest.
            Err(error) if error.reason == Reason::WrongDigest && !error.is_terminal() => {
                tracing::warn!(%error, "once more, from elsewhere");
            }
            Err(error) => {
                let why = error.to_string();
                let pause = match patience.wait(error) {
                    Ok(pause) => pause,
                    Err(error) => break Err(error),
                };
                tracing::warn!(error = why, seconds = pause.as_secs(), "once more, after a pause");
                cx.progress
                    .set_stage(&format!("waiting {} s, as the registry asks", pause.as_secs()));
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = cx.cancel.cancelled() => break Err(PullError::cancelled()),
                }
            }
        }
        // What was downloaded stays.
        let half = scratch.path().join(image::DISK);
        if let Err(error) = std::fs::remove_file(&half).or_else(absent_is_fine) {
            break Err(local(error));
        }
        cx.progress.set_done(0);
    };
    // Or else a thread could make a file where everything is to go.
    cx.join_blocking().await;
    let (digest, built) = result?;
    let made = scratch.path().join(image::DISK);
    let target = output.clone();
    let finish = move || -> io::Result<(u64, u64)> {
        let file = File::open(&made)?;
        file.sync_all()?;
        let metadata = file.metadata()?;
        publish(&made, &target, replace)?;
        if let Err(error) = File::open(parent(&target)).and_then(|dir| dir.sync_all()) {
            let _ = std::fs::remove_file(&target);
            return Err(error);
        }
        drop(scratch);
        Ok((metadata.len(), metadata.blocks() * 512))
    };
    let published = tokio::task::spawn_blocking(finish).await;
    let published =
        published.map_err(|error| PullError::new(Reason::Internal, format!("{}: {error}", output.display())))?;
    let (size_bytes, allocated_bytes) = published.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => PullError::new(
            Reason::StoreFailed,
            format!(
                "{} exists since a moment ago, and is kept: give another name",
                output.display()
            ),
        ),
        _ => local(error),
    })?;
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
