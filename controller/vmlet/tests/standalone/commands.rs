//! `vmlet console`, `logs` and `ssh` as a person at a terminal, and a script, meet them.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kube::api::{DeleteParams, Patch, PatchParams};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use serde_json::json;

use crate::kit::{self, Standalone, User, kind, prerequisites};

/// For what a busy machine may take for.
const PATIENCE: Duration = Duration::from_secs(120);

/// A person at a terminal, and what the terminal shows.
struct Person {
    terminal: File,
    child: Following,
    seen: String,
}

impl Person {
    fn runs(mut command: Command) -> Result<Person> {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&terminal)?;
        unlockpt(&terminal)?;
        let name = ptsname(&terminal, Vec::new())?.into_string()?;
        let end = || File::options().read(true).write(true).open(&name);
        let child = command.stdin(end()?).stdout(end()?).stderr(end()?).spawn()?;
        Ok(Person {
            terminal: File::from(terminal),
            child: Following(child),
            seen: String::new(),
        })
    }

    fn types(&mut self, text: &str) -> Result<()> {
        Ok(self.terminal.write_all(text.as_bytes())?)
    }

    /// Reads until the terminal shows this, after what was waited for before.
    fn sees(&mut self, text: &str) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        let mut buffer = [0_u8; 1024];
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left)?;
            let mut ready = [PollFd::new(&self.terminal, PollFlags::IN)];
            if poll(&mut ready, Some(&timeout))? == 0 {
                bail!("never shown: {text:?}; last: {:?}", self.seen);
            }
            let count = self
                .terminal
                .read(&mut buffer)
                .with_context(|| format!("{:?}", self.seen))?;
            self.seen += &String::from_utf8_lossy(&buffer[..count]);
        }
    }

    /// Whether keys go to the program one by one.
    fn is_raw(&self) -> Result<bool> {
        let modes = tcgetattr(&self.terminal)?.local_modes;
        Ok(!modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG))
    }

    /// The exit status, with the terminal as it was.
    fn ends(mut self) -> Result<Option<i32>> {
        let status = self.child.0.wait()?;
        ensure!(!self.is_raw()?, "the terminal is left raw");
        Ok(status.code())
    }
}

/// A child that is killed when the test ends before it.
struct Following(Child);

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn script(mut command: Command, input: &str) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("a pipe")?.write_all(input.as_bytes())?;
    Ok(child.wait_with_output()?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs it to its end and expects it to fail with this in its message.
fn refused(command: Command, with: &str) -> Result<()> {
    let output = script(command, "")?;
    let said = text(&output.stderr);
    ensure!(!output.status.success() && said.contains(with), "{with}: {said}");
    Ok(())
}

/// A key for ssh, or nothing where there is no ssh.
fn key(dir: &Path) -> Option<(std::path::PathBuf, String)> {
    let path = dir.join("key");
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path);
    if !keygen.status().is_ok_and(|status| status.success()) {
        println!("skipped the ssh part: no ssh-keygen");
        return None;
    }
    let public = std::fs::read_to_string(path.with_extension("pub")).ok()?;
    Some((path, public.trim().to_owned()))
}

#[test]
fn a_reader_that_goes_away_is_no_error_and_a_full_disk_is_one() -> Result<()> {
    let says = |args: &[&str], out: Stdio| -> Result<(Option<i32>, String)> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmlet"));
        let output = command.args(args).stdout(out).stderr(Stdio::piped()).spawn()?;
        let output = output.wait_with_output()?;
        Ok((output.status.code(), text(&output.stderr)))
    };
    let nobody = || {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        anyhow::Ok(Stdio::from(writer))
    };
    let full = || anyhow::Ok(Stdio::from(File::options().write(true).open("/dev/full")?));
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data").display().to_string();
    for args in [vec!["crds"], vec!["check", "--data-dir", &data]] {
        let (code, said) = says(&args, nobody()?)?;
        ensure!(
            code.is_some() && code != Some(101) && said.is_empty(),
            "{args:?}: {code:?} {said}"
        );
        let (code, said) = says(&args, full()?)?;
        ensure!(
            code == Some(1) && said.contains("standard output"),
            "{args:?}: {code:?} {said}"
        );
    }
    Ok(())
}

