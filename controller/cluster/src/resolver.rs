//! References become digests: the status of Image and Kernel.
//!
//! A tag is resolved once per generation of the spec; the digest then holds for the whole cluster. A
//! path has no cluster-wide digest, so its node resolves it, and a URL names its own.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::{Action, Config as ControllerConfig};
use kube::runtime::predicates::generation;
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher::Config as WatchConfig;
use kube::runtime::{Controller, WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use vmlet_artifacts::docker_config;
use vmlet_artifacts::facade::Artifacts;
use vmlet_artifacts::types::{Interest, ResolveWant, Resolved, Source, State};
use vmlet_crds::{
    Image, Kernel, ObjectRef as Reference, PullSecretError, ResolvedSource, is_another_object, pull_secret_configs,
    status_patch,
};

use crate::condition::condition;
use crate::{FIELD_MANAGER, WatchEnded};

/// Most objects that are looked at at once.
const CONCURRENCY: u16 = 4;
/// How soon a missing secret is looked for again.
const POLL: Duration = Duration::from_secs(10);

/// Image or Kernel: an object with a source that is to be resolved.
pub trait Sourced:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
    /// Prefix of the interest under which its resolution is asked for.
    const INTEREST: &'static str;
    /// Where it comes from.
    fn source(&self) -> &vmlet_crds::Source;
    /// Its pull secrets.
    fn pull_secret_refs(&self) -> &[Reference];
    /// What its status says: generation, conditions, digest.
    fn seen(&self) -> Seen;
}

/// What a status says now.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// observedGeneration.
    pub generation: Option<i64>,
    /// Conditions.
    pub conditions: Vec<Condition>,
    /// The resolution.
    pub resolved: Option<ResolvedSource>,
    /// Compressed size in bytes.
    pub compressed_bytes: Option<i64>,
}

macro_rules! sourced {
    ($kind:ty, $interest:literal) => {
        impl Sourced for $kind {
            const INTEREST: &'static str = $interest;
            fn source(&self) -> &vmlet_crds::Source {
                &self.spec.source
            }
            fn pull_secret_refs(&self) -> &[Reference] {
                &self.spec.pull_secret_refs
            }
            fn seen(&self) -> Seen {
                let status = self.status.clone().unwrap_or_default();
                Seen {
                    generation: status.observed_generation,
                    conditions: status.conditions,
                    resolved: status.resolved,
                    compressed_bytes: status.compressed_bytes,
                }
            }
        }
    };
}

sourced!(Image, "image");
sourced!(Kernel, "kernel");

struct Context<K: Sourced> {
    client: Client,
    artifacts: Artifacts,
    names: Mutex<HashMap<String, ObjectRef<K>>>,
}

/// Resolves all objects of a kind until `shutdown`.
pub(crate) async fn run<K: Sourced>(
    client: Client,
    artifacts: Artifacts,
    wakes: mpsc::Receiver<String>,
    shutdown: CancellationToken,
) -> Result<(), WatchEnded> {
    let cx = Arc::new(Context {
        client: client.clone(),
        artifacts,
        names: Mutex::new(HashMap::<String, ObjectRef<K>>::new()),
    });
    let (reader, writer) = reflector::store();
    let stream = watcher(Api::<K>::all(client), WatchConfig::default())
        .default_backoff()
        .modify(|object| object.managed_fields_mut().clear())
        .reflect(writer)
        .applied_objects()
        .predicate_filter(generation, Default::default());
    let names = Arc::clone(&cx);
    let wakes = ReceiverStream::new(wakes).filter_map(move |uid| {
        let found = names
            .names
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&uid)
            .cloned();
        async move { found }
    });
    let controller = Controller::for_stream(stream, reader)
        .with_config(ControllerConfig::default().concurrency(CONCURRENCY))
        .reconcile_on(wakes)
        .graceful_shutdown_on(shutdown.clone().cancelled_owned())
        .run(reconcile::<K>, error_policy::<K>, cx);
    controller.for_each(|_| async {}).await;
    if shutdown.is_cancelled() {
        Ok(())
    } else {
        Err(WatchEnded(K::INTEREST))
    }
}

fn error_policy<K: Sourced>(object: Arc<K>, error: &kube::Error, _: Arc<Context<K>>) -> Action {
    tracing::warn!(object = %object.name_any(), kind = K::INTEREST, %error, "could not be resolved yet; tried again");
    Action::requeue(Duration::from_secs(5))
}

async fn reconcile<K: Sourced>(object: Arc<K>, cx: Arc<Context<K>>) -> Result<Action, kube::Error> {
    let Some(uid) = object.uid() else {
        return Ok(Action::await_change());
    };
    let who = Interest(format!("{}/{uid}", K::INTEREST));
    if object.meta().deletion_timestamp.is_some() {
        cx.artifacts.release(&who).await;
        cx.names.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
        return Ok(Action::await_change());
    }
    cx.names
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(uid.clone(), ObjectRef::from_obj(object.as_ref()));
    let seen = object.seen();
    let (outcome, next) = resolve(object.as_ref(), &seen, &who, &cx).await?;
    write_status(object.as_ref(), &uid, &seen, &outcome, &cx).await?;
    Ok(next)
}

