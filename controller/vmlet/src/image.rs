//! `vmlet image build`.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use tokio::sync::oneshot;
use vmlet_artifacts::authfile::Authfile;
use vmlet_artifacts::pipeline::{FileBuild, build_image_file};
use vmlet_artifacts::pulls::work::Progress;
use vmlet_artifacts::registry::config::DEFAULT_PATH;

use crate::cli::ImageBuild;
use crate::setup::stop_signal;
use crate::{output, registries};

/// How often progress is shown.
const TICK: Duration = Duration::from_millis(200);
/// How often a line is printed where there is no terminal.
const LINE: Duration = Duration::from_secs(5);

/// Builds one disk image into a file. A signal that would end this process ends the build first, which takes away what
/// it has made.
pub async fn build(args: ImageBuild) -> Result<ExitCode> {
    let size = match &args.size {
        None => None,
        Some(text) => Some(
            vmlet_crds::quantity_value(&Quantity(text.clone()))
                .with_context(|| format!("--size {text:?} is not a size such as 2Gi"))?,
        ),
    };
    may_be_written(&args.output, args.force)?;
    let authfile = match (&args.authfile, std::env::var_os("HOME")) {
        (Some(path), _) => Some(registries::authfile(path)?),
        (None, Some(home)) => {
            let usual = PathBuf::from(home).join(".docker/config.json");
            // What nobody asked for and nobody may read is as good as absent.
            let there = std::fs::File::open(&usual).is_ok();
            there
                .then(|| Authfile::read(&usual))
                .transpose()
                .map_err(|error| anyhow!(error))?
        }
        (None, None) => None,
    };
    let usual = Path::new(DEFAULT_PATH);
    let registries = registries::read(args.registry_config.as_deref(), usual, authfile)?;
    let progress = Progress::default();
    let build = FileBuild {
        reference: args.reference.clone(),
        output: args.output.clone(),
        replace: args.force,
        size,
        platform: args.platform.clone(),
        credentials: Vec::new(),
        registries,
        limits: (&args.limits).into(),
    };
    let shown = tokio::spawn(show(progress.clone(), args.reference.clone()));
    let (tell, told) = oneshot::channel();
    let cancel = stop_signal(move |number| {
        let _ = tell.send(number);
    })?;
    let result = build_image_file(build, progress, cancel.clone()).await;
    shown.abort();
    if cancel.is_cancelled() && result.is_err() {
        let number = told.await.context("the signal")?;
        eprintln!(
            "vmlet: {} was not built: interrupted by signal {number}",
            args.reference
        );
        return Ok(ExitCode::from(128_u8.saturating_add(number)));
    }
    let disk = result.with_context(|| args.reference.clone())?;
    let made = format!(
        "{} {} ({} on disk) {}\n",
        args.output.display(),
        HumanBytes(disk.size_bytes),
        HumanBytes(disk.allocated_bytes),
        disk.digest
    );
    // The file is there and whole, and that is what the exit status tells.
    if let Err(error) = output::print(&made) {
        tracing::warn!("{error:#}: {}", made.trim_end());
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses to replace what nobody asked to have replaced, before anything is pulled.
fn may_be_written(output: &Path, force: bool) -> Result<()> {
    let shown = output.display();
    match output.symlink_metadata() {
        // The new file takes the name: of a device or a directory that is never meant.
        Ok(there) if !there.is_file() => bail!("{shown} exists and is not a plain file: give --output another name"),
        Ok(_) if !force => bail!("{shown} exists: give --output another name, or --force to replace it"),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("--output {shown}")),
    }
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
        match total {
            // Not known yet.
            0 => eprintln!("{reference}: {}", HumanBytes(done)),
            total => eprintln!("{reference}: {} of {}", HumanBytes(done), HumanBytes(total)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_file_is_replaced_only_when_that_is_asked_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, link) = (dir.path().join("disk"), dir.path().join("link"));
        may_be_written(&file, false).expect("a new file");
        std::fs::write(&file, "precious").expect("writes");
        let error = may_be_written(&file, false).expect_err("refused").to_string();
        assert!(error.contains("--force"), "{error}");
        may_be_written(&file, true).expect("asked for");
        std::os::unix::fs::symlink("/dev/null", &link).expect("links");
        for other in [dir.path(), &link] {
            may_be_written(other, true).expect_err("no plain file");
        }
    }
}
