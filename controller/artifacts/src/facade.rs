//! The handle that callers use: keyed pulls and the store behind four questions.

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, MutexGuard, mpsc};

use crate::error::{PullError, Reason};
use crate::pipeline::Pipeline;
use crate::pulls::body::{Task, Value, body};
use crate::pulls::core::{Asker, FIRST_PAUSE, Key, LONGEST_PAUSE, Offer, Slot, Slots};
use crate::pulls::identity::{Proof, given_by, hash, image_id, is_digest, kernel_id, registry_of, source_id};
use crate::pulls::manager::Manager;
use crate::pulls::work::{Job, KernelPaths, Work};
use crate::store::record::Artefact;
use crate::store::{Id, OpenError, Policy, Space, Store};
use crate::types::{
    ArtefactKind, Cached, Config, Credential, Failure, ImageDisk, ImageWant, Interest, KernelFiles, KernelWant,
    ResolveWant, Resolved, Source, State, Waiting,
};

/// Resolves at a time, whatever the number of pulls.
const PARALLEL_RESOLVES: usize = 8;
/// Interests are spread over this many locks.
const STRIPES: usize = 64;

/// Images and kernels of this machine. Cheap to clone; when the last clone goes, all pulls are cancelled.
///
/// No method waits for a network or for a pull. What was asked for and became ready or failed is
/// told on the `wake` channel; ask again then. Asking again with the same want is free of charge.
#[derive(Clone)]
pub struct Artifacts {
    inner: Arc<Inner>,
}

struct Inner {
    platform: String,
    work: Arc<dyn Work>,
    store: Store,
    manager: Manager<Task, Value>,
    /// One question of one interest at a time, so that its pins are written in order.
    stripes: Vec<Mutex<()>>,
}

/// How one step of an `ensure` ended.
enum Step<T> {
    Waiting(Waiting),
    Ready(T),
    Failed(Failure),
}

/// What images and kernels have in common when they are asked for.
struct Want {
    kind: ArtefactKind,
    source: Source,
    digest: Option<String>,
    credentials: Vec<Credential>,
    paths: KernelPaths,
}

impl Artifacts {
    /// Opens the store in `config.dir` with vmlet's own pipeline; see [`Artifacts::open_with`].
    ///
    /// # Errors
    /// When the directory cannot be used or the pipeline cannot start.
    pub async fn open(config: Config, wake: mpsc::Sender<Interest>) -> Result<Artifacts, OpenError> {
        let pipeline = Pipeline::new(&config).map_err(|error| OpenError::Pipeline(error.to_string()))?;
        Artifacts::open_with(&config, Arc::new(pipeline), wake).await
    }

    /// Opens the store in `config.dir` with the given pipeline and sweeps what the last process left.
    /// The caller holds the lock that keeps other processes out of the data directory.
    ///
    /// # Errors
    /// When the directory cannot be used. Damage inside it is set aside and reported in the log.
    pub async fn open_with(
        config: &Config,
        work: Arc<dyn Work>,
        wake: mpsc::Sender<Interest>,
    ) -> Result<Artifacts, OpenError> {
        let dir = config.dir.clone();
        let opened = tokio::task::spawn_blocking(move || Store::open(&dir)).await;
        let (store, found) = opened.map_err(|error| OpenError::Io {
            path: config.dir.clone(),
            error: std::io::Error::other(error),
        })??;
        for intent in &found.interrupted {
            tracing::info!(
                source = intent.source,
                digest = intent.digest,
                "a pull was cut off by the last exit"
            );
        }
        let slots = Slots {
            resolves: PARALLEL_RESOLVES,
            pulls: config.max_parallel_pulls,
        };
        let manager = Manager::start(slots, rand::random(), body(store.clone(), work.clone()), wake);
        let stripes = (0..STRIPES).map(|_| Mutex::new(())).collect();
        Ok(Artifacts {
            inner: Arc::new(Inner {
                platform: config.platform.clone(),
                work,
                store,
                manager,
                stripes,
            }),
        })
    }

    /// What a reference means now. The answer stays the same for this interest until it is
    /// released (or asks for something else): ask afresh to see a moved tag.
    pub async fn resolve(&self, who: &Interest, want: ResolveWant) -> State<Resolved> {
        let _turn = self.turn(who, ArtefactKind::Image).await;
        match self
            .resolved(who, Slot::Resolve, &want.source, None, &want.credentials)
            .await
        {
            Step::Waiting(waiting) => State::Waiting(waiting),
            Step::Ready(resolved) => State::Ready(resolved),
            Step::Failed(failure) => State::Failed(failure),
        }
    }

