//! Debian's docker-registry on a free port of 127.0.0.1, with its access log.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::process::{Process, free_port};

/// A registry with an empty store. Dropping it ends it and removes the store.
#[derive(Debug)]
pub struct Registry {
    process: Option<Process>,
    port: u16,
    dir: TempDir,
}

/// One request, as the access log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Method, such as GET.
    pub method: String,
    /// Path with the query.
    pub path: String,
    /// Status code of the answer.
    pub status: u16,
}

impl Registry {
    /// Starts a registry and waits until it answers.
    pub async fn start() -> Result<Registry> {
        let mut failure = None;
        // The port may be taken by someone else before the registry binds it.
        for _ in 0..3 {
            let dir = tempfile::Builder::new().prefix("vmlet-registry.").tempdir()?;
            let mut registry = Registry {
                process: None,
                port: free_port()?,
                dir,
            };
            match registry.resume().await {
                Ok(()) => return Ok(registry),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("unreachable: the loop runs")?)
    }

    /// Starts the registry again after `stop`, on the same port and with the same store.
    pub async fn resume(&mut self) -> Result<()> {
        let binary = crate::program("docker-registry").context("docker-registry is missing: run scripts/deps")?;
        let config = self.dir.path().join("config.json");
        let text = serde_json::json!({
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": false}},
            "storage": {"filesystem": {"rootdirectory": self.dir.path().join("store")}, "delete": {"enabled": true}},
            "http": {"addr": self.address()},
        });
        std::fs::write(&config, text.to_string())?;
        let mut command = Command::new(binary);
        command.arg("serve").arg(&config);
        let mut process = Process::spawn("docker-registry", command, &self.log())?;
        let url = format!("http://{}/v2/", self.address());
        let http = http_client()?;
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while http.get(&url).send().await.is_err() {
            process.check()?;
            anyhow::ensure!(
                std::time::Instant::now() < deadline,
                "docker-registry does not answer: {}",
                process.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.process = Some(process);
        Ok(())
    }

    /// Ends the registry; its store stays.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// "127.0.0.1:PORT", the first part of references.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Changes one byte of a blob in the store, as a disk may.
    pub fn damage(&self, digest: &str) -> Result<()> {
        let hex = digest.strip_prefix("sha256:").context("not a sha256 digest")?;
        let first = hex.get(..2).context("not a sha256 digest")?;
        let blobs = self.dir.path().join("store/docker/registry/v2/blobs/sha256");
        let file = blobs.join(first).join(hex).join("data");
        let mut bytes = std::fs::read(&file).with_context(|| file.display().to_string())?;
        if let Some(byte) = bytes.last_mut() {
            *byte ^= 1;
        }
        Ok(std::fs::write(file, bytes)?)
    }

    /// All requests so far, oldest first.
    pub fn requests(&self) -> Vec<Request> {
        std::fs::read_to_string(self.log())
            .unwrap_or_default()
            .lines()
            .filter_map(parse_access)
            .collect()
    }

    /// How often each blob of `repository` was fetched with success.
    pub fn blob_gets(&self, repository: &str) -> std::collections::BTreeMap<String, usize> {
        let prefix = format!("/v2/{repository}/blobs/");
        let mut gets = std::collections::BTreeMap::new();
        for request in self.requests() {
            if request.method == "GET"
                && request.status < 300
                && let Some(digest) = request.path.strip_prefix(&prefix)
            {
                *gets.entry(digest.to_owned()).or_insert(0) += 1;
            }
        }
        gets
    }
}

/// A client for plain HTTP to this machine: no proxy of the environment comes between.
pub fn http_client() -> Result<reqwest::Client> {
    crate::install_crypto();
    Ok(reqwest::Client::builder().no_proxy().build()?)
}

/// Reads a line of the Apache combined log format: `HOST - - [TIME] "GET /v2/ HTTP/1.1" 200 2 "" "AGENT"`.
fn parse_access(line: &str) -> Option<Request> {
    let mut parts = line.split('"');
    let _host_and_time = parts.next()?;
    let mut request = parts.next()?.split(' ');
    let method = request.next()?;
    let path = request.next()?;
    request.next()?.starts_with("HTTP/").then_some(())?;
    let status = parts.next()?.split_whitespace().next()?.parse().ok()?;
    Some(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_log_line_is_read_and_other_lines_are_not() {
        let line = r#"127.0.0.1 - - [25/Nov/2026:15:49:00 +0000] "GET /v2/guest/blobs/sha256:ab HTTP/1.1" 200 12 "" "curl/7.88""#;
        let expected = Request {
            method: "GET".into(),
            path: "/v2/guest/blobs/sha256:ab".into(),
            status: 200,
        };
        assert_eq!(parse_access(line), Some(expected));
        assert_eq!(
            parse_access(r#"time="2026" level=warning msg="No HTTP secret provided""#),
            None
        );
        assert_eq!(parse_access(""), None);
    }
}
