//! Docker's credential helpers: programs named `docker-credential-NAME` that are told a server's name on standard input
//! and answer with a user name and a secret (the docker-credential-helpers protocol, `get`).

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::error::{Kind, PullError, Reason};
use crate::types::Credential;

/// How long a helper may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of an answer.
const MOST: u64 = 64 << 10;
/// How an answer begins that there is no login, by the protocol.
const NOT_FOUND: &[u8] = b"credentials not found";

/// One question to one helper.
#[derive(Clone, Debug)]
pub struct Helper {
    /// What follows `docker-credential-`; satisfies [`is_name`].
    pub name: String,
    /// The server's name, as logins are kept under it.
    pub server: String,
    /// Where the program is, instead of in `PATH`.
    pub dir: Option<PathBuf>,
    /// Whether it is an error if there is no such program.
    pub must: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Whether a text can be the name of a helper, and nothing else.
pub fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        && !name.starts_with('-')
}

impl Helper {
    /// Asks; `None` when it knows no login.
    ///
    /// # Errors
    /// It does not run, fails, takes too long or answers nonsense. What it wrote is never quoted.
    pub async fn get(&self) -> Result<Option<Credential>, PullError> {
        self.within(TIMEOUT).await
    }

    async fn within(&self, time: Duration) -> Result<Option<Credential>, PullError> {
        let program = format!("docker-credential-{}", self.name);
        let fail = |why: String| PullError {
            reason: Reason::Unauthorized,
            message: format!("the credential helper {program} {why}"),
            // Many ask a server themselves.
            kind: Kind::Transient { retry_after: None },
        };
        if !is_name(&self.name) {
            return Err(fail("has no name that is allowed".into()));
        }
        let path = self
            .dir
            .as_ref()
            .map_or_else(|| PathBuf::from(&program), |dir| dir.join(&program));
        let started = Command::new(path)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !self.must => {
                tracing::warn!(
                    program,
                    "the credential helper of the file with logins is not installed"
                );
                return Ok(None);
            }
            Err(error) => return Err(fail(format!("does not run: {error}; install it where PATH finds it"))),
        };
        let group = child.id();
        let asked = tokio::time::timeout(time, ask(&mut child, &self.server)).await;
        if !matches!(asked, Ok(Ok(_))) {
            end(group);
        }
        let by_hand = format!("try it by hand: echo {} | {program} get", self.server);
        let (success, answer) = match asked {
            Err(_) => return Err(fail(format!("has not answered for {} s; {by_hand}", time.as_secs()))),
            Ok(Err(error)) => return Err(fail(format!("cannot be asked: {error}; {by_hand}"))),
            Ok(Ok(answer)) => answer,
        };
        if !success && answer.starts_with(NOT_FOUND) {
            return Ok(None);
        }
        if !success {
            return Err(fail(format!("failed; {by_hand}")));
        }
        let answer: Answer =
            serde_json::from_slice(&answer).map_err(|_| fail(format!("gave an answer that is none; {by_hand}")))?;
        if answer.username.is_empty() && answer.secret.is_empty() {
            return Ok(None);
        }
        Ok(Some(Credential {
            registry: self.server.clone(),
            username: answer.username,
            password: answer.secret,
        }))
    }
}

/// Whether it ended well, and what it wrote.
async fn ask(child: &mut Child, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
    if let Some(mut to) = child.stdin.take() {
        // One that ends without reading has its reasons.
        let _ = to.write_all(server.as_bytes()).await;
    }
    let mut answer = Vec::new();
    if let Some(from) = child.stdout.take() {
        from.take(MOST + 1).read_to_end(&mut answer).await?;
    }
    if answer.len() as u64 > MOST {
        return Err(std::io::Error::other(format!("it writes more than {MOST} bytes")));
    }
    Ok((child.wait().await?.success(), answer))
}

