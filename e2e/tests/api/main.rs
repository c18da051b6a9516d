//! What vmlet relies on of the Kubernetes API, proven against a real kube-apiserver with real kubectls
//! and kube-rs. No case knows which server it talks to.

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

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

use target::{Cx, Server};

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
    let server = match Server::new() {
        Ok(server) => Arc::new(server),
        Err(error) => {
            eprintln!("no runtime: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let kubectls = vmlet_e2e::kubectl::binaries();
    if available && kubectls.is_empty() {
        eprintln!("there is no kubectl: run scripts/deps");
        return ExitCode::FAILURE;
    }
    let mut trials = Vec::new();
    for case in [
        apply::cases(),
        core::cases(),
        get::cases(),
        life::cases(),
        rest::cases(),
    ]
    .into_iter()
    .flatten()
    {
        for (version, binary) in kubectls.iter().take(if case.kubectl { usize::MAX } else { 1 }) {
            let name = match case.kubectl {
                true => format!("real::kubectl_{version}::{}", case.name),
                false => format!("real::{}", case.name),
            };
            let (server, binary, run) = (server.clone(), binary.clone(), case.run);
            let trial = Trial::test(name, move || {
                server
                    .run(&binary, run)
                    .map_err(|error| Failed::from(format!("{error:#}")))
            });
            trials.push(trial.with_ignored_flag(!available));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
