//! The whole handle over a real store, with a scripted pipeline.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use vmlet_artifacts::error::{PullError, Reason};
use vmlet_artifacts::facade::Artifacts;
use vmlet_artifacts::pulls::work::{BuiltImage, BuiltKernel, Job, Output, Work, WorkContext};
use vmlet_artifacts::store::Policy;
use vmlet_artifacts::types::*;

/// A registry and pipeline in one: references that start with `private/` want the password `right`.
#[derive(Default)]
struct Scripted {
    jobs: Mutex<Vec<String>>,
    hang: AtomicBool,
    panic_with_thread: AtomicBool,
    thread_ended: Arc<AtomicBool>,
    /// A thread that takes its time after a cancellation: it ends when this is told, or after a moment.
    slow_thread: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
}

fn digest() -> String {
    format!("sha256:{}", "ab".repeat(32))
}

impl Scripted {
    fn log(&self) -> Vec<String> {
        self.jobs.lock().unwrap().clone()
    }
}

/// So that a test keeps its hand on the script.
struct Hand(Arc<Scripted>);

impl Work for Hand {
    fn image_layout(&self) -> String {
        "test-1".into()
    }

    fn kernel_layout(&self) -> String {
        "test-1".into()
    }

    fn run(&self, job: Job, cx: WorkContext) -> BoxFuture<'static, Result<Output, PullError>> {
        let script = self.0.clone();
        async move {
            let (what, source, credentials) = match &job {
                Job::Resolve {
                    source, credentials, ..
                } => ("resolve", source, credentials),
                Job::Image {
                    source, credentials, ..
                } => ("image", source, credentials),
                Job::Kernel {
                    source, credentials, ..
                } => ("kernel", source, credentials),
            };
            script.jobs.lock().unwrap().push(format!("{what} {source}"));
            if source.to_string().starts_with("private/") && !credentials.iter().any(|c| c.password == "right") {
                return Err(PullError::new(Reason::Unauthorized, format!("{source}: access denied")));
            }
            if script.panic_with_thread.swap(false, Ordering::SeqCst) {
                let (cancel, ended) = (cx.cancel.clone(), script.thread_ended.clone());
                cx.spawn_blocking(move || {
                    while !cancel.is_cancelled() {
                        std::thread::yield_now();
                    }
                    ended.store(true, Ordering::SeqCst);
                });
                panic!("scripted panic");
            }
            let slow = script.slow_thread.lock().unwrap().take();
            if let Some(told) = slow {
                let (cancel, ended) = (cx.cancel.clone(), script.thread_ended.clone());
                cx.spawn_blocking(move || {
                    while !cancel.is_cancelled() {
                        std::thread::yield_now();
                    }
                    // Told means that somebody took the pull for ended.
                    let too_early = told.recv_timeout(Duration::from_millis(300)).is_ok();
                    ended.store(!too_early, Ordering::SeqCst);
                });
                cx.cancel.cancelled().await;
                return Err(PullError::cancelled());
            }
            if what != "resolve" {
                fs::write(cx.dir.join("data"), b"half").map_err(|e| PullError::io("test", &e))?;
            }
            if script.hang.load(Ordering::SeqCst) {
                cx.cancel.cancelled().await;
                return Err(PullError::cancelled());
            }
            Ok(match job {
                Job::Resolve { source, platform, .. } => Output::Resolved(Resolved {
                    reference: source.to_string(),
                    digest: digest(),
                    media_type: "application/vnd.oci.image.manifest.v1+json".into(),
                    platform,
                    compressed_size: 4,
                }),
                Job::Image { .. } => {
                    let config = ImageConfig {
                        cmd: vec!["/bin/sh".into()],
                        ..ImageConfig::default()
                    };
                    Output::Image(BuiltImage {
                        disk: "data".into(),
                        content_hash: digest(),
                        config,
                    })
                }
                Job::Kernel { .. } => Output::Kernel(BuiltKernel {
                    kernel: "data".into(),
                    boot_format: BootFormat::PvhElf,
                    version: "6.1.0".into(),
                    modules_tar: None,
                    modules_disk: None,
                    initrd: None,
                }),
            })
        }
        .boxed()
    }
}

struct Bench {
    script: Arc<Scripted>,
    artifacts: Artifacts,
    wakes: mpsc::Receiver<Interest>,
}

async fn open(dir: &Path) -> Bench {
    let script = Arc::new(Scripted::default());
    let (wake, wakes) = mpsc::channel(8);
    let config = Config::new(dir.join("artifacts"));
    let artifacts = Artifacts::open_with(&config, Arc::new(Hand(script.clone())), wake)
        .await
        .unwrap();
    Bench {
        script,
        artifacts,
        wakes,
    }
}

