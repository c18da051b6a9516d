//! What a VM refers to: its image, its kernel, its keys. The only stage that reads them.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::SystemTime;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::reflector::{self, Store};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use vmlet_artifacts::docker_config;
use vmlet_artifacts::error::Reason;
use vmlet_artifacts::facade::Artifacts;
use vmlet_artifacts::types::{ImageDisk, ImageWant, Interest, KernelFiles, KernelWant, Phase, Source, State};
use vmlet_crds::{
    Image, Kernel, ObjectRef, PullSecretError, ResolvedSource, SecretWaits, SeenSecret, VirtualMachine,
    pull_secret_configs,
};

use crate::memory::Pin;
use crate::ssh_keys;

/// How far an image or kernel is.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Not asked for now. A machine that was started before has it pinned.
    Idle {
        /// Digest of what is pinned.
        digest: Option<String>,
    },
    /// Here.
    Ready {
        /// Its digest.
        digest: String,
    },
    /// Under way.
    Waiting {
        /// Pulling or Queued.
        reason: &'static str,
        /// Progress, for a person.
        message: String,
    },
    /// Cannot be told, because something else is missing, which says so itself.
    Unknown {
        /// CamelCase: the word of what is missing.
        reason: String,
        /// What it depends on.
        message: String,
    },
    /// An object is missing or not ready; something will wake us.
    Blocked {
        /// CamelCase.
        reason: String,
        /// Names the object, the cause and what to do.
        message: String,
    },
    /// The last try failed.
    Failed {
        /// CamelCase.
        reason: String,
        /// Names the object, the cause and what to do.
        message: String,
        /// When the next one is due.
        retry_at: SystemTime,
    },
}

impl Part {
    fn blocked(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Blocked {
            reason: reason.into(),
            message: message.into(),
        }
    }

    fn of<T>(state: &State<T>, what: &str, digest: impl Fn(&T) -> String) -> Self {
        match state {
            State::Ready(ready) => Self::Ready { digest: digest(ready) },
            State::Waiting(waiting) => {
                let reason = match waiting.phase {
                    Phase::Queued { .. } => "Queued",
                    Phase::Running => "Pulling",
                    Phase::BackingOff { .. } => "BackOff",
                };
                let mut message = waiting.message.clone();
                if waiting.total_bytes > 0 {
                    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
                    let (done, total) = (mib(waiting.done_bytes), mib(waiting.total_bytes));
                    message += &format!(", {done:.1} MiB of {total:.1} MiB");
                }
                Self::Waiting { reason, message }
            }
            State::Failed(failure) => Self::Failed {
                reason: failure.reason.clone(),
                message: format!("{what}: {}", failure.message),
                retry_at: failure.retry_at,
            },
        }
    }
}

/// An image or kernel: how far it is, what to pin, and the thing itself once it is here.
pub struct Artifact<T> {
    /// How far it is.
    pub part: Part,
    /// What to pin at a start.
    pub pin: Option<Pin>,
    /// The thing.
    pub ready: Option<Arc<T>>,
}

impl<T> Artifact<T> {
    fn missing(part: Part) -> Self {
        Self {
            part,
            pin: None,
            ready: None,
        }
    }
}

/// What a VM's machine is made of, as far as it is here.
pub struct Found {
    /// Its Image, if that exists.
    pub object: Option<Image>,
    /// Its Kernel, if that exists.
    kernel_object: Option<Kernel>,
    /// The base of its disk.
    pub image: Artifact<ImageDisk>,
    /// Its kernel.
    pub kernel: Artifact<KernelFiles>,
    /// What the Kernel adds to the kernel's command line.
    pub default_args: Vec<String>,
}

/// What a VM was started with.
#[derive(Clone, Copy)]
pub struct Pinned<'a> {
    /// The base of a disk that exists and stays.
    pub image: Option<&'a Pin>,
    /// The kernel.
    pub kernel: Option<&'a Pin>,
    /// It runs: the kernel is the one that it was started with, and no other.
    pub runs: bool,
}

