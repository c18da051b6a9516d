//! Real kubectl, as a user runs it.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// No command of a test may take longer.
const LIMIT: Duration = Duration::from_secs(60);

/// One kubectl binary with one kubeconfig, a namespace and a cache directory of its own.
#[derive(Clone, Debug)]
pub struct Kubectl {
    binary: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
    namespace: String,
}

/// The kubectls of this machine: the newest one that `scripts/deps` fetched and the machine's own.
pub fn binaries() -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for path in [crate::cached_binary("kubectl"), crate::program("kubectl")]
        .into_iter()
        .flatten()
    {
        if let Some(version) = version(&path)
            && !found.iter().any(|(known, _)| *known == version)
        {
            found.push((version, path));
        }
    }
    found
}

/// Minor version of a kubectl, such as "1.37".
fn version(binary: &Path) -> Option<String> {
    let output = std::process::Command::new(binary)
        .args(["version", "--client", "-o", "json"])
        .output()
        .ok()?;
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let git = version
        .pointer("/clientVersion/gitVersion")?
        .as_str()?
        .trim_start_matches('v');
    Some(git.split('.').take(2).collect::<Vec<_>>().join("."))
}

impl Kubectl {
    /// `directory` holds the discovery cache and the kubeconfig's copy.
    pub fn new(binary: &Path, kubeconfig: &str, directory: &Path, namespace: &str) -> Result<Kubectl> {
        std::fs::create_dir_all(directory)?;
        let file = directory.join("kubeconfig");
        std::fs::write(&file, kubeconfig)?;
        Ok(Kubectl {
            binary: binary.to_owned(),
            kubeconfig: file,
            cache: directory.join("cache"),
            namespace: namespace.to_owned(),
        })
    }

    /// A command that has not been started, for tests that watch.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.cache)
            // Plugins and preferences of the machine's user must not play a part.
            .env_remove("KUBECTL_EXTERNAL_DIFF")
            .arg(format!("--namespace={}", self.namespace))
            .arg(format!("--cache-dir={}", self.cache.display()))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs kubectl and returns whatever came of it.
    pub async fn run(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("start {}", self.binary.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A command that reads no input may be gone already.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        match tokio::time::timeout(LIMIT, child.wait_with_output()).await {
            Ok(output) => Ok(output?),
            Err(_) => bail!("kubectl {} hangs for {LIMIT:?}", arguments.join(" ")),
        }
    }

    /// Runs kubectl, which must succeed, and returns what it printed.
    pub async fn ok(&self, arguments: &[&str]) -> Result<String> {
        self.ok_with(arguments, "").await
    }

    /// As `ok`, with an input (for `-f -`).
    pub async fn ok_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        let output = self.run(arguments, input).await?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "kubectl {} failed: {}{stdout}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(stdout)
    }

    /// Runs kubectl, which must fail, and returns its complaint.
    pub async fn fails(&self, arguments: &[&str], input: &str) -> Result<String> {
        let output = self.run(arguments, input).await?;
        if output.status.success() {
            bail!(
                "kubectl {} should have failed; it printed: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stdout)
            );
        }
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// An object as JSON.
    pub async fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        let text = self.ok(&all).await?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {} printed no JSON: {text}", all.join(" ")))
    }
}
