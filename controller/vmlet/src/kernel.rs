//! `vmlet kernel package`.

use anyhow::{Context as _, Result};
use vmlet_artifacts::kernel_package::{self, Source};

use crate::cli::KernelPackage;
use crate::output;

/// Makes an OCI layout from a package or a directory.
pub fn package(args: &KernelPackage) -> Result<()> {
    let (source, what) = match (&args.from_deb, &args.from_dir) {
        (Some(deb), _) => (Source::Deb(deb.clone()), deb),
        (None, Some(dir)) => (Source::Dir(dir.clone()), dir),
        (None, None) => anyhow::bail!("give --from-deb or --from-dir"),
    };
    let made = kernel_package::package(&source, &args.output).with_context(|| format!("{}", what.display()))?;
    let made = format!("{} kernel {} ({})\n", args.output.display(), made.version, made.digest);
    // The layout is there and whole, and that is what the exit status tells.
    if let Err(error) = output::print(&made) {
        tracing::warn!("{error:#}: {}", made.trim_end());
    }
    Ok(())
}