/// Reads what VMs refer to.
pub struct Dereferencer {
    /// The API.
    pub client: Client,
    /// The Images that the watch has told of.
    pub images: Store<Image>,
    /// The Kernels that the watch has told of.
    pub kernels: Store<Kernel>,
    /// The artefacts of this node.
    pub artifacts: Artifacts,
    /// Wakes VMs, by uid, that a secret holds up.
    pub secrets: SecretWaits,
}

/// How much it matters that an object is read as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// As the watch told it last; asked for if the watch has told nothing. A change wakes who depends on it.
    Seen,
    /// As it is now: who starts a machine keeps to it for as long as that runs.
    Live,
}

async fn read<K>(
    client: &Client,
    seen: &Store<K>,
    namespace: &str,
    name: &str,
    reading: Reading,
) -> kube::Result<Option<K>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned + 'static,
{
    let known = match reading {
        Reading::Seen => seen.get(&reflector::ObjectRef::new(name).within(namespace)),
        Reading::Live => None,
    };
    match known {
        Some(object) => Ok(Some(object.as_ref().clone())),
        None => Api::namespaced(client.clone(), namespace).get_opt(name).await,
    }
}

/// Whether an object is now what it was when it was read; one that was not there counts as changed.
async fn is_same<K>(client: &Client, read: Option<&K>) -> kube::Result<bool>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned + 'static,
{
    let Some(read) = read else { return Ok(false) };
    let api = Api::<K>::namespaced(client.clone(), &read.namespace().unwrap_or_default());
    let now = api.get_opt(&read.name_any()).await?;
    Ok(now.is_some_and(|now| now.uid() == read.uid() && now.resource_version() == read.resource_version()))
}

/// Credentials, and the secrets that they are from.
type Credentials = (Vec<vmlet_artifacts::types::Credential>, Vec<SeenSecret>);

/// What the interests of VMs begin with; the uid follows.
pub const VM_PREFIX: &str = "vm/";

/// The name under which a VM asks for artefacts.
pub fn interest(uid: &str) -> Interest {
    Interest(format!("{VM_PREFIX}{uid}"))
}

