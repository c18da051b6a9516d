//! What the end-to-end suites share: real servers in temporary directories, kubectl, waits.
//!
//! Everything that is started here ends with the process that started it, however that ends, and
//! leaves nothing behind.

pub mod controlplane;
pub mod kubectl;
pub mod layout;
pub mod pki;
pub mod process;
pub mod registry;
pub mod wait;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};

/// Root of the source tree.
pub fn project() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map_or(manifest.clone(), PathBuf::from)
}

/// A file that one of the scripts puts into `.cache/bin`, if it is there.
pub fn cached_binary(name: &str) -> Option<PathBuf> {
    let path = project().join(".cache/bin").join(name);
    path.exists().then_some(path)
}

/// A program on the PATH or where Debian puts daemons.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Installs the process's TLS provider; doing so again is no error.
pub fn install_crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A client for the API that a kubeconfig (text) names.
pub async fn client(kubeconfig: &str) -> Result<kube::Client> {
    Ok(kube::Client::try_from(config(kubeconfig).await?)?)
}

/// As `client`, but every answer is handed on, also those that ask to try again later.
pub async fn client_without_retries(kubeconfig: &str) -> Result<kube::Client> {
    let mut config = config(kubeconfig).await?;
    config.default_retry = false;
    Ok(kube::Client::try_from(config)?)
}

async fn config(kubeconfig: &str) -> Result<kube::Config> {
    install_crypto();
    let parsed = Kubeconfig::from_yaml(kubeconfig).context("read the kubeconfig")?;
    Ok(kube::Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default()).await?)
}
