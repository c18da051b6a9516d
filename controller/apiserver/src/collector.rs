//! What happens after a write, of itself: dependents go with their owners, namespaces and definitions empty before they go,
//! events expire.
//!
//! One task. It follows the history and keeps a set of objects to look at; looking is level-triggered (read, decide, write),
//! so a crash between any two steps is repaired by the look at everything on the next start.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::objects::delete::{Options, Propagation, delete};
use crate::objects::rfc3339;
use crate::registry::{Core, Resource, definition};
use crate::status::Failure;
use crate::storage::{Batch, Change, EventKind, HistoryEvent, Key, ListRequest, Stored, WriteError};
use crate::{Inner, core};

/// After an error (a full disk), and between looks at what expires.
const AGAIN: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(3600);

pub(crate) async fn run(server: Arc<Inner>) {
    let mut collector = Collector {
        cursor: server.store.version(),
        server,
        look: BTreeSet::new(),
        waiting: BTreeSet::new(),
    };
    let mut committed = collector.server.store.committed();
    let mut rest = match collector.start().await {
        Ok(()) => Duration::ZERO,
        Err(failure) => collector.report(&failure),
    };
    let shutdown = collector.server.shutdown.clone();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = committed.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(rest) => {}
        }
        rest = match collector.turn().await {
            Ok(rest) => rest,
            Err(failure) => collector.report(&failure),
        };
    }
}

struct Collector {
    server: Arc<Inner>,
    cursor: u64,
    /// To be looked at.
    look: BTreeSet<Key>,
    /// Being deleted, and waiting for others to go.
    waiting: BTreeSet<Key>,
}

impl Collector {
    fn report(&self, failure: &Failure) -> Duration {
        tracing::warn!(error = failure.message, "collector; tried again in {AGAIN:?}");
        AGAIN
    }

    async fn start(&mut self) -> Result<(), Failure> {
        self.look.extend(self.server.store.with_owners().await?);
        self.look.extend(self.server.store.deleting().await?);
        Ok(())
    }

    /// Follows the history, looks at what has to be looked at; returns how long it may rest.
    async fn turn(&mut self) -> Result<Duration, Failure> {
        loop {
            match self.server.store.changes(self.cursor, None, None).await? {
                Batch::TooOld => {
                    self.cursor = self.server.store.version();
                    self.start().await?;
                }
                Batch::Changes { events, upto } => {
                    for event in &events {
                        self.follow(event).await?;
                    }
                    self.cursor = upto;
                }
            }
            while let Some(key) = self.look.pop_first() {
                if let Err(failure) = self.look_at(&key).await {
                    self.look.insert(key);
                    return Err(failure);
                }
            }
            if self.cursor >= self.server.store.version() {
                return self.expire().await;
            }
        }
    }

    async fn follow(&mut self, event: &HistoryEvent) -> Result<(), Failure> {
        let object: Value = serde_json::from_slice(&event.body).map_err(Failure::internal)?;
        let metadata = &object["metadata"];
        if event.kind == EventKind::Deleted {
            let uid = metadata["uid"].as_str().unwrap_or_default();
            self.look.extend(self.server.store.dependents(uid).await?);
            self.look.append(&mut self.waiting);
            return Ok(());
        }
        let owned = |o: &Value| {
            o["metadata"]["ownerReferences"]
                .as_array()
                .is_some_and(|o| !o.is_empty())
        };
        if owned(&object) || metadata["deletionTimestamp"].is_string() {
            self.look.insert(Key {
                resource: event.resource.clone(),
                namespace: event.namespace.clone(),
                name: event.name.clone(),
            });
        }
        Ok(())
    }

    async fn look_at(&mut self, key: &Key) -> Result<(), Failure> {
        let registry = self.server.registry.borrow().clone();
        let Some(stored) = self.server.store.get(key).await? else {
            return Ok(());
        };
        let object = stored.value()?;
        let Some(resource) = registry.stored_at(&key.resource) else {
            return Ok(());
        };
        let metadata = &object["metadata"];
        if !metadata["deletionTimestamp"].is_string() {
            return self.is_still_owned(&resource, key, &object).await;
        }
        let has = |name: &str| {
            metadata["finalizers"]
                .as_array()
                .is_some_and(|f| f.iter().any(|f| f == name))
        };
        let uid = metadata["uid"].as_str().unwrap_or_default();
        let done = match resource.core {
            Some(Core::Namespace) => return self.empty(&resource, key, &stored).await,
            Some(Core::Definition) if has(definition::CLEANUP) => {
                let content = self.instances(&object).await?;
                self.delete_all(&content).await?;
                self.instances(&object).await?.is_empty()
            }
            _ if has("orphan") => {
                self.orphan(uid).await?;
                true
            }
            _ if has("foregroundDeletion") => self.foreground(uid).await?,
            _ => return Ok(()),
        };
        if !done {
            self.waiting.insert(key.clone());
            return Ok(());
        }
        let mut released = object.clone();
        release(&resource, &mut released);
        if released != object {
            let written = self.change(&resource, key, stored.version, released).await?;
            if !written {
                self.look.insert(key.clone());
            }
        }
        Ok(())
    }

