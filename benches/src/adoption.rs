//! How fast a new process takes hold of machines that run.

use std::time::Duration;

use anyhow::Result;

use crate::procfs;
use crate::report::{Report, ms};
use crate::standalone::Node;

/// How often it is measured.
const ROUNDS: usize = 5;

/// Kills the process (-9), starts another, and reads in its log how long adoption took.
pub async fn measure(node: &mut Node, report: &mut Report) -> Result<()> {
    let machines = procfs::vmms(&node.uids()).len();
    report.section(&format!("Adoption of {machines} machines after kill -9"));
    let mut rows = Vec::new();
    for round in 1..=ROUNDS {
        let seen = node.log().len();
        let startup = node.restart().await?;
        let log = node.log();
        let (count, took) = adopted(log.get(seen..).unwrap_or_default())?;
        let each = took / u32::try_from(count.max(1))?;
        rows.push(vec![
            round.to_string(),
            count.to_string(),
            ms(took),
            ms(each),
            ms(startup),
        ]);
    }
    report.table(
        &[
            "round",
            "adopted",
            "all, ms",
            "**each, ms** (goal: 10)",
            "process start to API served, ms",
        ],
        &rows,
    );
    let pid = node.server()?.pid();
    let pss = procfs::pss(pid)?;
    let still = procfs::vmms(&node.uids()).len();
    report.line(&format!(
        "{still} VMMs run on; PSS of the new process {:.1} MiB.",
        pss.total as f64 / 1024.0
    ));
    Ok(())
}

/// Reads "... machines are adopted count=10 took_us=12345" from a log.
fn adopted(log: &str) -> Result<(usize, Duration)> {
    let line = log.lines().find(|line| line.contains("machines are adopted"));
    let field = |name: &str| {
        let value = line?.split_once(&format!("{name}="))?.1;
        value.split_whitespace().next()?.parse::<u64>().ok()
    };
    match (field("count"), field("took_us")) {
        (Some(count), Some(took)) => Ok((usize::try_from(count)?, Duration::from_micros(took))),
        _ => anyhow::bail!("the log does not say what was adopted: {log}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logged_time_is_read() {
        let log = "2026-01-01T00:00:00Z  INFO vmlet_machines: machines are adopted count=10 took_us=23456\nother";
        assert_eq!(adopted(log).expect("it is there"), (10, Duration::from_micros(23456)));
        assert!(adopted("nothing").is_err());
    }
}
