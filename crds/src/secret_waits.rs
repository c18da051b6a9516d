//! Waiting for a secret to change: one that is missing or cannot be used, or whose change is to be followed.
//!
//! Only metadata is watched, only of the one secret that an object names, and only while somebody depends on
//! it: a controller never holds secrets that it does not need at the moment. A role without the right to watch
//! secrets costs nothing but time: callers look again by themselves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// A secret as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenSecret {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its resourceVersion; `None`: it did not exist.
    pub version: Option<String>,
}

/// Watches over secrets on behalf of those that depend on them. Clones share their state; when the last one goes, so
/// do the watches.
#[derive(Clone)]
pub struct SecretWaits(Arc<Inner>);

struct Inner {
    client: Client,
    wake: mpsc::Sender<String>,
    waits: Mutex<Waits>,
}

/// By who waits, and the secret's name.
type Waits = HashMap<(String, String), (SeenSecret, AbortOnDropHandle<()>)>;

impl SecretWaits {
    /// Watches with `client`; who waits is told on `wake`.
    pub fn new(client: Client, wake: mpsc::Sender<String>) -> SecretWaits {
        SecretWaits(Arc::new(Inner {
            client,
            wake,
            waits: Mutex::default(),
        }))
    }

    /// From now on `who` is woken once as soon as the secret is no longer as it was seen. Saying so again changes
    /// nothing. Must be called on a tokio runtime.
    pub fn wait(&self, who: &str, seen: SeenSecret) {
        // No secret can have another name, and in a selector it would mean something else.
        let nameable = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        if !seen.name.chars().all(nameable) {
            return;
        }
        let key = (who.to_owned(), seen.name.clone());
        let mut waits = self.waits();
        if waits
            .get(&key)
            .is_some_and(|(known, task)| *known == seen && !task.is_finished())
        {
            return;
        }
        let (client, wake, what, who) = (self.0.client.clone(), self.0.wake.clone(), seen.clone(), who.to_owned());
        let task = tokio::spawn(async move {
            changed(client, &what).await;
            // A receiver that is gone is shutting down.
            let _ = wake.send(who).await;
        });
        waits.insert(key, (seen, AbortOnDropHandle::new(task)));
    }

    /// `who` depends on no secret any more.
    pub fn forget(&self, who: &str) {
        self.retain(who, |_| false);
    }

    /// Of all secrets that `who` was to be woken for, only those of these names matter to it by now.
    pub fn retain(&self, who: &str, matters: impl Fn(&str) -> bool) {
        self.waits()
            .retain(|(waiting, name), _| waiting != who || matters(name));
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.0.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns when the secret is no longer as it was seen.
async fn changed(client: Client, seen: &SeenSecret) {
    let api: Api<PartialObjectMeta<Secret>> = Api::namespaced(client, &seen.namespace);
    let config = Config::default().fields(&format!("metadata.name={}", seen.name));
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let mut listed = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(secret)) if secret.resource_version() != seen.version => return,
            Ok(Event::Delete(_)) => return,
            Ok(Event::Init) => listed = None,
            Ok(Event::InitApply(secret)) => listed = secret.resource_version(),
            Ok(Event::InitDone) if listed != seen.version => return,
            // Refused or cut off: the stream tries again, slower and slower.
            Ok(Event::Apply(_) | Event::InitDone) | Err(_) => {}
        }
    }
}
