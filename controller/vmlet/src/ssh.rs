//! `vmlet ssh`: a shell in a VM, through its forwarded port, with the host key that vmlet gave it.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use kube::ResourceExt;
use vmlet_crds::{Protocol, VirtualMachine};

use crate::cli::Ssh;
use crate::vm;

/// Runs ssh towards the guest's forwarded port.
pub async fn ssh(args: Ssh) -> Result<ExitCode> {
    let vm = vm::get(&args.vm).await?;
    let (host, port) = address(&vm).map_err(anyhow::Error::msg)?;
    let mut command = Command::new("ssh");
    command.arg("-p").arg(port.to_string());
    let known = vm.status.as_ref().and_then(|status| status.ssh_host_key.as_deref());
    let alias = format!("vmlet-{}", vm.uid().unwrap_or_default());
    // ssh reads it while this process, which holds it, waits. Nothing is left behind.
    let _file = match known {
        Some(key) => {
            let file = known_hosts(&alias, key).context("known_hosts")?;
            let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
            for option in trusting(&path, key) {
                command.arg("-o").arg(option);
            }
            Some(file)
        }
        None => {
            eprintln!(
                "vmlet: the status of \"{}\" has no host key, because it was started without ssh keys or by an older agent: ssh remembers the first key that it sees",
                vm.name_any()
            );
            command.arg("-o").arg("StrictHostKeyChecking=accept-new");
            None
        }
    };
    // The host key belongs to the VM, so it is known under its uid, whatever port it has today.
    command.arg("-o").arg(format!("HostKeyAlias={alias}"));
    if let Some(identity) = &args.identity {
        command.arg("-i").arg(identity).arg("-o").arg("IdentitiesOnly=yes");
    }
    command.arg("-l").arg(&args.login).arg(host);
    if !args.command.is_empty() {
        let words: Vec<String> = args.command.iter().map(|word| quoted(word)).collect();
        command.arg("--").arg(words.join(" "));
    }
    let status = command.status().context("ssh: is the OpenSSH client installed?")?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(255)))
}

/// Where the guest's ssh server is reached, or why it is not.
fn address(vm: &VirtualMachine) -> Result<(String, u16), String> {
    let name = vm.name_any();
    let ports = vm.spec.interfaces.iter().flat_map(|interface| &interface.nat.ports);
    let ports: Vec<_> = ports.filter(|port| port.protocol == Protocol::Tcp).collect();
    let Some(wanted) = ports
        .iter()
        .find(|port| port.name == "ssh")
        .or_else(|| ports.iter().find(|port| port.guest_port == 22))
    else {
        return Err(format!(
            "\"{name}\" forwards no port named ssh, nor guest port 22: add one to spec.interfaces[0].nat.ports"
        ));
    };
    if let Some(why) = vm::not_running(vm) {
        return Err(format!("\"{name}\" does not run: {why}"));
    }
    let forwards = vm.status.iter().flat_map(|status| &status.ports);
    let Some(forward) = forwards.into_iter().find(|forward| forward.name == wanted.name) else {
        return Err(format!("port \"{}\" of \"{name}\" is not forwarded yet", wanted.name));
    };
    let port = forward.host_port.and_then(|port| u16::try_from(port).ok());
    let Some(port) = port else {
        let why = forward.message.as_deref().unwrap_or("not yet");
        return Err(format!(
            "port \"{}\" of \"{name}\" is not forwarded: {why}",
            wanted.name
        ));
    };
    let host = match forward.host_ip.as_str() {
        "0.0.0.0" => "127.0.0.1",
        host => host,
    };
    Ok((host.to_owned(), port))
}

/// Options with which ssh believes this key, no other, and asks nobody.
fn trusting(known_hosts: &str, key: &str) -> [String; 6] {
    let algorithm = key.split_whitespace().next().unwrap_or_default();
    [
        format!("UserKnownHostsFile={known_hosts}"),
        "GlobalKnownHostsFile=/dev/null".to_owned(),
        "StrictHostKeyChecking=yes".to_owned(),
        format!("HostKeyAlgorithms={algorithm}"),
        // It would write what else the server has into the file.
        "UpdateHostKeys=no".to_owned(),
        "CheckHostIP=no".to_owned(),
    ]
}

