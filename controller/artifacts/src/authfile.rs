//! The operator's own logins: a Docker configuration file, with the credential helpers that it names.
//!
//! Helpers are programs, so only a file that the operator names can ask for them; those in pull secrets never do
//! ([`docker_config`](crate::docker_config)).

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::credential_helper::{Helper, is_name};
use crate::docker_config::{DockerConfig, MAX_BYTES};
use crate::error::PullError;
use crate::reference::Reference;
use crate::types::Credential;

/// The operator's Docker configuration file. It is read again when it changes. Cheap to clone.
#[derive(Clone)]
pub struct Authfile(Arc<Inner>);

struct Inner {
    path: PathBuf,
    helpers: Option<PathBuf>,
    last: Mutex<(Stamp, Arc<DockerConfig>)>,
}

/// Tells one state of the file from another.
type Stamp = (i64, i64, u64, u64);

/// One way to log in.
pub enum Login {
    /// A user name and password.
    Given(Credential),
    /// A program that knows them.
    Helper(Helper),
}

impl Authfile {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, or is none; the message names it and never quotes it.
    pub fn read(path: &Path) -> Result<Authfile, String> {
        let last = read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Authfile(Arc::new(Inner {
            path: path.to_owned(),
            helpers: None,
            last: Mutex::new(last),
        })))
    }

    /// Looks for helpers in this directory instead of `PATH`.
    pub fn helpers_in(self, dir: &Path) -> Authfile {
        let last = self.current();
        Authfile(Arc::new(Inner {
            path: self.0.path.clone(),
            helpers: Some(dir.to_owned()),
            last: Mutex::new(last),
        }))
    }

    /// The ways to log in where an image is, in the order in which they are tried.
    pub(crate) fn logins(&self, reference: &Reference) -> Vec<Login> {
        let (_, config) = self.current();
        let helper = |name: &str, must: bool| {
            // Where Docker keeps the logins of its own hub.
            let server = match reference.registry.as_str() {
                "docker.io" => "https://index.docker.io/v1/".to_owned(),
                host => host.to_owned(),
            };
            Login::Helper(Helper {
                name: name.to_owned(),
                server,
                dir: self.0.helpers.clone(),
                must,
            })
        };
        let own = config.helpers.iter().filter(|(scope, _)| reference.is_for(scope));
        let mut logins: Vec<Login> = own.map(|(_, name)| helper(name, true)).collect();
        let given = config.credentials.iter().filter(|c| reference.is_for(&c.registry));
        logins.extend(given.cloned().map(Login::Given));
        if logins.is_empty()
            && let Some(name) = &config.store
        {
            logins.push(helper(name, false));
        }
        logins
    }

    /// The file as it is now, or as it last could be read.
    fn current(&self) -> (Stamp, Arc<DockerConfig>) {
        let mut last = self.0.last.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = stamp(&self.0.path).map_or(true, |now| now != last.0);
        if changed {
            match read(&self.0.path) {
                Ok(fresh) => *last = fresh,
                Err(error) => {
                    let file = self.0.path.display();
                    tracing::warn!(%file, error, "the file with logins cannot be read; those from before hold");
                }
            }
        }
        last.clone()
    }
}

impl fmt::Debug for Authfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Authfile").field(&self.0.path).finish()
    }
}

impl Login {
    /// What tells it from others; holds secrets.
    pub(crate) fn identity(&self) -> [&str; 4] {
        match self {
            Login::Given(c) => ["given", &c.registry, &c.username, &c.password],
            Login::Helper(helper) => ["helper", &helper.name, &helper.server, ""],
        }
    }

    /// User name and password; none where a helper knows none.
    ///
    /// # Errors
    /// The helper fails.
    pub(crate) async fn credential(&self) -> Result<Option<Credential>, PullError> {
        match self {
            Login::Given(credential) => Ok(Some(credential.clone())),
            Login::Helper(helper) => helper.get().await,
        }
    }
}

fn stamp(path: &Path) -> std::io::Result<Stamp> {
    let it = path.metadata()?;
    Ok((it.mtime(), it.mtime_nsec(), it.len(), it.ino()))
}

fn read(path: &Path) -> Result<(Stamp, Arc<DockerConfig>), String> {
    let now = stamp(path).map_err(|error| error.to_string())?;
    if now.2 > MAX_BYTES as u64 {
        return Err(format!("it is larger than {MAX_BYTES} bytes"));
    }
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let config = DockerConfig::read(&bytes)?;
    let names = config.helpers.iter().map(|(_, name)| name).chain(&config.store);
    if let Some(bad) = names.into_iter().find(|name| !is_name(name)) {
        return Err(format!(
            "{bad:.80?} is no name of a credential helper: it is what follows docker-credential- in the program's name, \
             letters, digits, - and _"
        ));
    }
    Ok((now, Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(authfile: &Authfile, reference: &str) -> Vec<String> {
        let logins = authfile.logins(&reference.parse().expect("a reference"));
        let say = |login: &Login| match login {
            Login::Given(c) => c.username.clone(),
            Login::Helper(h) => format!("{}<{}", h.name, h.server),
        };
        logins.iter().map(say).collect()
    }

    #[test]
    fn a_helper_of_the_host_comes_first_and_the_general_store_is_for_those_that_have_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("auth.json");
        let text = r#"{"credsStore":"store","credHelpers":{"*.ecr.example":"ecr-login","docker.io":"hub"},
            "auths":{"r.example":{"username":"plain","password":"p"},"a.ecr.example/team":{"username":"team","password":"p"},
            "elsewhere.example":{}}}"#;
        std::fs::write(&path, text).expect("writes");
        let authfile = Authfile::read(&path).expect("reads");
        assert_eq!(kinds(&authfile, "r.example/x"), ["plain"]);
        assert_eq!(
            kinds(&authfile, "a.ecr.example/team/x"),
            ["ecr-login<a.ecr.example", "team"]
        );
        assert_eq!(kinds(&authfile, "alpine"), ["hub<https://index.docker.io/v1/"]);
        assert_eq!(kinds(&authfile, "elsewhere.example/x"), ["store<elsewhere.example"]);
        assert!(!format!("{authfile:?}").contains("plain"));
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_broken_one_is_not_taken() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("auth.json");
        let write = |user: &str| {
            std::fs::write(
                &path,
                format!(r#"{{"auths":{{"r.example":{{"username":"{user}","password":"p"}}}}}}"#),
            )
        };
        write("first").expect("writes");
        let authfile = Authfile::read(&path).expect("reads");
        write("another").expect("writes");
        assert_eq!(kinds(&authfile, "r.example/x"), ["another"]);
        std::fs::write(&path, "{").expect("writes");
        assert_eq!(kinds(&authfile, "r.example/x"), ["another"]);
        std::fs::remove_file(&path).expect("removes");
        assert_eq!(kinds(&authfile, "r.example/x"), ["another"]);
    }

    #[test]
    fn a_helper_whose_name_could_be_another_program_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("auth.json");
        for bad in ["../../bin/sh", "a b", "", "x;y", ".hidden", "ü"] {
            let text = serde_json::json!({ "credHelpers": { "r.example": bad } });
            std::fs::write(&path, text.to_string()).expect("writes");
            let error = Authfile::read(&path).expect_err(bad);
            assert!(error.contains("auth.json") && error.contains("helper"), "{error}");
        }
    }
}
