//! The server, started once, and what a case gets.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, PostParams};
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use vmlet_apiserver::ApiServer;
use vmlet_e2e::controlplane::ControlPlane;
use vmlet_e2e::kubectl::Kubectl;
use vmlet_e2e::wait::{self, Seen};

use crate::Outcome;

/// How long a case waits for a state, on a machine that is busy with other tests.
pub const LIMIT: Duration = Duration::from_secs(30);

/// No case may take longer, whatever it does.
const CASE_LIMIT: Duration = Duration::from_secs(150);

/// What a case works with: a client and a kubectl in a namespace of the case's own.
#[derive(Clone)]
pub struct Cx {
    pub client: kube::Client,
    pub kubectl: Kubectl,
    pub kubeconfig: String,
    pub namespace: String,
}

impl Cx {
    /// The suite's kind in the case's namespace.
    pub fn widgets(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &widget_resource())
    }

    /// Has the server know vmlet's own kinds.
    pub async fn own_kinds(&self) -> Result<()> {
        for crd in vmlet_crds::all() {
            let text = serde_json::to_string(&crd)?;
            self.kubectl
                .ok_with(&["apply", "--server-side", "-f", "-"], &text)
                .await?;
            let name = format!("crd/{}", crd.name_any());
            let established = ["wait", "--for=condition=Established", "--timeout=20s", &name];
            self.kubectl.ok(&established).await?;
        }
        Ok(())
    }

    /// Creates a widget with this spec.
    pub async fn widget(&self, name: &str, spec: serde_json::Value) -> Result<DynamicObject> {
        Ok(self
            .widgets()
            .create(&PostParams::default(), &widget(name, spec))
            .await?)
    }
}

/// How kube addresses the suite's kind.
pub fn widget_resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("suite.example.org", "v1", "Widget"), "widgets")
}

/// A widget that has not been created.
pub fn widget(name: &str, spec: serde_json::Value) -> DynamicObject {
    DynamicObject::new(name, &widget_resource()).data(json!({"spec": spec}))
}

/// The same as text, for `kubectl -f -`.
pub fn manifest(name: &str, spec: serde_json::Value) -> String {
    json!({"apiVersion": "suite.example.org/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

/// Which API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// kube-apiserver with etcd.
    Real,
    /// The embedded API, served over TLS by this process.
    Embedded,
}

enum Running {
    Real(Box<ControlPlane>),
    Embedded { server: ApiServer, kubeconfig: String },
}

impl Running {
    fn kubeconfig(&self) -> &str {
        match self {
            Running::Real(server) => server.kubeconfig(),
            Running::Embedded { kubeconfig, .. } => kubeconfig,
        }
    }
}

struct Started {
    server: Running,
    dir: TempDir,
}

/// A server, started by the first case that needs it and ended when the suite drops it.
pub struct Server {
    kind: Kind,
    runtime: Runtime,
    started: OnceLock<Result<Started, String>>,
    number: AtomicUsize,
}

impl Server {
    /// Starts nothing yet.
    pub fn new(kind: Kind) -> Result<Server> {
        Ok(Server {
            kind,
            runtime: Runtime::new()?,
            started: OnceLock::new(),
            number: AtomicUsize::new(0),
        })
    }

    /// Runs one case in a namespace of its own.
    pub fn run(&self, kubectl: &Path, case: fn(Cx) -> Outcome) -> Result<()> {
        let started = self.started.get_or_init(|| {
            self.runtime
                .block_on(Started::start(self.kind))
                .map_err(|error| format!("{error:?}"))
        });
        let started = started
            .as_ref()
            .map_err(|error| anyhow::anyhow!("the server does not start: {error}"))?;
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let outcome = self.runtime.block_on(async {
            let cx = started.case(kubectl, number).await?;
            tokio::time::timeout(CASE_LIMIT, case(cx))
                .await
                .context("the case took too long")?
        });
        // kubectl's caches are many small files: beside other cases their removal costs no time.
        let _ = std::fs::remove_dir_all(started.dir.path().join(format!("case-{number}")));
        outcome
    }
}

impl Started {
    async fn start(kind: Kind) -> Result<Started> {
        let dir = tempfile::tempdir()?;
        let server = match kind {
            Kind::Real => Running::Real(Box::new(ControlPlane::start().await?)),
            Kind::Embedded => {
                let server = ApiServer::open(vmlet_apiserver::Config::new(dir.path().join("api"))).await?;
                let address = server.serve(([127, 0, 0, 1], 0).into()).await?;
                let path = dir.path().join("kubeconfig");
                server.write_kubeconfig(address, &path)?;
                let kubeconfig = std::fs::read_to_string(&path)?;
                Running::Embedded { server, kubeconfig }
            }
        };
        let started = Started { server, dir };
        started.install_kind().await?;
        Ok(started)
    }

    /// Applies the CRD and waits until everything about it is served: Established comes first.
    async fn install_kind(&self) -> Result<()> {
        let (_, binary) = vmlet_e2e::kubectl::binaries()
            .into_iter()
            .next()
            .context("no kubectl: run scripts/deps")?;
        let kubectl = Kubectl::new(
            &binary,
            self.server.kubeconfig(),
            &self.dir.path().join("setup"),
            "default",
        )?;
        kubectl
            .ok_with(&["apply", "-f", "-"], include_str!("widgets.yaml"))
            .await?;
        kubectl
            .ok(&[
                "wait",
                "crd/widgets.suite.example.org",
                "--for=condition=Established",
                "--timeout=30s",
            ])
            .await?;
        let client = vmlet_e2e::client(self.server.kubeconfig()).await?;
        for (path, word) in [
            ("/apis", "Widget"),
            ("/openapi/v3", "apis/suite.example.org/v1"),
            ("/openapi/v3/apis/suite.example.org/v1", "millimetres"),
        ] {
            wait::until(&format!("{word} in {path}"), LIMIT, || async {
                let mut request = http::Request::get(path);
                if path == "/apis" {
                    request = request.header(
                        "accept",
                        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
                    );
                }
                let text = client.request_text(request.body(Vec::new())?).await?;
                Ok(if text.contains(word) {
                    Seen::Done(())
                } else {
                    Seen::NotYet(format!("{} bytes without it", text.len()))
                })
            })
            .await?;
        }
        Ok(())
    }

    async fn case(&self, kubectl: &Path, number: usize) -> Result<Cx> {
        let namespace = format!("case-{number}");
        let client = vmlet_e2e::client(self.server.kubeconfig()).await?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let object = serde_json::from_value(json!({"metadata": {"name": namespace}}))?;
        namespaces.create(&PostParams::default(), &object).await?;
        let kubectl = Kubectl::new(
            kubectl,
            self.server.kubeconfig(),
            &self.dir.path().join(&namespace),
            &namespace,
        )?;
        Ok(Cx {
            client,
            kubectl,
            kubeconfig: self.server.kubeconfig().to_owned(),
            namespace,
        })
    }
}

/// Fails with the text when a word is missing in it.
pub fn contains(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "{word:?} is not in:\n{text}");
    }
    Ok(())
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(Ok(Started {
            server: Running::Embedded { server, .. },
            ..
        })) = self.started.get()
        {
            self.runtime.block_on(server.close());
        }
    }
}