    /// Deletes what is in a namespace, and says in its status what is left; releases it when nothing is.
    async fn empty(&mut self, resource: &Resource, key: &Key, stored: &Stored) -> Result<(), Failure> {
        let content = self.server.store.in_namespace(&key.name).await?;
        let deleted = self.delete_all(&content).await;
        let mut remaining = core::Remaining::default();
        remaining
            .failures
            .extend(deleted.as_ref().err().map(|f| f.message.clone()));
        for key in self.server.store.in_namespace(&key.name).await? {
            let Some(left) = self.server.store.get(&key).await? else {
                continue;
            };
            let (group, plural) = key.resource.split_once('/').unwrap_or_default();
            *remaining.resources.entry(format!("{plural}.{group}")).or_default() += 1;
            let left = left.value()?;
            let finalizers = left["metadata"]["finalizers"].as_array();
            for finalizer in finalizers.into_iter().flatten().filter_map(Value::as_str) {
                *remaining.finalizers.entry(finalizer.to_owned()).or_default() += 1;
            }
        }
        let before = stored.value()?;
        let mut object = before.clone();
        core::say_remaining(&mut object, &remaining, &rfc3339(jiff::Timestamp::now()));
        if remaining.resources.is_empty() {
            release(resource, &mut object);
        } else {
            self.waiting.insert(key.clone());
        }
        if object != before && !self.change(resource, key, stored.version, object).await? {
            self.look.insert(key.clone());
        }
        deleted
    }

    /// An object goes when it has owners and none of them exists any more.
    async fn is_still_owned(&self, resource: &Resource, key: &Key, object: &Value) -> Result<(), Failure> {
        let owners = object["metadata"]["ownerReferences"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let uids: Vec<&str> = owners.iter().filter_map(|o| o["uid"].as_str()).collect();
        for uid in &uids {
            if self.server.store.has_uid(uid).await? {
                return Ok(());
            }
        }
        if uids.is_empty() {
            return Ok(());
        }
        let uid = object["metadata"]["uid"].as_str().map(str::to_owned);
        self.delete(resource, key, uid).await
    }

    async fn instances(&self, definition: &Value) -> Result<Vec<Key>, Failure> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let storage = format!(
            "{}/{}",
            text(&definition["spec"]["group"]),
            text(&definition["spec"]["names"]["plural"])
        );
        let resource: Arc<str> = Arc::from(storage);
        let request = ListRequest {
            resource: resource.clone(),
            namespace: None,
            after: None,
            limit: 0,
        };
        let items = self.server.store.list(request).await?.items;
        let key = |s: Stored| Key {
            resource: resource.clone(),
            namespace: s.namespace,
            name: s.name,
        };
        Ok(items.into_iter().map(key).collect())
    }

    async fn delete_all(&self, keys: &[Key]) -> Result<(), Failure> {
        let registry = self.server.registry.borrow().clone();
        for key in keys {
            match registry.stored_at(&key.resource) {
                Some(resource) => self.delete(&resource, key, None).await?,
                // Its kind is not served any more, and nobody can have a say.
                None => self.remove(key).await?,
            }
        }
        Ok(())
    }

