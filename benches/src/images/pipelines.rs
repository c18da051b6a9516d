//! The ways from a registry to a disk that are measured.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Bytes of the disk where a tool wants to be told.
const SIZE: &str = "2G";
/// The same for a program that wants a number.
const BYTES: &str = "2147483648";

/// One way from a registry to a disk.
pub struct Pipeline {
    /// For tables.
    pub name: &'static str,
    /// Whether its disk is durable when it ends.
    pub syncs: bool,
    /// Whether what it makes is a file system.
    pub makes_disk: bool,
    way: Way,
}

enum Way {
    /// A program of ours and its arguments before the reference and the output.
    Own(PathBuf, &'static [&'static str]),
    /// The program that is made of crates of others.
    Crates(PathBuf),
    /// A shell script, and the programs that it needs with their packages.
    Script(&'static str, &'static [&'static str]),
}

/// Where a run reads from and writes to.
pub struct Place<'a> {
    /// HOST:PORT/NAME:TAG
    pub reference: &'a str,
    /// An empty directory for whatever the tools keep.
    pub dir: &'a Path,
    /// The disk.
    pub output: &'a Path,
}

/// The name of the probe.
pub const FLOOR: &str = "floor (no disk)";
/// The name of the product.
pub const VMLET: &str = "vmlet";

/// All of them; the floor and vmlet first.
pub fn all(vmlet: &Path, own: &Path) -> Vec<Pipeline> {
    vec![
        Pipeline {
            name: FLOOR,
            syncs: true,
            makes_disk: false,
            way: Way::Own(own.to_owned(), &["floor", "--reference"]),
        },
        Pipeline {
            name: VMLET,
            syncs: true,
            makes_disk: true,
            way: Way::Own(vmlet.to_owned(), &["image", "build"]),
        },
        Pipeline {
            name: "oci-client + flate2 + tar + mkext4",
            syncs: false,
            makes_disk: true,
            way: Way::Crates(own.with_file_name("vmlet-bench-crates")),
        },
        Pipeline {
            name: "skopeo + umoci + mke2fs",
            syncs: false,
            makes_disk: true,
            way: Way::Script(
                r#"skopeo copy -q --src-tls-verify=false "docker://$REFERENCE" "oci:$DIR/layout:x"
                umoci unpack --image "$DIR/layout:x" "$DIR/bundle"
                mke2fs -q -t ext4 -d "$DIR/bundle/rootfs" "$OUTPUT" "$SIZE""#,
                &["skopeo", "umoci", "mke2fs"],
            ),
        },
        Pipeline {
            name: "buildah + mke2fs",
            syncs: false,
            makes_disk: true,
            way: Way::Script(
                r#"buildah --root "$DIR/root" --runroot "$DIR/run" from -q --tls-verify=false --name x "docker://$REFERENCE"
                tree=$(buildah --root "$DIR/root" --runroot "$DIR/run" mount x)
                mke2fs -q -t ext4 -d "$tree" "$OUTPUT" "$SIZE"
                buildah --root "$DIR/root" --runroot "$DIR/run" umount x"#,
                &["buildah", "mke2fs"],
            ),
        },
        Pipeline {
            name: "podman export | mke2fs",
            syncs: false,
            makes_disk: true,
            way: Way::Script(
                r#"podman --root "$DIR/root" --runroot "$DIR/run" pull -q --tls-verify=false "docker://$REFERENCE"
                podman --root "$DIR/root" --runroot "$DIR/run" create --name x "$REFERENCE"
                podman --root "$DIR/root" --runroot "$DIR/run" export x | mke2fs -q -t ext4 -d - "$OUTPUT" "$SIZE""#,
                &["podman", "mke2fs", TAR],
            ),
        },
    ]
}

/// Stands for an mke2fs that reads a tar.
const TAR: &str = "mke2fs -d -";

impl Pipeline {
    /// Why it cannot run on this machine, if it cannot.
    pub fn missing(&self) -> Option<String> {
        let needs = match &self.way {
            Way::Own(..) => return None,
            Way::Crates(program) => {
                return (!program.exists()).then(|| "it is not built (scripts/bench builds it)".into());
            }
            Way::Script(_, needs) => needs,
        };
        for need in *needs {
            if *need == TAR {
                if !mke2fs_reads_tar() {
                    return Some("this mke2fs reads no tar (e2fsprogs 1.47.1 or newer, with libarchive, does)".into());
                }
            } else if vmlet_e2e::program(need).is_none() {
                let package = if *need == "mke2fs" { "e2fsprogs" } else { need };
                return Some(format!("{need} is missing (apt-get install {package})"));
            }
        }
        // They unpack owners and devices.
        // SAFETY: a plain system call.
        (unsafe { libc::geteuid() } != 0).then(|| "it needs root".into())
    }

    /// The command for one run.
    pub fn command(&self, place: &Place<'_>) -> Command {
        match &self.way {
            Way::Own(program, words) => {
                let mut command = Command::new(program);
                command.args(*words).arg(place.reference);
                command
                    .arg(if self.makes_disk { "-o" } else { "--output" })
                    .arg(place.output);
                command
            }
            Way::Crates(program) => {
                let mut command = Command::new(program);
                command.arg(place.reference).arg(place.output).arg(BYTES);
                command
            }
            Way::Script(script, _) => {
                let mut command = Command::new("sh");
                let path = std::env::var("PATH").unwrap_or_default();
                command
                    .arg("-euc")
                    .arg(script)
                    .env("PATH", format!("{path}:/usr/sbin:/sbin"));
                command.env("REFERENCE", place.reference).env("DIR", place.dir);
                command.env("OUTPUT", place.output).env("SIZE", SIZE);
                command
            }
        }
    }
}

/// Tries it with an empty tar.
fn mke2fs_reads_tar() -> bool {
    let Ok(dir) = tempfile::tempdir() else { return false };
    let script = "head -c 10240 /dev/zero | mke2fs -q -t ext4 -d - \"$1\" 8M";
    let path = std::env::var("PATH").unwrap_or_default();
    Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(dir.path().join("disk"))
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
