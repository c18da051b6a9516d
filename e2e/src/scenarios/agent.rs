//! A vmlet process that the scenarios run against.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use vmlet_e2e::process::{Process, free_port};

/// How long an agent may take to be ready; it adopts its machines first.
const START_LIMIT: Duration = Duration::from_secs(90);

/// Starts an agent (or all of vmlet) with an admin address of its own and waits until it is ready.
/// `command` makes the command line up to there.
pub async fn start(name: &str, log: &Path, command: impl Fn() -> Command) -> Result<Process> {
    let mut failure = None;
    // The port of the admin address may be taken by someone else before it is bound.
    for _ in 0..3 {
        let port = free_port()?;
        let mut command = command();
        command.arg("--admin-listen").arg(format!("127.0.0.1:{port}"));
        let mut process = Process::spawn(name, command, log)?;
        match ready(&mut process, port).await {
            Ok(()) => return Ok(process),
            Err(error) => failure = Some(error),
        }
    }
    bail!(
        "{name} does not become ready: {:#}",
        failure.unwrap_or_else(|| anyhow::anyhow!("no try"))
    )
}

async fn ready(process: &mut Process, port: u16) -> Result<()> {
    let http = vmlet_e2e::registry::http_client()?;
    let url = format!("http://127.0.0.1:{port}/readyz");
    let deadline = tokio::time::Instant::now() + START_LIMIT;
    loop {
        process.check()?;
        let last = match http.get(&url).send().await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => answer.status().to_string(),
            Err(error) => error.to_string(),
        };
        if tokio::time::Instant::now() > deadline {
            bail!("not ready after {START_LIMIT:?}: {last}\n{}", process.log_tail());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