    /// A disk made from an image. Ready means: durable, pinned for `who` until [`Artifacts::unpin`]
    /// or a want of something else, and `who` has shown that it may have it. What is published and
    /// granted needs no network.
    pub async fn ensure_image(&self, who: &Interest, want: ImageWant) -> State<ImageDisk> {
        let ImageWant {
            source,
            digest,
            credentials,
        } = want;
        let want = Want {
            kind: ArtefactKind::Image,
            source,
            digest,
            credentials,
            paths: KernelPaths::default(),
        };
        match self.ensure(who, want).await {
            Step::Ready(Artefact::Image(disk)) => State::Ready(disk),
            Step::Ready(Artefact::Kernel(_)) => State::Failed(mixed_up()),
            Step::Waiting(waiting) => State::Waiting(waiting),
            Step::Failed(failure) => State::Failed(failure),
        }
    }

    /// A kernel, unpacked. Ready means the same as for [`Artifacts::ensure_image`].
    pub async fn ensure_kernel(&self, who: &Interest, want: KernelWant) -> State<KernelFiles> {
        let KernelWant {
            source,
            digest,
            credentials,
            kernel_path,
            initrd_path,
            modules_path,
        } = want;
        let paths = KernelPaths {
            kernel: kernel_path,
            initrd: initrd_path,
            modules: modules_path,
        };
        let want = Want {
            kind: ArtefactKind::Kernel,
            source,
            digest,
            credentials,
            paths,
        };
        match self.ensure(who, want).await {
            Step::Ready(Artefact::Kernel(files)) => State::Ready(files),
            Step::Ready(Artefact::Image(_)) => State::Failed(mixed_up()),
            Step::Waiting(waiting) => State::Waiting(waiting),
            Step::Failed(failure) => State::Failed(failure),
        }
    }

    /// This interest wants nothing in flight any more; its pins stay. What nobody else wants is cancelled.
    pub async fn release(&self, who: &Interest) {
        self.inner.manager.release(who.clone(), None).await;
    }

    /// This interest wants nothing in flight and uses nothing any more. Nothing pinned is fine.
    ///
    /// # Errors
    /// Of the disk; the pins stand then: call it again.
    pub async fn unpin(&self, who: &Interest) -> Result<(), PullError> {
        self.release(who).await;
        let _turns = self.turns(who).await;
        let interest = who.clone();
        self.on_disk(move |store| store.unpin(&interest)).await
    }

    /// What is published, with its users.
    pub async fn inventory(&self) -> Vec<Cached> {
        self.inner.store.inventory()
    }

    /// Everybody who has something pinned: compare it with what exists to find pins to drop.
    pub async fn pinners(&self) -> Vec<Interest> {
        self.inner.store.pinners()
    }

    /// Removes what nobody has pinned and nobody used for `older_than`, and says what.
    ///
    /// # Errors
    /// Of the disk; what was removed until then stays removed.
    pub async fn collect(&self, older_than: Duration) -> Result<Vec<Cached>, PullError> {
        self.on_disk(move |store| store.collect(older_than)).await
    }

    /// Removes what a policy says, by the space that there is, and says what.
    ///
    /// # Errors
    /// Of the disk; what was removed until then stays removed.
    pub async fn collect_by(&self, policy: Policy) -> Result<Vec<Cached>, PullError> {
        self.on_disk(move |store| store.collect_by(&policy)).await
    }

    /// The file system that the store is on.
    ///
    /// # Errors
    /// Of the disk.
    pub async fn space(&self) -> Result<Space, PullError> {
        self.on_disk(|store| store.space()).await
    }

    /// Cancels all pulls and returns when they have ended. Everything asked for afterwards fails.
    pub async fn shutdown(&self) {
        self.inner.manager.shutdown().await;
    }

    async fn ensure(&self, who: &Interest, want: Want) -> Step<Artefact> {
        let _turn = self.turn(who, want.kind).await;
        match self.try_ensure(who, &want).await {
            Ok(step) => step,
            Err(error) => Step::Failed(failure(&error)),
        }
    }

