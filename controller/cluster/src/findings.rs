//! What nodes found out about Images and Kernels: a file that is not there, content that cannot be used.
//!
//! A resolver sees references and digests only; what is behind a path, and inside of an artefact, a node sees when
//! a VM needs it. It says so in the VM's status, and from there it gets into the status of the Image or Kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use vmlet_crds::{Image, VirtualMachine, without_next_try};

/// Reasons that are about what is asked for. The others are about the node, the network or the moment.
const OF_THE_OBJECT: [&str; 9] = [
    "BadReference",
    "NotFound",
    "WrongDigest",
    "UnsupportedPlatform",
    "UnsupportedFormat",
    "Malformed",
    "TooLarge",
    "MissingFile",
    "ImportDisabled",
];

/// Image or Kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Of `ImageReady`.
    Image,
    /// Of `KernelReady`.
    Kernel,
}

/// What one node says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// It is there, and was made what VMs need.
    Present {
        /// Who says so.
        node: String,
    },
    /// It cannot be had.
    Wrong {
        /// Who says so.
        node: String,
        /// CamelCase.
        reason: String,
        /// For a person.
        message: String,
    },
}

/// Kind, namespace and name of the object that is spoken of.
pub type About = (Kind, String, String);

/// What is known now, shared by the watch and the resolvers.
#[derive(Clone, Default)]
pub struct Findings(Arc<Mutex<Known>>);

/// By the VM's uid, and the object that it speaks of.
type Known = BTreeMap<String, BTreeMap<About, Finding>>;

impl Findings {
    /// What VMs say of an object; something wrong before all else, and always the same one of several.
    pub fn about(&self, about: &About) -> Option<Finding> {
        of_all(&self.known(), about).cloned()
    }

    /// Takes in what a VM says now; answers with the objects of which that is news: not what others said before it.
    fn set(&self, uid: &str, says: BTreeMap<About, Finding>) -> BTreeSet<About> {
        let mut known = self.known();
        let before = known.get(uid).into_iter().flat_map(BTreeMap::keys);
        let objects: BTreeSet<About> = before.chain(says.keys()).cloned().collect();
        let was: Vec<_> = objects.iter().map(|about| of_all(&known, about).cloned()).collect();
        if says.is_empty() {
            known.remove(uid);
        } else {
            known.insert(uid.to_owned(), says);
        }
        let news = objects.into_iter().zip(was);
        news.filter(|(about, was)| of_all(&known, about) != was.as_ref())
            .map(|(about, _)| about)
            .collect()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of_all<'a>(known: &'a Known, about: &About) -> Option<&'a Finding> {
    let all = known.values().filter_map(|of_vm| of_vm.get(about));
    // `Present` sorts first.
    let wrong = all.clone().filter(|f| matches!(f, Finding::Wrong { .. })).min();
    wrong.or_else(|| all.min())
}

/// What the conditions of a VM say of its image and its kernel.
fn said(vm: &VirtualMachine) -> [Option<Finding>; 2] {
    let status = vm.status.as_ref();
    let conditions = status.map(|s| s.conditions.as_slice()).unwrap_or_default();
    let lost = conditions.iter().any(|c| c.type_ == "Ready" && c.reason == "NodeLost");
    let node = status.and_then(|s| s.node_name.clone());
    ["ImageReady", "KernelReady"].map(|type_| {
        // What a lost node said is old, and it cannot take it back.
        let node = node
            .clone()
            .filter(|_| !lost && vm.metadata.deletion_timestamp.is_none())?;
        let condition = conditions.iter().find(|c| c.type_ == type_)?;
        if condition.status == "True" {
            return Some(Finding::Present { node });
        }
        let of_it = condition.status == "False" && OF_THE_OBJECT.contains(&condition.reason.as_str());
        of_it.then(|| Finding::Wrong {
            node,
            reason: condition.reason.clone(),
            message: without_next_try(&condition.message).to_owned(),
        })
    })
}