impl Dereferencer {
    /// Image and kernel of a VM, which are asked for where they are not here.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn find(
        &self,
        vm: &VirtualMachine,
        uid: &str,
        pinned: Pinned<'_>,
        reading: Reading,
    ) -> kube::Result<Found> {
        let namespace = vm.namespace().unwrap_or_default();
        let object = read(&self.client, &self.images, &namespace, &vm.spec.image_ref.name, reading).await?;
        // At once, each waiting for the disk on its own; and to the end, so that no pin is left half made.
        let (image, kernel) = tokio::join!(
            self.image(vm, uid, object.as_ref(), pinned.image),
            self.kernel(vm, uid, object.as_ref(), pinned, reading),
        );
        let (image, (kernel, kernel_object)) = (image?, kernel?);
        let default_args = kernel_object.as_ref().map(|k| k.spec.default_args.clone());
        Ok(Found {
            object,
            kernel_object,
            image,
            kernel,
            default_args: default_args.unwrap_or_default(),
        })
    }

    /// Whether Image and Kernel are still what was found.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn is_current(&self, found: &Found) -> kube::Result<bool> {
        let (image, kernel) = tokio::join!(
            is_same(&self.client, found.object.as_ref()),
            is_same(&self.client, found.kernel_object.as_ref()),
        );
        Ok(image? && kernel?)
    }

    /// The base of a VM's disk: what is pinned, or else what its Image says now.
    async fn image(
        &self,
        vm: &VirtualMachine,
        uid: &str,
        object: Option<&Image>,
        pinned: Option<&Pin>,
    ) -> kube::Result<Artifact<ImageDisk>> {
        let namespace = vm.namespace().unwrap_or_default();
        let name = &vm.spec.image_ref.name;
        let what = format!("image \"{name}\"");
        let (source, digest) = match (pinned, object) {
            (Some(pin), _) => (pin.source.clone(), Some(pin.digest.clone())),
            (None, None) => {
                let message =
                    format!("{what} does not exist in namespace \"{namespace}\": create it, or correct spec.imageRef");
                return Ok(Artifact::missing(Part::blocked("ImageNotFound", message)));
            }
            (None, Some(image)) => {
                let source = source(&image.spec.source);
                let status = image.status.clone().unwrap_or_default();
                match resolved(
                    &what,
                    &source,
                    image.metadata.generation,
                    status.observed_generation,
                    status.resolved.as_ref(),
                    &status.conditions,
                ) {
                    Ok(digest) => (source, digest),
                    Err(part) => return Ok(Artifact::missing(part)),
                }
            }
        };
        let refs = object.map(|o| o.spec.pull_secret_refs.clone()).unwrap_or_default();
        let (credentials, secrets) = match self.credentials(&namespace, &refs, Some(uid)).await? {
            Ok(found) => found,
            Err(part) if pinned.is_none() => return Ok(Artifact::missing(part)),
            Err(_) => Credentials::default(),
        };
        let want = ImageWant {
            source: source.clone(),
            digest,
            credentials,
        };
        let state = self.artifacts.ensure_image(&interest(uid), want).await;
        self.await_login(&state, uid, secrets);
        let part = Part::of(&state, &what, |disk: &ImageDisk| disk.digest.clone());
        let ready = match state {
            State::Ready(disk) => Some(disk),
            _ => None,
        };
        let pin = ready.as_ref().map(|disk| Pin {
            name: name.clone(),
            source,
            digest: disk.digest.clone(),
            version: String::new(),
        });
        Ok(Artifact { part, pin, ready })
    }

    /// The kernel of a VM. For a start: what its Kernel says now, or what is pinned when that is gone.
    /// For a machine that runs: what it was started with.
    async fn kernel(
        &self,
        vm: &VirtualMachine,
        uid: &str,
        image: Option<&Image>,
        pinned: Pinned<'_>,
        reading: Reading,
    ) -> kube::Result<(Artifact<KernelFiles>, Option<Kernel>)> {
        let (pinned, pinned_only) = (pinned.kernel, pinned.runs);
        let namespace = vm.namespace().unwrap_or_default();
        let reference = vm
            .spec
            .kernel_ref
            .as_ref()
            .or_else(|| image.and_then(|i| i.spec.kernel_ref.as_ref()));
        let name = match (reference, pinned) {
            (_, Some(pin)) if pinned_only => pin.name.clone(),
            (Some(reference), _) => reference.name.clone(),
            (None, Some(pin)) => pin.name.clone(),
            (None, None) if image.is_none() => {
                let part = Part::Unknown {
                    reason: "ImageNotFound".to_owned(),
                    message: format!(
                        "the virtual machine leaves the kernel to image \"{}\", which does not exist",
                        vm.spec.image_ref.name
                    ),
                };
                return Ok((Artifact::missing(part), None));
            }
            (None, None) => {
                let part = Part::blocked(
                    "NoKernel",
                    format!(
                        "neither the virtual machine nor image \"{}\" names a kernel: set spec.kernelRef of one of them",
                        vm.spec.image_ref.name
                    ),
                );
                return Ok((Artifact::missing(part), None));
            }
        };
        let what = format!("kernel \"{name}\"");
        let object = read(&self.client, &self.kernels, &namespace, &name, reading).await?;
        let usable_pin = pinned.filter(|pin| pin.name == name);
        let current = object.as_ref().map(|kernel| {
            let source = source(&kernel.spec.source);
            let status = kernel.status.clone().unwrap_or_default();
            resolved(
                &what,
                &source,
                kernel.metadata.generation,
                status.observed_generation,
                status.resolved.as_ref(),
                &status.conditions,
            )
            .map(|digest| (source, digest))
        });
        let (source, digest) = match (current, usable_pin) {
            (_, Some(pin)) if pinned_only => (pin.source.clone(), Some(pin.digest.clone())),
            (Some(Ok(current)), _) => current,
            (_, Some(pin)) => (pin.source.clone(), Some(pin.digest.clone())),
            (Some(Err(part)), None) => return Ok((Artifact::missing(part), None)),
            (None, None) => {
                let message = format!(
                    "{what} does not exist in namespace \"{namespace}\": create it, or correct the kernelRef that names it"
                );
                return Ok((Artifact::missing(Part::blocked("KernelNotFound", message)), None));
            }
        };
        let spec = object.as_ref().map(|o| o.spec.clone()).unwrap_or_default();
        let (credentials, secrets) = match self.credentials(&namespace, &spec.pull_secret_refs, Some(uid)).await? {
            Ok(found) => found,
            Err(part) if usable_pin.is_none() => return Ok((Artifact::missing(part), None)),
            Err(_) => Credentials::default(),
        };
        let want = KernelWant {
            source: source.clone(),
            digest,
            credentials,
            kernel_path: spec.kernel_path,
            initrd_path: spec.initrd_path,
            modules_path: spec.modules_path,
        };
        let state = self.artifacts.ensure_kernel(&interest(uid), want).await;
        self.await_login(&state, uid, secrets);
        let part = Part::of(&state, &what, |kernel: &KernelFiles| kernel.digest.clone());
        let ready = match state {
            State::Ready(kernel) => Some(kernel),
            _ => None,
        };
        let pin = ready.as_ref().map(|kernel| Pin {
            name,
            source,
            digest: kernel.digest.clone(),
            version: kernel.version.clone(),
        });
        Ok((Artifact { part, pin, ready }, object))
    }

    /// The authorized keys of spec and secrets, or what is in the way. `uid` is woken when one of these secrets changes.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn authorized_keys(
        &self,
        vm: &VirtualMachine,
        uid: &str,
    ) -> kube::Result<Result<Vec<String>, (&'static str, String)>> {
        let namespace = vm.namespace().unwrap_or_default();
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
        let mut keys = vm.spec.guest.ssh_authorized_keys.clone();
        if let Some(problem) = ssh_keys::problem_of_spec(&keys) {
            return Ok(Err(("InvalidSshKey", problem)));
        }
        for reference in &vm.spec.guest.ssh_key_secret_refs {
            let seen = |version| SeenSecret {
                namespace: namespace.clone(),
                name: reference.name.clone(),
                version,
            };
            let Some(secret) = api.get_opt(&reference.name).await? else {
                self.secrets.wait(uid, seen(None));
                let message = format!(
                    "secret \"{}\" with ssh keys does not exist in namespace \"{namespace}\": create it, or correct spec.guest.sshKeySecretRefs",
                    reference.name
                );
                return Ok(Err(("SecretNotFound", message)));
            };
            let version = secret.resource_version();
            let data = secret.data.unwrap_or_default();
            match ssh_keys::of_secret(data.iter().map(|(name, value)| (name.as_str(), value.0.as_slice()))) {
                Ok(found) => {
                    // The keys of a running guest follow it.
                    self.secrets.wait(uid, seen(version));
                    keys.extend(found);
                }
                Err(why) => {
                    self.secrets.wait(uid, seen(version));
                    let message = format!(
                        "secret \"{name}\" in namespace \"{namespace}\" {why}: its values are authorized_keys files; `kubectl create secret generic {name} --from-file=KEY.pub` makes one",
                        name = reference.name
                    );
                    return Ok(Err(("SecretUnusable", message)));
                }
            }
        }
        Ok(Ok(keys))
    }

    /// The credentials of an image; none when a pull secret cannot be used.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn image_credentials(&self, image: &Image) -> kube::Result<Vec<vmlet_artifacts::types::Credential>> {
        let namespace = image.namespace().unwrap_or_default();
        let found = self.credentials(&namespace, &image.spec.pull_secret_refs, None).await?;
        Ok(found.unwrap_or_default().0)
    }

    /// `uid` is woken when a secret that is in its way changes.
    async fn credentials(
        &self,
        namespace: &str,
        refs: &[ObjectRef],
        uid: Option<&str>,
    ) -> kube::Result<Result<Credentials, Part>> {
        let unusable = |message, seen| {
            if let Some(uid) = uid {
                self.secrets.wait(uid, seen);
            }
            Ok(Err(Part::blocked("PullSecretUnusable", message)))
        };
        let secrets = match pull_secret_configs(&self.client, namespace, refs).await {
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

    /// A login that is refused may be put right in its secret.
    fn await_login<T>(&self, state: &State<T>, uid: &str, secrets: Vec<SeenSecret>) {
        if matches!(state, State::Failed(failure) if failure.reason == Reason::Unauthorized.as_str()) {
            for seen in secrets {
                self.secrets.wait(uid, seen);
            }
        }
    }
}

/// A source of the API as the artefacts know it.
pub fn source(source: &vmlet_crds::Source) -> Source {
    if let Some(oci) = &source.oci {
        Source::Oci {
            reference: oci.reference.clone(),
            platform: oci.platform.clone(),
        }
    } else if let Some(http) = &source.http {
        Source::Http {
            url: http.url.clone(),
            sha256: http.sha256.clone(),
        }
    } else {
        Source::Path {
            path: source.path.as_ref().map(|p| p.path.clone()).unwrap_or_default(),
        }
    }
}

/// The digest to pull by, or why there is none yet. A path has none: its node resolves it.
fn resolved(
    what: &str,
    source: &Source,
    generation: Option<i64>,
    observed: Option<i64>,
    resolved: Option<&ResolvedSource>,
    conditions: &[Condition],
) -> Result<Option<String>, Part> {
    match source {
        Source::Path { .. } => return Ok(None),
        Source::Http { sha256, .. } => return Ok(Some(format!("sha256:{sha256}"))),
        Source::Oci { .. } => {}
    }
    if observed != generation {
        return Err(Part::blocked("Resolving", format!("{what} is being resolved")));
    }
    if let Some(resolved) = resolved {
        return Ok(Some(resolved.digest.clone()));
    }
    match conditions.iter().find(|c| c.type_ == "Resolved") {
        Some(c) if c.status == "False" => Err(Part::blocked(c.reason.clone(), format!("{what}: {}", c.message))),
        _ => Err(Part::blocked("Resolving", format!("{what} is being resolved"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmlet_artifacts::types::Waiting;

    fn oci() -> Source {
        Source::Oci {
            reference: "r.example/a:1".into(),
            platform: None,
        }
    }

    #[test]
    fn a_resolved_digest_of_an_older_spec_is_not_used() {
        let old = ResolvedSource {
            digest: "sha256:old".into(),
            ..ResolvedSource::default()
        };
        let found = resolved("image \"a\"", &oci(), Some(2), Some(1), Some(&old), &[]);
        assert!(matches!(found, Err(Part::Blocked { reason, .. }) if reason == "Resolving"));
        assert_eq!(
            resolved("image \"a\"", &oci(), Some(2), Some(2), Some(&old), &[]),
            Ok(Some("sha256:old".to_owned()))
        );
    }

    #[test]
    fn a_pull_says_how_far_it_is_once_it_knows_how_far_it_goes() {
        let pulling = |done_bytes, total_bytes| {
            let waiting = Waiting {
                phase: Phase::Running,
                done_bytes,
                total_bytes,
                message: "pulling".to_owned(),
            };
            match Part::of(&State::<String>::Waiting(waiting), "image \"a\"", String::clone) {
                Part::Waiting { message, .. } => message,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(pulling(0, 0), "pulling");
        assert_eq!(pulling(1_300_000, 60 << 20), "pulling, 1.2 MiB of 60.0 MiB");
    }

    #[test]
    fn what_keeps_an_image_from_being_resolved_reaches_the_vm() {
        let condition: Condition = serde_json::from_value(serde_json::json!({
            "type": "Resolved", "status": "False", "reason": "NotFound", "message": "no tag 1", "lastTransitionTime": "2026-01-01T00:00:00Z"
        }))
        .expect("a condition");
        let found = resolved("image \"a\"", &oci(), Some(1), Some(1), None, &[condition]);
        assert_eq!(found, Err(Part::blocked("NotFound", "image \"a\": no tag 1")));
    }
}
