//! The configuration that travels to the guest in a second cpio behind the shared initrd.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where the guest finds its configuration, from the root of the initrd.
pub const CONFIG_PATH: &str = "vmlet/config.json";

/// The longest configuration that either side accepts, in bytes.
pub const MAX_CONFIG: usize = 16 << 20;

/// All that a guest is told by its host. Serialised as JSON at [`CONFIG_PATH`].
///
/// `Debug` shows no value of an environment variable and no content of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GuestConfig {
    /// Set as the kernel's host name and written to `/etc/hostname` and `/etc/hosts`. Empty: left alone.
    pub hostname: String,
    /// Which init the guest boots.
    pub init: InitMode,
    /// What the image says about the process to run.
    pub image: ImageProcess,
    /// Replaces the image's entrypoint *and* drops its cmd, as `command` of a Pod does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Replaces the image's cmd, as `args` of a Pod does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Added to (and winning over) the image's environment, in order.
    pub env: Vec<EnvVar>,
    /// Static addresses of the first network interface. None: only loopback comes up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// 32 lower-case hex digits for `/etc/machine-id`. Empty: left alone.
    pub machine_id: String,
    /// Lines for root's `authorized_keys`. They form a block of their own; other lines stay.
    pub authorized_keys: Vec<String>,
    /// Files written into the root before anything of the image runs (ssh host keys among them).
    pub files: Vec<GuestFile>,
    /// Virtio serial of the root disk.
    pub root_serial: String,
    /// Virtio serial of the disk that becomes `/lib/modules/<version>`, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modules_serial: Option<String>,
    /// Whether the root file system is grown to the size of its disk.
    pub grow_root: bool,
}

/// Which init the guest boots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum InitMode {
    /// The image's own init when its entrypoint names one, or when it has nothing else to run;
    /// the entrypoint otherwise.
    #[default]
    Auto,
    /// The image's own init.
    Image,
    /// Entrypoint and cmd, supervised by `vmlet-init`.
    Entrypoint,
}

/// The process part of an OCI image configuration.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageProcess {
    /// OCI `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// OCI `Cmd`.
    pub cmd: Vec<String>,
    /// OCI `Env`: `NAME=value`.
    pub env: Vec<String>,
    /// OCI `User`: `user`, `uid`, `user:group`, `uid:gid` and mixtures. Empty: root.
    pub user: String,
    /// OCI `WorkingDir`. Empty: `/`.
    pub working_dir: String,
    /// OCI `StopSignal`, as a name (`SIGTERM`) or a number. Empty: SIGTERM.
    pub stop_signal: String,
}

impl fmt::Debug for ImageProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.env.iter().map(|e| e.split('=').next().unwrap_or("")).collect();
        f.debug_struct("ImageProcess")
            .field("entrypoint", &self.entrypoint)
            .field("cmd", &self.cmd)
            .field("env", &names)
            .field("user", &self.user)
            .field("working_dir", &self.working_dir)
            .field("stop_signal", &self.stop_signal)
            .finish()
    }
}

/// One environment variable.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Its name.
    pub name: String,
    /// Its value; `$(NAME)` of an earlier variable is expanded as in a Pod.
    #[serde(default)]
    pub value: String,
}

impl fmt::Debug for EnvVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=<{} bytes>", self.name, self.value.len())
    }
}

/// Static IPv4 configuration of the first interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Network {
    /// Address and prefix length: `10.0.2.15/24`.
    pub address: String,
    /// Default gateway. None: no default route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Name servers for `/etc/resolv.conf`. Empty: the image's file stays.
    pub dns: Vec<String>,
}

/// One file to write into the guest's root.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestFile {
    /// Absolute path in the guest. Missing parents are made (0755, root).
    pub path: String,
    /// The bytes (base64 in JSON).
    pub content: Content,
    /// Permission bits.
    #[serde(default = "default_mode")]
    pub mode: u32,
    /// Owner.
    #[serde(default)]
    pub uid: u32,
    /// Group.
    #[serde(default)]
    pub gid: u32,
}

impl fmt::Debug for GuestFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestFile")
            .field("path", &self.path)
            .field("content", &self.content)
            .field("mode", &format_args!("{:o}", self.mode))
            .field("uid", &self.uid)
            .field("gid", &self.gid)
            .finish()
    }
}

fn default_mode() -> u32 {
    0o644
}

/// Bytes that are base64 in JSON and only a length in `Debug`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Content(pub Vec<u8>);

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Content, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD
            .decode(text)
            .map(Content)
            .map_err(|_| serde::de::Error::custom("content is not base64"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GuestConfig {
        GuestConfig {
            hostname: "web".into(),
            env: vec![EnvVar {
                name: "TOKEN".into(),
                value: "hunter2".into(),
            }],
            image: ImageProcess {
                env: vec!["PASSWORD=hunter2".into()],
                ..ImageProcess::default()
            },
            files: vec![GuestFile {
                path: "/etc/ssh/ssh_host_ed25519_key".into(),
                content: Content(b"hunter2".to_vec()),
                mode: 0o600,
                uid: 0,
                gid: 0,
            }],
            ..GuestConfig::default()
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let text = format!("{:?}", config());
        assert!(!text.contains("hunter2"), "{text}");
        assert!(!text.contains(&format!("{:?}", b"hunter2")), "{text}");
        assert!(text.contains("TOKEN") && text.contains("PASSWORD"), "{text}");
    }

    #[test]
    fn json_survives_the_round_trip() {
        let json = serde_json::to_string(&config()).expect("serialises");
        assert!(json.contains("\"content\":\"aHVudGVyMg==\""), "{json}");
        assert_eq!(serde_json::from_str::<GuestConfig>(&json).expect("parses"), config());
    }

    #[test]
    fn an_empty_object_is_a_whole_configuration() {
        assert_eq!(
            serde_json::from_str::<GuestConfig>("{}").expect("parses"),
            GuestConfig::default()
        );
    }
}
