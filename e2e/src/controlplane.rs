//! The real control plane (etcd, kube-apiserver, kube-controller-manager) in a temporary directory.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::pki::Pki;
use crate::process::{Process, free_port};
use crate::wait::{self, Seen};

/// How long the API server may take to become ready, on a machine that is busy with other tests.
const START_LIMIT: Duration = Duration::from_secs(120);

/// A running control plane. Dropping it ends its processes and removes its directory.
#[derive(Debug)]
pub struct ControlPlane {
    // Dropped in this order: clients before servers, the directory last.
    _manager: Process,
    _apiserver: Process,
    _etcd: Process,
    kubeconfig: String,
    _dir: TempDir,
}

/// Whether `scripts/controlplane` has built the binary.
pub fn available() -> bool {
    crate::cached_binary("kube-apiserver").is_some()
}

impl ControlPlane {
    /// Starts a control plane on free ports and waits until it is ready.
    pub async fn start() -> Result<ControlPlane> {
        Self::start_with(&["--unsafe-no-fsync"]).await
    }

    /// As `start`, but what the API acknowledges is safe on disk, as it is in earnest.
    pub async fn start_durable() -> Result<ControlPlane> {
        Self::start_with(&[]).await
    }

    async fn start_with(etcd_flags: &[&str]) -> Result<ControlPlane> {
        let mut failure = None;
        // A free port may be taken by someone else before the server binds it.
        for _ in 0..3 {
            match Self::start_once(etcd_flags).await {
                Ok(started) => return Ok(started),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("unreachable: the loop runs")?)
    }

    async fn start_once(etcd_flags: &[&str]) -> Result<ControlPlane> {
        let dir = tempfile::Builder::new().prefix("vmlet-controlplane.").tempdir()?;
        let pki = Pki::create(&dir.path().join("pki"))?;
        let (client, peer, port, unused) = (free_port()?, free_port()?, free_port()?, free_port()?);

        let etcd_url = format!("http://127.0.0.1:{client}");
        let peer_url = format!("http://127.0.0.1:{peer}");
        let mut command = binary("etcd")?;
        command
            .arg("--data-dir")
            .arg(dir.path().join("etcd"))
            .args(["--listen-client-urls", &etcd_url, "--advertise-client-urls", &etcd_url])
            .args([
                "--listen-peer-urls",
                &peer_url,
                "--initial-advertise-peer-urls",
                &peer_url,
            ])
            .args(["--initial-cluster", &format!("default={peer_url}")])
            .args(etcd_flags);
        let mut etcd = Process::spawn("etcd", command, &dir.path().join("etcd.log"))?;

        let mut command = binary("kube-apiserver")?;
        command
            .arg(format!("--etcd-servers={etcd_url}"))
            .args([
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                &format!("--secure-port={port}"),
            ])
            .arg(flag("--tls-cert-file", &pki.certificate("apiserver")))
            .arg(flag("--tls-private-key-file", &pki.key("apiserver")))
            .arg(flag("--client-ca-file", &pki.certificate("ca")))
            .arg(flag("--service-account-key-file", &pki.service_account_public()))
            .arg(flag("--service-account-signing-key-file", &pki.key("sa")))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .args([
                "--authorization-mode=Node,RBAC",
                "--service-cluster-ip-range=10.96.0.0/16",
            ])
            .args([
                "--enable-admission-plugins=NodeRestriction",
                "--disable-admission-plugins=ServiceAccount",
            ]);
        let mut apiserver = Process::spawn("kube-apiserver", command, &dir.path().join("apiserver.log"))?;

        let kubeconfig = pki.kubeconfig("admin", port);
        let api = crate::client(&kubeconfig).await?;
        let deadline = std::time::Instant::now() + START_LIMIT;
        loop {
            etcd.check()?;
            apiserver.check()?;
            let ready = http::Request::get("/readyz").body(Vec::new())?;
            let last = match api.request_text(ready).await {
                Ok(_) => break,
                Err(error) => error,
            };
            if std::time::Instant::now() > deadline {
                anyhow::bail!(
                    "kube-apiserver is not ready after {START_LIMIT:?}: {last}\n{}",
                    apiserver.log_tail()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }

        let manager_config = dir.path().join("controller-manager.kubeconfig");
        std::fs::write(&manager_config, pki.kubeconfig("controller-manager", port))?;
        let mut command = binary("kube-controller-manager")?;
        for name in [
            "--kubeconfig",
            "--authentication-kubeconfig",
            "--authorization-kubeconfig",
        ] {
            command.arg(flag(name, &manager_config));
        }
        command
            .arg(flag("--service-account-private-key-file", &pki.key("sa")))
            .arg(flag("--root-ca-file", &pki.certificate("ca")))
            .args(["--use-service-account-credentials", "--leader-elect=false", "--bind-address=127.0.0.1"])
            .arg(format!("--secure-port={unused}"))
            // What the suites need of it: garbage collection, namespaces, and what these stand on.
            .arg("--controllers=namespace-controller,garbage-collector-controller,serviceaccount-controller,root-ca-certificate-publisher-controller");
        let manager = Process::spawn("kube-controller-manager", command, &dir.path().join("manager.log"))?;

        // Both suites use the namespace "default"; the server makes it after it says it is ready.
        wait::until("namespace default", START_LIMIT, || async {
            let namespaces: kube::Api<k8s_openapi::api::core::v1::Namespace> = kube::Api::all(api.clone());
            Ok(match namespaces.get_opt("default").await? {
                Some(_) => Seen::Done(()),
                None => Seen::NotYet("absent".into()),
            })
        })
        .await?;
        Ok(ControlPlane {
            _manager: manager,
            _apiserver: apiserver,
            _etcd: etcd,
            kubeconfig,
            _dir: dir,
        })
    }

    /// An administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &str {
        &self.kubeconfig
    }
}

fn binary(name: &str) -> Result<Command> {
    let path =
        crate::cached_binary(name).with_context(|| format!("{name} is not in .cache/bin: run scripts/controlplane"))?;
    Ok(Command::new(path))
}

fn flag(name: &str, value: &Path) -> std::ffi::OsString {
    let mut flag = std::ffi::OsString::from(name);
    flag.push("=");
    flag.push(value);
    flag
}
