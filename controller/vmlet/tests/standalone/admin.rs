//! /metrics, /livez and /readyz as a probe and Prometheus meet them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use vmlet_e2e::process::Process;
use vmlet_e2e::wait::{self, Seen};

use crate::kit::{Standalone, User, admin_address, http_get};

pub const SOON: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_one_is_live_and_ready_and_tells_its_metrics() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Standalone::start(dir.path(), User::Own).await?;
    let address = server.admin().await?;
    ensure!(http_get(&address, "/livez").await? == (200, "ok".to_owned()));
    wait::until("readiness", SOON, || async {
        let (status, body) = http_get(&address, "/readyz").await?;
        Ok(if status == 200 {
            Seen::Done(())
        } else {
            Seen::NotYet(body)
        })
    })
    .await?;
    let (status, body) = http_get(&address, "/readyz?verbose").await?;
    ensure!(
        status == 200 && body.contains("[+]api ok\n") && body.contains("[+]heartbeat ok\n"),
        "{body}"
    );
    let (status, body) = http_get(&address, "/elsewhere").await?;
    ensure!(status == 404, "{status} {body}");

    let (status, text) = http_get(&address, "/metrics").await?;
    ensure!(status == 200 && text.ends_with("# EOF\n"), "{text}");
    let described = |what: &str| -> BTreeSet<&str> {
        let lines = text
            .lines()
            .filter_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
        lines.filter_map(|line| line.split(' ').next()).collect()
    };
    let types = described("# TYPE");
    ensure!(types == described("# HELP"), "{text}");
    for name in [
        "machine_starts",
        "machines_running",
        "reconcile_failures",
        "heartbeat_timestamp_seconds",
    ] {
        ensure!(types.contains(format!("vmlet_{name}").as_str()), "no {name}: {text}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').context("a sample")?;
        ensure!(value.parse::<f64>().is_ok(), "{line}");
        let name = series.split('{').next().unwrap_or_default();
        let family = ["_total", "_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end));
        ensure!(
            types.contains(name) || family.is_some_and(|f| types.contains(f)),
            "{line}"
        );
    }
    let heartbeat = text
        .lines()
        .find_map(|line| line.strip_prefix("vmlet_heartbeat_timestamp_seconds "));
    ensure!(
        heartbeat.is_some_and(|at| at.parse::<f64>().is_ok_and(|at| at > 1.7e9)),
        "{text}"
    );
    Ok(())
}

/// An agent, its log, and its API: that takes connections, as its kernel does, and never answers.
fn lonely_agent(dir: &Path) -> Result<(Process, PathBuf, std::net::TcpListener)> {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")?;
    let kubeconfig = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": format!("http://{}", nobody.local_addr()?)}}],
        "users": [{"name": "x", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    });
    let file = dir.join("kubeconfig");
    std::fs::write(&file, kubeconfig.to_string())?;
    let log = dir.join("log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmlet"));
    command.args([
        "agent",
        "--node-name",
        "alone",
        "--admin-listen",
        "127.0.0.1:0",
        "--kubeconfig",
    ]);
    command.arg(file).arg("--data-dir").arg(dir.join("data"));
    command.arg("--import-dir").arg(dir.join("import"));
    Ok((Process::spawn("vmlet agent", command, &log)?, log, nobody))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_api_does_not_answer_is_live_and_says_what_it_waits_for() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (_agent, log, _api) = lonely_agent(dir.path())?;
    let address = admin_address(&log).await?;
    wait::until("only the API is missing", SOON, || async {
        let (status, body) = http_get(&address, "/readyz").await?;
        ensure!(status == 503, "{status}: {body}");
        let waits = body.contains("[+]artifacts ok\n") && body.contains("[-]api failed: ");
        Ok(if waits { Seen::Done(()) } else { Seen::NotYet(body) })
    })
    .await?;
    ensure!(http_get(&address, "/livez").await?.0 == 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_directory_that_is_not_there_is_told_at_the_start_with_what_to_do() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (_agent, log, _api) = lonely_agent(dir.path())?;
    let import = dir.path().join("import");
    let wanted = format!("the import directory {}: No such file", import.display());
    wait::until("the warning", SOON, || async {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let line = text.lines().find(|line| line.contains(&wanted));
        Ok(match line {
            Some(line) if line.contains("WARN") && line.contains("another --import-dir") => Seen::Done(()),
            _ => Seen::NotYet(text),
        })
    })
    .await
}
