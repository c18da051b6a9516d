//! Logging, the TLS provider, the runtime, and the way to each command.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::cli::{ApiArgs, Cli, Command, Image, Kernel, LogFormat};
use crate::{footprint, output};

/// How long the API may take until it begins to answer.
const API_TIMEOUT: Duration = Duration::from_secs(30);

/// Does what the command line says.
pub fn run(cli: Cli) -> Result<ExitCode> {
    footprint::bound();
    // The agent's files are root's alone; what others may read gets its mode explicitly.
    rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o077));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(log_filter(&cli.log)?)
        .with_writer(std::io::stderr);
    match cli.log_format {
        LogFormat::Text => logs
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .init(),
        LogFormat::Json => logs.json().init(),
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed already");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the async runtime")?;
    runtime.block_on(async {
        if let Command::Standalone(_) | Command::Agent(_) | Command::Controller(_) = &cli.command {
            tokio::spawn(footprint::give_back());
        }
        match cli.command {
            Command::Standalone(args) => crate::standalone::run(args, stop_signal(stopping)?)
                .await
                .map(|()| ExitCode::SUCCESS),
            Command::Agent(args) => crate::node::agent(args, stop_signal(stopping)?)
                .await
                .map(|()| ExitCode::SUCCESS),
            Command::Controller(args) => crate::node::controller(args, stop_signal(stopping)?)
                .await
                .map(|()| ExitCode::SUCCESS),
            Command::Crds => crds(),
            Command::Check(args) => crate::check::run(&args),
            Command::Image(Image::Build(args)) => crate::image::build(args).await,
            Command::Kernel(Kernel::Package(args)) => crate::kernel::package(&args).map(|()| ExitCode::SUCCESS),
            Command::Logs(args) => crate::logs::logs(args).await.map(|()| ExitCode::SUCCESS),
            Command::Console(args) => crate::console::console(args).await,
            Command::Ssh(args) => crate::ssh::ssh(args).await,
        }
    })
}

/// An error and its causes in one line, each once: many libraries' messages hold those of their causes already.
pub fn causes(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // What the context names may be what the cause begins with.
        if line.is_empty() || text.starts_with(&format!("{line}: ")) {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}

fn crds() -> Result<ExitCode> {
    let mut text = String::new();
    for crd in vmlet_crds::all() {
        text += &format!("---\n{}\n", vmlet_crds::to_yaml(&crd)?.trim_end());
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// A token that is cancelled by SIGTERM or SIGINT, after `told` has its number. A second signal ends the process at once.
/// SIGHUP keeps its meaning: whoever starts something with nohup(1) wants it to go on.
pub fn stop_signal(told: impl FnOnce(u8) + Send + 'static) -> Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => 15_u8,
                _ = interrupt.recv() => 2,
            }
        };
        told(next().await);
        stop.cancel();
        std::process::exit(128 + i32::from(next().await));
    });
    Ok(token)
}

/// Says that machines do not end with their agent.
fn stopping(_signal: u8) {
    tracing::info!("stopping; virtual machines run on");
}

/// What to log. What a library says of an error that we get and tell ourselves is left out, unless it is asked for.
fn log_filter(wanted: &str) -> Result<EnvFilter> {
    const TOLD_ANYWAY: &str = "kube_client::client::builder=off,rustls_platform_verifier=off";
    EnvFilter::try_new(wanted)
        .and_then(|_| EnvFilter::try_new(format!("{TOLD_ANYWAY},{wanted}")))
        .with_context(|| format!("--log {wanted:?} is not a log filter"))
}

/// The way to the API that the command line names.
pub async fn config(args: &ApiArgs) -> Result<kube::Config> {
    let mut config = match &args.kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path).map_err(|error| match error {
                // Its own message names the file once more.
                KubeconfigError::ReadConfig(error, _) => anyhow::anyhow!("kubeconfig {}: {error}", path.display()),
                error => anyhow::Error::from(error).context(format!("kubeconfig {}", path.display())),
            })?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("kubeconfig {}", path.display()))?
        }
        None => kube::Config::infer()
            .await
            .context("no Kubernetes API to talk to: give --kubeconfig, or set KUBECONFIG")?,
    };
    // Every loop here retries by itself, with a back-off and a word in the log; the client's own policy
    // would sit on a request for as long as 15 tries and 1000 s take, with nothing to be seen.
    config.default_retry = false;
    Ok(config)
}

/// A client for the API.
pub fn client(config: kube::Config) -> Result<kube::Client> {
    let builder = kube::client::ClientBuilder::try_from(config).context("client for the Kubernetes API")?;
    // Until the answer begins: watches go on for as long as they like.
    Ok(builder
        .with_layer(&tower::timeout::TimeoutLayer::new(API_TIMEOUT))
        .build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_said_once() {
        let io = || std::io::Error::new(std::io::ErrorKind::AddrInUse, "address in use");
        let plain = anyhow::Error::from(io()).context("--listen 127.0.0.1:1");
        assert_eq!(causes(&plain), "--listen 127.0.0.1:1: address in use");
        // As of a library whose message holds its source's.
        #[derive(Debug)]
        struct Telling(std::io::Error);
        impl std::fmt::Display for Telling {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "cannot listen: {}", self.0)
            }
        }
        impl std::error::Error for Telling {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let named = anyhow::anyhow!("kernel.deb: no such file").context("kernel.deb");
        assert_eq!(causes(&named), "kernel.deb: no such file");
        let telling = anyhow::Error::from(Telling(io())).context("the API");
        assert_eq!(causes(&telling), "the API: cannot listen: address in use");
    }
}
