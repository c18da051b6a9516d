//! Memory and idle wake-ups of the whole process while machines run.

use std::time::Duration;

use anyhow::Result;

use crate::procfs::{self, Pss};
use crate::report::{Report, ms};
use crate::standalone::Node;

/// How long the idle process is looked at.
const IDLE: Duration = Duration::from_secs(20);
/// How often its memory is looked at meanwhile: it is another one at a heartbeat than between two.
const LOOK: Duration = Duration::from_millis(500);
/// How long it is left alone before: status writes and threads of the last start come to their end.
const SETTLE: Duration = Duration::from_secs(15);

/// Runs machines, one of them from the large image, and looks.
pub async fn measure(node: &Node, machines: usize, report: &mut Report) -> Result<()> {
    report.section(&format!("Memory of the whole process with {machines} machines"));
    let pid = node.server()?.pid();
    let mut rows = vec![row("started, no machine", procfs::pss(pid)?)];
    let names: Vec<String> = (0..machines).map(|at| format!("vm-{at}")).collect();
    for (at, name) in names.iter().enumerate() {
        let image = if at == 0 && node.has_large { "large" } else { "guest" };
        node.create(name, image).await?;
    }
    eprintln!("bench: waiting for {machines} machines");
    for name in &names {
        node.ready(name).await?;
    }
    rows.push(row("all ready, just now", procfs::pss(pid)?));
    tokio::time::sleep(SETTLE).await;
    let before = procfs::threads(pid)?;
    let mut looks = Vec::new();
    let end = tokio::time::Instant::now() + IDLE;
    while tokio::time::Instant::now() < end {
        looks.push(procfs::pss(pid)?);
        tokio::time::sleep(LOOK).await;
    }
    let after = procfs::threads(pid)?;
    looks.sort_by_key(|pss| pss.total);
    for (name, look) in [
        ("settled: least", looks.first()),
        ("**settled: median of 20 s** (goal: 20.0)", looks.get(looks.len() / 2)),
        ("settled: most", looks.last()),
    ] {
        rows.extend(look.map(|pss| row(name, *pss)));
    }
    report.table(&["MiB", "PSS", "anonymous", "file", "shared memory"], &rows);
    let by_name = after.wakeups_since(&before);
    let total: u64 = by_name.values().sum();
    let each: Vec<String> = by_name.iter().map(|(name, n)| format!("{name} {n}")).collect();
    report.line(&format!(
        "Idle for {} s, {} threads: {:.1} wake-ups a second ({}), {} ms of CPU time a second.",
        IDLE.as_secs(),
        after.len(),
        total as f64 / IDLE.as_secs_f64(),
        each.join(", "),
        ms(after.cpu_since(&before) / u32::try_from(IDLE.as_secs())?),
    ));
    Ok(())
}

fn row(name: &str, pss: Pss) -> Vec<String> {
    let mib = |kib: u64| format!("{:.1}", kib as f64 / 1024.0);
    vec![
        name.to_owned(),
        mib(pss.total),
        mib(pss.anon),
        mib(pss.file),
        mib(pss.shmem),
    ]
}
