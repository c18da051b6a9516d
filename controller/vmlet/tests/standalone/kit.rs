//! A `vmlet standalone` in a directory of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use vmlet_e2e::process::Process;
use vmlet_e2e::wait::{self, Seen};

/// For what takes milliseconds on an idle machine, and for a boot on a busy one.
const START: Duration = Duration::from_secs(60);
const BOOT: Duration = Duration::from_secs(240);

/// As whom vmlet runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// As the tests.
    Own,
    /// An ordinary one, without any privileges; only root can start it so.
    Nobody,
}

/// What a machine is made of.
pub struct Parts {
    guest: PathBuf,
    kernel_deb: PathBuf,
}

/// The guest image (an OCI layout) and the kernel package, as the environment names them.
pub fn prerequisites() -> Option<Parts> {
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.exists());
    Some(Parts {
        guest: named("VMLET_TEST_GUEST")?,
        kernel_deb: named("VMLET_TEST_KERNEL_DEB")?,
    })
}

/// Puts the parts below `dir/import`.
pub fn import(dir: &Path, parts: &Parts) -> Result<()> {
    let import = dir.join("import");
    std::fs::create_dir(&import)?;
    let run = |command: &mut Command| -> Result<()> {
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    run(Command::new("cp").arg("-r").arg(&parts.guest).arg(import.join("guest")))?;
    let mut package = Command::new(env!("CARGO_BIN_EXE_vmlet"));
    package
        .args(["kernel", "package", "--from-deb"])
        .arg(&parts.kernel_deb)
        .arg("--output")
        .arg(import.join("kernel"));
    run(&mut package)?;
    run(Command::new("chmod").arg("-R").arg("a+rX").arg(&import))
}

/// A running one. Dropping it kills it and its machines.
pub struct Standalone {
    process: Process,
    kubeconfig: PathBuf,
    log: PathBuf,
}

/// An HTTP answer: status and body.
pub async fn http_get(address: &str, path: &str) -> Result<(u16, String)> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
    let status = head.split_whitespace().nth(1).context("a status")?.parse()?;
    Ok((status, body.to_owned()))
}

/// Waits until the log names the address of `/metrics` and its like.
pub async fn admin_address(log: &Path) -> Result<String> {
    wait::until("the admin address in the log", START, || async {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let address = text
            .split("admin=")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next());
        Ok(match address {
            Some(address) => Seen::Done(address.to_owned()),
            None => Seen::NotYet(text),
        })
    })
    .await
}

impl Standalone {
    /// Starts it with everything below `dir`, and returns when the API is served.
    pub async fn start(dir: &Path, user: User) -> Result<Standalone> {
        let kubeconfig = dir.join("kubeconfig");
        // What an earlier one wrote does not count.
        let _ = std::fs::remove_file(&kubeconfig);
        let import = dir.join("import");
        let mut command = match user {
            User::Own => Command::new(env!("CARGO_BIN_EXE_vmlet")),
            User::Nobody => {
                // The build directory may be closed to others.
                let program = dir.join("vmlet");
                if !program.exists() {
                    std::fs::copy(env!("CARGO_BIN_EXE_vmlet"), &program)?;
                }
                for path in [dir, &program] {
                    std::os::unix::fs::chown(path, Some(65534), Some(65534))?;
                }
                let mut command = Command::new("setpriv");
                command
                    .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"])
                    .arg(program);
                command.env("HOME", dir);
                command
            }
        };
        command
            .args(["standalone", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir.join("data"));
        command.arg("--write-kubeconfig").arg(&kubeconfig);
        command.args(["--node-name", "test-node", "--admin-listen", "127.0.0.1:0"]);
        if import.exists() {
            command.arg("--import-dir").arg(import);
        }
        let log = dir.join("log");
        // A new process has a new admin address.
        let _ = std::fs::remove_file(&log);
        let mut process = Process::spawn("vmlet standalone", command, &log)?;
        let deadline = tokio::time::Instant::now() + START;
        while !kubeconfig.exists() {
            process.check()?;
            ensure!(
                tokio::time::Instant::now() < deadline,
                "no kubeconfig; the log:\n{}",
                process.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Standalone {
            process,
            kubeconfig,
            log,
        })
    }

    /// A client with the kubeconfig that it wrote.
    pub async fn client(&self) -> Result<kube::Client> {
        vmlet_e2e::client_without_retries(&std::fs::read_to_string(&self.kubeconfig)?).await
    }

    /// Where it serves `/metrics`, `/livez` and `/readyz`.
    pub async fn admin(&self) -> Result<String> {
        admin_address(&self.log).await
    }

    /// A command of vmlet's for a machine of this one. `command` is its name, the machine's, and options.
    pub fn vmlet(&self, command: &[&str]) -> Command {
        let mut vmlet = Command::new(env!("CARGO_BIN_EXE_vmlet"));
        vmlet.args(command).arg("--kubeconfig").arg(&self.kubeconfig);
        vmlet.env("VMLET_DATA_DIR", self.kubeconfig.with_file_name("data"));
        vmlet
    }

    /// Fails when it has ended.
    pub fn check(&mut self) -> Result<()> {
        self.process.check()
    }

    /// kill -9.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Waits until a condition has a status.
    pub async fn condition(
        &self,
        api: &Api<DynamicObject>,
        name: &str,
        condition: &str,
        status: &str,
    ) -> Result<DynamicObject> {
        let what = format!("{condition}={status} of {name}");
        let seen = wait::until(&what, BOOT, || async {
            let object = api.get(name).await?;
            let conditions = object.data["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let generation = object.metadata.generation;
            let holds = conditions.iter().any(|c| {
                c["type"] == condition && c["status"] == status && c["observedGeneration"].as_i64() >= generation
            });
            Ok(if holds {
                Seen::Done(object)
            } else {
                Seen::NotYet(format!("{}", object.data["status"]))
            })
        });
        seen.await
            .with_context(|| format!("the log:\n{}", self.process.log_tail()))
    }

    /// Waits until an object is gone.
    pub async fn gone(&self, api: &Api<DynamicObject>, name: &str) -> Result<()> {
        let what = format!("the end of {name}");
        let seen = wait::until(&what, BOOT, || async {
            Ok(match api.get_opt(name).await? {
                None => Seen::Done(()),
                Some(object) => Seen::NotYet(format!("{}", object.data["status"])),
            })
        });
        seen.await
            .with_context(|| format!("the log:\n{}", self.process.log_tail()))
    }
}

impl Drop for Standalone {
    fn drop(&mut self) {
        // At the end of a test, one that failed too, no machine is left. The agent first: it would start them again.
        let _ = self.process.kill();
        for pid in machines_below(&self.kubeconfig.with_file_name("data")) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// The VMMs of machines below a directory: by what they have open, for no name of it stands on their command lines.
fn machines_below(dir: &Path) -> Vec<rustix::process::Pid> {
    let entries = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
    let is_one = |process: &Path| {
        let words = std::fs::read(process.join("cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|word| word == b"-uuid")
            && entries(process.join("fd")).any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(dir)))
    };
    entries("/proc".into())
        .filter(|entry| is_one(&entry.path()))
        .filter_map(|entry| rustix::process::Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// vmlet's objects of a kind in the namespace `default`.
pub fn kind(client: &kube::Client, kind: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("vmlet.dev", "v1alpha1", kind);
    Api::namespaced_with(client.clone(), "default", &ApiResource::from_gvk(&kind))
}