/// The findings of a VM, by object. Its kernel may be named by its image only.
async fn findings_of(client: &Client, vm: &VirtualMachine) -> BTreeMap<About, Finding> {
    let namespace = vm.namespace().unwrap_or_default();
    let image = &vm.spec.image_ref.name;
    let mut found = BTreeMap::new();
    let [of_image, of_kernel] = said(vm);
    if let Some(finding) = of_image {
        found.insert((Kind::Image, namespace.clone(), image.clone()), finding);
    }
    if let Some(finding) = of_kernel {
        let kernel = match &vm.spec.kernel_ref {
            Some(kernel) => Some(kernel.name.clone()),
            None => match Api::<Image>::namespaced(client.clone(), &namespace)
                .get_opt(image)
                .await
            {
                Ok(image) => image.and_then(|i| i.spec.kernel_ref).map(|k| k.name),
                Err(error) => {
                    tracing::debug!(%error, image, "which kernel it names cannot be told");
                    None
                }
            },
        };
        if let Some(kernel) = kernel {
            found.insert((Kind::Kernel, namespace, kernel), finding);
        }
    }
    found
}

/// Follows the status of all VMs until `shutdown`. Objects of which something new is known are told on the channel
/// of their kind, as namespace and name.
pub async fn run(
    client: Client,
    findings: Findings,
    images: mpsc::Sender<(String, String)>,
    kernels: mpsc::Sender<(String, String)>,
    shutdown: CancellationToken,
) {
    let stream = watcher(Api::<VirtualMachine>::all(client.clone()), Config::default())
        .default_backoff()
        .modify(|vm| vm.managed_fields_mut().clear());
    let mut stream = std::pin::pin!(stream);
    let mut listed: Option<BTreeSet<String>> = None;
    // A status is written far more often than it says something else of image and kernel.
    let mut last = BTreeMap::new();
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = stream.next() => event,
        };
        let Some(event) = event else { return };
        let mut news = BTreeSet::new();
        match event {
            Ok(Event::Init) => listed = Some(BTreeSet::new()),
            Ok(Event::InitApply(vm) | Event::Apply(vm)) => {
                let uid = vm.uid().unwrap_or_default();
                let says = (said(&vm), vm.spec.kernel_ref.clone());
                if last.get(&uid) != Some(&says) {
                    news = findings.set(&uid, findings_of(&client, &vm).await);
                    last.insert(uid.clone(), says);
                }
                if let Some(listed) = &mut listed {
                    listed.insert(uid);
                }
            }
            Ok(Event::Delete(vm)) => {
                let uid = vm.uid().unwrap_or_default();
                last.remove(&uid);
                news = findings.set(&uid, BTreeMap::new());
            }
            Ok(Event::InitDone) => {
                // Who was deleted while nobody watched.
                let listed = listed.take().unwrap_or_default();
                last.retain(|uid, _| listed.contains(uid));
                let gone: Vec<String> = findings
                    .known()
                    .keys()
                    .filter(|uid| !listed.contains(*uid))
                    .cloned()
                    .collect();
                for uid in gone {
                    news.append(&mut findings.set(&uid, BTreeMap::new()));
                }
            }
            Err(error) => tracing::debug!(%error, "what nodes found cannot be followed; tried again"),
        }
        for (kind, namespace, name) in news {
            let to = match kind {
                Kind::Image => &images,
                Kind::Kernel => &kernels,
            };
            if to.send((namespace, name)).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_api::FakeApi;
    use serde_json::json;

    fn vm(conditions: &[(&str, &str, &str)], kernel: Option<&str>) -> VirtualMachine {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(type_, status, reason)| {
                json!({"type": type_, "status": status, "reason": reason, "message": "no boot/x in it; tried again at 01:02:03Z",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"})
            })
            .collect();
        let mut vm = json!({"metadata": {"name": "a", "namespace": "ns", "uid": "u"},
            "spec": {"imageRef": {"name": "i"}}, "status": {"nodeName": "n", "conditions": conditions}});
        if let Some(kernel) = kernel {
            vm["spec"]["kernelRef"] = json!({"name": kernel});
        }
        serde_json::from_value(vm).expect("a VM")
    }

    fn wrong(reason: &str) -> Finding {
        Finding::Wrong {
            node: "n".into(),
            reason: reason.into(),
            message: "no boot/x in it".into(),
        }
    }

    fn about(kind: Kind, name: &str) -> About {
        (kind, "ns".into(), name.into())
    }

    #[tokio::test]
    async fn what_a_node_found_wrong_is_said_of_the_object_and_taken_back_with_the_vm() {
        let findings = Findings::default();
        let client = FakeApi::default().client();
        let (image, kernel) = (about(Kind::Image, "i"), about(Kind::Kernel, "k"));
        let bad = vm(
            &[
                ("ImageReady", "True", "Present"),
                ("KernelReady", "False", "MissingFile"),
            ],
            Some("k"),
        );
        let says = findings_of(&client, &bad).await;
        assert_eq!(
            findings.set("u", says.clone()),
            BTreeSet::from([image.clone(), kernel.clone()])
        );
        assert!(findings.set("u", says).is_empty(), "that is no news");
        assert_eq!(findings.about(&kernel), Some(wrong("MissingFile")));
        assert_eq!(findings.about(&image), Some(Finding::Present { node: "n".into() }));
        assert_eq!(findings.about(&about(Kind::Image, "other")), None);

        let good = vm(&[("KernelReady", "True", "Present")], Some("k"));
        assert!(
            findings.set("v", findings_of(&client, &good).await).is_empty(),
            "what is wrong comes first"
        );
        assert_eq!(findings.about(&kernel), Some(wrong("MissingFile")));
        assert_eq!(
            findings.set("u", BTreeMap::new()),
            BTreeSet::from([image, kernel.clone()])
        );
        assert_eq!(findings.about(&kernel), Some(Finding::Present { node: "n".into() }));
        let another = findings_of(&client, &good).await;
        assert!(findings.set("w", another).is_empty(), "the second one that says so");
        assert!(
            findings.set("v", BTreeMap::new()).is_empty(),
            "the other one says so still"
        );
        assert_eq!(findings.set("w", BTreeMap::new()), BTreeSet::from([kernel]));
    }

    #[tokio::test]
    async fn a_kernel_that_only_the_image_names_is_found_through_it() {
        let api = FakeApi::default();
        api.put(
            "/apis/vmlet.dev/v1alpha1/namespaces/ns/images/i",
            json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": "Image", "metadata": {"name": "i", "namespace": "ns"},
                "spec": {"source": {"path": {"path": "x"}}, "kernelRef": {"name": "k"}}}),
        );
        let bad = vm(&[("KernelReady", "False", "MissingFile")], None);
        let says = findings_of(&api.client(), &bad).await;
        assert_eq!(says, BTreeMap::from([(about(Kind::Kernel, "k"), wrong("MissingFile"))]));
    }

    #[test]
    fn what_is_the_moments_the_nodes_or_of_a_lost_node_is_not_said_of_the_object() {
        for reason in [
            "Unavailable",
            "NoSpace",
            "Pulling",
            "Unauthorized",
            "StoreFailed",
            "ImageNotFound",
        ] {
            assert_eq!(
                said(&vm(&[("ImageReady", "False", reason)], None)),
                [None, None],
                "{reason}"
            );
        }
        let lost = vm(
            &[("ImageReady", "False", "NotFound"), ("Ready", "Unknown", "NodeLost")],
            None,
        );
        assert_eq!(said(&lost), [None, None]);
        let mut gone = vm(&[("ImageReady", "False", "NotFound")], None);
        assert_eq!(said(&gone)[0], Some(wrong("NotFound")));
        gone.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            jiff::Timestamp::UNIX_EPOCH,
        ));
        assert_eq!(said(&gone), [None, None]);
    }
}