fn oci(reference: &str) -> Source {
    Source::Oci {
        reference: reference.into(),
        platform: None,
    }
}

fn image(reference: &str, password: Option<&str>) -> ImageWant {
    let credential = |p: &str| Credential {
        registry: "docker.io".into(),
        username: "u".into(),
        password: p.into(),
    };
    ImageWant {
        source: oci(reference),
        digest: Some(digest()),
        credentials: password.map(credential).into_iter().collect(),
    }
}

fn who(name: &str) -> Interest {
    Interest(name.into())
}

impl Bench {
    /// Asks until there is an answer; waits only for wakes.
    async fn settled(&mut self, name: &str, want: ImageWant) -> State<ImageDisk> {
        loop {
            match self.artifacts.ensure_image(&who(name), want.clone()).await {
                State::Waiting(_) => while self.wakes.recv().await.unwrap() != who(name) {},
                settled => return settled,
            }
        }
    }
}

fn ready<T: std::fmt::Debug>(state: State<T>) -> Arc<T> {
    match state {
        State::Ready(value) => value,
        other => panic!("not ready: {other:?}"),
    }
}

fn leftovers(dir: &Path) -> usize {
    ["tmp", "intents"]
        .iter()
        .map(|d| fs::read_dir(dir.join("artifacts").join(d)).unwrap().count())
        .sum()
}

#[tokio::test]
async fn a_pulled_image_is_ready_again_after_a_restart_without_any_work() {
    let temp = tempfile::tempdir().unwrap();
    let mut b = open(temp.path()).await;
    let disk = ready(b.settled("vm", image("debian", None)).await);
    assert_eq!(fs::read(&disk.path).unwrap(), b"half");
    assert_eq!(disk.config.cmd, ["/bin/sh"]);
    assert_eq!(b.script.log(), ["image debian"]);
    assert_eq!(leftovers(temp.path()), 0);
    drop(b);
    let b = open(temp.path()).await;
    assert_eq!(
        ready(b.artifacts.ensure_image(&who("vm"), image("debian", None)).await),
        disk
    );
    assert_eq!(b.artifacts.inventory().await[0].users, [who("vm")]);
    assert!(b.script.log().is_empty());
}

#[tokio::test]
async fn a_private_image_in_the_store_is_not_for_those_who_could_not_pull_it() {
    let temp = tempfile::tempdir().unwrap();
    let mut b = open(temp.path()).await;
    ready(b.settled("owner", image("private/i", Some("right"))).await);
    let State::Failed(failure) = b.settled("thief", image("private/i", Some("wrong"))).await else {
        panic!("the thief got it")
    };
    assert_eq!(failure.reason, "Unauthorized");
    assert!(matches!(
        b.settled("nobody", image("private/i", None)).await,
        State::Failed(_)
    ));
    // Another reference that its asker may pull and that has the same digest is proof enough; nothing is pulled twice.
    ready(b.settled("friend", image("public/i", None)).await);
    assert_eq!(b.script.log().iter().filter(|j| j.starts_with("image")).count(), 1);
    // The owner needs no network, not even after a restart.
    drop(b);
    let b = open(temp.path()).await;
    ready(
        b.artifacts
            .ensure_image(&who("owner2"), image("private/i", Some("right")))
            .await,
    );
    assert!(b.script.log().is_empty());
}

#[tokio::test]
async fn a_tag_or_path_is_resolved_first_and_its_pin_answers_after_a_restart() {
    let temp = tempfile::tempdir().unwrap();
    let mut b = open(temp.path()).await;
    let want = ImageWant {
        source: Source::Path { path: "x.tar".into() },
        digest: None,
        credentials: vec![],
    };
    ready(b.settled("vm", want.clone()).await);
    assert_eq!(b.script.log(), ["resolve path x.tar", "image path x.tar"]);
    drop(b);
    let mut b = open(temp.path()).await;
    ready(b.artifacts.ensure_image(&who("vm"), want.clone()).await);
    assert!(b.script.log().is_empty(), "the pin knows the digest");
    ready(b.settled("other", want).await);
    assert_eq!(
        b.script.log(),
        ["resolve path x.tar"],
        "another asker resolves for itself, but pulls nothing"
    );
}

#[tokio::test]
async fn images_and_kernels_of_one_interest_do_not_disturb_each_other() {
    let temp = tempfile::tempdir().unwrap();
    let mut b = open(temp.path()).await;
    let kernel = KernelWant {
        source: oci("kernel"),
        digest: Some(digest()),
        credentials: vec![],
        kernel_path: None,
        initrd_path: None,
        modules_path: None,
    };
    b.artifacts.ensure_image(&who("vm"), image("debian", None)).await;
    while let State::Waiting(_) = b.artifacts.ensure_kernel(&who("vm"), kernel.clone()).await {
        b.wakes.recv().await.unwrap();
    }
    ready(b.artifacts.ensure_kernel(&who("vm"), kernel).await);
    ready(b.settled("vm", image("debian", None)).await);
    assert_eq!(b.artifacts.inventory().await.len(), 2);
}

