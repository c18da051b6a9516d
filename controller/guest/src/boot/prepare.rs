//! What is written into the mounted root, and what is found out there, before anything of it runs.

use std::io;

use vmlet_init::channel::ExitReason;
use vmlet_init::config::GuestConfig;
use vmlet_init::decide::{INIT_PATHS, Plan, decide};
use vmlet_init::users::{User, find};
use vmlet_init::{etc, users};

use super::failure::{Because, Failure};
use super::files::{Attributes, Root};

/// The largest passwd, group or authorized_keys file that is read, in bytes.
const MAX_FILE: usize = 4 << 20;

/// Writes names, addresses, keys and files.
pub fn write_files(config: &GuestConfig, root: &Root) -> Result<(), Failure> {
    identity(config, root).because(ExitReason::SetupFailed)?;
    for file in &config.files {
        let attributes = Attributes {
            mode: file.mode,
            uid: file.uid,
            gid: file.gid,
        };
        root.write(&file.path, &file.content.0, attributes)
            .because(ExitReason::SetupFailed)?;
    }
    authorized_keys(root, &config.authorized_keys).because(ExitReason::SetupFailed)
}

fn identity(config: &GuestConfig, root: &Root) -> io::Result<()> {
    let address = config.network.as_ref().and_then(|n| n.address.split('/').next());
    if !config.hostname.is_empty() {
        rustix::system::sethostname(config.hostname.as_bytes())?;
        root.write(
            "/etc/hostname",
            format!("{}\n", config.hostname).as_bytes(),
            Attributes::root(0o644),
        )?;
    }
    root.write(
        "/etc/hosts",
        etc::hosts(&config.hostname, address).as_bytes(),
        Attributes::root(0o644),
    )?;
    if let Some(network) = config.network.as_ref().filter(|n| !n.dns.is_empty()) {
        root.write(
            "/etc/resolv.conf",
            etc::resolv_conf(&network.dns).as_bytes(),
            Attributes::root(0o644),
        )?;
    }
    if !config.machine_id.is_empty() {
        root.write(
            "/etc/machine-id",
            format!("{}\n", config.machine_id).as_bytes(),
            Attributes::root(0o444),
        )?;
    }
    Ok(())
}

/// Puts root's keys into their block of `authorized_keys`. sshd wants root as the owner, and
/// nobody else able to write.
pub fn authorized_keys(root: &Root, keys: &[String]) -> io::Result<()> {
    let home = user(root, "0").map_or_else(|_| "/root".to_owned(), |root| root.home);
    let home = if home == "/" { "/root" } else { &home };
    let path = format!("{home}/.ssh/authorized_keys");
    let existing = root.read(&path, MAX_FILE).unwrap_or_default();
    let Some(content) = etc::authorized_keys(&String::from_utf8_lossy(&existing), keys) else {
        return Ok(());
    };
    root.directory(home, 0o700)?;
    root.directory(&format!("{home}/.ssh"), 0o700)?;
    root.write(&path, content.as_bytes(), Attributes::root(0o600))
}

/// What to run, and as whom.
pub fn plan(config: &GuestConfig, root: &Root) -> Result<(Plan, User), Failure> {
    let init = INIT_PATHS.into_iter().find(|path| root.is_executable(path));
    let plan = decide(config, init).because(ExitReason::NothingToRun)?;
    let user = user(root, &config.image.user).because(ExitReason::SetupFailed)?;
    Ok((plan, user))
}

fn user(root: &Root, spec: &str) -> Result<User, users::UnknownUser> {
    let text = |path| {
        root.read(path, MAX_FILE)
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .unwrap_or_default()
    };
    find(spec, &text("/etc/passwd"), &text("/etc/group"))
}
