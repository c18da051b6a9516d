//! `vmlet check`: what this machine can run, with a remedy for each thing that it cannot.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use indicatif::HumanBytes;
use vmlet_machines::{Finding, Level, probe};

use crate::cli::Check;
use crate::output;

/// Prints one line a finding. The exit status is 0 when virtual machines can run.
pub fn run(args: &Check) -> Result<ExitCode> {
    let facts = probe(&vmlet_machines::Config::new(args.data_dir.join("machines")));
    let mut findings = facts.findings;
    findings.push(data_dir(&args.data_dir));
    let mut worst = Level::Ok;
    let mut text = String::new();
    for finding in &findings {
        let mark = match finding.level {
            Level::Ok => "ok     ",
            Level::Warning => "warning",
            Level::Failure => "FAILURE",
        };
        text += &format!("{mark}  {:<12} {}\n", finding.name, finding.message);
        if let Some(remedy) = &finding.remedy {
            text += &format!("{:22} -> {remedy}\n", "");
        }
        worst = worst.max(finding.level);
    }
    let conclusion = match worst {
        Level::Ok => "virtual machines can run here",
        Level::Warning => "virtual machines can run here, with what the warnings say",
        Level::Failure => "virtual machines cannot run here",
    };
    output::print(&format!("{text}\n{conclusion}\n"))?;
    Ok(if worst == Level::Failure {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Bytes free below which images hardly fit, and a full disk pauses machines.
const LITTLE: u64 = 4 << 30;

/// Whether the data directory can be made and written: by making a directory there and removing it again.
fn data_dir(dir: &Path) -> Finding {
    let finding = |level, message: String, remedy: Option<&str>| Finding {
        name: "DataDir",
        level,
        message,
        remedy: remedy.map(str::to_owned),
    };
    let shown = dir.display();
    // What of it is there already.
    let existing = dir.ancestors().find(|d| d.symlink_metadata().is_ok());
    let existing = existing.unwrap_or(Path::new("."));
    if let Err(error) = tried(existing) {
        let below = if existing == dir {
            String::new()
        } else {
            format!(", below {},", existing.display())
        };
        return finding(
            Level::Failure,
            format!("{shown}{below} cannot be written: {error}"),
            Some("give --data-dir DIR with a directory of your own on a disk, or run this as the user that owns it"),
        );
    }
    match rustix::fs::statvfs(existing).map(|s| s.f_bavail.saturating_mul(s.f_frsize)) {
        Ok(free) if free < LITTLE => finding(
            Level::Warning,
            format!("{shown} can be written, and has only {} free", HumanBytes(free)),
            Some(
                "make room, or give --data-dir DIR on a larger disk: images, kernels and machines' disks are all there",
            ),
        ),
        Ok(free) => finding(
            Level::Ok,
            format!("{shown} can be written, {} free", HumanBytes(free)),
            None,
        ),
        Err(_) => finding(Level::Ok, format!("{shown} can be written"), None),
    }
}

/// Makes a directory in `dir` and removes it.
fn tried(dir: &Path) -> std::io::Result<()> {
    let probe = dir.join(format!(".vmlet-check-{}", std::process::id()));
    std::fs::create_dir(&probe)?;
    std::fs::remove_dir(&probe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_cannot_be_made_is_a_failure_with_a_remedy() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        std::fs::write(&file, "").expect("writes");
        // /proc may be written, as its mode says, and is not.
        for bad in [Path::new("/proc/x"), &file.join("below"), &file] {
            let finding = data_dir(bad);
            assert_eq!(finding.level, Level::Failure, "{finding:?}");
            assert!(finding.remedy.is_some() && finding.message.contains(&bad.display().to_string()));
        }
    }

    #[test]
    fn looking_at_a_directory_leaves_nothing_in_it() {
        let dir = tempfile::tempdir().expect("a directory");
        for good in [dir.path().to_owned(), dir.path().join("a/b")] {
            assert!(data_dir(&good).level <= Level::Warning);
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("reads").count(), 0);
    }
}
