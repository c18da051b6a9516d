//! What the command line, its files and the environment say about registries.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use vmlet_artifacts::authfile::Authfile;
use vmlet_artifacts::registry::config::{DEFAULT_PATH, Registries};

use crate::cli::RegistryArgs;

/// Reads what is to be read. It is done once, at the start.
pub fn open(args: &RegistryArgs) -> Result<Registries> {
    let authfile = args.authfile.as_deref().map(authfile).transpose()?;
    read(args.registry_config.as_deref(), Path::new(DEFAULT_PATH), authfile)
}

/// The logins of a file that was asked for.
pub fn authfile(path: &Path) -> Result<Authfile> {
    Authfile::read(path)
        .map_err(|error| anyhow!(error))
        .context("--authfile")
}

/// The configuration that was asked for, or else the usual one if it is there.
pub fn read(asked: Option<&Path>, usual: &Path, authfile: Option<Authfile>) -> Result<Registries> {
    let registries = match asked {
        Some(path) => Registries::read(path).context("--registry-config")?,
        None if usual.exists() => Registries::read(usual).context("registry configuration")?,
        None => Registries::default(),
    };
    let get = |name: &str| std::env::var(name).ok();
    let registries = registries.with_environment(get).map_err(|error| anyhow!(error))?;
    Ok(match authfile {
        Some(authfile) => registries.with_authfile(authfile),
        None => registries,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_file_is_read_if_it_is_there_and_one_that_is_asked_for_must_be() {
        let dir = tempfile::tempdir().expect("a directory");
        let usual = dir.path().join("registries.conf");
        read(None, &usual, None).expect("nothing there");
        let error = read(Some(&usual), &usual, None).expect_err("asked for");
        let error = crate::setup::causes(&error);
        assert!(
            error.contains("--registry-config") && error.contains("registries.conf"),
            "{error}"
        );
        std::fs::write(&usual, "nonsense = 1\n").expect("writes");
        let error = crate::setup::causes(&read(None, &usual, None).expect_err("broken"));
        assert!(error.contains("line 1") && error.contains("nonsense"), "{error}");
    }
}
