//! The embedded single-node Kubernetes-style API: what kubectl, kube-rs and a node agent need, over one SQLite file.
//!
//! ```text
//!  kubectl ── TLS, token ──┐
//!                          ├── http (paths, bodies, forms) ── objects (verbs) ── storage (SQLite, history)
//!  agent ── in-process ────┘            watch ── cursors into the history ──────────┘
//!                                       collector ── finalizers, owners, namespaces, expiry
//! ```
//! It knows no kinds but the core ones: everything else is a CustomResourceDefinition that was applied to it.
//! Where it and kube-apiserver differ, kube-apiserver is right; the suite in `e2e/tests/api` runs against both.

mod collector;
mod conditions;
mod core;
mod credentials;
mod definitions;
mod discovery;
mod http;
mod managed_fields;
mod names;
mod objects;
mod openapi;
mod ownership;
mod patch;
mod protobuf;
mod registry;
mod reviews;
mod schema;
mod selector;
mod serve;
mod status;
mod storage;
mod table;
mod watch;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use tokio::sync::{Mutex, watch as channel};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::credentials::Credentials;
use crate::registry::{Core, Registry};
use crate::status::{Failure, Subject};
use crate::storage::{Change, Key, Store, StoreError, WriteError};

/// Where the API keeps its things.
#[derive(Clone, Debug)]
pub struct Config {
    data_dir: PathBuf,
}

impl Config {
    /// Everything lives below `data_dir`, which is made when missing: the database, the certificate authority, the token.
    pub fn new(data_dir: impl Into<PathBuf>) -> Config {
        Config {
            data_dir: data_dir.into(),
        }
    }
}

/// Why the API could not be opened or served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file or a socket.
    #[error("{what}: {source}")]
    Io {
        /// Which one.
        what: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// Keys and certificates.
    #[error("{what}: {why}; remove the file and start again to make new ones")]
    Credentials {
        /// Which file.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A first object could not be written.
    #[error("the API's first objects: {0}")]
    Start(String),
}

/// What all requests share.
pub(crate) struct Inner {
    pub store: Store,
    /// What is served; replaced whole when a definition changes.
    pub registry: channel::Sender<Arc<Registry>>,
    /// Held while a definition is judged, written and served: one after the other.
    pub definitions: Mutex<()>,
    pub shutdown: CancellationToken,
    /// Connections and the collector.
    tasks: TaskTracker,
}

/// The API; cheap to clone.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
    credentials: Arc<Credentials>,
}

impl ApiServer {
    /// Opens the database (repairing what a crash left), loads the definitions, and starts the collector.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(config: Config) -> Result<ApiServer, OpenError> {
        let dir = &config.data_dir;
        credentials::make_dir(dir)?;
        let credentials = Arc::new(Credentials::open(dir)?);
        let inner = Arc::new(Inner {
            store: Store::open(dir)?,
            registry: channel::Sender::new(Arc::new(Registry::new(Vec::new(), 0))),
            definitions: Mutex::new(()),
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        inner.reload().await.map_err(|f| OpenError::Start(f.message))?;
        inner.first_namespaces().await?;
        inner.tasks.spawn(collector::run(inner.clone()));
        Ok(ApiServer { inner, credentials })
    }

    /// The API as a service for this process: no TLS, no token.
    pub fn service(&self) -> axum::Router {
        http::router(self.inner.clone())
    }

    /// Serves TLS with a bearer token until [`ApiServer::close`]; returns the bound address.
    ///
    /// # Errors
    /// When the address cannot be bound or the certificate cannot be made.
    pub async fn serve(&self, listen: SocketAddr) -> Result<SocketAddr, OpenError> {
        serve::serve(&self.inner, &self.credentials, listen).await
    }

    /// Writes a kubeconfig for `address` to `path`, readable by its owner only, durably and all at once.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_kubeconfig(&self, address: SocketAddr, path: &Path) -> Result<(), OpenError> {
        credentials::publish(path, self.credentials.kubeconfig(address).as_bytes())
    }

    /// Ends watches and connections, and returns when nothing runs any more. What was acknowledged is stored already.
    pub async fn close(&self) {
        self.inner.shutdown.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

impl Inner {
    /// What a write into a namespace would be refused for.
    pub(crate) async fn require_namespace(&self, name: &str, subject: &Subject<'_>) -> Result<(), Failure> {
        match self.store.write(vec![Change::RequireNamespace(name.to_owned())]).await {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::of_write(error, subject)),
        }
    }

    async fn first_namespaces(&self) -> Result<(), OpenError> {
        for name in NAMESPACES {
            let now = objects::rfc3339(jiff::Timestamp::now());
            let mut object = json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "uid": uuid::Uuid::new_v4().to_string(), "creationTimestamp": now},
            });
            core::prepare_create(Core::Namespace, &mut object);
            core::label_namespace(&mut object);
            let key = Key {
                resource: Arc::from("/namespaces"),
                namespace: String::new(),
                name: name.to_owned(),
            };
            if self.store.get(&key).await?.is_some() {
                continue;
            }
            let change = Change::Create {
                key,
                object,
                expires: None,
            };
            match self.store.write(vec![change]).await {
                Ok(_) | Err(WriteError::Exists) => {}
                Err(error) => return Err(OpenError::Start(error.to_string())),
            }
        }
        Ok(())
    }
}
