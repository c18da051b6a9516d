//! What the project was born from: shared things that are missing, or renewed, while many want them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::try_join_all;

use crate::cx::{Cx, Pushed, script, service};
use crate::vm;

/// Size of what makes an image unique: with it, the image is as large as usual ones.
const PAYLOAD: usize = 192 << 20;

/// Ten machines that need one missing image share one pull, and none of them fails.
pub async fn ten_vms_one_image(cx: Cx) -> Result<()> {
    // One before and one after: a disk or a host that begins fast and tires would take sides.
    let before = cx.push_guest("before", PAYLOAD).await?;
    let shared = cx.push_guest("shared", PAYLOAD).await?;
    let after = cx.push_guest("after", PAYLOAD).await?;

    let one_before = disks_ready("before", &before, &["first".to_owned()], &cx).await?;
    leave(&["first".to_owned()], &cx).await?;
    let names: Vec<String> = (0..10).map(|n| format!("m{n}")).collect();
    let ten = disks_ready("shared", &shared, &names, &cx).await?;
    cx.one_get_each(&shared.repository, shared.blobs)?;
    nobody_failed(&cx, "ImageReady", &names).await?;
    leave(&names, &cx).await?;
    let one_after = disks_ready("after", &after, &["last".to_owned()], &cx).await?;

    let one = (one_before + one_after) / 2;
    cx.remark(format!(
        "ten DiskReady in {:.2} s, one in {:.2} s before and {:.2} s after: {:.2} times",
        ten.as_secs_f64(),
        one_before.as_secs_f64(),
        one_after.as_secs_f64(),
        ten.as_secs_f64() / one.as_secs_f64()
    ));
    Ok(())
}

/// How long it takes from the creation of an image and machines of it until all have their disks.
async fn disks_ready(image: &str, pushed: &Pushed, names: &[String], cx: &Cx) -> Result<Duration> {
    let start = Instant::now();
    cx.image(image, &pushed.reference).await?;
    try_join_all(names.iter().map(|name| cx.machine(name, script(image, "exit 0")))).await?;
    let disks = names
        .iter()
        .map(|name| cx.until(name, "its disk is ready", |vm| Ok(vm::is(vm, "DiskReady"))));
    try_join_all(disks).await?;
    Ok(start.elapsed())
}

/// Deletes machines and waits until they are gone.
async fn leave(names: &[String], cx: &Cx) -> Result<()> {
    try_join_all(names.iter().map(|name| cx.delete(name))).await?;
    try_join_all(names.iter().map(|name| cx.gone(name))).await?;
    Ok(())
}

/// Two machines at once that need one missing kernel share one pull, and both run.
pub async fn two_vms_one_kernel(cx: Cx) -> Result<()> {
    cx.guest().await?;
    let kernel = cx.push_kernel("kernel").await?;
    cx.kernel("missing", &kernel.reference).await?;
    let names = ["left".to_owned(), "right".to_owned()];
    let spec = || {
        let mut spec = script("guest", "exit 0");
        spec["kernelRef"]["name"] = "missing".into();
        spec
    };
    try_join_all(names.iter().map(|name| cx.machine(name, spec()))).await?;
    let kernels = names
        .iter()
        .map(|name| cx.until(name, "its kernel is ready", |vm| Ok(vm::is(vm, "KernelReady"))));
    try_join_all(kernels).await?;
    nobody_failed(&cx, "KernelReady", &names).await?;
    for name in &names {
        cx.until(name, "it has completed", |vm| vm::completed(vm, 0)).await?;
    }
    cx.one_get_each(&kernel.repository, kernel.blobs)?;
    nobody_failed(&cx, "KernelReady", &names).await
}

/// Fails when a part of one of these machines was ever refused, or anybody was warned.
async fn nobody_failed(cx: &Cx, part: &str, names: &[String]) -> Result<()> {
    for entry in cx.watched().history() {
        let (status, reason, message) = vm::condition(&entry.vm, part);
        let waits = matches!(reason, "" | "Resolving" | "Queued" | "Pulling" | "NotNeeded");
        ensure!(
            status == "True" || waits,
            "{} failed after {:.2} s: {part}={status}/{reason} {message}",
            entry.name,
            entry.at.as_secs_f64()
        );
        let restarts = entry.vm.status.as_ref().map_or(0, |status| status.restart_count);
        ensure!(restarts == 0, "{} was restarted: {}", entry.name, vm::words(&entry.vm));
    }
    for name in names {
        for (type_, reason, note) in cx.events(name).await? {
            ensure!(type_ != "Warning", "{name} was warned: {reason}: {note}");
        }
    }
    Ok(())
}

