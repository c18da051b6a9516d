//! One suite for two API servers: a real kube-apiserver and the embedded one. No case knows which it
//! talks to. Where the embedded API differs, `differences.txt` says so with a reason; a difference
//! that is not listed fails, and so does one that is listed and no longer there.

mod apply;
mod core;
mod get;
mod life;
mod rest;
mod target;

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, bail};
use libtest_mimic::{Arguments, Failed, Trial};

use target::{Cx, Server, Target};

type Outcome = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// One case: a sentence and what proves it.
struct Case {
    name: &'static str,
    /// Cases that only talk through kube-rs run once per server, not once per kubectl.
    kubectl: bool,
    run: fn(Cx) -> Outcome,
}

/// Lists functions `async fn(Cx) -> Result<()>` as cases.
macro_rules! cases {
    ($kubectl:expr; $($name:ident),* $(,)?) => {
        vec![$($crate::Case { name: stringify!($name), kubectl: $kubectl, run: |cx| Box::pin($name(cx)) }),*]
    };
}
pub(crate) use cases;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let cases: Vec<Case> = [apply::cases(), core::cases(), get::cases(), life::cases(), rest::cases()].into_iter().flatten().collect();
    let differences = match parse_differences(include_str!("differences.txt"), &cases) {
        Ok(differences) => Arc::new(differences),
        Err(error) => {
            eprintln!("differences.txt: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let kubectls = vmlet_e2e::kubectl::binaries();
    let mut trials = Vec::new();
    for target in Target::ALL {
        let server = match Server::new(target) {
            Ok(server) => Arc::new(server),
            Err(error) => {
                eprintln!("no runtime for the server {target}: {error:#}");
                return ExitCode::FAILURE;
            }
        };
        for case in &cases {
            for (version, binary) in kubectls.iter().take(if case.kubectl { usize::MAX } else { 1 }) {
                let name = match case.kubectl {
                    true => format!("{target}::kubectl_{version}::{}", case.name),
                    false => format!("{target}::{}", case.name),
                };
                let (server, binary, run, sentence) = (server.clone(), binary.clone(), case.run, case.name);
                let expected = match target {
                    Target::Real => None,
                    Target::Embedded => differences.iter().find(|(name, _)| *name == sentence).map(|(_, reason)| reason.clone()),
                };
                let trial = Trial::test(name, move || {
                    let outcome = server.run(&binary, run);
                    judge(outcome, expected.as_deref()).map_err(Failed::from)
                });
                trials.push(trial.with_ignored_flag(!target.available()));
            }
        }
    }
    if !Target::Real.available() {
        println!("skipped: the real control plane is not built (scripts/controlplane does that)");
        if std::env::var_os("VMLET_E2E_REQUIRED").is_some() {
            return ExitCode::FAILURE;
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    conclusion.exit_code()
}

/// A listed difference must still be one.
fn judge(outcome: Result<()>, listed: Option<&str>) -> Result<(), String> {
    match (outcome, listed) {
        (Ok(()), None) => Ok(()),
        (Err(error), None) => Err(format!("{error:?}")),
        (Err(_), Some(_)) => Ok(()),
        (Ok(()), Some(reason)) => Err(format!("differences.txt lists this case ({reason}), but it passes: remove the line")),
    }
}

/// Reads lines of the form `case: reason`. A case that does not exist is stale.
fn parse_differences(text: &str, cases: &[Case]) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.split_once(':') {
            Some((case, reason)) if !reason.trim().is_empty() => {
                if !cases.iter().any(|known| known.name == case) {
                    bail!("there is no case {case:?}");
                }
                found.push((case.to_owned(), reason.trim().to_owned()));
            }
            _ => bail!("{line:?} is not `case: reason`"),
        }
    }
    Ok(found)
}
