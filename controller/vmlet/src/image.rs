//! `vmlet image build`.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use vmlet_artifacts::docker_config;
use vmlet_artifacts::pipeline::{FileBuild, build_image_file};
use vmlet_artifacts::pulls::work::Progress;

use crate::cli::ImageBuild;

/// How often progress is shown.
const TICK: Duration = Duration::from_millis(200);
/// How often a line is printed where there is no terminal.
const LINE: Duration = Duration::from_secs(5);

/// Builds one disk image into a file.
pub async fn build(args: ImageBuild) -> Result<()> {
    let size = match &args.size {
        None => None,
        Some(text) => Some(
            vmlet_crds::quantity_value(&Quantity(text.clone()))
                .with_context(|| format!("--size {text:?} is not a size such as 2Gi"))?,
        ),
    };
    let authfile = args
        .authfile
        .clone()
        .map(|path| (path, true))
        .or_else(|| std::env::var_os("HOME").map(|home| (PathBuf::from(home).join(".docker/config.json"), false)));
    let credentials = match authfile {
        None => Vec::new(),
        Some((path, asked)) => match std::fs::read(&path) {
            Ok(bytes) => {
                docker_config::parse(&bytes).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?
            }
            Err(error) if asked => return Err(error).with_context(|| format!("--authfile {}", path.display())),
            Err(_) => Vec::new(),
        },
    };
    let progress = Progress::default();
    let build = FileBuild {
        reference: args.reference.clone(),
        output: args.output.clone(),
        size,
        platform: args.platform.clone(),
        credentials,
    };
    let shown = tokio::spawn(show(progress.clone(), args.reference.clone()));
    let result = build_image_file(build, progress).await;
    shown.abort();
    let disk = result.with_context(|| args.reference.clone())?;
    println!(
        "{} {} MiB ({} MiB on disk) {}",
        args.output.display(),
        disk.size_bytes >> 20,
        disk.allocated_bytes >> 20,
        disk.digest
    );
    Ok(())
}

/// A bar on a terminal, plain lines in a pipe. Ends by being aborted.
async fn show(progress: Progress, reference: String) {
    if std::io::stderr().is_terminal() {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
            .with_style(style)
            .with_message(reference);
        loop {
            let (done, total) = progress.bytes();
            bar.set_length(total);
            bar.set_position(done);
            tokio::time::sleep(TICK).await;
        }
    }
    loop {
        tokio::time::sleep(LINE).await;
        let (done, total) = progress.bytes();
        eprintln!("{reference}: {} of {} MiB", done >> 20, total >> 20);
    }
}