/// Reads of shared files, again and again, until it is told to end.
struct Reader {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<BTreeMap<PathBuf, Seen>>>,
}

/// What was seen of a file.
#[derive(Clone, Debug, Default)]
struct Seen {
    bytes: Vec<u8>,
    inode: u64,
    reads: usize,
    renewals: usize,
}

impl Reader {
    /// Reads every file in `dirs`, which are whole now, and fails when one is ever anything else than that or absent.
    fn start(dirs: Vec<PathBuf>) -> Result<Reader> {
        let mut seen = BTreeMap::new();
        for dir in &dirs {
            for file in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
                let path = file?.path();
                let (bytes, inode) = read(&path)?.context("it has just been there")?;
                ensure!(!bytes.is_empty(), "{} is empty", path.display());
                seen.insert(
                    path,
                    Seen {
                        bytes,
                        inode,
                        ..Seen::default()
                    },
                );
            }
        }
        ensure!(!seen.is_empty(), "there is nothing in {dirs:?}");
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                for (path, known) in &mut seen {
                    // Gone for a moment is fine: whoever needs it makes it again.
                    let Some((bytes, inode)) = read(path)? else { continue };
                    if bytes != known.bytes {
                        bail!(
                            "{} was read while it was written: {} bytes instead of {}",
                            path.display(),
                            bytes.len(),
                            known.bytes.len()
                        );
                    }
                    known.reads += 1;
                    known.renewals += usize::from(inode != known.inode);
                    known.inode = inode;
                }
            }
            Ok(seen)
        });
        Ok(Reader { stop, thread })
    }

    /// What was seen until now.
    fn end(self) -> Result<BTreeMap<PathBuf, Seen>> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(seen) => seen,
            Err(_) => bail!("the thread that reads panicked"),
        }
    }
}

fn read(path: &Path) -> Result<Option<(Vec<u8>, u64)>> {
    use std::io::Read as _;
    use std::os::unix::fs::MetadataExt as _;
    let mut file = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(Some((bytes, file.metadata()?.ino())))
}

/// Nobody ever reads half of a file that is shared: it is there as a whole, or not at all.
pub async fn shared_files_renewed(cx: Cx) -> Result<()> {
    cx.guest().await?;
    let kernel = cx.push_kernel("kernel").await?;
    cx.kernel("renewed", &kernel.reference).await?;
    let on_it = |mut spec: serde_json::Value| {
        spec["kernelRef"]["name"] = "renewed".into();
        spec
    };
    cx.machine("bystander", on_it(service("guest", "sleep 86400"))).await?;
    let bystander = cx.ready("bystander").await?;
    let initrds = cx.world().data().join("machines/initrds");
    let published = cx
        .published("kernels", &kernel.repository)?
        .context("the kernel is not published")?;
    // In two threads, for the initrd is smaller and read more often.
    let readers = [
        Reader::start(vec![initrds.clone()])?,
        Reader::start(vec![published.clone()])?,
    ];

    let aside = tempfile::tempdir_in(cx.world().data())?;
    for round in 0..2 {
        // Whoever keeps house by hand may remove what is cached, at any time.
        for file in std::fs::read_dir(&initrds)?.flatten() {
            std::fs::rename(
                file.path(),
                aside
                    .path()
                    .join(format!("initrd-{round}-{}", file.file_name().display())),
            )?;
        }
        if round == 1 {
            std::fs::rename(&published, aside.path().join("kernel"))?;
        }
        let names = [format!("left-{round}"), format!("right-{round}")];
        try_join_all(
            names
                .iter()
                .map(|name| cx.machine(name, on_it(script("guest", "exit 0")))),
        )
        .await?;
        for name in &names {
            cx.until(name, "it has completed", |vm| vm::completed(vm, 0)).await?;
        }
    }
    let [of_initrds, of_kernel] = readers;
    let of_initrds = of_initrds.end()?;
    ensure!(
        of_initrds.values().any(|seen| seen.renewals >= 2),
        "no initrd was made anew twice"
    );
    let of_kernel = of_kernel.end()?;
    ensure!(
        of_kernel.values().all(|seen| seen.renewals >= 1),
        "the kernel was not published anew"
    );
    let now = cx.ready("bystander").await?;
    ensure!(
        vm::boot_id(&now) == vm::boot_id(&bystander),
        "the bystander was restarted"
    );
    let reads: usize = of_initrds
        .values()
        .chain(of_kernel.values())
        .map(|seen| seen.reads)
        .sum();
    cx.remark(format!("{reads} whole reads"));
    Ok(())
}