#[test]
fn a_machine_without_certificate_authorities_still_asks_its_own_registry() -> Result<()> {
    let dir = tempfile::tempdir()?;
    // Nobody answers there; that it was asked is what counts.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmlet"));
    command
        .args(["image", "build", &format!("127.0.0.1:{port}/guest:latest"), "--output"])
        .arg(dir.path().join("disk"))
        .envs(["SSL_CERT_FILE", "SSL_CERT_DIR"].map(|name| (name, dir.path().join("none"))));
    refused(command, "no connection")
}

#[test]
fn a_build_that_is_interrupted_leaves_nothing_and_says_so() -> Result<()> {
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let dir = tempfile::tempdir()?;
    let mut build = Command::new(env!("CARGO_BIN_EXE_vmlet"))
        .args([
            "image",
            "build",
            &format!("{}/guest:latest", silent.local_addr()?),
            "--output",
        ])
        .arg(dir.path().join("disk"))
        .stderr(Stdio::piped())
        .spawn()?;
    // It has begun when it asks.
    let _asked = silent.accept()?;
    ensure!(std::fs::read_dir(dir.path())?.count() == 1, "it has begun with nothing");
    let pid = rustix::process::Pid::from_child(&build);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let mut said = String::new();
    build.stderr.take().context("piped")?.read_to_string(&mut said)?;
    let code = build.wait()?.code();
    ensure!(code == Some(143) && said.contains("interrupted"), "{code:?}: {said}");
    ensure!(std::fs::read_dir(dir.path())?.count() == 0, "something stays behind");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_and_a_script_reach_a_machine() -> Result<()> {
    let Some(parts) = prerequisites() else {
        println!("skipped: VMLET_TEST_GUEST and VMLET_TEST_KERNEL_DEB name no files; scripts/test sets them");
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    kit::import(dir.path(), &parts)?;
    let server = Standalone::start(dir.path(), User::Own).await?;
    let client = server.client().await?;
    let key = key(dir.path());
    let keys: Vec<&str> = key.iter().map(|(_, public)| public.as_str()).collect();
    let objects = [
        (
            "Image",
            "guest",
            json!({"source": {"path": {"path": "guest"}}, "kernelRef": {"name": "debian"}}),
        ),
        ("Kernel", "debian", json!({"source": {"path": {"path": "kernel"}}})),
        (
            "VirtualMachine",
            "one",
            json!({
                "imageRef": {"name": "guest"}, "memory": {"size": "128Mi"}, "terminationGracePeriodSeconds": 20,
                "guest": {"sshAuthorizedKeys": keys},
                "interfaces": [{"name": "main", "nat": {"ports": [{"name": "ssh", "guestPort": 22}]}}],
            }),
        ),
    ];
    for (kind_, name, spec) in objects {
        let object =
            json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": kind_, "metadata": {"name": name}, "spec": spec});
        let patch = Patch::Apply(object);
        kind(&client, kind_)
            .patch(name, &PatchParams::apply("test"), &patch)
            .await?;
    }
    let machines = kind(&client, "VirtualMachine");
    refused(server.vmlet(&["console", "two"]), "there is no virtual machine \"two\"")?;
    server.condition(&machines, "one", "Ready", "True").await?;

    let followed = dir.path().join("followed");
    let mut follow = server.vmlet(&["logs", "one", "--follow"]);
    follow
        .stdin(Stdio::null())
        .stdout(File::create(&followed)?)
        .stderr(Stdio::null());
    let mut follow = Following(follow.spawn()?);

    // A person types, one command at a time, and leaves with the key that was shown.
    let mut person = Person::runs(server.vmlet(&["console", "one"]))?;
    person.sees("Ctrl-] to leave")?;
    person.types("echo $((40+2)) on $(tty) >/dev/console; echo told $((1+1))\r")?;
    person.sees("told 2")?;
    ensure!(person.is_raw()?);
    let busy = format!("process {} uses the console already", person.child.0.id());
    refused(server.vmlet(&["console", "one"]), &busy)?;
    person.types("\x1d")?;
    ensure!(person.ends()? == Some(0));

    // A signal ends a session, and the terminal is put back.
    let mut person = Person::runs(server.vmlet(&["console", "one"]))?;
    person.sees("Ctrl-] to leave")?;
    person.types("echo again $((1+1))\r")?;
    person.sees("again 2")?;
    let pid = rustix::process::Pid::from_child(&person.child.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    ensure!(person.ends()? == Some(143));

    // A script's lines are typed, and its answers printed.
    let console = server.vmlet(&["console", "one", "--linger", "5"]);
    let output = script(console, "echo from $((20+3))\n")?;
    ensure!(
        output.status.success() && text(&output.stdout).contains("from 23"),
        "{output:?}"
    );

    // What was written to the other console is in the log; the typing is not.
    let logged = |options: &[&str]| script(server.vmlet(&[&["logs", "one"], options].concat()), "");
    let until = Instant::now() + PATIENCE;
    loop {
        let log = text(&logged(&[])?.stdout);
        if log.contains("42 on /dev/hvc0") {
            ensure!(!log.contains("from 23"), "{log}");
            break;
        }
        ensure!(Instant::now() < until, "{log}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let last = text(&logged(&["--tail", "1"])?.stdout);
    ensure!(last.lines().count() == 1, "{last}");
    refused(server.vmlet(&["logs", "one", "--previous"]), "earlier run")?;

    // ssh asks nothing, and believes no other key than the one that the guest was given.
    if let Some((path, _)) = &key {
        let mut ssh = server.vmlet(&["ssh", "one"]);
        ssh.arg("--identity")
            .arg(path)
            .env("HOME", dir.path())
            .args(["--", "echo", "it is", "$HOSTNAME"]);
        let output = script(ssh, "")?;
        ensure!(output.status.success(), "{output:?}");
        ensure!(text(&output.stdout) == "it is $HOSTNAME\n", "{output:?}");
        ensure!(output.stderr.is_empty(), "{output:?}");
        ensure!(!dir.path().join(".ssh/known_hosts").exists());
    }

    // The end of the machine is that of the session.
    let mut person = Person::runs(server.vmlet(&["console", "one"]))?;
    person.sees("Ctrl-] to leave")?;
    let halted = Patch::Merge(json!({"spec": {"runStrategy": "Halted"}}));
    machines.patch("one", &PatchParams::default(), &halted).await?;
    person.sees("\"one\" has stopped")?;
    ensure!(person.ends()? == Some(1));
    server.condition(&machines, "one", "Running", "False").await?;
    for command in ["console", "ssh"] {
        refused(
            server.vmlet(&[command, "one"]),
            "does not run: Halted: spec.runStrategy is Halted",
        )?;
    }

    // The log of the run before is that of the run before.
    let again = Patch::Merge(json!({"spec": {"runStrategy": "Always"}}));
    machines.patch("one", &PatchParams::default(), &again).await?;
    server.condition(&machines, "one", "Ready", "True").await?;
    let previous = text(&logged(&["--previous"])?.stdout);
    ensure!(previous.contains("42 on /dev/hvc0"), "{previous}");
    let latest = text(&logged(&[])?.stdout);
    ensure!(!latest.contains("42 on /dev/hvc0"), "{latest}");

    // Who follows sees both runs, and the end of the machine ends it.
    script(
        server.vmlet(&["console", "one"]),
        "echo second $((3*3)) >/dev/console\n",
    )?;
    let until = Instant::now() + PATIENCE;
    while !std::fs::read_to_string(&followed)?.contains("second 9") {
        ensure!(Instant::now() < until, "{}", std::fs::read_to_string(&followed)?);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    ensure!(std::fs::read_to_string(&followed)?.contains("42 on /dev/hvc0"));
    machines.delete("one", &DeleteParams::default()).await?;
    server.gone(&machines, "one").await?;
    ensure!(follow.0.wait()?.success());
    Ok(())
}
