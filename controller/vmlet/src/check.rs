//! `vmlet check`: what this machine can run, with a remedy for each thing that it cannot.

use std::process::ExitCode;

use anyhow::Result;
use vmlet_machines::{Finding, Level, probe};

use crate::cli::Check;

/// Prints one line a finding. The exit status is 0 when virtual machines can run.
pub fn run(args: &Check) -> Result<ExitCode> {
    let facts = probe(&vmlet_machines::Config::new(args.data_dir.join("machines")));
    let mut findings = facts.findings;
    findings.push(data_dir(&args.data_dir));
    let mut worst = Level::Ok;
    for finding in &findings {
        let mark = match finding.level {
            Level::Ok => "ok     ",
            Level::Warning => "warning",
            Level::Failure => "FAILURE",
        };
        println!("{mark}  {:<12} {}", finding.name, finding.message);
        if let Some(remedy) = &finding.remedy {
            println!("{:22} -> {remedy}", "");
        }
        worst = worst.max(finding.level);
    }
    Ok(if worst == Level::Failure {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Whether the data directory, or the directory that it would be made in, can be written.
fn data_dir(dir: &std::path::Path) -> Finding {
    use rustix::fs::Access;
    let existing = dir.ancestors().find(|d| d.exists()).unwrap_or(dir);
    let free = rustix::fs::statvfs(existing).map(|s| s.f_bavail.saturating_mul(s.f_frsize) >> 20);
    match rustix::fs::access(existing, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Finding {
            name: "DataDir",
            level: Level::Ok,
            message: match free {
                Ok(mib) => format!("{} can be written, {mib} MiB free", dir.display()),
                Err(_) => format!("{} can be written", dir.display()),
            },
            remedy: None,
        },
        Err(error) => Finding {
            name: "DataDir",
            level: Level::Failure,
            message: format!("{} cannot be written: {error}", dir.display()),
            remedy: Some("give --data-dir DIR with a directory of your own".to_owned()),
        },
    }
}
