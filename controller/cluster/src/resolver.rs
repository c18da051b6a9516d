//! References become digests: the status of Image and Kernel.
//!
//! A tag is resolved once per generation of the spec; the digest then holds for the whole cluster. A
//! path has no cluster-wide digest, so its node resolves it, and a URL names its own. What only a node can see of
//! it gets here as a finding (see [`findings`](crate::findings)).

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use vmlet_artifacts::error::Reason;
use vmlet_artifacts::facade::Artifacts;
use vmlet_artifacts::types::{Interest, ResolveWant, Resolved, Source, State};
use vmlet_crds::{
    Image, Kernel, ObjectRef as Reference, PullSecretError, ResolvedSource, SecretWaits, SeenSecret, is_another_object,
    pull_secret_configs, status_patch, with_next_try,
};

use crate::condition::condition;
use crate::findings::{Finding, Findings, Kind};
use crate::{FIELD_MANAGER, WatchEnded};

/// Most objects that are looked at at once.
const CONCURRENCY: u16 = 4;
/// How soon a missing secret is looked for again where it cannot be watched.
pub(crate) const POLL: Duration = Duration::from_secs(10);
/// Wake-ups by secrets that may be on their way at once; who sends them waits beyond that.
const SECRET_WAKES: usize = 64;

/// Image or Kernel: an object with a source that is to be resolved.
pub trait Sourced:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
    /// Prefix of the interest under which its resolution is asked for.
    const INTEREST: &'static str;
    /// Which it is, for findings.
    const KIND: Kind;
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
    ($kind:ty, $interest:literal, $of:expr) => {
        impl Sourced for $kind {
            const INTEREST: &'static str = $interest;
            const KIND: Kind = $of;
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

sourced!(Image, "image", Kind::Image);
sourced!(Kernel, "kernel", Kind::Kernel);

struct Context<K: Sourced> {
    client: Client,
    artifacts: Artifacts,
    names: Mutex<HashMap<String, ObjectRef<K>>>,
    findings: Findings,
    secrets: SecretWaits,
}

impl<K: Sourced> Context<K> {
    /// The objects that are there and not being deleted, by uid.
    fn names(&self) -> MutexGuard<'_, HashMap<String, ObjectRef<K>>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What wakes a resolver beside the watch of its kind.
pub(crate) struct Wakes {
    /// Uids of what was resolved, or could not be.
    pub uids: mpsc::Receiver<String>,
    /// Namespace and name of that of which a node found something.
    pub found: mpsc::Receiver<(String, String)>,
}

/// Resolves all objects of a kind until `shutdown`.
pub(crate) async fn run<K: Sourced>(
    client: Client,
    artifacts: Artifacts,
    findings: Findings,
    wakes: Wakes,
    shutdown: CancellationToken,
) -> Result<(), WatchEnded> {
    let (secret_wake, secret_wakes) = mpsc::channel(SECRET_WAKES);
    let cx = Arc::new(Context {
        client: client.clone(),
        artifacts,
        names: Mutex::new(HashMap::<String, ObjectRef<K>>::new()),
        findings,
        secrets: SecretWaits::new(client.clone(), secret_wake),
    });
    let (reader, writer) = reflector::store();
    let (tracked, store) = (Arc::clone(&cx), reader.clone());
    let stream = watcher(Api::<K>::all(client), WatchConfig::default())
        .default_backoff()
        .modify(|object| object.managed_fields_mut().clear())
        .reflect(writer)
        .then(move |event| {
            let (cx, store) = (Arc::clone(&tracked), store.clone());
            async move {
                if let Ok(event) = &event {
                    track(event, &store, &cx).await;
                }
                event
            }
        })
        .applied_objects()
        .predicate_filter(generation, Default::default());
    let names = Arc::clone(&cx);
    let uids = futures::stream::select(ReceiverStream::new(wakes.uids), ReceiverStream::new(secret_wakes));
    let uids = uids.filter_map(move |uid| {
        let found = names.names().get(&uid).cloned();
        async move { found }
    });
    let found = ReceiverStream::new(wakes.found).map(|(namespace, name)| ObjectRef::new(&name).within(&namespace));
    let wakes = futures::stream::select(uids, found);
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
    tracing::warn!(object = %object.name_any(), kind = K::INTEREST, error = vmlet_crds::in_words(error), "could not be resolved yet; tried again");
    Action::requeue(Duration::from_secs(5))
}

/// Keeps `names` to what is there and stays, and gives up what was asked for the rest. Image and Kernel carry no
/// finalizer: that one is gone is told by the watch alone, or by a list without it after the watch was cut.
async fn track<K: Sourced>(event: &watcher::Event<K>, store: &reflector::Store<K>, cx: &Context<K>) {
    match event {
        watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
            let Some(uid) = object.uid() else { return };
            if object.meta().deletion_timestamp.is_some() {
                forget(&uid, cx).await;
            } else {
                cx.names().insert(uid, ObjectRef::from_obj(object));
            }
        }
        watcher::Event::Delete(object) => {
            if let Some(uid) = object.uid() {
                forget(&uid, cx).await;
            }
        }
        watcher::Event::Init => {}
        watcher::Event::InitDone => {
            let there: HashSet<String> = store.state().iter().filter_map(|object| object.uid()).collect();
            let gone: Vec<String> = {
                let names = cx.names();
                names.keys().filter(|uid| !there.contains(*uid)).cloned().collect()
            };
            for uid in gone {
                forget(&uid, cx).await;
            }
        }
    }
}

/// Nobody waits any more for what this object names.
async fn forget<K: Sourced>(uid: &str, cx: &Context<K>) {
    // First the name: a visit that is under way looks for it when it has asked.
    cx.names().remove(uid);
    cx.secrets.forget(uid);
    cx.artifacts.release(&interest::<K>(uid)).await;
}

fn interest<K: Sourced>(uid: &str) -> Interest {
    Interest(format!("{}/{uid}", K::INTEREST))
}

async fn reconcile<K: Sourced>(object: Arc<K>, cx: Arc<Context<K>>) -> Result<Action, kube::Error> {
    let Some(uid) = object.uid().filter(|uid| cx.names().contains_key(uid)) else {
        return Ok(Action::await_change());
    };
    cx.secrets.forget(&uid);
    let seen = object.seen();
    let outcome = resolve(object.as_ref(), &seen, &interest::<K>(&uid), &cx).await;
    if !cx.names().contains_key(&uid) {
        // It went while this visit asked.
        forget(&uid, &cx).await;
        return Ok(Action::await_change());
    }
    let outcome = outcome?;
    let namespace = object.namespace().unwrap_or_default();
    let finding = cx.findings.about(&(K::KIND, namespace, object.name_any()));
    let status = status(object.as_ref(), &seen, &outcome, finding.as_ref());
    write_status(object.as_ref(), &uid, &status, &cx).await?;
    Ok(match outcome {
        Outcome::Resolved { .. } => Action::await_change(),
        // Its end wakes us; this is the net below.
        Outcome::Waiting(_) => Action::requeue(Duration::from_secs(30)),
        Outcome::Failed { retry_at: Some(at), .. } => {
            Action::requeue(at.duration_since(SystemTime::now()).unwrap_or_default() + Duration::from_millis(50))
        }
        Outcome::Failed { retry_at: None, .. } => Action::requeue(POLL),
    })
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
        /// None: something wakes us.
        retry_at: Option<SystemTime>,
    },
}

/// Credentials, and the secrets that they are from.
type Credentials = (Vec<vmlet_artifacts::types::Credential>, Vec<SeenSecret>);

async fn resolve<K: Sourced>(object: &K, seen: &Seen, who: &Interest, cx: &Context<K>) -> Result<Outcome, kube::Error> {
    let declared = object.source();
    if let Some(http) = &declared.http {
        let source = Source::Http {
            url: http.url.clone(),
            sha256: http.sha256.clone(),
        };
        let resolved = ResolvedSource {
            // Without what may be a password or a signature.
            reference: source.to_string(),
            digest: format!("sha256:{}", http.sha256),
            ..ResolvedSource::default()
        };
        return Ok(Outcome::Resolved {
            resolved: Some(resolved),
            compressed_bytes: None,
            reason: "DigestGiven",
        });
    }
    let Some(oci) = &declared.oci else {
        return Ok(Outcome::Resolved {
            resolved: None,
            compressed_bytes: None,
            reason: "ResolvedByNode",
        });
    };
    if seen.generation == object.meta().generation && seen.resolved.is_some() {
        // One digest per tag: what is resolved stays until the spec changes.
        return Ok(Outcome::Resolved {
            resolved: seen.resolved.clone(),
            compressed_bytes: seen.compressed_bytes,
            reason: "Resolved",
        });
    }
    let (credentials, secrets) = match credentials(object, cx).await? {
        Ok(found) => found,
        Err(outcome) => return Ok(outcome),
    };
    let source = Source::Oci {
        reference: oci.reference.clone(),
        platform: oci.platform.clone(),
    };
    Ok(
        match cx.artifacts.resolve(who, ResolveWant { source, credentials }).await {
            State::Ready(resolved) => found(&resolved),
            State::Waiting(waiting) => Outcome::Waiting(waiting.message),
            State::Failed(failure) => {
                if failure.reason == Reason::Unauthorized.as_str() {
                    // A login that is refused may be put right in its secret.
                    for seen in secrets {
                        cx.secrets.wait(&object.uid().unwrap_or_default(), seen);
                    }
                }
                Outcome::Failed {
                    reason: failure.reason,
                    message: failure.message,
                    retry_at: Some(failure.retry_at),
                }
            }
        },
    )
}

/// The credentials of the pull secrets, or what is wrong with one of them.
async fn credentials<K: Sourced>(object: &K, cx: &Context<K>) -> Result<Result<Credentials, Outcome>, kube::Error> {
    let unusable = |message, seen| {
        cx.secrets.wait(&object.uid().unwrap_or_default(), seen);
        Ok(Err(Outcome::Failed {
            reason: "PullSecretUnusable".to_owned(),
            message,
            retry_at: None,
        }))
    };
    let namespace = object.namespace().unwrap_or_default();
    let secrets = match pull_secret_configs(&cx.client, &namespace, object.pull_secret_refs()).await {
        Ok(secrets) => secrets,
        Err(PullSecretError::Api(error)) => return Err(error),
        Err(PullSecretError::Unusable { message, seen }) => return unusable(message, seen),
    };
    let secrets = secrets.into_iter().map(|secret| (secret.seen, secret.config));
    match docker_config::parse_secrets(secrets, |seen| &seen.name) {
        Ok(found) => Ok(Ok(found)),
        Err((seen, message)) => unusable(message, seen),
    }
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

/// Status, reason and message of a condition.
type Word = (&'static str, String, String);

/// What `Resolved` and `Ready` say. Ready is Resolved, unless a node knows better.
fn words(kind: &str, name: &str, outcome: &Outcome, finding: Option<&Finding>) -> (Word, Word) {
    let word = |status, reason: &str, message: &str| (status, reason.to_owned(), message.to_owned());
    match (outcome, finding) {
        (Outcome::Waiting(message), _) => {
            let both = word("Unknown", "Resolving", message);
            (both.clone(), both)
        }
        (
            Outcome::Failed {
                reason,
                message,
                retry_at,
            },
            _,
        ) => {
            let message = retry_at.map_or_else(|| message.clone(), |at| with_next_try(message, at));
            let both = word("False", reason, &message);
            (both.clone(), both)
        }
        (Outcome::Resolved { resolved, reason, .. }, finding) => {
            let by_node = resolved.is_none();
            let resolved = if by_node {
                let message = "each node looks for a path itself, when a virtual machine there needs it";
                word("Unknown", reason, message)
            } else {
                word("True", reason, "")
            };
            let ready = match finding {
                Some(Finding::Wrong { node, reason, message }) => {
                    let alone = message.strip_prefix(&format!("{kind} \"{name}\": ")).unwrap_or(message);
                    word("False", reason, &format!("on node {node}: {alone}"))
                }
                Some(Finding::Present { node }) if by_node => {
                    word("True", "Present", &format!("on node {node}, by its path there"))
                }
                Some(Finding::Present { .. }) | None => resolved.clone(),
            };
            (resolved, ready)
        }
    }
}

fn status<K: Sourced>(object: &K, seen: &Seen, outcome: &Outcome, finding: Option<&Finding>) -> serde_json::Value {
    let generation = object.meta().generation;
    let (resolved, ready) = words(K::INTEREST, &object.name_any(), outcome, finding);
    let conditions: Vec<Condition> = [("Resolved", resolved), ("Ready", ready)]
        .into_iter()
        .map(|(type_, (status, reason, message))| {
            condition(&seen.conditions, type_, status, &reason, &message, generation)
        })
        .collect();
    let mut status = json!({"observedGeneration": generation, "conditions": conditions});
    if let Outcome::Resolved {
        resolved,
        compressed_bytes,
        ..
    } = outcome
    {
        if let Some(resolved) = resolved {
            status["resolved"] = json!(resolved);
        }
        if let Some(bytes) = compressed_bytes {
            status["compressedBytes"] = json!(bytes);
        }
    }
    status
}

async fn write_status<K: Sourced>(
    object: &K,
    uid: &str,
    status: &serde_json::Value,
    cx: &Context<K>,
) -> Result<(), kube::Error> {
    let patch = status_patch(uid, status).map_err(kube::Error::SerdeError)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong() -> Finding {
        Finding::Wrong {
            node: "n".into(),
            reason: "MissingFile".into(),
            message: "kernel \"k\": path x.tar: there is no boot/none in it".into(),
        }
    }

    fn by_node() -> Outcome {
        Outcome::Resolved {
            resolved: None,
            compressed_bytes: None,
            reason: "ResolvedByNode",
        }
    }

    fn resolved() -> Outcome {
        Outcome::Resolved {
            resolved: Some(ResolvedSource::default()),
            compressed_bytes: None,
            reason: "Resolved",
        }
    }

    fn said(outcome: &Outcome, finding: Option<&Finding>) -> [(&'static str, String); 2] {
        let (resolved, ready) = words("kernel", "k", outcome, finding);
        [(resolved.0, resolved.1), (ready.0, ready.1)]
    }

    #[test]
    fn a_path_is_ready_when_a_node_has_it_and_unknown_until_one_has_looked() {
        let unknown = ("Unknown", "ResolvedByNode".to_owned());
        assert_eq!(said(&by_node(), None), [unknown.clone(), unknown.clone()]);
        let present = Finding::Present { node: "n".into() };
        assert_eq!(
            said(&by_node(), Some(&present)),
            [unknown.clone(), ("True", "Present".to_owned())]
        );
        assert_eq!(
            said(&by_node(), Some(&wrong())),
            [unknown, ("False", "MissingFile".to_owned())]
        );
    }

    #[test]
    fn what_a_node_found_wrong_stands_in_ready_with_the_nodes_name() {
        let (resolved, ready) = words("kernel", "k", &resolved(), Some(&wrong()));
        assert_eq!(resolved.0, "True", "the reference was resolved all the same");
        assert_eq!(
            ready,
            (
                "False",
                "MissingFile".to_owned(),
                "on node n: path x.tar: there is no boot/none in it".to_owned()
            )
        );
        let true_ = ("True", "Resolved".to_owned());
        assert_eq!(said(&super::tests::resolved(), None), [true_.clone(), true_]);
    }

    #[test]
    fn a_failure_says_when_it_is_tried_again_and_a_finding_of_before_does_not_hide_it() {
        let failed = Outcome::Failed {
            reason: "Unavailable".into(),
            message: "r/i:1: connection refused".into(),
            retry_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(10)),
        };
        let (resolved, ready) = words("kernel", "k", &failed, Some(&wrong()));
        assert_eq!(resolved, ready);
        assert_eq!((ready.0, ready.1.as_str()), ("False", "Unavailable"));
        assert_eq!(ready.2, "r/i:1: connection refused; tried again at 00:00:10Z");
    }
}
