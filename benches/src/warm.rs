//! From the API's commit to the VMM's exec, with image and kernel present.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{WatchEvent, WatchParams};
use vmlet_crds::{BootTiming, VirtualMachine};

use crate::procfs::threads;
use crate::report::{Report, Samples};
use crate::standalone::Node;

/// How long one start may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Starts machines one after the other and deletes each before the next.
pub async fn measure(node: &Node, starts: usize, report: &mut Report) -> Result<()> {
    report.section(&format!("Warm start, {starts} machines one after the other"));
    let pid = node.server()?.pid();
    let (mut asked_for, mut answered, mut noticed) = (Samples::default(), Samples::default(), Samples::default());
    let (mut prepared, mut launched, mut cpu) = (Samples::default(), Samples::default(), Samples::default());
    for at in 0..starts {
        let name = format!("warm-{at}");
        let before = threads(pid)?;
        let sent = SystemTime::now();
        let created = node.create(&name, "guest").await?;
        let answer = SystemTime::now();
        let timings = executed(node, &created).await?;
        cpu.add(threads(pid)?.cpu_since(&before));
        let step = |step| time(&timings, step);
        asked_for.add(since(sent, step("executed")?));
        answered.add(since(answer, step("executed")?));
        noticed.add(since(answer, step("asked")?));
        prepared.add(since(step("asked")?, step("prepared")?));
        launched.add(since(step("prepared")?, step("executed")?));
        node.delete(&name).await?;
    }
    report.table(
        &["ms", "P50", "P95", "max"],
        &[
            answered.row("**the create's answer to the VMM's exec** (goal: P50 50)"),
            asked_for.row("the create's first byte sent to the VMM's exec"),
            noticed.row("of it: answer to start asked for (watch, bind, pins, status, finalizer)"),
            prepared.row("of it: overlay, initrd, configuration"),
            launched.row("of it: durable record, fork, exec"),
            cpu.row("**CPU time of the whole process for it**, API and status included (goal: 10)"),
        ],
    );
    Ok(())
}

/// Waits until the status says that the VMM was executed.
async fn executed(node: &Node, created: &VirtualMachine) -> Result<Vec<BootTiming>> {
    let name = created.metadata.name.as_deref().unwrap_or_default();
    let version = created.metadata.resource_version.as_deref().unwrap_or_default();
    let params = WatchParams::default().fields(&format!("metadata.name={name}"));
    let machines = node.machines()?;
    let look = async {
        let mut events = machines.watch(&params, version).await?.boxed();
        let mut last = None;
        while let Some(event) = events.try_next().await? {
            if let WatchEvent::Added(vm) | WatchEvent::Modified(vm) = event {
                let status = vm.status.unwrap_or_default();
                if time(&status.boot_timings, "executed").is_ok() {
                    return Ok(status.boot_timings);
                }
                last = Some(status);
            }
        }
        anyhow::bail!("the watch ended before {name} was executed; last seen: {last:?}")
    };
    tokio::time::timeout(LIMIT, look)
        .await
        .with_context(|| format!("{name} was not executed within {LIMIT:?}"))?
}

fn time(timings: &[BootTiming], step: &str) -> Result<SystemTime> {
    let timing = timings.iter().find(|timing| timing.step == step);
    Ok(timing
        .with_context(|| format!("no step {step:?} in {timings:?}"))?
        .at
        .0
        .into())
}

/// Clocks of one machine; steps that come before the answer does count as none.
fn since(earlier: SystemTime, later: SystemTime) -> Duration {
    later.duration_since(earlier).unwrap_or_default()
}