    async fn delete(&self, resource: &Resource, key: &Key, uid: Option<String>) -> Result<(), Failure> {
        let options = Options {
            propagation: Propagation::Background,
            uid,
            version: None,
            dry_run: false,
        };
        match delete(&self.server, resource, key, &options, &rfc3339(jiff::Timestamp::now())).await {
            Ok(_) => Ok(()),
            // Gone, or another object by now.
            Err(failure) if failure.code == 404 || failure.code == 409 => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    async fn remove(&self, key: &Key) -> Result<(), Failure> {
        let Some(stored) = self.server.store.get(key).await? else {
            return Ok(());
        };
        let change = Change::Remove {
            key: key.clone(),
            base: stored.version,
            object: stored.value()?,
        };
        match self.server.store.write(vec![change]).await {
            Ok(_) | Err(WriteError::Missing | WriteError::Changed) => Ok(()),
            Err(error) => Err(Failure::internal(error)),
        }
    }

    /// Takes the owner out of its dependents.
    async fn orphan(&self, uid: &str) -> Result<(), Failure> {
        let registry = self.server.registry.borrow().clone();
        for key in self.server.store.dependents(uid).await? {
            let Some(stored) = self.server.store.get(&key).await? else {
                continue;
            };
            let Some(resource) = registry.stored_at(&key.resource) else {
                continue;
            };
            let mut object = stored.value()?;
            disown(&mut object, uid);
            if !self.change(&resource, &key, stored.version, object).await? {
                return Err(Failure::internal(format!("{key} changed while it was orphaned")));
            }
        }
        Ok(())
    }

    /// Deletes dependents; true when none is left that blocks its owner.
    async fn foreground(&self, uid: &str) -> Result<bool, Failure> {
        let registry = self.server.registry.borrow().clone();
        let mut free = true;
        for key in self.server.store.dependents(uid).await? {
            let Some(stored) = self.server.store.get(&key).await? else {
                continue;
            };
            let object = stored.value()?;
            let Some(resource) = registry.stored_at(&key.resource) else {
                continue;
            };
            let owners = object["metadata"]["ownerReferences"]
                .as_array()
                .map_or(&[][..], Vec::as_slice);
            let ours = owners.iter().find(|o| o["uid"] == uid);
            if owners.len() > 1 {
                // Others own it too: it stays, and only loses this owner.
                let mut object = object.clone();
                disown(&mut object, uid);
                if !self.change(&resource, &key, stored.version, object).await? {
                    free = false;
                }
                continue;
            }
            self.delete(&resource, &key, object["metadata"]["uid"].as_str().map(str::to_owned))
                .await?;
            let blocks = ours.is_some_and(|o| o["blockOwnerDeletion"] == true);
            free &= !blocks || self.server.store.get(&key).await?.is_none();
        }
        Ok(free)
    }

    /// Writes a change of the server's own; false when someone else was faster.
    async fn change(&self, resource: &Resource, key: &Key, base: u64, object: Value) -> Result<bool, Failure> {
        let definition = resource.core == Some(Core::Definition);
        let _turn = if definition {
            Some(self.server.definitions.lock().await)
        } else {
            None
        };
        let change = if crate::objects::may_go(&object) {
            Change::Remove {
                key: key.clone(),
                base,
                object,
            }
        } else {
            Change::Update {
                key: key.clone(),
                base,
                object,
                expires: None,
            }
        };
        match self.server.store.write(vec![change]).await {
            Ok(_) if definition => self.server.reload().await.map(|()| true),
            Ok(_) => Ok(true),
            Err(WriteError::Missing | WriteError::Changed) => Ok(false),
            Err(error) => Err(Failure::internal(error)),
        }
    }

    async fn expire(&mut self) -> Result<Duration, Failure> {
        let now = jiff::Timestamp::now().as_second();
        let (keys, next) = self.server.store.expired(now).await?;
        for key in &keys {
            self.remove(key).await?;
        }
        let wait = match next {
            Some(next) => Duration::from_secs(u64::try_from(next - now).unwrap_or(0)),
            None => LONGEST,
        };
        Ok(wait.clamp(Duration::from_secs(1), LONGEST))
    }
}

/// Takes away the finalizers that are the server's own.
fn release(resource: &Resource, object: &mut Value) {
    let own = match resource.core {
        Some(Core::Namespace) => {
            if let Some(finalizers) = object["spec"]["finalizers"].as_array_mut() {
                finalizers.retain(|f| f != "kubernetes");
            }
            &["foregroundDeletion", "orphan"][..]
        }
        Some(Core::Definition) => &[definition::CLEANUP, "foregroundDeletion", "orphan"],
        _ => &["foregroundDeletion", "orphan"],
    };
    if let Some(finalizers) = object["metadata"]["finalizers"].as_array_mut() {
        finalizers.retain(|f| !own.iter().any(|o| f == o));
        if finalizers.is_empty()
            && let Some(metadata) = object["metadata"].as_object_mut()
        {
            metadata.remove("finalizers");
        }
    }
}

/// Takes an owner out of an object's references.
fn disown(object: &mut Value, uid: &str) {
    if let Some(metadata) = object["metadata"].as_object_mut()
        && let Some(owners) = metadata.get_mut("ownerReferences").and_then(Value::as_array_mut)
    {
        owners.retain(|o| o["uid"] != uid);
        if owners.is_empty() {
            metadata.remove("ownerReferences");
        }
    }
}