    async fn try_ensure(&self, who: &Interest, want: &Want) -> Result<Step<Artefact>, PullError> {
        let (store, platform) = (&self.inner.store, self.platform(&want.source));
        let (source_slot, slot) = match want.kind {
            ArtefactKind::Image => (Slot::ImageSource, Slot::Image),
            ArtefactKind::Kernel => (Slot::KernelSource, Slot::Kernel),
        };
        let source = source_id(&want.source, platform);
        let proof = Proof::of(&want.source, &want.credentials, store.key());

        let mut proven = false;
        let digest = match self.known_digest(who, want, &source) {
            Some(digest) => digest,
            None => match self
                .resolved(who, source_slot, &want.source, None, &want.credentials)
                .await
            {
                Step::Ready(resolved) => {
                    proven = true;
                    resolved.digest.clone()
                }
                Step::Waiting(waiting) => return Ok(Step::Waiting(waiting)),
                Step::Failed(failure) => return Ok(Step::Failed(failure)),
            },
        };
        if !is_digest(&digest) {
            let message = format!(
                "{}: {digest:?} is not a digest; write sha256:<64 hex digits>",
                want.source
            );
            return Err(PullError::new(Reason::BadReference, message));
        }
        let id = self.identity(want, &digest, platform);
        let there = {
            let id = id.clone();
            self.on_disk(move |store| store.get(&id)).await?
        };
        let Some(artefact) = there else {
            return Ok(self.pulled(who, slot, want, id, digest, proof).await);
        };
        // Whoever holds it has shown that it may: it keeps what it has, also without its credentials.
        let held = store.pin_of(who, want.kind).is_some_and(|pin| pin.id == id.1);
        if !held && !store.is_granted(&id, &proof.0) {
            // Made for somebody else: this asker's own source and credentials must be good for it too.
            let giver = given_by(&want.source);
            if giver.is_some_and(|giver| !store.has_proof(&id, &giver)) {
                return Ok(self.pulled(who, slot, want, id, digest, proof).await);
            }
            if !proven {
                match self
                    .resolved(who, source_slot, &want.source, Some(digest), &want.credentials)
                    .await
                {
                    Step::Ready(_) => {}
                    Step::Waiting(waiting) => return Ok(Step::Waiting(waiting)),
                    Step::Failed(failure) => return Ok(Step::Failed(failure)),
                }
            }
            let id = id.clone();
            self.on_disk(move |store| store.grant(&id, [proof.0].into())).await?;
        }
        let (interest, pinned) = (who.clone(), id.clone());
        if !self
            .on_disk(move |store| store.pin(&interest, &pinned, &source))
            .await?
        {
            let message = format!("{} was removed just now; it is made again", want.source);
            return Err(PullError::new(Reason::StoreFailed, message));
        }
        self.inner.manager.release(who.clone(), Some(source_slot)).await;
        self.inner.manager.release(who.clone(), Some(slot)).await;
        Ok(Step::Ready(artefact))
    }

    /// The digest, when it is known without asking the source: pinned in the want, named by the
    /// source, or pinned earlier by this very asker for this very source.
    fn known_digest(&self, who: &Interest, want: &Want, source: &str) -> Option<String> {
        if let Some(digest) = &want.digest {
            return Some(digest.clone());
        }
        if let Source::Http { sha256, .. } = &want.source {
            return Some(format!("sha256:{}", sha256.to_ascii_lowercase()));
        }
        self.inner
            .store
            .pin_of(who, want.kind)
            .filter(|pin| pin.source == source)
            .map(|pin| pin.digest)
    }

    fn identity(&self, want: &Want, digest: &str, platform: &str) -> Id {
        // A file's hash and a manifest's digest are different things even when they look alike.
        let plain_file = matches!(want.source, Source::Http { .. });
        let named = if plain_file {
            format!("file {digest}")
        } else {
            digest.to_string()
        };
        let id = match want.kind {
            ArtefactKind::Image => image_id(&named, platform, &self.inner.work.image_layout()),
            ArtefactKind::Kernel => kernel_id(&named, platform, &want.paths, &self.inner.work.kernel_layout()),
        };
        (want.kind, id)
    }

    async fn resolved(
        &self,
        who: &Interest,
        slot: Slot,
        source: &Source,
        digest: Option<String>,
        credentials: &[Credential],
    ) -> Step<Arc<Resolved>> {
        let platform = self.platform(source).to_string();
        let proof = Proof::of(source, credentials, self.inner.store.key());
        let named = source_id(source, &platform);
        let key = hash(&[&named, digest.as_deref().unwrap_or_default(), &proof.0]);
        let job = Job::Resolve {
            source: source.clone(),
            digest,
            platform,
            credentials: credentials.to_vec(),
        };
        let task = Task {
            job,
            id: None,
            proofs: BTreeSet::new(),
            giver: None,
        };
        let offer = Offer {
            id: key.clone(),
            registry: registry_of(source),
            job: task,
        };
        let asker = Asker {
            interest: who.clone(),
            slot,
        };
        match self.inner.manager.ensure(asker, Key::Resolve(key), offer).await {
            State::Ready(value) => match &*value {
                Value::Resolved(resolved) => Step::Ready(resolved.clone()),
                Value::Published => Step::Failed(mixed_up()),
            },
            State::Waiting(waiting) => Step::Waiting(waiting),
            State::Failed(failure) => Step::Failed(failure),
        }
    }