/// A file that has no name, with one host in it.
fn known_hosts(alias: &str, key: &str) -> Result<File> {
    if key.contains(['\n', '\r']) {
        bail!("the host key in the status is no key");
    }
    let mut file = File::from(rustix::fs::memfd_create(
        "known_hosts",
        rustix::fs::MemfdFlags::CLOEXEC,
    )?);
    writeln!(file, "{alias} {key}")?;
    Ok(file)
}

/// A word as the guest's shell reads it back unchanged: ssh joins its arguments with spaces.
fn quoted(word: &str) -> String {
    let plain = !word.is_empty()
        && word
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c));
    if plain {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_guests_shell_unchanged() {
        assert_eq!(quoted("uname"), "uname");
        assert_eq!(quoted("exit 42"), "'exit 42'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted("$(x)"), "'$(x)'");
        assert_eq!(quoted(""), "''");
    }
    fn vm(conditions: &[[&str; 4]], status_ports: serde_json::Value) -> VirtualMachine {
        let mut vm = crate::vm::tests::vm(conditions);
        let ports = serde_json::json!([
            {"name": "http", "guestPort": 80}, {"name": "shell", "guestPort": 22}
        ]);
        vm.spec.interfaces =
            serde_json::from_value(serde_json::json!([{"name": "main", "nat": {"ports": ports}}])).expect("interfaces");
        if let Some(status) = &mut vm.status {
            status.ports = serde_json::from_value(status_ports).expect("ports");
        }
        vm
    }

    #[test]
    fn a_stopped_machine_says_that_it_is_stopped() {
        let halted = vm(
            &[
                ["Running", "False", "Stopped", ""],
                ["Ready", "False", "Halted", "spec.runStrategy is Halted"],
            ],
            serde_json::json!([]),
        );
        let error = address(&halted).expect_err("no address");
        assert_eq!(error, "\"web\" does not run: Halted: spec.runStrategy is Halted");
        let mut none = halted;
        none.spec.interfaces.clear();
        assert!(address(&none).expect_err("no port").contains("forwards no port"));
    }

    #[test]
    fn the_port_is_that_of_the_guests_ssh_server() {
        let running = &[["Running", "True", "Running", ""]];
        let forward = |port: serde_json::Value| {
            serde_json::json!([{"name": "shell", "protocol": "TCP", "guestPort": 22, "hostIP": "0.0.0.0",
                "hostPort": port, "message": "port 2222 is in use"}])
        };
        let found = address(&vm(running, forward(40022.into())));
        assert_eq!(found, Ok(("127.0.0.1".to_owned(), 40022)));
        let error = address(&vm(running, forward(serde_json::Value::Null))).expect_err("refused");
        assert!(error.contains("port 2222 is in use"), "{error}");
    }

    #[test]
    fn only_the_key_that_the_guest_was_given_is_believed() {
        use std::io::Read;
        let file = known_hosts("vmlet-u", "ssh-ed25519 AAAA").expect("a file");
        let mut text = String::new();
        File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .and_then(|mut file| file.read_to_string(&mut text))
            .expect("reads");
        assert_eq!(text, "vmlet-u ssh-ed25519 AAAA\n");
        known_hosts("vmlet-u", "ssh-ed25519 AAAA\n* ssh-ed25519 BBBB").expect_err("two lines");
        let options = trusting("/known", "ssh-ed25519 AAAA");
        for option in [
            "StrictHostKeyChecking=yes",
            "HostKeyAlgorithms=ssh-ed25519",
            "UserKnownHostsFile=/known",
        ] {
            assert!(options.iter().any(|o| o == option), "{option}");
        }
    }
}