/// Ends a helper with all that it has started.
fn end(group: Option<u32>) {
    let group = group
        .and_then(|id| i32::try_from(id).ok())
        .and_then(rustix::process::Pid::from_raw);
    if let Some(group) = group {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn helper(dir: &tempfile::TempDir, script: &str) -> Helper {
        let path = dir.path().join("docker-credential-test");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("writes");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("sets");
        Helper {
            name: "test".into(),
            server: "r.example:5000".into(),
            dir: Some(dir.path().to_owned()),
            must: true,
        }
    }

    async fn said(script: &str) -> Result<Option<Credential>, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let helper = helper(&dir, script);
        // Another test's fork may hold the script open for writing for a moment.
        loop {
            match helper.within(Duration::from_secs(20)).await {
                Err(error) if error.message.contains("Text file busy") => tokio::task::yield_now().await,
                result => return result.map_err(|error| error.message),
            }
        }
    }

    #[tokio::test]
    async fn a_helper_is_told_the_server_on_its_standard_input_and_answers() {
        let script = r#"[ "$*" = get ] || exit 3
            read -r server; printf '{"ServerURL":"%s","Username":"me","Secret":"for %s"}' "$server" "$server""#;
        let found = said(script).await.expect("answers").expect("a login");
        assert_eq!(
            (found.username.as_str(), found.password.as_str()),
            ("me", "for r.example:5000")
        );
    }

    #[tokio::test]
    async fn a_helper_that_knows_no_login_is_no_error() {
        let script = "echo 'credentials not found in native keychain'; exit 1";
        assert_eq!(said(script).await, Ok(None));
        assert_eq!(said(r#"echo '{"Username":"","Secret":""}'"#).await, Ok(None));
    }

    #[tokio::test]
    async fn a_helper_that_fails_or_answers_nonsense_or_without_end_is_told_without_its_words() {
        for script in [
            "echo hunter2; echo hunter2 >&2; exit 1",
            "echo hunter2",
            r#"echo '{"Username":"hunter2"}'"#,
            "while echo hunter2; do :; done",
        ] {
            let error = said(script).await.expect_err(script);
            assert!(
                error.contains("docker-credential-test") && !error.contains("hunter2"),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_helper_that_does_not_answer_is_ended_with_what_it_started() {
        let dir = tempfile::tempdir().expect("a directory");
        let mark = dir.path().join("children");
        let script = format!("sleep 1000 & echo $! > {0}.tmp; mv {0}.tmp {0}; wait", mark.display());
        let helper = helper(&dir, &script);
        let asking = tokio::spawn(async move {
            loop {
                match helper.within(Duration::from_secs(2)).await {
                    Err(error) if error.message.contains("Text file busy") => tokio::task::yield_now().await,
                    result => return result,
                }
            }
        });
        let error = asking.await.expect("no panic").expect_err("too late");
        assert!(error.message.contains("has not answered for 2 s"), "{error}");
        let child = std::fs::read_to_string(&mark).expect("it had begun");
        let stat = format!("/proc/{}/stat", child.trim());
        // Killed: gone, or a zombie until its new parent has looked.
        let alive = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
        while alive() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_helper_that_is_not_installed_is_an_error_where_it_is_named_for_the_host() {
        let dir = tempfile::tempdir().expect("a directory");
        let absent = Helper {
            name: "absent".into(),
            server: "r.example".into(),
            dir: Some(dir.path().to_owned()),
            must: true,
        };
        let error = absent.get().await.expect_err("not there").message;
        assert!(error.contains("docker-credential-absent does not run"), "{error}");
        let store = Helper { must: false, ..absent };
        assert_eq!(store.get().await.expect("nothing"), None);
    }

    #[test]
    fn no_name_of_a_helper_leads_to_another_program() {
        for good in ["ecr-login", "gcloud", "pass", "acr_env"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "../x", "a/b", "a b", "-x", "a.b", "x\n", "é"] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }
}