    async fn pulled(
        &self,
        who: &Interest,
        slot: Slot,
        want: &Want,
        id: Id,
        digest: String,
        proof: Proof,
    ) -> Step<Artefact> {
        let platform = self.platform(&want.source).to_string();
        let (source, credentials) = (want.source.clone(), want.credentials.clone());
        let offer_id = hash(&[&source_id(&source, &platform), &proof.0]);
        let registry = registry_of(&source);
        let giver = given_by(&source);
        let (key, job) = match want.kind {
            ArtefactKind::Image => (
                Key::Image(coalesced(&id, who)),
                Job::Image {
                    source,
                    digest,
                    platform,
                    credentials,
                },
            ),
            ArtefactKind::Kernel => {
                let paths = want.paths.clone();
                (
                    Key::Kernel(coalesced(&id, who)),
                    Job::Kernel {
                        source,
                        digest,
                        platform,
                        credentials,
                        paths,
                    },
                )
            }
        };
        let offer = Offer {
            id: offer_id,
            registry,
            job: Task {
                job,
                id: Some(id),
                proofs: giver.iter().cloned().chain([proof.0]).collect(),
                giver,
            },
        };
        let asker = Asker {
            interest: who.clone(),
            slot,
        };
        match self.inner.manager.ensure(asker, key, offer).await {
            State::Waiting(waiting) => Step::Waiting(waiting),
            State::Failed(failure) => Step::Failed(failure),
            // Results of pulls are on disk, never in memory: see `Key::keeps_result`.
            State::Ready(_) => Step::Failed(mixed_up()),
        }
    }

    fn platform<'a>(&'a self, source: &'a Source) -> &'a str {
        match source {
            Source::Oci {
                platform: Some(platform),
                ..
            } => platform,
            _ => &self.inner.platform,
        }
    }

    /// For one kind of one interest: its image and its kernel do not wait for each other.
    async fn turn(&self, who: &Interest, kind: ArtefactKind) -> MutexGuard<'_, ()> {
        self.inner.stripes[stripe(who, kind)].lock().await
    }

    /// For everything of one interest. Always in the same order, so that nobody waits in a circle.
    async fn turns(&self, who: &Interest) -> Vec<MutexGuard<'_, ()>> {
        let stripes = BTreeSet::from([ArtefactKind::Image, ArtefactKind::Kernel].map(|kind| stripe(who, kind)));
        let mut turns = Vec::new();
        for stripe in stripes {
            turns.push(self.inner.stripes[stripe].lock().await);
        }
        turns
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Store) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, PullError> {
        let store = self.inner.store.clone();
        match tokio::task::spawn_blocking(move || f(&store)).await {
            Ok(result) => result.map_err(|error| PullError::io("artefact store", &error)),
            Err(error) => Err(PullError::new(
                Reason::Internal,
                format!("the artefact store failed: {error}"),
            )),
        }
    }
}

fn stripe(who: &Interest, kind: ArtefactKind) -> usize {
    let mut hasher = DefaultHasher::new();
    (who, kind).hash(&mut hasher);
    hasher.finish() as usize % STRIPES
}

/// The key of a pull: one for all who want the same. (Not in builds that have a bug on purpose: see e2e.)
fn coalesced(id: &Id, who: &Interest) -> String {
    let apart = match id.0 {
        ArtefactKind::Image => cfg!(feature = "bug-no-coalescing"),
        ArtefactKind::Kernel => cfg!(feature = "bug-kernel-manifest-in-place"),
    };
    if apart {
        format!("{} {}", id.1, who.0)
    } else {
        id.1.clone()
    }
}

fn failure(error: &PullError) -> Failure {
    let pause = if error.is_terminal() {
        LONGEST_PAUSE
    } else {
        FIRST_PAUSE
    };
    Failure {
        reason: error.reason.as_str().to_string(),
        message: error.message.clone(),
        terminal: error.is_terminal(),
        retry_at: SystemTime::now() + pause,
    }
}

fn mixed_up() -> Failure {
    failure(&PullError::new(
        Reason::Internal,
        "an answer of the wrong kind; please report this with the log",
    ))
}
