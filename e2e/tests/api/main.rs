//! What vmlet relies on of the Kubernetes API, proven with real kubectls and kube-rs against a real
//! kube-apiserver and against the embedded API. No case knows which server it talks to.
//!
//! `differences.txt` names the cases in which the embedded API is allowed to differ, each with its reason. A case
//! that differs and is not named there fails, and so does one that is named and does not differ any more.

mod apply;
mod core;
mod get;
mod life;
mod own;
mod rest;
mod target;
mod watch;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

use target::{Cx, Kind, Server};

type Outcome = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// One case: a sentence and what proves it.
struct Case {
    name: &'static str,
    /// Cases that only talk through kube-rs run once, not once per kubectl.
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
    let mut arguments = Arguments::from_args();
    // Cases wait for servers more than they compute.
    arguments.test_threads.get_or_insert(6);
    let available = vmlet_e2e::controlplane::available();
    if !available {
        println!("skipped: the real control plane is not built (scripts/controlplane does that)");
        if std::env::var_os("VMLET_E2E_REQUIRED").is_some() {
            return ExitCode::FAILURE;
        }
    }
    let kubectls = vmlet_e2e::kubectl::binaries();
    if kubectls.is_empty() {
        eprintln!("there is no kubectl: run scripts/deps");
        return ExitCode::FAILURE;
    }
    let mut trials = Vec::new();
    for kind in [Kind::Embedded, Kind::Real] {
        let server = match Server::new(kind) {
            Ok(server) => Arc::new(server),
            Err(error) => {
                eprintln!("no runtime: {error:#}");
                return ExitCode::FAILURE;
            }
        };
        let differences = match kind {
            Kind::Real => BTreeMap::new(),
            Kind::Embedded => differences(),
        };
        let prefix = match kind {
            Kind::Real => "real",
            Kind::Embedded => "embedded",
        };
        for case in all() {
            for (version, binary) in kubectls.iter().take(if case.kubectl { usize::MAX } else { 1 }) {
                let name = match case.kubectl {
                    true => format!("{prefix}::kubectl_{version}::{}", case.name),
                    false => format!("{prefix}::{}", case.name),
                };
                let (server, binary, run) = (server.clone(), binary.clone(), case.run);
                let difference = differences.get(case.name).copied();
                let trial = Trial::test(name, move || judge(server.run(&binary, run), difference));
                trials.push(trial.with_ignored_flag(kind == Kind::Real && !available));
            }
        }
    }
    for name in differences().keys() {
        let name = *name;
        let known = all().iter().any(|case| case.name == name);
        trials.push(Trial::test(format!("differences::{name}"), move || match known {
            true => Ok(()),
            false => Err(Failed::from("differences.txt names a case that does not exist")),
        }));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn all() -> Vec<Case> {
    let parts = [
        apply::cases(),
        core::cases(),
        get::cases(),
        life::cases(),
        own::cases(),
        rest::cases(),
        watch::cases(),
    ];
    parts.into_iter().flatten().collect()
}

/// Case name to reason.
fn differences() -> BTreeMap<&'static str, &'static str> {
    let lines = include_str!("differences.txt").lines().filter(|l| !l.starts_with('#'));
    lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, reason)| (name.trim(), reason.trim()))
        .collect()
}

fn judge(outcome: Result<()>, difference: Option<&str>) -> Result<(), Failed> {
    match (outcome, difference) {
        (Ok(()), None) | (Err(_), Some(_)) => Ok(()),
        (Err(error), None) => Err(Failed::from(format!("{error:#}"))),
        (Ok(()), Some(reason)) => Err(Failed::from(format!(
            "differences.txt says that this differs ({reason}), but it does not any more: remove the line"
        ))),
    }
}
