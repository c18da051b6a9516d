//! Public keys as authorized_keys files have them (sshd(8), RFC 4253 section 6.6). Nothing here quotes a key: what
//! stands in its place by mistake may be a secret.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// The types of keys that OpenSSH takes.
const TYPES: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// People cut the padding off, and OpenSSH does not mind.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Whether a text holds a private key, of whatever kind.
pub fn is_private(text: &str) -> bool {
    text.contains("PRIVATE KEY-----") || text.contains("Private-Lines:")
}

/// Whether a line is a public key, with options before it or without.
pub fn is_public(line: &str) -> bool {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let comment = line.trim_start().starts_with('#');
    !comment
        && fields
            .windows(2)
            .any(|pair| TYPES.contains(&pair[0]) && is_key(pair[0], pair[1]))
}

/// Whether this is base64 of strings with their lengths, the type and then at least one more, and nothing else.
fn is_key(type_: &str, text: &str) -> bool {
    let Ok(blob) = BASE64.decode(text) else {
        return false;
    };
    let (mut rest, mut strings) = (blob.as_slice(), Vec::new());
    while !rest.is_empty() {
        let Some((length, after)) = rest.split_first_chunk::<4>() else {
            return false;
        };
        let Some((string, after)) = after.split_at_checked(u32::from_be_bytes(*length) as usize) else {
            return false;
        };
        strings.push(string);
        rest = after;
    }
    strings.len() > 1 && strings[0] == type_.as_bytes()
}

/// The keys in a secret's values, which are authorized_keys files, or what is wrong with them.
pub fn of_secret<'a>(values: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<Vec<String>, String> {
    let mut keys = Vec::new();
    for (name, value) in values {
        let Ok(text) = std::str::from_utf8(value) else {
            return Err(format!("holds no text under \"{name}\""));
        };
        if is_private(text) {
            return Err(format!(
                "holds a private key under \"{name}\", where the public one belongs; replace the secret"
            ));
        }
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if !is_public(line) {
                return Err(format!("holds no public key in line {number} under \"{name}\""));
            }
            keys.push(line.to_owned());
        }
    }
    if keys.is_empty() {
        Err("holds no public key".to_owned())
    } else {
        Ok(keys)
    }
}

/// What is wrong with the keys of a spec.
pub fn problem_of_spec(keys: &[String]) -> Option<String> {
    let index = keys.iter().position(|key| !is_public(key))?;
    let what = if is_private(&keys[index]) {
        "is a private key, where the public one belongs: use another pair, this one has been shown to all who read the object"
    } else {
        "is no public key: write a line of a .pub file, such as `ssh-ed25519 AAAA... name`"
    };
    Some(format!("spec.guest.sshAuthorizedKeys[{index}] {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made for this test; nobody has the other halves.
    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ4Zl3uGqYQ5tq2wzWTo9mJ3j5hS1Uz6cJ7nqkQ2yqfB";

    fn key(type_: &str, strings: &[&[u8]]) -> String {
        let mut blob = Vec::new();
        for string in std::iter::once(&type_.as_bytes()).chain(strings) {
            blob.extend((string.len() as u32).to_be_bytes());
            blob.extend(*string);
        }
        format!("{type_} {}", BASE64.encode(blob))
    }

    #[test]
    fn every_type_of_key_is_taken_with_options_and_comments() {
        for type_ in TYPES {
            assert!(is_public(&key(type_, &[b"nistp256", &[4; 65]])), "{type_}");
        }
        let options = format!("from=\"10.0.0.0/8\",command=\"echo hi\" {ED25519} me@home");
        for line in [ED25519, &format!("\t{ED25519}  me@home, and more"), &options] {
            assert!(is_public(line), "{line}");
        }
        let unpadded = key("ssh-rsa", &[&[1, 0, 1], &[9; 256]]);
        assert!(is_public(unpadded.trim_end_matches('=')));
    }

    #[test]
    fn what_is_no_key_is_not_taken() {
        let cut = &ED25519[..ED25519.len() - 4];
        let other = ED25519.replace("ssh-ed25519", "ssh-rsa");
        let commented = format!("# {ED25519}");
        for line in [
            "",
            "hello world",
            "ssh-ed25519",
            "ssh-ed25519 AAAA me",
            "ssh-ed25519 hello",
            "-----BEGIN OPENSSH PRIVATE KEY-----",
            &key("ssh-ed25519", &[]),
            &key("ssh-made-up", &[&[1; 32]]),
            cut,
            &other,
            &commented,
        ] {
            assert!(!is_public(line), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_secret_is_told_without_a_word_of_it() {
        let of = |value: &str| of_secret([("id", value.as_bytes())].into_iter());
        assert_eq!(of(&format!("# mine\n\n{ED25519}\r\n")), Ok(vec![ED25519.to_owned()]));
        let wrong = of(&format!("{ED25519}\nhello world\n"));
        assert_eq!(wrong, Err("holds no public key in line 2 under \"id\"".to_owned()));
        for private in [
            "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n",
            "PuTTY-User-Key-File-3: ssh-ed25519\nPrivate-Lines: 1\nb3Bl\n",
        ] {
            let told = of(private).expect_err("refused");
            assert!(
                told.contains("private key under \"id\"") && told.contains("replace"),
                "{told}"
            );
            assert!(!told.contains("b3Bl"), "{told}");
        }
        assert_eq!(of("# none\n"), Err("holds no public key".to_owned()));
    }

    #[test]
    fn what_is_wrong_with_a_key_of_the_spec_is_told_with_its_place() {
        let keys = |second: &str| problem_of_spec(&[ED25519.to_owned(), second.to_owned()]);
        assert_eq!(keys(ED25519), None);
        let told = keys("hello world").expect("wrong");
        assert!(
            told.starts_with("spec.guest.sshAuthorizedKeys[1] is no public key"),
            "{told}"
        );
        let told = keys("-----BEGIN OPENSSH PRIVATE KEY-----").expect("wrong");
        assert!(
            told.starts_with("spec.guest.sshAuthorizedKeys[1] is a private key"),
            "{told}"
        );
    }
}