#[tokio::test]
async fn release_cancels_the_pull_and_leaves_nothing_behind() {
    let temp = tempfile::tempdir().unwrap();
    let b = open(temp.path()).await;
    b.script.hang.store(true, Ordering::SeqCst);
    b.artifacts.ensure_image(&who("vm"), image("debian", None)).await;
    b.artifacts.release(&who("vm")).await;
    b.artifacts.shutdown().await;
    assert_eq!(leftovers(temp.path()), 0);
    assert!(b.artifacts.inventory().await.is_empty());
}

#[tokio::test]
async fn a_panicking_pull_is_over_only_when_its_threads_have_ended() {
    let temp = tempfile::tempdir().unwrap();
    let mut b = open(temp.path()).await;
    b.script.panic_with_thread.store(true, Ordering::SeqCst);
    let State::Failed(failure) = b.settled("vm", image("debian", None)).await else {
        panic!("no failure")
    };
    assert!(failure.message.contains("scripted panic"), "{}", failure.message);
    assert!(b.script.thread_ended.load(Ordering::SeqCst));
    assert_eq!(leftovers(temp.path()), 0);
}

#[tokio::test]
async fn a_cancelled_pull_is_over_only_when_its_threads_have_ended() {
    let temp = tempfile::tempdir().unwrap();
    let b = open(temp.path()).await;
    let (tell, told) = std::sync::mpsc::channel();
    *b.script.slow_thread.lock().unwrap() = Some(told);
    let mut want = image("debian", None);
    want.digest = Some(digest());
    assert!(matches!(
        b.artifacts.ensure_image(&who("vm"), want).await,
        State::Waiting(_)
    ));
    while b.script.log().is_empty() {
        tokio::task::yield_now().await;
    }
    b.artifacts.shutdown().await;
    let _ = tell.send(());
    assert!(b.script.thread_ended.load(Ordering::SeqCst));
    assert_eq!(leftovers(temp.path()), 0);
}

#[tokio::test]
async fn what_is_unpinned_can_be_collected_and_is_made_again_when_wanted() {
    let temp = tempfile::tempdir().unwrap();
    let mut b = open(temp.path()).await;
    ready(b.settled("vm", image("debian", None)).await);
    assert!(
        b.artifacts.collect(Duration::ZERO).await.unwrap().is_empty(),
        "it is pinned"
    );
    b.artifacts.unpin(&who("vm")).await.unwrap();
    b.artifacts.unpin(&who("vm")).await.unwrap();
    assert_eq!(b.artifacts.collect(Duration::ZERO).await.unwrap().len(), 1);
    ready(b.settled("vm", image("debian", None)).await);
    assert_eq!(b.script.log().len(), 2);
}

#[tokio::test]
async fn a_policy_removes_what_it_chooses_and_never_what_is_pinned() {
    let temp = tempfile::tempdir().unwrap();
    let mut b = open(temp.path()).await;
    ready(b.settled("vm", image("debian", None)).await);
    // A disk that is always too full, and nothing that is too young.
    let policy = Policy {
        min_age: Duration::ZERO,
        high_percent: 0,
        low_percent: 0,
        ..Policy::default()
    };
    assert!(
        b.artifacts.collect_by(policy.clone()).await.unwrap().is_empty(),
        "it is pinned"
    );
    b.artifacts.unpin(&who("vm")).await.unwrap();
    assert!(
        b.artifacts.collect_by(Policy::default()).await.unwrap().is_empty(),
        "it is too young"
    );
    assert_eq!(b.artifacts.collect_by(policy).await.unwrap().len(), 1);
    assert!(b.artifacts.inventory().await.is_empty());
    let space = b.artifacts.space().await.unwrap();
    assert!(space.total >= space.free && space.total > 0, "{space:?}");
}

#[tokio::test]
async fn a_digest_that_is_none_is_refused_and_never_becomes_a_path() {
    let temp = tempfile::tempdir().unwrap();
    let b = open(temp.path()).await;
    let mut want = image("debian", None);
    want.digest = Some("sha256:../../etc".into());
    let State::Failed(failure) = b.artifacts.ensure_image(&who("vm"), want).await else {
        panic!("accepted")
    };
    assert_eq!((failure.reason.as_str(), failure.terminal), ("BadReference", true));
    assert!(b.script.log().is_empty());
}