/// How a resolution went.
#[derive(Debug, PartialEq)]
enum Outcome {
    Resolved {
        resolved: Option<ResolvedSource>,
        compressed_bytes: Option<i64>,
        reason: &'static str,
    },
    Waiting(String),
    Failed {
        reason: String,
        message: String,
    },
}

async fn resolve<K: Sourced>(
    object: &K,
    seen: &Seen,
    who: &Interest,
    cx: &Context<K>,
) -> Result<(Outcome, Action), kube::Error> {
    let declared = object.source();
    if let Some(http) = &declared.http {
        let resolved = ResolvedSource {
            reference: http.url.clone(),
            digest: format!("sha256:{}", http.sha256),
            ..ResolvedSource::default()
        };
        return Ok((
            Outcome::Resolved {
                resolved: Some(resolved),
                compressed_bytes: None,
                reason: "DigestGiven",
            },
            Action::await_change(),
        ));
    }
    let Some(oci) = &declared.oci else {
        return Ok((
            Outcome::Resolved {
                resolved: None,
                compressed_bytes: None,
                reason: "ResolvedByNode",
            },
            Action::await_change(),
        ));
    };
    if seen.generation == object.meta().generation && seen.resolved.is_some() {
        // One digest per tag: what is resolved stays until the spec changes.
        let outcome = Outcome::Resolved {
            resolved: seen.resolved.clone(),
            compressed_bytes: seen.compressed_bytes,
            reason: "Resolved",
        };
        return Ok((outcome, Action::await_change()));
    }
    let namespace = object.namespace().unwrap_or_default();
    let mut credentials = Vec::new();
    match pull_secret_configs(&cx.client, &namespace, object.pull_secret_refs()).await {
        Err(PullSecretError::Api(error)) => return Err(error),
        Err(PullSecretError::Unusable(message)) => {
            return Ok((
                Outcome::Failed {
                    reason: "PullSecretUnusable".to_owned(),
                    message,
                },
                Action::requeue(POLL),
            ));
        }
        Ok(configs) => {
            for config in configs {
                match docker_config::parse(&config) {
                    Ok(parsed) => credentials.extend(parsed),
                    Err(error) => {
                        let message = format!("a pull secret is no docker configuration: {error}");
                        return Ok((
                            Outcome::Failed {
                                reason: "PullSecretUnusable".to_owned(),
                                message,
                            },
                            Action::requeue(POLL),
                        ));
                    }
                }
            }
        }
    }
    let source = Source::Oci {
        reference: oci.reference.clone(),
        platform: oci.platform.clone(),
    };
    Ok(
        match cx.artifacts.resolve(who, ResolveWant { source, credentials }).await {
            State::Ready(resolved) => (found(&resolved), Action::await_change()),
            // Its end wakes us; this is the net below.
            State::Waiting(waiting) => (
                Outcome::Waiting(waiting.message),
                Action::requeue(Duration::from_secs(30)),
            ),
            State::Failed(failure) => {
                let wait =
                    failure.retry_at.duration_since(SystemTime::now()).unwrap_or_default() + Duration::from_millis(50);
                (
                    Outcome::Failed {
                        reason: failure.reason,
                        message: failure.message,
                    },
                    Action::requeue(wait),
                )
            }
        },
    )
}

fn found(resolved: &Resolved) -> Outcome {
    Outcome::Resolved {
        resolved: Some(ResolvedSource {
            reference: resolved.reference.clone(),
            digest: resolved.digest.clone(),
            media_type: resolved.media_type.clone(),
            platform: resolved.platform.clone(),
        }),
        compressed_bytes: i64::try_from(resolved.compressed_size).ok(),
        reason: "Resolved",
    }
}

async fn write_status<K: Sourced>(
    object: &K,
    uid: &str,
    seen: &Seen,
    outcome: &Outcome,
    cx: &Context<K>,
) -> Result<(), kube::Error> {
    let generation = object.meta().generation;
    let make = |type_, status, reason: &str, message: &str| {
        condition(&seen.conditions, type_, status, reason, message, generation)
    };
    let both = |status, reason: &str, message: &str| {
        vec![
            make("Resolved", status, reason, message),
            make("Ready", status, reason, message),
        ]
    };
    let (conditions, resolved, bytes) = match outcome {
        Outcome::Resolved {
            resolved,
            compressed_bytes,
            reason,
        } => (both("True", reason, ""), resolved.clone(), *compressed_bytes),
        Outcome::Waiting(message) => (both("Unknown", "Resolving", message), None, None),
        Outcome::Failed { reason, message } => (both("False", reason, message), None, None),
    };
    let mut status = json!({"observedGeneration": generation, "conditions": conditions});
    if let Some(resolved) = resolved {
        status["resolved"] = json!(resolved);
    }
    if let Some(bytes) = bytes {
        status["compressedBytes"] = json!(bytes);
    }
    let patch = status_patch(uid, &status).map_err(kube::Error::SerdeError)?;
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let api: Api<K> = Api::namespaced(cx.client.clone(), &object.namespace().unwrap_or_default());
    match api
        .patch_status(&object.name_any(), &params, &Patch::<()>::Json(patch))
        .await
    {
        Err(error) if !is_another_object(&error) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}
