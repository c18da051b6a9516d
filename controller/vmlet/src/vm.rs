//! `vmlet logs` and `vmlet ssh`: what one does with a VM that runs on this machine.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kube::{Api, ResourceExt};
use vmlet_crds::VirtualMachine;

use crate::cli::{Logs, Ssh, VmArgs};

/// How often a followed log is looked at.
const FOLLOW: Duration = Duration::from_millis(300);

async fn get(args: &VmArgs) -> Result<VirtualMachine> {
    let client = crate::setup::client(&args.api).await?;
    let api: Api<VirtualMachine> = Api::namespaced(client, &args.namespace);
    match api.get_opt(&args.vm).await? {
        Some(vm) => Ok(vm),
        None => bail!(
            "there is no virtual machine \"{}\" in namespace \"{}\"",
            args.vm,
            args.namespace
        ),
    }
}

/// Prints the console log.
pub async fn logs(args: Logs) -> Result<()> {
    let vm = get(&args.vm).await?;
    let uid = vm.uid().unwrap_or_default();
    let Some([newest, previous]) = vmlet_machines::console_files(&args.data_dir.join("machines"), &uid) else {
        bail!("\"{}\" has the uid {uid:?}, which no machine can have", args.vm.vm);
    };
    let files = [previous, newest];
    let mut out = std::io::stdout();
    let mut printed = false;
    let mut current: Option<File> = None;
    for path in &files {
        let Ok(mut file) = File::open(path) else { continue };
        std::io::copy(&mut file, &mut out)?;
        printed = true;
        current = Some(file);
    }
    if !printed && !args.follow {
        let node = vm.spec.node_name.as_deref().unwrap_or("none yet");
        bail!(
            "no console log of \"{}\" below {}: the machine has not started, or runs on another node (its node: {node}), or the agent uses another --data-dir",
            args.vm.vm,
            args.data_dir.display()
        );
    }
    out.flush()?;
    if !args.follow {
        return Ok(());
    }
    loop {
        tokio::time::sleep(FOLLOW).await;
        let Some(newest) = files.last() else { break };
        if let Some(file) = &mut current {
            std::io::copy(file, &mut out)?;
        }
        // Rotated: the name leads to another file now, which starts anew.
        if let Ok(mut fresh) = File::open(newest) {
            use std::os::unix::fs::MetadataExt;
            let other = match &current {
                Some(old) => old.metadata()?.ino() != fresh.metadata()?.ino(),
                None => true,
            };
            if other {
                fresh.seek(SeekFrom::Start(0))?;
                let mut text = Vec::new();
                fresh.read_to_end(&mut text)?;
                out.write_all(&text)?;
                current = Some(fresh);
            }
        }
        out.flush()?;
    }
    Ok(())
}

/// Runs ssh towards the guest's forwarded port.
pub async fn ssh(args: Ssh) -> Result<ExitCode> {
    let vm = get(&args.vm).await?;
    let status = vm.status.clone().unwrap_or_default();
    let port = status
        .ports
        .iter()
        .find(|p| p.name == "ssh")
        .or_else(|| status.ports.iter().find(|p| p.guest_port == 22))
        .with_context(|| {
            format!(
                "\"{}\" forwards no port named ssh, nor guest port 22: add one to spec.interfaces[0].nat.ports",
                args.vm.vm
            )
        })?;
    let Some(host_port) = port.host_port else {
        bail!(
            "port \"{}\" of \"{}\" is not forwarded: {}",
            port.name,
            args.vm.vm,
            port.message.as_deref().unwrap_or("the machine does not run")
        );
    };
    let host = if port.host_ip == "0.0.0.0" {
        "127.0.0.1"
    } else {
        &port.host_ip
    };
    let mut command = std::process::Command::new("ssh");
    command.arg("-p").arg(host_port.to_string());
    // The host key belongs to the VM, so it is remembered under its uid, whatever port it has today.
    command
        .arg("-o")
        .arg(format!("HostKeyAlias=vmlet-{}", vm.uid().unwrap_or_default()));
    command.arg("-o").arg("StrictHostKeyChecking=accept-new");
    if let Some(identity) = &args.identity {
        command.arg("-i").arg(identity).arg("-o").arg("IdentitiesOnly=yes");
    }
    command.arg("-l").arg(&args.login).arg(host);
    if !args.command.is_empty() {
        command.arg("--").arg(
            args.command
                .iter()
                .map(|word| quoted(word))
                .collect::<Vec<_>>()
                .join(" "),
        );
    }
    let status = command.status().context("ssh: is the OpenSSH client installed?")?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(255)))
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
}
