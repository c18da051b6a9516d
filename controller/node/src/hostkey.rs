//! The guest's ssh host key: one ed25519 key per VM, in the files that OpenSSH and dropbear read.
//! Formats: OpenSSH's PROTOCOL.key, RFC 8709, dropbear's own private key blob.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use vmlet_init::config::{Content, GuestFile};

const ALGORITHM: &[u8] = b"ssh-ed25519";

/// A new seed, base64. `None` when the system has no randomness to give.
pub fn new_seed() -> Option<String> {
    let mut seed = [0_u8; 32];
    SystemRandom::new().fill(&mut seed).ok()?;
    Some(STANDARD.encode(seed))
}

/// Where the guest finds the private half.
const PRIVATE: [&str; 2] = [
    "/etc/ssh/ssh_host_ed25519_key",
    "/etc/dropbear/dropbear_ed25519_host_key",
];

/// The public half, as a known_hosts file has it behind the name of the host. `None` when the seed is damaged,
/// and when the user's own `files` replace the key.
pub fn public<'a>(seed: &str, files: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let replaced = files.into_iter().any(|path| PRIVATE.contains(&path));
    let made = (!replaced).then(|| self::files(seed)).flatten()?;
    let public = made.iter().find(|file| file.path.ends_with(".pub"))?;
    Some(String::from_utf8_lossy(&public.content.0).trim().to_owned())
}

/// The host key files for a seed. `None` when the seed is damaged.
pub fn files(seed: &str) -> Option<Vec<GuestFile>> {
    let seed: [u8; 32] = STANDARD.decode(seed).ok()?.try_into().ok()?;
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).ok()?;
    let public = pair.public_key().as_ref();
    let mut both = seed.to_vec();
    both.extend_from_slice(public);

    let mut blob = Vec::new();
    string(&mut blob, ALGORITHM);
    string(&mut blob, public);

    let mut secret = vec![0; 8]; // two equal check words
    string(&mut secret, ALGORITHM);
    string(&mut secret, public);
    string(&mut secret, &both);
    string(&mut secret, b"");
    let padding = (1_u8..).take((8 - secret.len() % 8) % 8);
    secret.extend(padding);

    let mut key = b"openssh-key-v1\0".to_vec();
    string(&mut key, b"none");
    string(&mut key, b"none");
    string(&mut key, b"");
    key.extend_from_slice(&1_u32.to_be_bytes());
    string(&mut key, &blob);
    string(&mut key, &secret);
    let lines: Vec<String> = STANDARD
        .encode(key)
        .as_bytes()
        .chunks(70)
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect();
    let pem = format!(
        "-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----\n",
        lines.join("\n")
    );

    let mut dropbear = Vec::new();
    string(&mut dropbear, ALGORITHM);
    string(&mut dropbear, &both);

    let file = |path: &str, content: Vec<u8>, mode| GuestFile {
        path: path.to_owned(),
        content: Content(content),
        mode,
        uid: 0,
        gid: 0,
    };
    Some(vec![
        file(PRIVATE[0], pem.into_bytes(), 0o600),
        file(
            "/etc/ssh/ssh_host_ed25519_key.pub",
            format!("ssh-ed25519 {}\n", STANDARD.encode(blob)).into_bytes(),
            0o644,
        ),
        file(PRIVATE[1], dropbear, 0o600),
    ])
}

fn string(out: &mut Vec<u8>, value: &[u8]) {
    out.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_key_whose_public_half_ssh_keygen_agrees_with() {
        let seed = STANDARD.encode([7_u8; 32]);
        let made = files(&seed).expect("a sound seed");
        assert_eq!(made, files(&seed).expect("a sound seed"));
        assert!(files("damaged").is_none());

        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("key");
        std::fs::write(&path, &made[0].content.0).expect("writes");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
        match std::process::Command::new("ssh-keygen")
            .arg("-y")
            .arg("-f")
            .arg(&path)
            .output()
        {
            Ok(output) => {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                assert_eq!(
                    String::from_utf8_lossy(&output.stdout).trim(),
                    String::from_utf8_lossy(&made[1].content.0).trim()
                );
            }
            Err(_) => println!("skipped the comparison: ssh-keygen is not installed"),
        }
    }

    #[test]
    fn the_public_half_is_told_unless_the_user_replaces_the_key() {
        let seed = STANDARD.encode([7_u8; 32]);
        let told = public(&seed, ["/etc/motd"]).expect("a sound seed");
        assert_eq!(
            format!("{told}\n").into_bytes(),
            files(&seed).expect("a sound seed")[1].content.0
        );
        assert_eq!(public(&seed, ["/etc/motd", "/etc/ssh/ssh_host_ed25519_key"]), None);
        assert_eq!(public("damaged", []), None);
    }

    #[test]
    fn two_seeds_differ() {
        assert_ne!(new_seed(), new_seed());
    }
}
